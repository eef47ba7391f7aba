// Vmtest boots Linux kernels in virtual machines, runs the selftests and the package's tests
// there, and prints the result of each test on each kernel.
//
//	vmtest [-arch ARCH] [-j N] INITRAMFS KERNEL...
//
// The initramfs has this program as its /init, and the tests. See guest.go.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// A machine is a computer that qemu emulates.
type machine struct {
	qemu    string
	args    []string
	cpu     string // without KVM
	console string
}

var machines = map[string]machine{
	"amd64": {qemu: "qemu-system-x86_64", cpu: "max", console: "ttyS0"},
	"arm64": {qemu: "qemu-system-aarch64", args: []string{"-machine", "virt"}, cpu: "neoverse-n1",
		console: "ttyAMA0"},
}

const (
	bootTimeout = 20 * time.Second // to find out whether KVM works
	testTimeout = 20 * time.Minute
)

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	arch := flag.String("arch", runtime.GOARCH, "`architecture` of the kernels")
	jobs := flag.Int("j", 1, "`number` of machines that run at once")
	flag.Parse()
	if flag.NArg() < 2 {
		fmt.Fprintln(os.Stderr, "usage: vmtest [-arch ARCH] INITRAMFS KERNEL...")
		os.Exit(2)
	}
	if err := run(*arch, *jobs, flag.Arg(0), flag.Args()[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		os.Exit(1)
	}
}

func run(arch string, jobs int, initramfs string, kernels []string) error {
	m, ok := machines[arch]
	if !ok {
		return fmt.Errorf("unknown architecture %q", arch)
	}
	how, accel := "emulated", []string{"-accel", "tcg,thread=multi", "-cpu", m.cpu}
	if kvm := []string{"-accel", "kvm", "-cpu", "host"}; arch == runtime.GOARCH &&
		m.boots(kvm, initramfs, kernels[0]) {
		how, accel = "KVM", kvm
	}
	t := make(table, len(kernels))
	var running sync.WaitGroup
	free := make(chan struct{}, max(jobs, 1))
	for i, kernel := range kernels {
		free <- struct{}{}
		running.Add(1)
		go func() {
			defer running.Done()
			t[i] = m.test(how, accel, initramfs, kernel)
			<-free
		}()
	}
	running.Wait()
	return t.print(os.Stdout)
}

// test runs the tests on one kernel, and prints the results.
func (m machine) test(how string, accel []string, initramfs, kernel string) column {
	name := nameOf(kernel)
	fmt.Printf("Linux %s (%s), see %s\n", name, how, consoleFile(initramfs, name))
	start := time.Now()
	console, err := m.boot(testTimeout, accel, name, initramfs, kernel)
	// An emulated processor may not see at once that another one has replaced an instruction.
	// Kernels do that while they boot, and then fail with "Oops: int3". So try again.
	for range 2 {
		if err == nil || strings.Contains(console, releaseMark) ||
			!strings.Contains(console, "Oops: int3") {
			break
		}
		fmt.Printf("Linux %s: the emulated processor failed while it booted: once more\n", name)
		console, err = m.boot(testTimeout, accel, name, initramfs, kernel)
	}
	r := resultsOf(console, err)
	fmt.Printf("Linux %s: %s, in %.0f s\n", name, r, time.Since(start).Seconds())
	if r.failed() {
		fmt.Printf("--- console of Linux %s\n%s\n--- end of console: %v\n", name, console, r.err)
	}
	return column{name, r}
}

// nameOf returns 5.10.0-32 for vmlinuz-5.10.0-32-cloud-amd64, and a-bzImage for ./a/bzImage.
func nameOf(kernel string) string {
	name, ok := strings.CutPrefix(filepath.Base(kernel), "vmlinuz-")
	if !ok {
		name = strings.Trim(strings.ReplaceAll(filepath.Clean(kernel), "/", "-"), ".-")
	}
	name, _, _ = strings.Cut(name, "+deb")
	name, _, _ = strings.Cut(name, "-cloud")
	return name
}

func consoleFile(initramfs, name string) string {
	return filepath.Join(filepath.Dir(initramfs), "console-"+name)
}

