package ringbuf

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func TestARingIsResidentOnlyTwice(t *testing.T) { inOwnProcess(t, testResident) }

func testResident(t *testing.T) {
	const size = 64 << 20
	ring := bpftest.New(t, size)
	before := procStatus(t, "VmRSS")
	r := mustNewReader(t, ring)
	// The kernel maps the data twice in a row.
	if got := (procStatus(t, "VmRSS") - before) << 10; got > 2*size+size/8 {
		t.Errorf("a ring of %d MiB makes %d MiB resident", size>>20, got>>20)
	}
	r.Close()
}

func TestOpeningBesideAnActiveReader(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	var stop atomic.Bool
	var active group
	active.Go(func() {
		for seq := uint64(0); !stop.Load(); {
			seq += uint64(ring.Count(0, seq, 100, 0))
		}
	})
	active.Go(func() {
		var rec Record
		r.SetDeadline(time.Unix(0, 1))
		for !stop.Load() {
			if err := r.ReadInto(&rec); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
				return
			}
		}
	})
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if r, err := NewReader(ring); errors.Is(err, syscall.EUCLEAN) {
			t.Fatal(err)
		} else if err == nil {
			r.Close()
		}
	}
	stop.Store(true)
	active.Wait()
}

func TestNewReaderWithTooLittleAddressSpace(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector takes address space at any time")
	}
	inOwnProcess(t, testAddressSpace)
}

func testAddressSpace(t *testing.T) {
	const size = 16 << 20 // much more than what Go takes now and then
	page := os.Getpagesize()
	ring := bpftest.New(t, size)
	var unlimited syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_AS, &unlimited); err != nil {
		t.Fatal(err)
	}
	open := func(pages int) (*Reader, error) {
		limit := unlimited
		limit.Cur = uint64(procStatus(t, "VmSize")<<10 + pages*page)
		if err := syscall.Setrlimit(syscall.RLIMIT_AS, &limit); err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(ring)
		if err := syscall.Setrlimit(syscall.RLIMIT_AS, &unlimited); err != nil {
			t.Fatal(err)
		}
		return r, err
	}
	// From here on Go takes no more address space.
	spareThreads(8)
	debug.SetGCPercent(-1)
	mustNewReader(t, ring).Close()
	before := resources()
	wantFailure := func(pages int, step string) {
		t.Helper()
		bpfobj.Warnings()
		r, err := open(pages)
		if err == nil {
			r.Close()
			t.Fatalf("NewReader succeeded with %d pages", pages)
		}
		if !errors.Is(err, syscall.ENOMEM) || !strings.Contains(err.Error(),
			`map "events" of type ringbuf: `+step) {
			t.Errorf("with %d pages NewReader returned %v, want %v from %q", pages, err, syscall.ENOMEM,
				step)
		}
		if warnings := bpfobj.Warnings(); warnings != "" {
			t.Errorf("with %d pages libbpf printed %q", pages, warnings)
		}
		if err := awaitResources(before); err != nil {
			t.Fatalf("with %d pages NewReader failed and left behind: %v", pages, err)
		}
	}
	need := 0
	for _, step := range []struct {
		name  string
		pages int
	}{
		{"mmap consumer page: ", 1},
		{"mmap data pages: ", 1 + 2*size/page},
	} {
		for range 8 {
			wantFailure(need+rand.IntN(step.pages), step.name)
		}
		wantFailure(need, step.name)
		need += step.pages
		wantFailure(need-1, step.name)
	}
	// If the C library takes any, it takes more than a page.
	for pages := need; ; pages++ {
		r, err := open(pages)
		if err == nil {
			ring.Emit(text("sample"))
			wantSample(t, r, "sample")
			r.Close()
			break
		}
		if pages > need+100 {
			t.Fatalf("with %d pages NewReader still returned %v", pages, err)
		}
		wantFailure(pages, "allocate for libbpf: ")
	}
}

