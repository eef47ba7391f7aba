package ringbuf

import (
	"encoding/binary"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// In these tests somebody other than the Reader writes to the consumer position.

var scribbleFor = flag.Duration("scribble", time.Second,
	"how long another process scribbles on the consumer position of each ring")

// TestNoScribblingMakesGarbage has another process write wrong consumer positions all the time,
// most of them for some nanoseconds only. So libbpf finds a wrong one at any point of a drain.
// Each sample comes once and in order, or an error comes instead. When the position is again
// what the error says it should be, the Reader goes on.
//
// If the kernel does not notify because of a wrong position, the notification is lost. So Read
// needs deadlines here.
func TestNoScribblingMakesGarbage(t *testing.T) {
	const scenario = "RINGBUF_TEST_SCRIBBLE"
	if os.Getenv(scenario) != "" {
		scribble(consumerPosition(t, FD(3)), rand.New(rand.NewPCG(1, 1)))
		return
	}
	eachPace(t, func(t *testing.T, pace Option) {
		// The samples that are written at once fill most of the ring.
		ring, r := newRingAndReader(t, 4<<10, pace)
		position := consumerPosition(t, ring)
		runtime.LockOSThread() // see runTests
		defer runtime.UnlockOSThread()
		cmd := testCommand("^TestNoScribblingMakesGarbage$", scenario+"=1")
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(mapByID(t, ring, 0)), "events")}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		defer cmd.ExtraFiles[0].Close()

		rng := rand.New(rand.NewPCG(2, 2))
		var rec Record
		var next, sent uint64
		wrong := 0
		const samples, errs, rounds = 1000, 100, 5_000_000 // at least, at least, at most
		end := time.Now().Add(*scribbleFor)
		for i := 0; time.Now().Before(end) || (next < samples || wrong < errs) && i < rounds; i++ {
			if next == sent {
				ring.Discard(rng.IntN(64))
				sent += uint64(ring.Count(0, sent, rng.IntN(100), 0))
			}
			r.SetDeadline(time.Now().Add(time.Duration(rng.IntN(100000))))
			switch err := r.ReadInto(&rec); {
			case err == nil:
				if got := bpftest.DecodeNumbered(rec.RawSample); got.Producer != 0 || got.Seq != next {
					t.Fatalf("sample %d of producer %d came, want %d of 0", got.Seq, got.Producer, next)
				}
				next++
			case errors.Is(err, syscall.EUCLEAN):
				wrong++
				atomic.StoreUint64(position, r.queue.rings.(*libbpfRings).door.consumed(0))
			case !errors.Is(err, os.ErrDeadlineExceeded):
				t.Fatal(err)
			}
		}
		t.Logf("%d samples read, %d errors", next, wrong)
		if next < samples || wrong < errs {
			t.Error("that is too few")
		}
	})
}

// scribble writes wrong positions of all kinds, and soon after most of them the old one again.
func scribble(position *uint64, rng *rand.Rand) {
	for {
		pause := rng.IntN(2000)
		for range pause {
			atomic.LoadUint64(position)
		}
		sound := atomic.LoadUint64(position)
		near := uint64(rng.IntN(64)) * 8
		wrong := [...]uint64{
			sound + near, sound - near, // ahead and behind, at a record's start or within it
			sound + near + 4096, sound - near - 4096,
			sound + 1, sound - 3,
			sound + 1<<40, sound - 1<<40,
			0, 1<<64 - 1, 1<<64 - 8,
		}
		atomic.StoreUint64(position, wrong[rng.IntN(len(wrong))])
		if rng.IntN(100) > 0 {
			for range rng.IntN(20) {
				atomic.LoadUint64(position)
			}
			atomic.StoreUint64(position, sound)
		}
	}
}

// consumerPosition returns the ring's consumer position. Any process that has the map can write
// to it.
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
		plausible bool // for a Reader that has not read yet
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
			// When the ring is sound again the Reader goes on, and has lost nothing.
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
