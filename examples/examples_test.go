// Package examples_test runs the examples as users would: copied out of this repository, each
// into a module of its own.
package examples_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// timeout is when an example gets SIGQUIT. The stacks that it then prints show what it waits
// for.
const timeout = time.Minute

var programs string // the directory of the built examples

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (code int, err error) {
	if programs, err = os.MkdirTemp("", ""); err != nil {
		return 0, err
	}
	defer os.RemoveAll(programs)
	mains, err := filepath.Glob("*/main.go")
	if err != nil {
		return 0, err
	}
	for _, main := range mains {
		name := filepath.Dir(main)
		if err := buildCopy(name, filepath.Join(programs, "modules", name)); err != nil {
			return 0, fmt.Errorf("copy of example %s: %w", name, err)
		}
	}
	return m.Run(), nil
}

// buildCopy copies an example to dir, makes it a module with the requirements of this one, and
// builds it. It builds the BPF program with the command in README.md.
func buildCopy(name, dir string) error {
	checkout, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		return err
	}
	sums, err := os.ReadFile("../go.sum")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(mod), "\n")
	err = errors.Join(
		os.CopyFS(dir, os.DirFS(name)),
		os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o644),
		os.WriteFile(filepath.Join(dir, "go.mod"), fmt.Appendf(nil, `module example.com/%s
%s
require github.com/libbpfgo/ringbuf v0.0.0

replace github.com/libbpfgo/ringbuf => %s
`, name, rest, checkout), 0o644))
	if err != nil {
		return err
	}
	clang := strings.Fields("clang -g -O2 -target bpf " + os.Getenv("CGO_CFLAGS") + " -I" + checkout +
		"/bpf")
	if triplet, err := exec.Command("cc", "-print-multiarch").Output(); err == nil {
		clang = append(clang, "-idirafter", "/usr/include/"+strings.TrimSpace(string(triplet)))
	}
	for _, args := range [][]string{
		append(clang, "-c", name+".bpf.c", "-o", name+".bpf.o"),
		{"go", "build", "-buildvcs=false", "-o", filepath.Join(programs, name), "."},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// TestLoadObjectIsTheSameEverywhere exists because the examples share no package.
func TestLoadObjectIsTheSameEverywhere(t *testing.T) {
	copies, err := filepath.Glob("*/object.go")
	if err != nil {
		t.Fatal(err)
	}
	inMigration, err := filepath.Glob("migration/*/object.go")
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	for i, path := range append(copies, inMigration...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = text
		}
		if !bytes.Equal(text, first) {
			t.Errorf("%s differs from %s", path, copies[0])
		}
	}
}

// An example is an example program that runs.
type example struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Writer
	stdout *bufio.Scanner
	stderr bytes.Buffer
}

// start starts an example, and waits until it prints its first line.
func start(t *testing.T, first, name string, args ...string) *example {
	t.Helper()
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	e := &example{t: t, cmd: exec.CommandContext(ctx, filepath.Join(programs, name), args...)}
	e.cmd.Stderr = &e.stderr
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	e.cmd.Cancel = func() error { return syscall.Kill(-e.cmd.Process.Pid, syscall.SIGQUIT) }
	e.cmd.WaitDelay = 5 * time.Second
	stdout, err := e.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if e.stdin, err = e.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL)
	})
	e.stdout = bufio.NewScanner(stdout)
	e.want(first)
	return e
}

// want reads the output of the example until a line that matches pattern. Fields in the line
// are separated by single spaces.
func (e *example) want(pattern string) {
	e.t.Helper()
	re := regexp.MustCompile("^" + pattern + "$")
	var got []string
	for e.stdout.Scan() {
		line := strings.Join(strings.Fields(e.stdout.Text()), " ")
		if re.MatchString(line) {
			return
		}
		got = append(got, line)
	}
	e.t.Fatalf("no line of %q matches %s: %v\n%s", got, re, e.cmd.Wait(), &e.stderr)
}

// wantEnd waits until the example has ended. The rest of its output may only be lines that
// match pattern.
func (e *example) wantEnd(pattern string) {
	e.t.Helper()
	re := regexp.MustCompile("^" + pattern + "$")
	for e.stdout.Scan() {
		if line := strings.Join(strings.Fields(e.stdout.Text()), " "); pattern == "" ||
			!re.MatchString(line) {
			e.t.Errorf("printed after the last line: %q", line)
		}
	}
	if err := e.cmd.Wait(); err != nil || e.stderr.Len() > 0 {
		e.t.Errorf("ended with %v\n%s", err, &e.stderr)
	}
}