// boots reports whether the machine boots with this acceleration. It is not enough that
// /dev/kvm can be opened.
func (m machine) boots(accel []string, initramfs, kernel string) bool {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return false
	}
	_, err := m.boot(bootTimeout, accel, "kvm", initramfs, kernel, probeParameter)
	if err != nil {
		fmt.Printf("/dev/kvm does not work (%v, see %s): the processor is emulated, which takes "+
			"minutes\n", err, consoleFile(initramfs, "kvm"))
	}
	return err == nil
}

// boot boots a kernel and returns its console output. It fails unless the kernel ends by itself
// after the guest is done.
func (m machine) boot(timeout time.Duration, accel []string, name, initramfs, kernel string,
	parameters ...string) (console string, err error) {
	// Write to a file, so that users can watch.
	log, err := os.Create(consoleFile(initramfs, name))
	if err != nil {
		return "", err
	}
	defer log.Close()
	parameters = append(parameters, "console="+m.console, "loglevel=1", "oops=panic", "panic=-1")
	args := slices.Concat(m.args, accel, []string{
		"-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs, "-append", strings.Join(parameters, " "),
	})
	cmd := exec.Command(m.qemu, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	end := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // qemu is killed when this thread ends
		end <- cmd.Run()
	}()
	select {
	case err = <-end:
	case <-time.After(timeout):
		// If KVM hangs, qemu may not end even then.
		if cmd.Process != nil {
			cmd.Process.Kill()
		}
		err = fmt.Errorf("no end after %v", timeout)
	}
	out, readErr := os.ReadFile(log.Name())
	console = strings.ReplaceAll(string(out), "\r", "")
	if err == nil {
		err = readErr
	}
	if err == nil && !strings.Contains(console, doneMark) {
		err = errors.New("the kernel ended before the tests did, if it is one for this machine")
	}
	return console, err
}

// results are the results of the tests on one kernel.
type results struct {
	release  version
	verdicts map[string]verdict // by the name of the test
	err      error
}

// A version is the version of a kernel, or the version that a test needs.
type version struct{ major, minor int }

// versionAfter returns the version that follows mark in text.
func versionAfter(text, mark string) (v version, ok bool) {
	_, after, _ := strings.Cut(text, mark)
	n, _ := fmt.Sscanf(after, "%d.%d", &v.major, &v.minor)
	return v, n == 2
}

func (v version) atLeast(w version) bool {
	return v.major > w.major || v.major == w.major && v.minor >= w.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// A verdict has the Action of test2json, and the output if the action is not "pass".
type verdict struct{ action, output string }

// A test that needs a newer kernel says so with these words and the version when it is skipped.
const needsMark = "needs Linux "

// unended is the verdict of a test that began and did not end.
var unended = verdict{"fail", "it did not end"}

func resultsOf(console string, err error) results {
	r := results{verdicts: make(map[string]verdict), err: err}
	var ok bool
	if r.release, ok = versionAfter(console, releaseMark); !ok {
		r.err = errors.Join(r.err, errors.New("the guest did not say which kernel it runs on"))
	}
	for _, c := range commands {
		_, output, ok := strings.Cut(console, beginMark+c.name+"\n")
		if !ok {
			r.err = errors.Join(r.err, fmt.Errorf("%s did not start", c.name))
			continue
		}
		output, status, _ := strings.Cut(output, endMark+c.name+": ")
		if !strings.HasPrefix(status, "ok\n") {
			line, _, _ := strings.Cut(status, "\n")
			r.err = errors.Join(r.err, fmt.Errorf("%s failed: %s", c.name, line))
		}
		n := len(r.verdicts)
		if err := r.add(c.prefix, output); err != nil {
			r.err = errors.Join(r.err, err)
		}
		if len(r.verdicts) == n {
			r.err = errors.Join(r.err, fmt.Errorf("%s ran no test", c.name))
		}
	}
	return r
}

// add adds the output of a command, in the format of go test -v.
func (r results) add(prefix, output string) error {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = strings.NewReader(output)
	cmd.Stderr = os.Stderr
	events, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go tool test2json: %w", err)
	}
	outputs := make(map[string]string)
	defer func() {
		for name, v := range r.verdicts {
			if v == unended {
				// The output includes the stacks of all goroutines if the test took too long.
				said := outputs[strings.TrimPrefix(name, prefix)]
				v.output += said[:min(len(said), 4000)]
				r.verdicts[name] = v
			}
		}
	}()
	for d := json.NewDecoder(bytes.NewReader(events)); ; {
		var e struct{ Action, Test, Output string }
		if err := d.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("go tool test2json: %w", err)
		}
		switch line := strings.TrimSpace(e.Output); {
		case e.Test == "":
		case e.Action == "run":
			r.verdicts[prefix+e.Test] = unended
		case e.Action == "pass" || e.Action == "fail" || e.Action == "skip":
			r.verdicts[prefix+e.Test] = verdict{e.Action, strings.TrimPrefix(outputs[e.Test], "; ")}
		case line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- "):
			outputs[e.Test] += "; " + line
		}
	}
}

