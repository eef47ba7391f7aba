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

// Why a Reader waits, and how:
//
//	wait for                         blocking the thread         parking the goroutine
//	the kernel to notify             libbpf's ring_buffer__poll  waitParked
//	  (below 1 ms, and for a Lease)  ppoll
//	a tick                           pauseBlocked: ppoll         pauseParked
//	records, while older are lent    waitBesideLoans: ppoll      the same: park
//	a caller who holds records back  waitNotBefore: ppoll        the same: park
//
// A blocked wait answers faster, but only some threads may be blocked. Parking is waiting in Go's
// netpoller.

const (
	// A wait that follows a sample blocks its OS thread for this long. Then it answers faster than
	// if the goroutine is parked.
	blockFor = 100 * time.Millisecond

	// The netpoller waits in whole milliseconds. So the end of each wait blocks.
	netpollGrain = 1500 * time.Microsecond

	// A goroutine that spends its time in C yields after this time. Otherwise the runtime notices
	// that it was not scheduled for 10 ms (forcePreemptNS in Go's runtime/proc.go), and takes the
	// processor away as soon as the goroutine is in C. Each time that wakes two other threads. It
	// took half of the processor time of a Reader that ticks.
	yieldAfter = 5 * time.Millisecond

	// A pause between two ticks that is longer than this parks the goroutine, except at its end.
	parkingPause = 10 * time.Millisecond

	// While older records are lent, the kernel notifies of none. So the Reader looks at the rings
	// after pauses that grow from the first to the second value.
	minLentPause = time.Millisecond
	maxLentPause = 10 * time.Millisecond
)

// blocked counts the threads of this process that a fetch blocks. More than can run at once are of
// no use. Go keeps its threads once it has them, so without a limit many Readers would leave many
// threads behind.
var blocked atomic.Int32

// block reserves one of the threads that may be blocked. It reports false if there is none.
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

	now        time.Time // when the rings were looked at or a wait ended, or a little before
	untimed    int       // number of fetches that may still use now
	sampleDone time.Time // when the caller came back after its last samples
	hadSamples bool      // the last fetch found samples
	yielded    time.Time
	lentPause  time.Duration

	parkFile *os.File // duplicate of park_fd in C
	parked   syscall.RawConn
	woken    atomic.Bool  // wake was called; fetch resets it when it returns
	looking  atomic.Int32 // 1: a fetch looks or waits while older records are lent; see allConsumed

	// Made once, because making a closure for each wait would allocate.
	onReady, onEighth, onAny func(uintptr) bool

	readies       int           // calls of one of these closures in this wait
	parkedWakeups atomic.Uint64 // wakeups of parked waits, which C does not count
}

