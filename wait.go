//go:build linux && cgo

package ringbuf

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// How a Reader waits for records: in libbpf's ring_buffer__poll, in ppoll before a tick or
// for the rest of a millisecond, or in Go's netpoller.

const (
	// How long a wait that follows a sample blocks its OS thread, which answers
	// faster than parking the goroutine does.
	blockFor = 100 * time.Millisecond

	// The netpoller waits in milliseconds, so the end of any wait blocks.
	netpollGrain = 1500 * time.Microsecond

	// How often a goroutine yields that spends its time in C. Of one that was not
	// scheduled for 10 ms (forcePreemptNS in Go's runtime/proc.go) the runtime takes
	// the processor away as soon as it is in C, which wakes two other threads each
	// time: half of the processor time of a Reader that ticks.
	yieldAfter = 5 * time.Millisecond

	// A longer pause between two ticks parks the goroutine, all but the end of it.
	parkingPause = 10 * time.Millisecond

	// While older records are lent the kernel notifies of none: so the rings are looked at,
	// after pauses that grow from the first to the second.
	minLentPause = time.Millisecond
	maxLentPause = 10 * time.Millisecond
)

// blocked counts the threads of this process that fetch blocks. As many as can run
// at once are worth it. Go keeps its threads once it has them, so without a limit
// many Readers would leave many threads behind.
var blocked atomic.Int32

// block reserves one of the threads that may be blocked, if there is one.
func block() bool {
	if blocked.Add(1) > int32(runtime.GOMAXPROCS(0)) {
		blocked.Add(-1)
		return false
	}
	return true
}

func unblock() { blocked.Add(-1) }

// A waiter is the part of libbpfRings that waits.
type waiter struct {
	blockFor time.Duration

	now       time.Time // when the rings were looked at, or a wait ended; or a little earlier
	untimed   int       // fetches that may use it again
	active    time.Time // when fetch was called after it had found samples
	found     bool      // the last fetch found samples
	yielded   time.Time
	lentPause time.Duration

	parkFile *os.File // duplicate of park_fd in C
	parked   syscall.RawConn
	woken    atomic.Bool  // wake was called; fetch resets it when it returns
	looking  atomic.Int32 // 1: somebody looks or waits while older records are lent; see caughtUp

	// Made once, because a new closure for each wait would be an allocation.
	onReady, onEighth, onAny func(uintptr) bool

	readies       int           // calls of one of these in this wait
	parkedWakeups atomic.Uint64 // not counted in C
}

// open hands a duplicate of the epoll instance to Go. Who is parked hears no more of an
// epoll instance when its last descriptor is closed, nor that it was. So of the two on which
// that depends there are two each, in case that somebody closes one by mistake.
func (w *waiter) open(d door) error {
	fd, err := d.dupParkFD()
	if err != nil {
		return err
	}
	w.blockFor = blockFor
	w.parkFile = os.NewFile(uintptr(fd), "ringbuf")
	w.parked, err = w.parkFile.SyscallConn()
	if err == nil {
		// The only sign that os.NewFile could not add it to the netpoller.
		err = w.parkFile.SetReadDeadline(time.Time{})
	}
	if err != nil {
		w.parkFile.Close()
		return err
	}
	w.onReady = func(uintptr) bool {
		w.readies++
		return d.ready()
	}
	w.onEighth = func(uintptr) bool {
		w.readies++
		return d.produced(untilEighth)
	}
	w.onAny = func(uintptr) bool {
		w.readies++
		return d.produced(untilAny)
	}
	return nil
}

// waitLent waits until the pause is over, anything was produced, or caughtUp finds that.
func (r *libbpfRings) waitLent(q *request, left time.Duration) error {
	// Perhaps the last commit came after the queue counted what is lent, and before looking.
	caughtUp := true
	for i := range r.rings {
		caughtUp = caughtUp && r.rings[i].consumer() == r.rings[i].lent
	}
	if caughtUp {
		return nil
	}
	if r.found { // by the fetch before
		r.lentPause = 0
	}
	pause := min(max(r.lentPause, minLentPause), maxLentPause)
	r.lentPause = 2 * pause
	return r.pause(min(pause, left), untilAny, r.onAny)
}

