package ringbuf

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests have Readers that tick, on the kernel of this machine.

// newTickingReader returns a Reader that has begun to tick at this interval, and its ring.
func newTickingReader(t *testing.T, interval time.Duration) (*bpftest.Ring, *Reader) {
	t.Helper()
	ring, r := newRingAndReader(t, 1<<20, WithMaxDelay(2*interval))
	// On a busy machine it may take several times as many samples until they come often enough.
	for range 100 * (startCount + 1) {
		ring.Count(0, 0, 1, 0)
		mustRead(t, r)
		if r.queue.rings.(*libbpfRings).moderator.ticking {
			return ring, r
		}
	}
	t.Fatal("the Reader does not tick")
	return nil, nil
}

// In this test and the next two, ticks are an hour apart, so that only the tested call ends the
// wait.
func TestFlushActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"), text("b"))
	result := goRead(t, r)
	wantWaiting(t, result)
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	wantResult(t, result, "a", nil)
	wantSample(t, r, "b")
	wantReadError(t, r, ErrFlushed)
}

func TestDeadlineActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"), text("b"))
	result := goRead(t, r)
	wantWaiting(t, result)
	deadline := time.Now().Add(30 * time.Millisecond)
	r.SetDeadline(deadline)
	wantResult(t, result, "a", nil)
	if early := time.Until(deadline); early > 0 {
		t.Errorf("Read returned %v before its deadline", early)
	}
	wantSample(t, r, "b")
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestCloseActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"))
	result := goRead(t, r)
	wantWaiting(t, result)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantResult(t, result, "", os.ErrClosed)
}

func TestContextActsDuringATick(t *testing.T) {
	for _, tt := range []struct {
		interval time.Duration
		explicit bool // else the pause does not listen
	}{
		{8 * time.Millisecond, false}, // blocks a thread
		{8 * time.Millisecond, true},
		{time.Hour, true}, // parks
	} {
		_, r := newTickingReader(t, tt.interval)
		r.queue.rings.(*libbpfRings).moderator.explicit = tt.explicit
		ctx, cancel := context.WithCancel(t.Context())
		result := goReadContext(ctx, r)
		awaitFetching(t, r)
		cancel()
		wantResult(t, result, "", context.Canceled)
	}
}

func TestWakeEndsAPauseThatBlocksItsThread(t *testing.T) {
	ring, r := newRingAndReader(t, 4096)
	ring.Emit(text("a"), text("b"))
	lib := r.queue.rings.(*libbpfRings)
	begin := time.Now()
	time.AfterFunc(20*time.Millisecond, lib.wake)
	if err := lib.door.pause(time.Hour, deaf); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 20*time.Millisecond || !lib.door.woken() {
		t.Errorf("the pause ended after %v, want 20 ms", took)
	}
}

func TestNoSampleWaitsLongerThanMaxDelay(t *testing.T) {
	const maxDelay = 200 * time.Millisecond
	for _, tt := range []struct {
		name     string
		interval time.Duration
		bursts   int
		size     int // samples of a burst
	}{
		{"steady", 3 * time.Millisecond, 300, 1},
		{"bursty", 250 * time.Millisecond, 4, 100},
		{"single samples", 300 * time.Millisecond, 3, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ring, r := newTickingReader(t, maxDelay/2)
			n := tt.bursts * tt.size
			clock := newTurnClock(t)
			sent := make([]atomic.Int64, n) // time of clock
			go func() {
				ticker := time.NewTicker(tt.interval)
				defer ticker.Stop()
				for i := range n {
					if i%tt.size == 0 {
						<-ticker.C
					}
					sent[i].Store(int64(clock.now()))
					ring.Count(0, uint64(i), 1, 0)
				}
			}()
			var longest time.Duration
			for range n {
				rec := mustRead(t, r)
				now := clock.now()
				seq := bpftest.DecodeNumbered(rec.RawSample).Seq
				longest = max(longest, now-time.Duration(sent[seq].Load()))
			}
			if longest > maxDelay*5/4 {
				t.Errorf("a sample waited for %v, want at most %v", longest, maxDelay)
			}
			if tt.name == "steady" && r.Stats().Ticks == 0 {
				t.Error("the Reader did not tick")
			}
		})
	}
}

// TestALongDelayLooksAtTheRing submits records of which the kernel does not notify, while a
// Reader waits for its first record.
func TestALongDelayLooksAtTheRing(t *testing.T) {
	test := func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		for range 3 {
			result := goRead(t, r)
			wantWaiting(t, result) // longer than the delay
			ring.Emit(quiet("x"))
			wantResult(t, result, "x", nil)
		}
	}
	for name, blockFor := range map[string]time.Duration{"blocked": time.Hour, "parked": 0} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(unpromptedDelay))
			r.queue.rings.(*libbpfRings).blockFor = blockFor
			test(t, ring, r)
		})
	}
	t.Run("ticking without a thread", func(t *testing.T) {
		ring, r := newTickingReader(t, unpromptedDelay/2)
		blocked.Add(1000) // from now on no thread may block
		defer blocked.Add(-1000)
		result := goRead(t, r)
		ring.Emit(quiet("x"))
		wantResult(t, result, "x", nil)
		test(t, ring, r)
	})
}

// TestLargeRecordsAfterSmallOnesEndAPause has a ring that small records would not fill in time.
func TestLargeRecordsAfterSmallOnesEndAPause(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	result := goRead(t, r)
	large := bpftest.Sample{Data: make([]byte, 1<<17), Flags: bpftest.NoWakeup}
	forced := bpftest.Sample{Data: []byte("forced"), Flags: bpftest.ForceWakeup}
	ring.Emit(large, large, forced)
	wantResult(t, result, string(large.Data), nil)
}

