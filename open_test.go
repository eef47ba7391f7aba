package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// mountBPF mounts a BPF file system until the end of the test.
func mountBPF(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// newPinnedRing returns a ring and the path where it is pinned.
func newPinnedRing(t *testing.T) (ring *bpftest.Ring, path string) {
	t.Helper()
	ring = bpftest.New(t, os.Getpagesize())
	path = filepath.Join(mountBPF(t), "events")
	if err := ring.BPFMap().Pin(path); err != nil {
		t.Fatal(err)
	}
	return ring, path
}

// mustOpen returns the handle from OpenMap or OpenMapID, and closes it at the end of the test.
func mustOpen(t *testing.T, h *MapHandle, err error) *MapHandle {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func mustClose(t *testing.T, h *MapHandle) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func TestAPinnedRingOutlivesWhoeverOpenedIt(t *testing.T) {
	ring, path := newPinnedRing(t)
	ring.Emit(text("first"), text("second"))
	ring.Close()
	h, err := OpenMap(path)
	mustOpen(t, h, err)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r := mustNewReader(t, h)
	mustClose(t, h)
	wantSample(t, r, "first")
	wantSample(t, r, "second")
	wantAvailable(t, r, 0)
}

func TestALossCounterCanBeOpened(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	ring.SetSlot(0, 3, 0, 0)
	h, err := OpenMapID(mapID(t, ring.Counter()))
	mustOpen(t, h, err)
	r := mustNewReader(t, ring, WithLossCounter(h))
	mustClose(t, h)
	ring.SetSlot(0, 5, 0, 0)
	if got := r.Stats().Lost; got != 2 {
		t.Errorf("Stats tell of %d lost records, want 2", got)
	}
}

func TestARingOpenedByItsIDOutlivesItsModule(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	ring.Emit(text("sample"))
	h, err := OpenMapID(mapID(t, ring))
	mustOpen(t, h, err)
	ring.Close()
	r := mustNewReader(t, h)
	mustClose(t, h)
	wantSample(t, r, "sample")
	wantAvailable(t, r, 0)
}

// wantNoHandle checks the error of OpenMap or OpenMapID, and that h is nil.
func wantNoHandle(t *testing.T, h *MapHandle, err error, errno syscall.Errno, want ...string) {
	t.Helper()
	if err == nil || h != nil {
		t.Fatalf("have a handle %v and the error %v", h, err)
	}
	for _, want := range want {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not mention %q", err, want)
		}
	}
	if errno != 0 && !errors.Is(err, errno) {
		t.Errorf("the error %q does not wrap %v", err, errno)
	}
}

func TestOpenRefusesWhatIsNoPinnedRing(t *testing.T) {
	ring, path := newPinnedRing(t)
	hash, err := bpf.CreateMap(bpf.MapTypeHash, "my_hash", 4, 4, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(hash.FileDescriptor())
	hashID := mapID(t, hash)
	prog, err := ring.Module().GetProgram("emit")
	if err != nil {
		t.Fatal(err)
	}
	progPath := filepath.Join(filepath.Dir(path), "emit")
	if err := prog.Pin(progPath); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := resources()
	for _, tt := range []struct {
		path  string
		errno syscall.Errno
		want  string
	}{
		{path + "2", syscall.ENOENT, "no such file"},
		{path + "/events", syscall.ENOTDIR, "not a directory"},
		{"", syscall.ENOENT, "no such file"},
		{path + "\x00", syscall.EINVAL, `events\x00"`},
		{filepath.Dir(path), syscall.EACCES,
			"no object that is pinned in a BPF file system, but a directory of one"},
		{file, syscall.EACCES,
			"no object that is pinned in a BPF file system: pin the map in one, such as /sys/fs/bpf"},
		{progPath, 0, "anon_inode:bpf-prog is not a BPF map"},
	} {
		h, err := OpenMap(tt.path)
		wantNoHandle(t, h, err, tt.errno, fmt.Sprintf("ringbuf: open %q: ", tt.path), tt.want)
	}
	h, err := OpenMapID(0)
	wantNoHandle(t, h, err, syscall.ENOENT, "ringbuf: open map with id 0: ")
	h, err = OpenMapID(1<<32 - 1)
	wantNoHandle(t, h, err, syscall.ENOENT, "ringbuf: open map with id 4294967295: ")
	h, err = OpenMapID(hashID)
	wantNoHandle(t, h, err, 0,
		fmt.Sprintf(`ringbuf: open map with id %d: map "my_hash" has type hash, not ringbuf or `+
			`user_ringbuf`, hashID))
	if err := awaitResources(before); err != nil {
		t.Errorf("what failed left behind: %v", err)
	}
}

func TestAClosedHandleHasNoDescriptor(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	h, err := OpenMapID(mapID(t, ring))
	mustOpen(t, h, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := h.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if fd := h.FileDescriptor(); fd != -1 {
				t.Errorf("after Close the descriptor is %d, want -1", fd)
			}
		}()
	}
	h.FileDescriptor()
	wg.Wait()
	wantOpenError(t, h, syscall.EBADF, "descriptor -1")
	if err := awaitResources(before); err != nil {
		t.Errorf("Close left behind: %v", err)
	}
}

func TestTheDescriptorOfAHandleIsCloseOnExec(t *testing.T) {
	ring, path := newPinnedRing(t)
	byPath, err := OpenMap(path)
	mustOpen(t, byPath, err)
	byID, err := OpenMapID(mapID(t, ring))
	mustOpen(t, byID, err)
	for _, h := range []*MapHandle{byPath, byID} {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(h.FileDescriptor()),
			syscall.F_GETFD, 0)
		if errno != 0 || flags != syscall.FD_CLOEXEC {
			t.Errorf("the flags of the descriptor are %d, %v, want FD_CLOEXEC", flags, errno)
		}
	}
}

