package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// wantRecords fails unless an iterator yields exactly these samples and then the error end, if
// that is not nil.
func wantRecords(t *testing.T, records func(func(Record, error) bool), end error,
	samples ...string) {
	t.Helper()
	var got []string
	var err error
	for rec, e := range records {
		if err != nil {
			t.Fatalf("another iteration after %v", err)
		}
		if err = e; err == nil {
			got = append(got, string(rec.RawSample))
		} else if rec.RawSample != nil {
			t.Errorf("the record beside %v has a sample", err)
		}
	}
	if !errors.Is(err, end) || end == nil && err != nil || !slices.Equal(got, samples) {
		t.Fatalf("got %q and %v; want %q and %v", got, err, samples, end)
	}
}

func TestRecordsEndWithTheErrorOfRead(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"), discarded(8), text(""), quiet("b"))
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	wantRecords(t, r.Records(t.Context()), ErrFlushed, "a", "", "b")
	ring.Emit(quiet("c"))
	r.SetDeadline(time.Now().Add(time.Millisecond))
	wantRecords(t, r.Records(t.Context()), os.ErrDeadlineExceeded, "c")
	r.SetDeadline(time.Time{})
	r.Close()
	wantRecords(t, r.Records(t.Context()), nil)
}

// goRecords runs a loop over Records in a goroutine, and returns when the loop waits for a
// record.
func goRecords(ctx context.Context, t *testing.T, r *Reader) (ended <-chan error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		var last error
		for rec, err := range r.Records(ctx) {
			if last = err; err == nil {
				last = fmt.Errorf("got %q", rec.RawSample)
			}
		}
		result <- last
	}()
	awaitFetching(t, r)
	return result
}

func TestCloseEndsRecordsSilently(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		ended := goRecords(t.Context(), t, r)
		r.Close()
		if err := <-ended; err != nil {
			t.Errorf("Close ended the loop with %v", err)
		}
	})
	t.Run("in the loop", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		ring.Emit(text("a"), text("b"))
		var seen []string
		for rec, err := range r.Records(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			seen = append(seen, string(rec.RawSample))
		}
		if !slices.Equal(seen, []string{"a"}) {
			t.Errorf("the loop saw %q", seen)
		}
	})
}

func TestContextEndsRecords(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		within10ms(t, func() time.Duration {
			ctx, cancel := context.WithCancel(t.Context())
			ended := goRecords(ctx, t, r)
			began := time.Now()
			cancel()
			if err := <-ended; err != context.Canceled {
				t.Errorf("the loop ended with %v", err)
			}
			return time.Since(began)
		})
	})
	t.Run("although there are more", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		ring.Emit(text("a"), text("b"), text("c"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var seen []string
		var last error
		for rec, err := range r.Records(ctx) {
			if last = err; err == nil {
				seen = append(seen, string(rec.RawSample))
			}
			cancel()
		}
		if !slices.Equal(seen, []string{"a"}) || last != context.Canceled {
			t.Errorf("the loop saw %q and %v", seen, last)
		}
		wantSample(t, r, "b")
	})
}

func TestRecordsLeavesTheRestToOthers(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"), text("b"), text("c"), text("d"))
	for rec, err := range r.Records(t.Context()) {
		if err != nil || string(rec.RawSample) != "a" || rec.Remaining != 3*16 {
			t.Fatalf("got %q with %d bytes remaining, %v", rec.RawSample, rec.Remaining, err)
		}
		break
	}
	wantAvailable(t, r, 3*16)
	func() {
		defer func() { recover() }()
		for range r.Records(t.Context()) {
			panic("in the loop")
		}
	}()
	wantAvailable(t, r, 3*16)
	wantSample(t, r, "b")
	wantSample(t, r, "c")
	wantSample(t, r, "d")
	if r.queue.windowsOut != 0 {
		t.Errorf("%d loops that ended have a loan", r.queue.windowsOut)
	}
}

func TestRecordsAreViewsOfTheRing(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	view := r.queue.rings.view(0)
	for range 1000 {
		ring.Emit(text("12345678"), text("123456789"))
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		next, n := view.consumer(), 0
		for rec, err := range r.Records(t.Context()) {
			if errors.Is(err, ErrFlushed) {
				break
			}
			want := (*byte)(unsafe.Add(view.at(next), recordHeaderSize))
			if unsafe.SliceData(rec.RawSample) != want || cap(rec.RawSample) != len(rec.RawSample) {
				t.Fatalf("a sample of %d bytes and capacity %d is at %p, want %p",
					len(rec.RawSample), cap(rec.RawSample), rec.RawSample, want)
			}
			next += uint64(bpftest.Sample{Data: rec.RawSample}.RecordSize())
			n++
		}
		if n != 2 {
			t.Fatalf("%d records came, want 2", n)
		}
	}
}

func TestRecordsAllocatesNothingForASample(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	const n = 10_000
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mallocs uint64
	for range 2 { // the second time, batches have reached their size
		if got := ring.Count(0, 0, n, 0); got != n {
			t.Fatalf("the ring had room for %d samples only", got)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		seen := 0
		for _, err := range r.Records(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if seen++; seen == n {
				break
			}
		}
		runtime.ReadMemStats(&after)
		mallocs = after.Mallocs - before.Mallocs
	}
	if mallocs > n/100 { // for the loop, and by other goroutines
		t.Errorf("a loop over %d records allocates %d times", n, mallocs)
	}
}

// TestNobodyWritesToAView runs several loops over Records, and one over Read, while records
// come. Each loop body looks at its view twice, so that others may fetch in between.
func TestNobodyWritesToAView(t *testing.T) { eachPace(t, testViews) }

func testViews(t *testing.T, pace Option) {
	const samples = 20_000
	ring, r := newRingAndReader(t, 1<<16, pace)
	var reading group
	var seen atomic.Int64
	done := func() {
		if seen.Add(1) == samples {
			r.Close()
		}
	}
	for range 3 {
		reading.Go(func() {
			for rec, err := range r.Records(t.Context()) {
				if err != nil {
					t.Error(err)
					return
				}
				before := bpftest.DecodeNumbered(rec.RawSample)
				runtime.Gosched()
				if now := bpftest.DecodeNumbered(rec.RawSample); now != before {
					t.Errorf("a view changed from %v to %v", before, now)
				}
				done()
			}
		})
	}
	reading.Go(func() {
		for {
			if _, err := r.Read(); err != nil {
				return
			}
			done()
		}
	})
	for seq := 0; seq < samples; runtime.Gosched() {
		seq += ring.Count(0, uint64(seq), min(64, samples-seq), 0)
	}
	reading.Wait()
	if n := seen.Load(); n != samples {
		t.Errorf("%d samples were read, want %d", n, samples)
	}
}
