package ringbuf

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// wantOpenError opens a Reader of m, which must fail with an error that names want.
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
		// As many more than there are as a Reader needs, and fewer.
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

func TestMapTypesHaveTheNamesOfLibbpf(t *testing.T) {
	known := 0
	for number := range mapType(len(mapTypes)) {
		name := bpf.MapType(number).Name()
		if name == "" {
			break // newer than this libbpf
		}
		known++
		if number.String() != name {
			t.Errorf("map type %d is named %v, want %v", uint32(number), number, name)
		}
	}
	if known <= int(mapTypeRingbuf) {
		t.Errorf("libbpf knows only %d types", known)
	}
	if got := mapType(1000).String(); got != "1000" {
		t.Errorf("an unknown type is named %v", got)
	}
}

func TestOverwriteModeIsRefused(t *testing.T) {
	info := mapInfo{name: "events", kind: mapTypeRingbuf, flags: flagOverwrite, size: 4096}
	if err := info.check(); err == nil || !strings.Contains(err.Error(), "overwrite") ||
		!strings.Contains(err.Error(), `"events"`) {
		t.Errorf("check returned %v", err)
	}
	info.flags = 0
	if err := info.check(); err != nil {
		t.Errorf("without the flag check returned %v", err)
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

// consumerPosition returns the ring's consumer position, as somebody who holds the
// map may write it.
func consumerPosition(t *testing.T, m Map) *uint64 {
	t.Helper()
	page, err := syscall.Mmap(m.FileDescriptor(), 0, os.Getpagesize(),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(page) })
	return (*uint64)(unsafe.Pointer(&page[0]))
}

func TestReaderReportsAConsumerPositionThatItDidNotSet(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	position := consumerPosition(t, ring)
	ring.Emit(text("first"), text("second"))
	wantSample(t, r, "first")
	wantSample(t, r, "second")
	for _, tt := range []struct {
		name      string
		corrupt   func(sound uint64) uint64
		plausible bool // for someone who has not read yet
	}{
		{"behind", func(sound uint64) uint64 { return sound - 16 }, true},
		{"ahead", func(sound uint64) uint64 { return sound + 16 }, false},
		{"misaligned", func(sound uint64) uint64 { return sound - 3 }, false},
		{"far ahead", func(sound uint64) uint64 { return sound + 1<<40 }, false},
		{"far behind", func(sound uint64) uint64 { return sound - 1<<40 }, false},
		{"maximum", func(uint64) uint64 { return 1<<64 - 1 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sound := *position
			*position = tt.corrupt(sound)
			for range 2 {
				wantReadError(t, r, syscall.EUCLEAN)
			}
			other, err := NewReader(ring)
			if tt.plausible && err == nil {
				other.Close()
			} else if !errors.Is(err, syscall.EUCLEAN) {
				t.Errorf("NewReader returned %v, %v", other, err)
			}
			// The Reader recovers with the ring, and has lost nothing.
			*position = sound
			ring.Emit(text("next"))
			wantSample(t, r, "next")
		})
	}
}

func TestAvailableBytesAfterAnUnsoundFirstPosition(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	position := consumerPosition(t, ring)
	ring.Emit(text("sample"))
	*position = 1 << 40
	wantReadError(t, r, syscall.EUCLEAN)
	*position = 0
	wantAvailable(t, r, 16)
	wantSample(t, r, "sample")
	wantAvailable(t, r, 0)
}

func TestGarbageInPlaceOfAHeaderIsNoSample(t *testing.T) {
	for name, header := range map[string]uint32{
		"longer than the ring":   1<<30 - 1,
		"longer than what is in": 1000,
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize())
			position := consumerPosition(t, ring)
			ring.Emit(bpftest.Sample{Data: binary.NativeEndian.AppendUint64(nil, uint64(header))})
			*position = bpftest.HeaderSize // of the sample
			for range 2 {
				wantReadError(t, r, syscall.EUCLEAN)
			}
		})
	}
}

func TestSecondReaderIsNoticed(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	other := mustNewReader(t, ring)
	ring.Emit(text("first"))
	wantSample(t, r, "first")
	ring.Emit(text("second"))
	wantSample(t, other, "second")
	r.SetDeadline(time.Unix(0, 1))
	wantReadError(t, r, syscall.EUCLEAN)
}

func mapID(t *testing.T, m Map) uint32 {
	t.Helper()
	info, err := bpf.GetMapInfoByFD(m.FileDescriptor())
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// mapByID returns another descriptor of the map, with flags, which libbpfgo does
// not offer.
func mapByID(t *testing.T, m Map, flags uint32) int {
	t.Helper()
	attr := struct{ id, nextID, flags uint32 }{id: mapID(t, m), flags: flags}
	fd, err := bpfCommand(bpfMapGetFDByID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
