package ringbuf

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func wantTried(t *testing.T, r *Reader, want string) {
	t.Helper()
	var rec Record
	if ok, err := r.TryReadInto(&rec); !ok || err != nil || string(rec.RawSample) != want {
		t.Fatalf("TryReadInto returned %q, %v, %v; want %q", rec.RawSample, ok, err, want)
	}
}

// wantNothing fails unless TryReadInto returns no record and the error want, which may be nil,
// and does not change the record.
func wantNothing(t *testing.T, r *Reader, want error) {
	t.Helper()
	rec := Record{RawSample: []byte("unchanged"), Remaining: 17}
	ok, err := r.TryReadInto(&rec)
	if ok || !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("TryReadInto returned %q, %v, %v; want %v", rec.RawSample, ok, err, want)
	}
	if string(rec.RawSample) != "unchanged" || rec.Remaining != 17 {
		t.Fatalf("TryReadInto had nothing and changed the record to %+v", rec)
	}
}

func TestTryReadIntoReturnsWhatIsThere(t *testing.T) {
	eachPace(t, func(t *testing.T, pace Option) {
		rings, r := newRings(t, []int{4096, 4096, 4096}, pace)
		wantNothing(t, r, nil)
		rings[1].Emit(discarded(8), text("a"), quiet("b"))
		rings[2].Emit(discarded(8))
		rec := Record{RawSample: make([]byte, 0, 8)}
		memory := &rec.RawSample[:1][0]
		if ok, err := r.TryReadInto(&rec); !ok || err != nil || string(rec.RawSample) != "a" ||
			rec.Remaining != 16 || rec.Ring != 1 || &rec.RawSample[0] != memory {
			t.Fatalf("TryReadInto returned %+v, %v, %v", rec, ok, err)
		}
		wantAvailable(t, r, 16+16)
		wantTried(t, r, "b")
		wantNothing(t, r, nil)
		wantAvailable(t, r, 0) // past the discarded one
		submit := rings[0].Busy([8]byte{'b', 'u', 's', 'y'})
		rings[0].Emit(text("behind"))
		wantNothing(t, r, nil)
		rings[2].Emit(text("c"))
		wantTried(t, r, "c")
		submit()
		wantTried(t, r, "busy\x00\x00\x00\x00")
		wantTried(t, r, "behind")
		wantNothing(t, r, nil)
	})
}

func TestTryReadIntoIsNotHeldBackByModeration(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	for range 10 {
		ring.Emit(text("a"), text("b"))
		wantTried(t, r, "a")
		wantTried(t, r, "b")
		wantNothing(t, r, nil)
	}
}

func TestTryReadIntoBesideAReadThatWaits(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		for range 100 {
			wantNothing(t, r, nil)
		}
		wantWaiting(t, result)
		ring.Emit(text("theirs"), text("ours"))
		wantResult(t, result, "theirs", nil)
		wantTried(t, r, "ours")
	})
}

// TestTryReadIntoDoesNotDisturbDeadlines has a deadline in the past, and one in the future.
func TestTryReadIntoDoesNotDisturbDeadlines(t *testing.T) {
	ring, r := newRingAndReader(t, 4096, WithMaxDelay(0))
	r.SetDeadline(time.Unix(0, 1))
	wantNothing(t, r, nil)
	ring.Emit(text("a"))
	wantSample(t, r, "a") // begins the drain that the deadline ends
	ring.Emit(text("b"), text("c"))
	wantTried(t, r, "b")
	wantTried(t, r, "c")
	wantNothing(t, r, nil)
	ring.Emit(text("d"))
	wantReadError(t, r, os.ErrDeadlineExceeded)
	wantTried(t, r, "d")

	deadline := time.Now().Add(20 * time.Millisecond)
	r.SetDeadline(deadline)
	result := goRead(t, r)
	for done := false; !done; {
		var rec Record
		if ok, err := r.TryReadInto(&rec); ok || err != nil {
			t.Fatalf("TryReadInto returned %v, %v", ok, err)
		}
		select {
		case got := <-result:
			if done = true; !errors.Is(got.err, os.ErrDeadlineExceeded) || time.Now().Before(deadline) {
				t.Errorf("%v before the deadline, Read returned %v", time.Until(deadline), got.err)
			}
		default:
		}
	}
}

func TestTryReadIntoAnswersAFlush(t *testing.T) {
	eachPace(t, func(t *testing.T, pace Option) {
		ring, r := newRingAndReader(t, 4096, pace)
		ring.Emit(text("a"), text("b"))
		for range 2 {
			if err := r.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		ring.Emit(text("c")) // after both
		wantTried(t, r, "a")
		wantTried(t, r, "b")
		wantNothing(t, r, ErrFlushed)
		wantNothing(t, r, ErrFlushed)
		wantTried(t, r, "c")
		wantNothing(t, r, nil)
	})
}

func TestTryReadIntoBesideLeases(t *testing.T) {
	ring, r := newRingAndReader(t, 4096, WithMaxDelay(0))
	ring.Emit(text("a"))
	a := mustLease(t, r)
	wantNothing(t, r, nil)
	ring.Emit(text("b"))
	b := mustLease(t, r)
	ring.Emit(text("c"))
	wantTried(t, r, "c")
	b.Release()
	wantTried(t, r, "b")
	wantNothing(t, r, nil)
	a.Release()
	wantTried(t, r, "a")
	wantNothing(t, r, nil)
	wantAvailable(t, r, 0)
	ring.Emit(text("d"))
	wantTried(t, r, "d")
}

func TestTryReadIntoReturnsTheErrorsOfRead(t *testing.T) {
	ring, r := newRingAndReader(t, 4096, WithMaxDelay(0))
	ring.Emit(text("a"))
	wantTried(t, r, "a")
	moveConsumer(t, ring, 8)
	ring.Emit(text("b"))
	wantNothing(t, r, syscall.EUCLEAN)
	wantReadError(t, r, syscall.EUCLEAN)
	moveConsumer(t, ring, -8)
	wantTried(t, r, "b")
	ring.Emit(text("c"))
	r.Close()
	wantNothing(t, r, ErrClosed)
}

// TestTryReadIntoWhileCloseWaits calls TryReadInto while Close waits for a goroutine that
// fetches.
func TestTryReadIntoWhileCloseWaits(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := readFake(r)
	p := f.nextFetch(t)
	wantNothing(t, r, nil)
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	await(t, "Close to wake the fetch", func() bool { return f.wakes.Load() == 1 })
	wantNothing(t, r, ErrClosed)
	p.reply()
	wantResult(t, result, "", ErrClosed)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	wantNothing(t, r, ErrClosed)
}

func TestTryReadIntoAllocatesNothing(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	var rec Record
	for i := range 2 { // the second time, batches have reached their size
		if got := ring.Count(0, 0, 10_000, 0); got != 10_000 {
			t.Fatalf("the ring had room for %d samples only", got)
		}
		n := 0
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20_000 { // half of them find nothing
			if ok, err := r.TryReadInto(&rec); err != nil {
				t.Fatal(err)
			} else if ok {
				n++
			}
		}
		runtime.ReadMemStats(&after)
		// Other goroutines, such as those of the runtime, may allocate a little.
		if allocs := after.Mallocs - before.Mallocs; n != 10_000 || i == 1 && allocs > 100 {
			t.Errorf("%d records came, with %d allocations", n, allocs)
		}
	}
}