// interrupt does what Ctrl-C does: it sends the signal to all processes of the example.
func (e *example) interrupt() {
	e.t.Helper()
	if err := syscall.Kill(-e.cmd.Process.Pid, syscall.SIGINT); err != nil {
		e.t.Fatal(err)
	}
}

// pidPattern matches the number of a process in the initial PID namespace.
func pidPattern(t *testing.T, pid int) string {
	t.Helper()
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	if namespace != "pid:[4026531836]" { // PROC_PID_INIT_INO in include/linux/proc_ns.h
		return `\d+`
	}
	return strconv.Itoa(pid)
}

// execute executes a program and returns it.
func execute(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestExecsnoop(t *testing.T) {
	e := start(t, "TIME PID PPID UID COMM FILENAME", "execsnoop")
	cmd := execute(t)
	e.want(fmt.Sprintf(`[\d:.]+ %s %s %d true %s`, pidPattern(t, cmd.Process.Pid),
		pidPattern(t, os.Getpid()), os.Getuid(), regexp.QuoteMeta(cmd.Path)))
	e.interrupt()
	e.want(`[1-9]\d* programs seen, 0 lost`)
	e.wantEnd("")
}

const tcpconnectHeader = "TIME PID COMM FAMILY DESTINATION"

// listen listens on a free port.
func listen(addr string) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(addr, "0"))
}