// wantOpenError opens a Reader of m. This must fail with an error that mentions all of want,
// and that wraps errno unless that is 0.
func wantOpenError(t *testing.T, m Map, errno syscall.Errno, want ...string) {
	t.Helper()
	before := resources()
	bpfobj.Warnings()
	r, err := NewReader(m)
	if warnings := bpfobj.Warnings(); warnings != "" {
		t.Errorf("libbpf printed %q", warnings)
	}
	if err == nil {
		r.Close()
		t.Fatal("NewReader succeeded")
	}
	t.Log(err)
	for _, want := range want {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not mention %q", err, want)
		}
	}
	if errno != 0 && !errors.Is(err, errno) {
		t.Errorf("the error %q does not wrap %v", err, errno)
	}
	if err := awaitResources(before); err != nil {
		t.Errorf("NewReader failed and left behind: %v", err)
	}
}

func TestNewReaderRefusesWhatIsNoRingBuffer(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	t.Run("no map", func(t *testing.T) {
		wantOpenError(t, nil, 0, "no map")
	})
	t.Run("hash map", func(t *testing.T) {
		hash, err := bpf.CreateMap(bpf.MapTypeHash, "my_hash", 4, 4, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(hash.FileDescriptor())
		wantOpenError(t, hash, 0, `"my_hash"`, "type hash")
	})
	t.Run("program", func(t *testing.T) {
		prog, err := ring.Module().GetProgram("emit")
		if err != nil {
			t.Fatal(err)
		}
		wantOpenError(t, FD(prog.FileDescriptor()), 0, "bpf-prog", "not a BPF map")
	})
	t.Run("file", func(t *testing.T) {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		wantOpenError(t, FD(f.Fd()), 0, "/dev/null", "not a BPF map")
	})
	t.Run("closed descriptor", func(t *testing.T) {
		wantOpenError(t, FD(1<<20), syscall.EBADF, "descriptor 1048576")
		wantOpenError(t, FD(-1), syscall.EBADF, "descriptor -1")
	})
	t.Run("read-only descriptor", func(t *testing.T) {
		const readOnly = 1 << 3 // BPF_F_RDONLY
		fd := mapByID(t, ring, readOnly)
		defer syscall.Close(fd)
		wantOpenError(t, FD(fd), syscall.EACCES, `"events"`, "consumer page")
	})
	t.Run("too many open files", func(t *testing.T) {
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		before := resources()
		// Allow as many descriptors as a Reader needs beyond those that are open, and fewer.
		const need = 5
		for more := range need + 1 {
			used := 0
			for fd := range descriptors(t) {
				used = max(used, fd+1)
			}
			fill := fillDescriptors(t, used)
			low := limit
			low.Cur = uint64(used + more)
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
				t.Fatal(err)
			}
			bpfobj.Warnings()
			r, err := NewReader(ring)
			if warnings := bpfobj.Warnings(); warnings != "" {
				t.Errorf("libbpf printed %q", warnings)
			}
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
				t.Fatal(err)
			}
			fill()
			if err == nil {
				r.Close()
			}
			if more < need && !errors.Is(err, syscall.EMFILE) || more == need && err != nil {
				t.Errorf("with %d descriptors NewReader returned %v, %v", more, r, err)
			}
			if err := awaitResources(before); err != nil {
				t.Errorf("with %d descriptors NewReader left behind: %v", more, err)
			}
		}
	})
}

// fillDescriptors takes all free descriptors below limit. It returns a function
// that gives them back.
func fillDescriptors(t *testing.T, limit int) (release func()) {
	var taken []int
	for {
		fd, err := syscall.Dup(2)
		if err != nil {
			t.Fatal(err)
		}
		if fd >= limit {
			syscall.Close(fd)
			return func() {
				for _, fd := range taken {
					syscall.Close(fd)
				}
			}
		}
		syscall.CloseOnExec(fd)
		taken = append(taken, fd)
	}
}

func TestNewReaderRefusesAMapInOverwriteMode(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	m, err := bpf.CreateMap(bpf.MapTypeRingbuf, "overwriting", 0, 0, os.Getpagesize(),
		&bpf.BPFMapCreateOpts{MapFlags: flagOverwrite})
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("needs Linux 6.19") // in these words: see internal/vmtest
	}
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(m.FileDescriptor())
	wantOpenError(t, m, 0, `"overwriting"`, "overwrite mode")
}

func TestEveryKindOfMapWorks(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	low, err := bpf.GetMapByID(mapID(t, ring))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(low.FileDescriptor())
	for _, m := range []Map{ring.BPFMap(), low, FD(ring.FileDescriptor())} {
		ring.Emit(text("sample"))
		r := mustNewReader(t, m)
		wantSample(t, r, "sample")
		r.Close()
	}
}
