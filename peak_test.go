//go:build linux && cgo

package ringbuf

import (
	"os"
	"sync"
	"testing"
	"time"
)

func TestPeakIsOfTheLastMinute(t *testing.T) {
	var p peak
	for _, step := range []struct {
		at    time.Duration
		bytes uint64 // that are noted then, unless 0
		want  uint64
	}{
		{0, 500, 500},
		{time.Second, 400, 500},
		{9 * time.Second, 700, 700},
		{50 * time.Second, 300, 700},
		{69 * time.Second, 0, 700},
		{70 * time.Second, 0, 300},
		{70 * time.Second, 200, 300}, // in place of the 700
		{119 * time.Second, 0, 300},
		{120 * time.Second, 0, 200},
		{140 * time.Second, 0, 0},
		{24 * time.Hour, 100, 100},
		{24*time.Hour + time.Minute, 1 << 31, 1 << 31},
		{24*time.Hour + 129*time.Second, 0, 1 << 31},
		{24*time.Hour + 130*time.Second, 0, 0},
	} {
		if step.bytes > 0 {
			p.note(step.at, step.bytes)
		}
		if got := p.bytes(step.at); got != step.want {
			t.Errorf("at %v, with %d bytes, the peak is %d, want %d", step.at, step.bytes, got, step.want)
		}
	}
	// The clock of Stats may be a little behind that of the goroutine that notes a peak.
	p.note(48*time.Hour, 50)
	if got := p.bytes(48*time.Hour - 1); got != 50 {
		t.Errorf("a moment before it was noted the peak is %d, want 50", got)
	}
}

func TestPeakIsTheMostOfAllGoroutines(t *testing.T) {
	var p peak
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range uint64(100_000) {
				p.note(time.Hour, 4*n+g)
				if got := p.bytes(time.Hour); got < 4*n+g {
					t.Errorf("the peak is %d, want %d or more", got, 4*n+g)
				}
			}
		}()
	}
	wg.Wait()
	if got := p.bytes(time.Hour); got != 399_999 {
		t.Errorf("the peak is %d, want 399999", got)
	}
}

// TestThePeakOfStatsFalls lets time pass for the Reader by moving the time when it was opened.
func TestThePeakOfStatsFalls(t *testing.T) {
	for _, way := range []struct {
		name     string
		blockFor time.Duration
	}{{"blocked", time.Hour}, {"parked", 0}} {
		t.Run(way.name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
			rings := r.queue.rings.(*libbpfRings)
			rings.blockFor = way.blockFor
			pass := func(d time.Duration) {
				r.queue.mu.Lock()
				defer r.queue.mu.Unlock()
				rings.opened = rings.opened.Add(-d)
			}
			wantPeak := func(want int) {
				t.Helper()
				if got := r.Stats().Rings[0].Peak; got != want {
					t.Errorf("the peak is %d, want %d", got, want)
				}
			}
			wantPeak(0)
			for range 5 {
				ring.Emit(text("burst"))
			}
			wantPeak(5 * 16)
			pass(time.Hour) // nobody reads
			wantPeak(5 * 16)
			for range 5 {
				wantSample(t, r, "burst")
			}
			pass(50 * time.Second)
			wantPeak(5 * 16)
			result := goRead(t, r)
			wantWaiting(t, result)
			ring.Emit(text("one"))
			wantResult(t, result, "one", nil)
			wantPeak(5 * 16)
			pass(20 * time.Second)
			wantPeak(16)
			pass(70 * time.Second)
			wantPeak(0)
			// A consumer position that another process has written is no peak, even while a
			// lease is out and the Reader does not check the position.
			ring.Emit(text("lent"))
			lease, err := r.Lease(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			moveConsumer(t, ring, -1<<20)
			r.SetDeadline(time.Unix(0, 1))
			wantReadError(t, r, os.ErrDeadlineExceeded)
			if got := r.Stats().Rings[0].Peak; got > os.Getpagesize() {
				t.Errorf("the peak is %d", got)
			}
			moveConsumer(t, ring, 1<<20)
			lease.Release()
		})
	}
}
