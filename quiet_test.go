package ringbuf

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// Programs submit by ringbuf_quiet() of bpf/ringbuf.bpf.h, for a Reader with a long delay.

// eachQuietWait runs a test with Readers that wait in each way. prepare makes one wait like
// that the next time; it has read something before.
func eachQuietWait(t *testing.T, test func(t *testing.T, prepare func(*Reader))) {
	for name, prepare := range map[string]func(*Reader, *libbpfRings){
		"blocked": func(_ *Reader, lib *libbpfRings) { lib.blockFor = time.Hour },
		"parked":  func(_ *Reader, lib *libbpfRings) { lib.blockFor = 0 },
		"ticking": func(r *Reader, _ *libbpfRings) { startTicking(r) },
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(r *Reader) {
				lib := r.queue.rings.(*libbpfRings)
				lib.moderator.ticking, lib.moderator.notified = false, 0
				prepare(r, lib)
			})
		})
	}
}

// newQuietRing returns a ring and a Reader that has read a record.
func newQuietRing(t *testing.T, size, threshold int, d time.Duration) (*bpftest.LossRing, *Reader) {
	t.Helper()
	ring := bpftest.NewLoss(t, size, uint64(threshold))
	r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), WithMaxDelay(d))
	ring.Try(0, 0, 0, 1)
	mustRead(t, r)
	return ring, r
}

// TestQuietRecordsAreReadInTime has a trickle, of which the kernel notifies nobody.
func TestQuietRecordsAreReadInTime(t *testing.T) {
	const (
		d       = 100 * time.Millisecond
		records = 6
	)
	eachQuietWait(t, func(t *testing.T, prepare func(*Reader)) {
		t.Parallel()
		ring, r := newQuietRing(t, os.Getpagesize(), os.Getpagesize(), d)
		prepare(r)
		w := watchNotifications(t, ring)
		clock := newTurnClock(t)
		var sent [records]atomic.Int64 // time of clock
		go func() {
			ticker := time.NewTicker(d / 3)
			defer ticker.Stop()
			for i := range sent {
				<-ticker.C
				sent[i].Store(int64(clock.now()))
				ring.Try(0, 0, uint64(i), 1)
			}
		}()
		r.SetDeadline(time.Now().Add(10 * time.Second)) // not to wait for ever
		var longest time.Duration
		for i := range sent {
			if seq := bpftest.DecodeNumbered(mustRead(t, r).RawSample).Seq; seq != uint64(i) {
				t.Fatalf("record %d came, want %d", seq, i)
			}
			longest = max(longest, clock.now()-time.Duration(sent[i].Load()))
		}
		w.want(t, false)
		t.Logf("a record waited for at most %v", longest)
		if longest > 2*d+d/2 {
			t.Errorf("a record waited for %v, want at most %v", longest, 2*d)
		}
	})
}

// TestNoQuietFloodIsLost floods the ring of a Reader that would not look again for an hour: if
// it reads nothing it is asleep, and not only slow because the machine is busy.
func TestNoQuietFloodIsLost(t *testing.T) {
	const size = 1 << 20
	eachQuietWait(t, func(t *testing.T, prepare func(*Reader)) {
		ring, r := newQuietRing(t, size, size/4, time.Hour)
		for range 5 {
			prepare(r)
			quietFlood(t, ring, r, size)
		}
		s := r.Stats()
		if s.Lost > 0 {
			t.Errorf("Stats tell of %d lost records", s.Lost)
		}
		t.Logf("%d wakeups, %d ticks", s.Wakeups, s.Ticks)
	})
}

// quietFlood writes two rings full. On some machines a flood is faster than any Reader, so at
// three quarters of the ring it waits for this one.
func quietFlood(t *testing.T, ring *bpftest.LossRing, r *Reader, size int) {
	t.Helper()
	const burst = 256
	drained := make(chan struct{}, 1) // half of the ring
	read := 0
	ended := make(chan error, 1)
	go func() {
		var rec Record
		err := r.ReadInto(&rec)
		for ; err == nil; err = r.ReadInto(&rec) {
			read++
			if rec.Remaining <= size/2 {
				select {
				case drained <- struct{}{}:
				default:
				}
			}
		}
		ended <- err
	}()
	awaitFetching(t, r)
	w := watchNotifications(t, ring)
	turn := time.NewTicker(10 * time.Millisecond)
	defer turn.Stop()
	tried, accepted := 0, 0
	for tried < 2*numberedCapacity(size) {
		tried += burst
		accepted += ring.Try(runtime.NumCPU()-1, 0, 0, burst)
		for p := (patience{left: 10 * time.Second}); r.AvailableBytes() > size*3/4; {
			select {
			case <-drained:
			case <-turn.C:
				if p.over() {
					w.want(t, true) // or it is not the Reader's fault
					t.Fatalf("%d bytes are in the ring, the kernel has notified, and the Reader reads nothing",
						r.AvailableBytes())
				}
			}
		}
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrFlushed) || read != tried || accepted != tried {
		t.Errorf("of %d records %d were accepted and %d read, until %v", tried, accepted, read, err)
	}
}

// TestAFloodIsLostIfTheKernelNeverNotifies has what the others are compared with.
func TestAFloodIsLostIfTheKernelNeverNotifies(t *testing.T) {
	const size = 1 << 20
	eachQuietWait(t, func(t *testing.T, prepare func(*Reader)) {
		ring, r := newQuietRing(t, size, size, time.Hour)
		n := numberedCapacity(size)
		refused := 0
		for try := 0; refused != 10; try++ {
			if try == 5 { // it may not have slept yet, once or twice
				t.Fatal("the Reader reads")
			}
			prepare(r)
			result := goRead(t, r)
			wantWaiting(t, result)
			w := watchNotifications(t, ring)
			before := r.Stats().Lost
			refused = n + 10 - ring.Try(0, 0, 0, n+10)
			w.want(t, false)
			r.SetDeadline(time.Unix(0, 1))
			if got := <-result; got.err != nil {
				t.Fatal(got.err)
			}
			for range n + 10 - refused - 1 {
				mustRead(t, r)
			}
			wantReadError(t, r, os.ErrDeadlineExceeded)
			if got := int(r.Stats().Lost - before); got != refused {
				t.Errorf("Stats tell of %d lost records, want %d", got, refused)
			}
			r.SetDeadline(time.Time{})
		}
	})
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
			took := time.Since(begin)
			if took < pause/2 {
				t.Errorf("the pause ended after %v, want %v", took, pause)
			}
			// In a virtual machine, time in which that did not run counts for who ran there.
			if got := threadTime() - before; got > took/2 {
				t.Errorf("a pause of %v took %v of processor time", took, got)
			}
		})
	}
}