// open hands a duplicate of the epoll instance to Go. If the last descriptor of an epoll instance
// is closed, a parked goroutine hears nothing more of it. So there are two descriptors of each of
// the two instances that a wait depends on, in case somebody closes one by mistake.
func (w *waiter) open(d door) error {
	fd, err := d.dupParkFD()
	if err != nil {
		return err
	}
	w.blockFor = blockFor
	w.parkFile = os.NewFile(uintptr(fd), "ringbuf")
	w.parked, err = w.parkFile.SyscallConn()
	if err == nil {
		// An error of this is the only sign that os.NewFile could not add it to the netpoller.
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

// waitBesideLoans waits while records are lent. The kernel does not notify of new records in their
// rings. It ends after a pause, when something was produced in another ring, or when allConsumed
// calls wake.
func (r *libbpfRings) waitBesideLoans(left time.Duration) error {
	// The last commit may have come after the queue counted its loans, and before looking was set.
	nothingLent := true
	for i := range r.rings {
		nothingLent = nothingLent && r.rings[i].consumer() == r.rings[i].lookedTo
	}
	if nothingLent {
		return nil
	}
	if r.hadSamples { // the previous fetch
		r.lentPause = 0
	}
	pause := min(max(r.lentPause, minLentPause), maxLentPause)
	r.lentPause = 2 * pause
	return r.timedWait(min(pause, left), untilAny, r.onAny)
}

// waitNotBefore waits for a caller who holds records back and wants no look before a time. The
// kernel does not notify of records behind these. So the wait is no longer than the interval of
// ticks with this maximum delay, or than a flood needs to fill what is free of a ring. A wakeup
// that a program forces while a ring fills up ends it.
func (r *libbpfRings) waitNotBefore(pause time.Duration) error {
	longest := r.moderator.maxDelay / 2
	if !r.moderator.explicit || longest == 0 {
		longest = defaultMaxDelay / 2
		for i := range r.rings {
			g := &r.rings[i]
			room := g.size - min(g.size, g.producer()-g.consumer())
			longest = min(longest, r.moderator.rings[i].timeToFill(room))
		}
	}
	if pause = min(pause, max(longest, minInterval)); pause <= 0 {
		return nil
	}
	listen := deaf
	if r.moderator.looksUnprompted() {
		listen = untilEighth
	}
	err := r.timedWait(pause, listen, r.onEighth)
	r.now = time.Now()
	return err
}

// timedWait waits for a time. With listen, it ends early when ready reports true.
func (r *libbpfRings) timedWait(pause time.Duration, listen listening,
	ready func(uintptr) bool) error {
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

// allConsumed implements rings: libbpf has consumed the last lent record of ring i. The kernel did
// not notify of records that came while these were lent.
func (r *libbpfRings) allConsumed(i int) {
	// Add is a full barrier. So either this sees looking, or waitBesideLoans sees the consumer
	// position.
	if r.looking.Add(0) > 0 && r.door.readyRing(i) {
		r.wake()
	}
}

// waitParked waits in Go's netpoller, without an OS thread, until there are records, the deadline
// or wake. The netpoller is edge-triggered. So a record that is reserved and not committed does
// not make it spin.
func (r *libbpfRings) waitParked(deadline time.Time) error {
	// The netpoller hears of notifications only now. While a fetch blocks, they would wake a
	// second thread each time, for nothing.
	if err := r.door.arm(true); err != nil {
		return r.waitError(err)
	}
	defer r.door.arm(false)
	return r.park(deadline, r.onReady)
}

// pauseBlocked waits for a tick and makes it. The caller has called block.
func (r *libbpfRings) pauseBlocked(b *batch, req *request, pause time.Duration) error {
	listen := deaf
	if r.moderator.looksUnprompted() {
		listen = untilEighth
	}
	err := r.door.pause(max(pause-timerSlack, 1), listen)
	unblock()
	switch {
	case err != nil:
		return r.waitError(err)
	case r.door.woken():
		return nil
	}
	r.now = time.Now()
	return r.tick(b, req)
}

// pauseParked waits for the last part of a pause before a tick, which blocks. If the kernel
// notifies earlier because a ring fills up, it makes the tick.
func (r *libbpfRings) pauseParked(b *batch, req *request, until time.Time) error {
	// Only an explicit delay makes a pause that long. So the Reader does not depend on
	// notifications, but listens.
	if err := r.door.arm(true); err != nil {
		return r.waitError(err)
	}
	err := r.park(until, r.onEighth)
	r.door.arm(false)
	if err == nil && r.door.produced(untilEighth) {
		r.now = time.Now()
		err = r.tick(b, req)
	}
	return err
}

// park waits in Go's netpoller until ready reports true, the deadline or wake.
func (r *libbpfRings) park(deadline time.Time, ready func(uintptr) bool) error {
	err := r.parkFile.SetReadDeadline(deadline)
	// In this order. A wake that comes later sets its own deadline, which counts.
	if err == nil && !r.woken.Load() {
		r.readies = 0
		err = r.parked.Read(ready)
		// The first call of ready is before the wait.
		if err == nil && r.readies > 1 {
			r.parkedWakeups.Add(1)
		}
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return r.waitError(err)
	}
	return nil
}

// wake implements rings. To end a parked wait it needs no descriptor, because another part of the
// process may have closed one by mistake.
func (r *libbpfRings) wake() {
	r.woken.Store(true)
	r.door.wake()
	r.parkFile.SetReadDeadline(time.Unix(0, 1)) // ends a parked wait
}