// rest waits for somebody who holds records back, of which the kernel does not notify: for no
// longer than a flood may take to fill the room that a ring has, as ticks are apart. A wakeup that
// a program forces while one fills up ends it.
func (r *libbpfRings) rest(pause time.Duration) error {
	longest := r.moderator.maxDelay / 2
	if !r.moderator.given || longest == 0 {
		longest = defaultMaxDelay / 2
		for i := range r.rings {
			g := &r.rings[i]
			room := g.size - min(g.size, g.producer()-g.consumer())
			longest = min(longest, r.moderator.rings[i].flood(room))
		}
	}
	if pause = min(pause, max(longest, minInterval)); pause <= 0 {
		return nil
	}
	listen := deaf
	if r.moderator.unprompted() {
		listen = untilEighth
	}
	err := r.pause(pause, listen, r.onEighth)
	r.now = time.Now()
	return err
}

// pause waits beside what is lent.
func (r *libbpfRings) pause(pause time.Duration, listen listening, ready func(uintptr) bool) error {
	if block() {
		defer unblock()
		if err := r.door.pause(pause, listen); err != nil {
			return r.waitError(err)
		}
		return nil
	}
	if listen != deaf {
		if err := r.door.arm(true); err != nil {
			return r.waitError(err)
		}
		defer r.door.arm(false)
	}
	return r.park(time.Now().Add(pause), ready)
}

// caughtUp is called when libbpf has consumed the last record that was lent of ring i. The
// kernel did not notify of those that came meanwhile.
func (r *libbpfRings) caughtUp(i int) {
	// Add is a full barrier: either this sees looking, or waitLent the consumer position.
	if r.looking.Add(0) > 0 && r.door.readyRing(i) {
		r.wake()
	}
}

// waitParked waits in Go's netpoller, without an OS thread, until there are records, the
// deadline or wake. The netpoller is edge-triggered: a record that is reserved but not
// committed does not make it spin.
func (r *libbpfRings) waitParked(deadline time.Time) error {
	// The netpoller is told of notifications only now: while fetch blocks they
	// would wake a second thread each time, for nothing.
	if err := r.door.arm(true); err != nil {
		return r.waitError(err)
	}
	defer r.door.arm(false)
	return r.park(deadline, r.onReady)
}

// pauseParked waits in Go's netpoller until the given time or wake. If the kernel notifies
// before that while a ring fills up, it ticks.
func (r *libbpfRings) pauseParked(b *batch, q *request, until time.Time) error {
	if !r.moderator.unprompted() {
		return r.park(until, func(uintptr) bool { return false })
	}
	if err := r.door.arm(true); err != nil {
		return r.waitError(err)
	}
	err := r.park(until, r.onEighth)
	r.door.arm(false)
	if err == nil && r.door.produced(untilEighth) {
		r.now = time.Now()
		err = r.tick(b, q)
	}
	return err
}

// park waits in Go's netpoller until ready reports true, the deadline or wake.
func (r *libbpfRings) park(deadline time.Time, ready func(uintptr) bool) error {
	err := r.parkFile.SetReadDeadline(deadline)
	// In this order: if wake comes later, its deadline is the one that counts.
	if err == nil && !r.woken.Load() {
		r.readies = 0
		err = r.parked.Read(ready)
		// The first was before the wait.
		if err == nil && r.readies > 1 {
			r.parkedWakeups.Add(1)
		}
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return r.waitError(err)
	}
	return nil
}

// wake implements rings. To end a parked wait it needs no descriptor, since anybody in
// this process may close one by mistake.
func (r *libbpfRings) wake() {
	r.woken.Store(true)
	r.door.wake()
	r.parkFile.SetReadDeadline(time.Unix(0, 1)) // ends one that is parked
}