func TestWakeupsAreThoseThatEndedAPause(t *testing.T) {
	for _, d := range []time.Duration{8 * time.Millisecond, 40 * time.Millisecond} {
		t.Run(d.String(), func(t *testing.T) {
			ring, r := newTickingReader(t, d)
			before := r.Stats()
			for i := range 5 {
				ring.Count(0, uint64(i), 3, 0) // the kernel notifies of the first, at most
				for range 2 {
					mustRead(t, r)
				}
			}
			after := r.Stats()
			if ticks := after.Ticks - before.Ticks; ticks < 4 {
				t.Errorf("there were %d ticks", ticks)
			}
			if wakeups := after.Wakeups - before.Wakeups; wakeups > 1 {
				t.Errorf("%d wakeups are counted, want 1 at most", wakeups)
			}
		})
	}
}

// TestAFillingRingEndsAPause forces wakeups while ticks are an hour apart. A wakeup ends the
// pause only if an eighth of the ring is filled.
func TestAFillingRingEndsAPause(t *testing.T) {
	const eighth = 1 << 20 / 8 / (bpftest.HeaderSize + bpftest.NumberedSize)
	flood := func(t *testing.T, ring *bpftest.Ring, woken <-chan struct{}) {
		t.Helper()
		waits := func(what string) {
			t.Helper()
			select {
			case <-woken:
				t.Fatalf("%s ended the pause", what)
			case <-time.After(20 * time.Millisecond):
			}
		}
		waits("nothing")
		ring.Count(0, 0, eighth-10, bpftest.NoWakeup)
		ring.Count(0, 0, 1, bpftest.ForceWakeup)
		waits("a wakeup while the ring was nearly empty")
		ring.Count(0, 0, 20, bpftest.NoWakeup)
		waits("a ring that fills up without a wakeup")
		ring.Count(0, 0, 1, bpftest.ForceWakeup)
		select {
		case <-woken:
		case <-time.After(10 * time.Second):
			t.Fatal("a wakeup did not end the pause")
		}
	}
	t.Run("blocked", func(t *testing.T) {
		ring, r := newTickingReader(t, time.Hour)
		lib := r.queue.rings.(*libbpfRings)
		woken := make(chan struct{})
		go func() {
			defer close(woken)
			if err := lib.door.pause(time.Hour, untilEighth); err != nil {
				t.Error(err)
			}
		}()
		defer func() {
			lib.wake() // if nothing else has
			<-woken
		}()
		flood(t, ring, woken)
		if wakeups := r.Stats().Wakeups; wakeups == 0 {
			t.Error("no wakeup is counted")
		}
	})
	t.Run("parked", func(t *testing.T) {
		ring, r := newTickingReader(t, time.Hour)
		woken := make(chan struct{})
		go func() {
			defer close(woken)
			if _, err := r.Read(); err != nil {
				t.Error(err)
			}
		}()
		awaitFetching(t, r)
		flood(t, ring, woken)
		// The other records are read at once too.
		for range eighth {
			mustRead(t, r)
		}
	})
}

// TestFirstSampleAfterIdlenessComesAtOnce has an idle Reader that by itself would not look for
// an hour, whether it ticks or not. So the kernel must notify it.
func TestFirstSampleAfterIdlenessComesAtOnce(t *testing.T) {
	const d = 20 * time.Millisecond
	ring, r := newTickingReader(t, d)
	m := &r.queue.rings.(*libbpfRings).moderator
	for try := 0; m.ticking && try < 20; try++ {
		r.SetDeadline(time.Now().Add(2 * d))
		wantReadError(t, r, os.ErrDeadlineExceeded)
	}
	m.maxDelay, m.interval = 2*time.Hour, time.Hour
	r.SetDeadline(time.Time{})
	result := goRead(t, r)
	wantWaiting(t, result)
	ring.Emit(text("first"))
	wantResult(t, result, "first", nil)
}

// TestTicksSilenceTheKernel counts notifications by polling the map, as any process that has it
// can.
func TestTicksSilenceTheKernel(t *testing.T) {
	for name, tt := range map[string]struct {
		drain func(*libbpfRings, *batch) error
		want  int
	}{
		"read eagerly": {func(r *libbpfRings, b *batch) error {
			_, _, err := r.findAny(b, &request{})
			return err
		}, 100},
		"at ticks": {func(r *libbpfRings, b *batch) error { return r.tick(b, &request{}) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize())
			w := watchNotifications(t, ring)
			notifications, drained := 0, 0
			for range 100 {
				ring.Emit(text("a"), text("b"))
				if w.since(t, 0) {
					notifications++
				}
				var b batch
				if err := tt.drain(r.queue.rings.(*libbpfRings), &b); err != nil {
					t.Fatal(err)
				}
				var u unread
				u.add(&b)
				for _, ok := takeOne(&u); ok; _, ok = takeOne(&u) {
					drained++
				}
			}
			if notifications != tt.want {
				t.Errorf("the kernel notified %d times, want %d", notifications, tt.want)
			}
			rings := r.queue.rings
			left := int(rings.producerPos(0)-rings.consumerPos(0)) / 16
			if drained+left != 200 || left > 1 {
				t.Errorf("%d samples were drained and %d left of 200", drained, left)
			}
		})
	}
}