func TestADroppedHandleIsClosed(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	if _, err := OpenMapID(mapID(t, ring)); err != nil {
		t.Fatal(err)
	}
	if err := awaitResources(before); err != nil { // which collects garbage
		t.Error(err)
	}
}

// A forgotten is a Map. Only its method FileDescriptor uses the handle.
type forgotten struct{ h *MapHandle }

// FileDescriptor returns the handle's descriptor. Before it returns, it gives the garbage
// collector time to collect the handle, if nothing refers to that any more.
func (m *forgotten) FileDescriptor() int {
	fd := m.h.FileDescriptor()
	link := fmt.Sprintf("/proc/self/fd/%d", fd)
	for range 20 {
		runtime.GC()
		if _, err := os.Readlink(link); err != nil {
			break
		}
		runtime.Gosched()
	}
	return fd
}

func TestNewReaderKeepsTheMapFromTheGarbageCollector(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	ring.Emit(text("sample"))
	h, err := OpenMapID(mapID(t, ring))
	if err != nil {
		t.Fatal(err)
	}
	wantSample(t, mustNewReader(t, &forgotten{h}), "sample")
}

// TestOpenNeedsThePermissionsThatItNames opens a ring in processes of another user.
func TestOpenNeedsThePermissionsThatItNames(t *testing.T) {
	const pathEnv, idEnv, wantEnv = "RINGBUF_TEST_PATH", "RINGBUF_TEST_ID", "RINGBUF_TEST_WANT"
	const whyEnv = "RINGBUF_TEST_WHY"
	if path := os.Getenv(pathEnv); path != "" {
		id, err := strconv.ParseUint(os.Getenv(idEnv), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		h, pinErr := OpenMap(path)
		if pinErr == nil {
			wantSample(t, mustNewReader(t, h), "sample")
			mustClose(t, h)
		}
		h, idErr := OpenMapID(uint32(id))
		if idErr == nil {
			wantSample(t, mustNewReader(t, h), "sample")
			mustClose(t, h)
		}
		errno := func(err error) (errno syscall.Errno) {
			errors.As(err, &errno)
			return errno
		}
		got := fmt.Sprintf("%d %d", errno(pinErr), errno(idErr))
		if want := os.Getenv(wantEnv); got != want {
			t.Errorf("the errors are %q (%v, %v), want %q", got, pinErr, idErr, want)
		}
		if why := os.Getenv(whyEnv); pinErr != nil &&
			pinErr.Error() != fmt.Sprintf("ringbuf: open %q: %s: permission denied", path, why) {
			t.Errorf("the error is %q, want %q", pinErr, why)
		}
		if idErr != nil && !strings.Contains(idErr.Error(), "CAP_SYS_ADMIN is needed") {
			t.Error(idErr)
		}
		return
	}

	const capSysAdmin = 21 // include/uapi/linux/capability.h
	ring, path := newPinnedRing(t)
	// The directory of t.TempDir is private.
	if err := os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	no := func(permission string, mode os.FileMode) string {
		return fmt.Sprintf("this process has no %s permission on the file of user %d, group %d, with "+
			"mode %04o: "+
			"chmod or chown it, since a Reader takes both", permission, os.Geteuid(), os.Getegid(), mode)
	}
	for _, tt := range []struct {
		name         string
		capabilities []uintptr
		dir, mode    os.FileMode
		pin, id      syscall.Errno
		why          string
	}{
		{"CAP_BPF, private file", []uintptr{capBPF}, 0o755, 0o600, syscall.EACCES, syscall.EPERM,
			no("read and write", 0o600)},
		{"CAP_BPF, read-only file", []uintptr{capBPF}, 0o755, 0o644, syscall.EACCES, syscall.EPERM,
			no("write", 0o644)},
		{"CAP_BPF, write-only file", []uintptr{capBPF}, 0o755, 0o622, syscall.EACCES, syscall.EPERM,
			no("read", 0o622)},
		{"CAP_BPF, private directory", []uintptr{capBPF}, 0o700, 0o666, syscall.EACCES, syscall.EPERM,
			fmt.Sprintf("this process cannot search the directory %q, which takes execute permission on it",
				dir)},
		{"CAP_BPF, public file", []uintptr{capBPF}, 0o755, 0o666, 0, syscall.EPERM, ""},
		{"CAP_SYS_ADMIN, private file", []uintptr{capSysAdmin}, 0o755, 0o600, syscall.EACCES, 0,
			no("read and write", 0o600)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := errors.Join(os.Chmod(dir, tt.dir), os.Chmod(path, tt.mode)); err != nil {
				t.Fatal(err)
			}
			if tt.pin == 0 || tt.id == 0 {
				ring.Emit(text("sample"))
			}
			out := runPrivileged(t, "^TestOpenNeedsThePermissionsThatItNames$", tt.capabilities, nil,
				pathEnv+"="+path, fmt.Sprintf("%s=%d", idEnv, mapID(t, ring)), fmt.Sprintf("%s=%d %d", wantEnv,
					tt.pin, tt.id),
				whyEnv+"="+tt.why)
			if !strings.Contains(out, "--- PASS: TestOpenNeedsThePermissionsThatItNames ") {
				t.Errorf("the process printed\n%s", out)
			}
		})
	}
}
