package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// These tests show which capabilities each step needs.

// From include/uapi/linux/capability.h.
const (
	capPerfmon = 38
	capBPF     = 39
)

// runPrivileged runs tests in a process with exactly these capabilities, and returns its
// output. If this process runs as root, that one runs as nobody.
func runPrivileged(t *testing.T, pattern string, capabilities []uintptr, files []*os.File,
	env ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	runtime.LockOSThread() // see runTests
	defer runtime.UnlockOSThread()
	cmd := testCommand(pattern, append(env, "TMPDIR="+dir)...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr.AmbientCaps = capabilities
	if os.Geteuid() == 0 {
		const nobody = 65534
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestLoadingTakesTwoCapabilities(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	for _, tt := range []struct {
		name         string
		capabilities []uintptr
		suffice      bool
	}{
		{"none", nil, false},
		{"CAP_BPF", []uintptr{capBPF}, false},
		{"CAP_PERFMON", []uintptr{capPerfmon}, false},
		{"CAP_BPF and CAP_PERFMON", []uintptr{capBPF, capPerfmon}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// TestMain loads the programs and prints how that went.
			out := runPrivileged(t, "^$", tt.capabilities, nil)
			want := "operation not permitted: root, or CAP_BPF and CAP_PERFMON, is needed"
			if tt.suffice {
				want = "kernel tests run on Linux "
			}
			if !strings.Contains(out, want) {
				t.Errorf("there is no %q in %q", want, out)
			}
		})
	}
}

const unprivilegedEnv = "RINGBUF_TEST_UNPRIVILEGED"

// TestReadingTakesNoCapability hands a ring, and a program that writes to it, to a process that
// has no capability. Before Linux 6.0, with kernel.unprivileged_bpf_disabled, the kernel
// refuses both to that process, and CAP_BPF is sufficient for both.
func TestReadingTakesNoCapability(t *testing.T) {
	if os.Getenv(unprivilegedEnv) != "" {
		readUnprivileged(t)
		return
	}
	ring := bpftest.New(t, os.Getpagesize())
	files := []*os.File{os.NewFile(uintptr(mapByID(t, ring, 0)), "events"),
		dupProgram(t, ring, "count")}
	for _, f := range files {
		defer f.Close()
	}
	for _, tt := range []struct {
		name         string
		capabilities []uintptr
		denied       bool
	}{
		{"none", nil, bpfIsDenied(t)},
		{"CAP_BPF", []uintptr{capBPF}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring.Count(0, 0, 1, 0)
			env := fmt.Sprintf("%s=%v", unprivilegedEnv, tt.denied)
			out := runPrivileged(t, "^TestReadingTakesNoCapability$", tt.capabilities, files, env)
			if !strings.Contains(out, "--- PASS: TestReadingTakesNoCapability ") {
				t.Errorf("the process without capabilities printed\n%s", out)
			}
			if tt.denied {
				r := mustNewReader(t, ring)
				wantNumbered(t, r, 0, 1) // it is still there
			}
		})
	}
}

// readUnprivileged is the body of the other process.
func readUnprivileged(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, capability := range []uintptr{capPerfmon, 21} { // CAP_SYS_ADMIN
		var effective uint64
		_, after, _ := strings.Cut(string(status), "\nCapEff:\t")
		if _, err := fmt.Sscanf(after, "%x", &effective); err != nil || effective&(1<<capability) != 0 {
			t.Fatalf("this process has capability %d (%v):\n%s", capability, err, status)
		}
	}
	r, err := NewReader(FD(3))
	w, watchErr := NewWatcher(FD(3))
	n, runErr := testrun.Run(4, 0, 1, 1, 0)
	if os.Getenv(unprivilegedEnv) == "true" {
		if !errors.Is(err, syscall.EPERM) {
			t.Errorf("NewReader returned %v, want %v", err, syscall.EPERM)
		}
		if !errors.Is(watchErr, syscall.EPERM) {
			t.Errorf("NewWatcher returned %v, want %v", watchErr, syscall.EPERM)
		}
		if !errors.Is(runErr, syscall.EPERM) {
			t.Errorf("to run the program returned %v, want %v", runErr, syscall.EPERM)
		}
		return
	}
	if err != nil || watchErr != nil || runErr != nil || n != 1 {
		t.Fatalf("NewReader returned %v, NewWatcher %v, to run the program %d, %v", err, watchErr, n,
			runErr)
	}
	seen := 0
	drain(t, w, func(Record, uint64) { seen++ })
	if err := w.Close(); err != nil || seen != 1 {
		t.Errorf("the Watcher saw %d samples; Close: %v", seen, err)
	}
	wantNumbered(t, r, 0, 2)
	r.SetDeadline(time.Now().Add(time.Millisecond))
	wantReadError(t, r, os.ErrDeadlineExceeded)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// bpfIsDenied reports whether the kernel refuses all of bpf(2) without CAP_BPF.
func bpfIsDenied(t *testing.T) bool {
	t.Helper()
	major := 0
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err == nil {
		_, err = fmt.Sscanf(string(release), "%d.", &major)
	}
	if err != nil {
		t.Fatal(err)
	}
	disabled, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	return err == nil && disabled[0] != '0' && major < 6
}