// connect makes a TCP connection to a listener, and closes both.
func connect(t *testing.T, listener net.Listener) {
	t.Helper()
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestTcpconnect(t *testing.T) {
	e := start(t, tcpconnectHeader, "tcpconnect")
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ family, addr string }{{"IPv4", "127.0.0.1"}, {"IPv6", "::1"}} {
		listener, err := listen(tt.addr)
		if err != nil && tt.family == "IPv6" {
			t.Log("without IPv6:", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		connect(t, listener)
		e.want(fmt.Sprintf(`[\d:.]+ %s %s %s %s`, pidPattern(t, os.Getpid()),
			regexp.QuoteMeta(strings.TrimSpace(string(comm))),
			tt.family, regexp.QuoteMeta(listener.Addr().String())))
	}
	e.interrupt()
	e.want(`[1-9]\d* connections seen, 0 lost`)
	e.wantEnd("")
}

func TestTcpconnectEndsByItself(t *testing.T) {
	e := start(t, tcpconnectHeader, "tcpconnect", "-n", "1")
	listener, err := listen("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	connect(t, listener)
	e.want("1 connections seen, 0 lost")
	e.wantEnd("")
}

const shardedHeader = `LOST DRAINS WAKEUPS TICKS FULLEST CPU0( CPU\d+)*`

type cpuSet [8192 / 64]uint64 // large enough for any kernel

// call calls sched_getaffinity(2) or sched_setaffinity(2) for this thread.
func (s *cpuSet) call(t *testing.T, trap uintptr) {
	t.Helper()
	// SAFETY: the kernel accesses s during the call only.
	if _, _, errno := syscall.RawSyscall(trap, 0, unsafe.Sizeof(*s),
		uintptr(unsafe.Pointer(s))); errno != 0 {
		t.Errorf("affinity: %v", errno)
	}
}

// callOn makes system calls on one of this process's CPUs until ctx is done. The thread must
// not end with its goroutine: if it is the one that started the example, the example would be
// killed.
func callOn(ctx context.Context, t *testing.T, cpu int, own cpuSet) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var only cpuSet
	only[cpu/64] = 1 << (cpu % 64)
	only.call(t, syscall.SYS_SCHED_SETAFFINITY)
	defer own.call(t, syscall.SYS_SCHED_SETAFFINITY)
	for ctx.Err() == nil {
		syscall.Getppid()
	}
}

func TestSharded(t *testing.T) {
	e := start(t, shardedHeader, "sharded")
	var own cpuSet
	own.call(t, syscall.SYS_SCHED_GETAFFINITY)
	for cpu := range 64 * len(own) {
		if own[cpu/64]>>(cpu%64)&1 == 0 {
			continue
		}
		ctx, stop := context.WithCancel(t.Context())
		go callOn(ctx, t, cpu, own)
		// At least 100,000: nobody else makes that many.
		e.want(fmt.Sprintf(`(\d+ ){5}%% (\d+ ){%d}\d{6,}( \d+)*`, cpu))
		stop()
	}
	e.interrupt()
	e.wantEnd("")
}

func TestShardedEndsByItself(t *testing.T) {
	e := start(t, shardedHeader, "sharded", "-n", "1")
	e.want(`(\d+ ){5}%( \d+)+`)
	e.wantEnd("")
}

func TestFlightrecorder(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	self := pidPattern(t, os.Getpid())
	if self == `\d+` {
		t.Skip("in a PID namespace of its own this process does not know what the kernel calls it")
	}
	ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, "try", 0, 0, os.Getpagesize(),
		&bpf.BPFMapCreateOpts{MapFlags: 1 << 19})
	if errors.Is(err, syscall.EINVAL) {
		out, err := exec.Command(filepath.Join(programs, "flightrecorder"), "-p", self).CombinedOutput()
		want := "flightrecorder: this kernel has no ring buffers in overwrite mode: it takes Linux 6.19\n"
		if err == nil || string(out) != want {
			t.Errorf("it printed %q, %v, want %q", out, err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	syscall.Close(ring.FileDescriptor())
	e := start(t, "recording process .*", "flightrecorder", "-p", self, "-n", "1000000")
	syscall.Getppid()
	if err := e.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	e.want(`\d+ of \d+ system calls that are in the ring:`)
	e.want(fmt.Sprintf(`\S+ \d+ .* %d`, syscall.SYS_GETPPID))
}

func TestCommand(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	const userRingbuf = 31           // BPF_MAP_TYPE_USER_RINGBUF
	m, err := bpf.CreateMap(userRingbuf, "try", 0, 0, os.Getpagesize(), nil)
	if errors.Is(err, syscall.EINVAL) {
		out, err := exec.Command(filepath.Join(programs, "command")).CombinedOutput()
		want := "command: this kernel has no user ring buffers: it takes Linux 6.1\n"
		if err == nil || string(out) != want {
			t.Errorf("it printed %q, %v, want %q", out, err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	syscall.Close(m.FileDescriptor())
	e := start(t, "all programs: .*", "command")
	send := func(command string) {
		t.Helper()
		if _, err := io.WriteString(e.stdin, command+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	e.want(pidPattern(t, execute(t).Process.Pid) + " true")
	send("tru")
	e.want(`command 1: from here on only tru\*`)
	e.want(pidPattern(t, execute(t).Process.Pid) + " true")
	send("nobody-is-called")
	e.want(`command 2: from here on only nobody-is-called\*`)
	execute(t)
	send("")
	if !e.stdout.Scan() || e.stdout.Text() != "command 3: from here on only *" {
		t.Errorf("after the second command it printed %q", e.stdout.Text())
	}
	e.want(pidPattern(t, execute(t).Process.Pid) + " true")
	e.interrupt()
	e.wantEnd(`\d+ .+`) // programs that others execute meanwhile
}

// unprivileged is what the reader of privsep prints about itself.
const unprivileged = "Uid: 65534 65534 65534 65534, Gid: 65534 65534 65534 65534, Groups: , " +
	"CapPrm: 0{16}, CapEff: 0{16}, NoNewPrivs: 1"

func TestPrivsep(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	if bpfIsDenied(t) {
		out, err := exec.Command(filepath.Join(programs, "privsep")).CombinedOutput()
		if hint := "kernel.unprivileged_bpf_disabled must be 0"; err == nil ||
			!strings.Contains(string(out), hint) {
			t.Errorf("there is no %q in %q: %v", hint, out, err)
		}
		return
	}
	t.Run("ends with a signal", testPrivsepInterrupt)
	t.Run("reader ends when the loader is killed", testPrivsepKill)
}

// bpfIsDenied reports whether the kernel refuses all bpf(2) commands without CAP_BPF.
func bpfIsDenied(t *testing.T) bool {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	disabled, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	return err == nil && disabled[0] != '0' && strings.HasPrefix(string(release), "5.")
}

func testPrivsepInterrupt(t *testing.T) {
	e := start(t, unprivileged, "privsep")
	e.want("PID COMM")
	// The loader has the link, but neither the program nor the ring.
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var bpf []string
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); strings.HasPrefix(target, "anon_inode:bpf") {
			bpf = append(bpf, target)
		}
	}
	if want := []string{"anon_inode:bpf_link"}; !slices.Equal(bpf, want) {
		t.Errorf("the loader has %q, want %q", bpf, want)
	}
	e.want(pidPattern(t, execute(t).Process.Pid) + " true")
	e.interrupt()
	e.wantEnd(`\d+ .+`) // programs that others execute meanwhile
}

func testPrivsepKill(t *testing.T) {
	e := start(t, unprivileged, "privsep")
	e.want("PID COMM")
	if err := e.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for e.stdout.Scan() { // until the reader has closed it too
	}
	if err := e.cmd.Wait(); err == nil || err.Error() != "signal: killed" || e.stderr.Len() > 0 {
		t.Errorf("ended with %v\n%s", err, &e.stderr)
	}
}