func (r results) count(action string) (n int) {
	for name, v := range r.verdicts {
		if v.action == action && !strings.Contains(name, "/") {
			n++
		}
	}
	return n
}

func (r results) failed() bool { return r.err != nil || r.count("fail") > 0 }

func (r results) String() string {
	s := fmt.Sprintf("%d passed", r.count("pass"))
	if n := r.count("skip"); n > 0 {
		s += fmt.Sprintf(", %d skipped", n)
	}
	if n := r.count("fail"); n > 0 {
		s += fmt.Sprintf(", %d FAILED", n)
	}
	if r.err != nil {
		s += ", FAILED"
	}
	return s
}

type column struct {
	kernel string
	results
}

type table []column

// wronglySkipped returns an error if a test was skipped on a kernel that is new enough for it,
// according to the test. It also returns an error if a test does not say what it needs, and ran
// on none of several kernels.
func (t table) wronglySkipped(name string) error {
	ran, unexplained := false, false
	for _, c := range t {
		v := c.verdicts[name]
		needed, explained := versionAfter(v.output, needsMark)
		switch {
		case v.action == "pass" || v.action == "fail":
			ran = true
		case !explained:
			unexplained = true
		case c.release.atLeast(needed):
			return fmt.Errorf("%s was skipped on Linux %s, although it needs %v", name, c.kernel, needed)
		}
	}
	if len(t) > 1 && unexplained && !ran {
		return fmt.Errorf("%s ran on no kernel", name)
	}
	return nil
}

// print prints the table, without the package's tests that passed everywhere, and the reasons
// of the others. It returns an error if a test failed, or was skipped where it could have run.
func (t table) print(out io.Writer) error {
	names := make(map[string]bool)
	for _, c := range t {
		for name := range c.verdicts {
			names[name] = true
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, cell func(column) string) {
		fmt.Fprint(w, name)
		for _, c := range t {
			fmt.Fprint(w, "\t", cell(c))
		}
		fmt.Fprintln(w)
	}
	var reasons strings.Builder
	var failures []error
	row("\ntest", func(c column) string { return c.kernel })
	others := 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var actions []string
		for _, c := range t {
			v := c.verdicts[name]
			actions = append(actions, v.action)
			if v.action == "skip" || v.action == "fail" {
				fmt.Fprintf(&reasons, "%s on %s: %s: %s\n", name, c.kernel, v.action, v.output)
			}
		}
		same := len(slices.Compact(slices.Clone(actions))) == 1
		if err := t.wronglySkipped(name); err != nil {
			failures = append(failures, err)
		}
		if same && actions[0] == "pass" && !strings.HasPrefix(name, selftestPrefix) {
			if !strings.Contains(name, "/") {
				others++
			}
			continue
		}
		row(name, func(c column) string { return cmp.Or(c.verdicts[name].action, "-") })
	}
	if others > 0 {
		row(fmt.Sprintf("%d other tests", others), func(column) string { return "pass" })
	}
	row("all", func(c column) string {
		if c.failed() {
			failures = append(failures, fmt.Errorf("tests failed on Linux %s", c.kernel))
			return "FAILED"
		}
		return "ok"
	})
	w.Flush()
	fmt.Fprint(out, "\n", reasons.String())
	return errors.Join(failures...)
}
