package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// Programs submit by ringbuf_quiet() of bpf/ringbuf.bpf.h, for a Reader with a long delay.

// TestQuietRecordsAreReadInTimeAndNotLost has a trickle, of which the kernel notifies
// nobody, turn into a flood.
func TestQuietRecordsAreReadInTimeAndNotLost(t *testing.T) {
	const size = 1 << 20
	for _, tt := range []struct {
		d    time.Duration
		wait string
	}{
		{100 * time.Millisecond, "blocked"},
		{100 * time.Millisecond, "parked"},
		{100 * time.Millisecond, "ticking"},
		{time.Second, "ticking"},
	} {
		t.Run(fmt.Sprintf("%v/%s", tt.d, tt.wait), func(t *testing.T) {
			if lost := trickleAndFlood(t, size, size/4, tt.d, tt.wait); lost > 0 {
				t.Errorf("%d records were refused", lost)
			}
		})
	}
	// What the others are compared with.
	t.Run("never notified", func(t *testing.T) {
		if lost := trickleAndFlood(t, size, size, 300*time.Millisecond, "ticking"); lost == 0 {
			t.Error("no record was refused")
		}
	})
}

// trickleAndFlood returns how many records were refused.
func trickleAndFlood(t *testing.T, size, threshold int, d time.Duration, wait string) (lost int) {
	const (
		trickle = 5                     // records, three in each delay: enough for ticks to go on
		noise   = 60 * time.Millisecond // of the machine
	)
	ring := bpftest.NewLoss(t, size, uint64(threshold))
	r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), WithMaxDelay(d))
	w := watchNotifications(t, ring)
	lib := r.queue.rings.(*libbpfRings)
	cpu := runtime.NumCPU() - 1
	switch wait {
	case "blocked":
		lib.blockFor = time.Hour
	case "parked":
		lib.blockFor = 0
	case "ticking":
		for range startCount + 1 {
			ring.Try(cpu, 0, trickle, 1)
			mustRead(t, r)
		}
		if !lib.pace.ticking {
			t.Fatal("the Reader does not tick")
		}
	}

	var (
		begin   = time.Now()
		sent    [trickle]atomic.Int64 // after begin, in ns
		came    = make(chan struct{}) // the trickle but for its newest record
		longest time.Duration         // that one of the trickle took
		read    int
		err     error
		reading group
	)
	reading.Go(func() {
		var rec Record
		for err = r.ReadInto(&rec); err == nil; err = r.ReadInto(&rec) {
			if seq := bpftest.DecodeNumbered(rec.RawSample).Seq; seq < trickle {
				longest = max(longest, time.Since(begin)-time.Duration(sent[seq].Load()))
			}
			if read++; read == trickle-1 {
				close(came)
			}
		}
	})
	awaitPolling(t, r)
	ticker := time.NewTicker(d / 3)
	defer ticker.Stop()
	for i := range sent {
		<-ticker.C
		sent[i].Store(int64(time.Since(begin)))
		ring.Try(cpu, 0, uint64(i), 1)
	}
	select {
	case <-came:
	case <-time.After(3 * d): // it will be seen how long that took
	}
	// By then the Reader is asleep, and does not look again for nearly d.
	<-time.After(d / 20)
	w.want(t, false)

	const burst = 256
	tried, accepted := trickle, trickle
	for awake := true; tried < trickle+4*numberedCapacity(size); tried += burst {
		accepted += ring.Try(cpu, 0, trickle, burst)
		if awake && r.AvailableBytes() > size*3/4 {
			awake = catchesUp(r, size/2, d/2)
		}
	}
	r.SetDeadline(time.Unix(0, 1))
	reading.Wait()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if longest > 2*d+noise {
		t.Errorf("a sample waited for %v, want at most %v", longest, 2*d)
	}
	if read != accepted {
		t.Errorf("%d records were read, %d accepted", read, accepted)
	}
	s := r.Stats()
	if s.Lost != uint64(tried-accepted) {
		t.Errorf("Stats tell of %d lost records, want %d", s.Lost, tried-accepted)
	}
	t.Logf("a sample waited for at most %v; of %d records %d were refused; %d wakeups, %d ticks",
		longest, tried, tried-accepted, s.Wakeups, s.Ticks)
	return tried - accepted
}

// catchesUp waits until so many bytes are left to read, since on some machines a flood is
// faster than any Reader. It reports false if the Reader is asleep: if it reads nothing for
// as long as patience.
func catchesUp(r *Reader, left int, patience time.Duration) bool {
	least, since := r.AvailableBytes(), time.Now()
	for least > left {
		runtime.Gosched()
		if n := r.AvailableBytes(); n < least {
			least, since = n, time.Now()
		} else if time.Since(since) > patience {
			return false
		}
	}
	return true
}

func TestANotificationDoesNotMakeAPauseSpin(t *testing.T) {
	const pause = 100 * time.Millisecond
	for name, read := range map[string]func(*Reader) error{
		"blocked": func(r *Reader) error {
			return r.queue.rings.(*libbpfRings).door.pause(pause, untilEighth)
		},
		"parked": func(r *Reader) error { _, err := r.Read(); return err },
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newTickingReader(t, pause)
			// As for a Reader whose last tick left a record.
			ring.Count(0, 0, 2, bpftest.ForceWakeup)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			begin, before := time.Now(), threadTime()
			if err := read(r); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took < pause/2 {
				t.Errorf("the pause ended after %v, want %v", took, pause)
			}
			if got := threadTime() - before; got > pause/5 {
				t.Errorf("a pause of %v took %v of processor time", pause, got)
			}
		})
	}
}
