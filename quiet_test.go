package ringbuf

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// In these tests, programs submit records with ringbuf_quiet() of bpf/ringbuf.bpf.h, for a
// Reader with a long delay.

// eachQuietWait runs a test for each way to wait. prepare makes the next wait of a Reader one
// of that kind. The Reader must have read something before.
func eachQuietWait(t *testing.T, test func(t *testing.T, prepare func(*Reader))) {
	for name, prepare := range map[string]func(*Reader, *libbpfRings){
		"blocked": func(_ *Reader, lib *libbpfRings) { lib.blockFor = time.Hour },
		"parked":  func(_ *Reader, lib *libbpfRings) { lib.blockFor = 0 },
		"ticking": func(r *Reader, _ *libbpfRings) { startTicking(r) },
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(r *Reader) {
				lib := r.queue.rings.(*libbpfRings)
				lib.moderator.ticking, lib.moderator.drainsToEmpty = false, 0
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

// TestQuietRecordsAreReadInTime has a trickle of records of which the kernel does not notify.
func TestQuietRecordsAreReadInTime(t *testing.T) {
	const (
		d       = 200 * time.Millisecond
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
		r.SetDeadline(time.Now().Add(10 * time.Second)) // so as not to wait forever
		var longest time.Duration
		for i := range sent {
			if seq := bpftest.DecodeNumbered(mustRead(t, r).RawSample).Seq; seq != uint64(i) {
				t.Fatalf("record %d came, want %d", seq, i)
			}
			longest = max(longest, clock.now()-time.Duration(sent[i].Load()))
		}
		w.want(t, false)
		t.Logf("a record waited for at most %v", longest)
		if longest > d*5/4 {
			t.Errorf("a record waited for %v, want at most %v", longest, d)
		}
	})
}

// TestNoQuietFloodIsLost floods the ring of a Reader that by itself would not look for an hour.
// So a Reader that reads nothing is asleep, not merely slow on a busy machine.
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

// quietFlood writes as many records as two rings hold. On some machines a flood is faster than
// any Reader, so while more than three quarters of the ring are filled, it waits for the
// Reader.
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
					w.want(t, true) // otherwise it is not the Reader's fault
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

// TestAFloodIsLostIfTheKernelNeverNotifies is for comparison with the tests above.
func TestAFloodIsLostIfTheKernelNeverNotifies(t *testing.T) {
	const size = 1 << 20
	eachQuietWait(t, func(t *testing.T, prepare func(*Reader)) {
		ring, r := newQuietRing(t, size, size, time.Hour)
		n := numberedCapacity(size)
		refused := 0
		for try := 0; refused != 10; try++ {
			if try == 5 { // once or twice the Reader may not have been asleep yet
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
			// As if the last tick of the Reader had left a record.
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
			// Time in which a virtual machine does not run counts for the thread that ran in
			// it.
			if got := threadTime() - before; got > took/2 {
				t.Errorf("a pause of %v took %v of processor time", took, got)
			}
		})
	}
}

// A notified is an epoll instance that tells when the kernel notifies of a ring.
type notified int

func watchNotifications(t *testing.T, m Map) notified {
	t.Helper()
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	const edgeTriggered = 1 << 31 // syscall.EPOLLET is negative
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | edgeTriggered}
	if err := syscall.EpollCtl(fd, syscall.EPOLL_CTL_ADD, m.FileDescriptor(), &event); err != nil {
		t.Fatal(err)
	}
	return notified(fd)
}

// want compares whether the kernel has notified since the last call with want. If want is true,
// it waits for a notification.
func (w notified) want(t *testing.T, want bool) {
	t.Helper()
	timeout := 0
	if want {
		timeout = 10_000
	}
	if got := w.since(t, timeout); got != want {
		t.Fatalf("notified: %v, want %v", got, want)
	}
}

// since reports whether the kernel has notified since the last call, or does so within timeout
// ms.
func (w notified) since(t *testing.T, timeout int) bool {
	t.Helper()
	var events [1]syscall.EpollEvent
	n, err := syscall.EpollWait(int(w), events[:], timeout)
	for err == syscall.EINTR {
		n, err = syscall.EpollWait(int(w), events[:], timeout)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

func TestQuietForcesAWakeupForEachHalfOfTheThreshold(t *testing.T) {
	size := os.Getpagesize()
	n := numberedCapacity(size)
	threshold := size / 4
	ring := bpftest.NewLoss(t, size, uint64(threshold))
	consumer := consumerPosition(t, ring)
	w := watchNotifications(t, ring)
	var forced []int
	last := 0
	write := func(from, to, consumed int) {
		t.Helper()
		*consumer = uint64(consumed * numberedRecord)
		for i := from; i < to; i++ {
			if ring.Try(0, 0, uint64(i), 1) != 1 {
				t.Fatalf("record %d was refused", i)
			}
			// The position that ringbuf_quiet sees. It includes its own record if that is
			// reserved.
			producer := (i + (i+1)%2) * numberedRecord
			want := producer-consumed*numberedRecord >= threshold && producer-last >= threshold/2
			w.want(t, want)
			if want {
				last = producer
				forced = append(forced, producer)
			}
		}
	}
	write(0, n, 0)
	// From a quarter of the ring on, one at each eighth, or up to a record later.
	if len(forced) != 6 {
		t.Errorf("wakeups of a ring that fills up: at %d, want 6", forced)
	}
	// The Reader was woken, and left the newest record.
	forced = nil
	write(n, 2*n-1, n-1)
	if len(forced) != 6 {
		t.Errorf("wakeups when it fills up again: at %d, want 6", forced)
	}
	// The Reader keeps up, so there is nothing to notify of.
	forced = nil
	for i := 2*n - 1; i < 4*n; i++ {
		write(i, i+1, i-1)
	}
	if len(forced) != 0 {
		t.Errorf("wakeups of a ring that is nearly empty: at %d", forced)
	}
	// A refused record changes nothing.
	write(4*n, 5*n-1, 4*n-1)
	if got := ring.Try(0, 0, 0, 2); got != 0 {
		t.Fatalf("%d were accepted", got)
	}
	w.want(t, false)
}

func TestQuietNotifiesOfTheRecordThatHeldBackTheOthers(t *testing.T) {
	size := os.Getpagesize()
	threshold := size / 4
	past := threshold/numberedRecord + 1 // and less than threshold/2 beyond it
	for _, tt := range []struct {
		name     string
		others   int
		flags    uint32
		notified bool
	}{
		{"below the threshold", past / 2, bpftest.NoWakeup, false},
		{"past the threshold", past, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring := bpftest.NewLoss(t, size, uint64(threshold))
			w := watchNotifications(t, ring)
			ring.SetSlot(0, 0, 0, uint64(threshold)) // the others force no wakeup
			if flags := ring.Hold(0, tt.others); flags != tt.flags {
				t.Errorf("it was submitted with flags %d, want %d", flags, tt.flags)
			}
			w.want(t, tt.notified)
		})
	}
}

func TestRingsInMapsOfMapsAreCountedAndNotifiedOf(t *testing.T) {
	size := os.Getpagesize()
	n := numberedCapacity(size)
	ring := bpftest.NewLoss(t, size, 0)
	c := mustOpenLossCounter(t, ring.Counter())
	w := watchNotifications(t, ring)
	ring.Try(0, 0, 0, n-2)
	w.want(t, true) // of the first
	if !ring.TryInner(0, uint64(size)) {
		t.Error("the last record but one was refused")
	}
	w.want(t, false)
	if !ring.TryInner(0, uint64(size/2)) {
		t.Error("the last record was refused")
	}
	w.want(t, true)
	if ring.TryInner(0, uint64(size/2)) {
		t.Error("a record was accepted that the ring has no room for")
	}
	wantLook(t, c, 1, uint64(n*numberedRecord))
}
