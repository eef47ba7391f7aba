package ringbuf

import "time"

// Wakeup moderation. The kernel notifies of a record if the consumer had caught up with it, whether
// or not anybody waits. The traced program pays for the notification. A consumer that never catches
// up is never notified. So while samples flow, a Reader drains its rings at ticks of a timer, and
// leaves the newest record of each ring for the next tick.
const (
	// The default of WithMaxDelay. Ticks are half of it apart: a record may come just after a tick,
	// and be the one that the next tick leaves.
	defaultMaxDelay = 2 * time.Millisecond

	// Ticking starts after more than startCount drains within startIntervals times the interval of
	// ticks. Only drains count that left the rings empty. After these the kernel notifies of the
	// next record.
	startCount     = 8
	startIntervals = 6

	// Ticking stops at a tick before which nothing was produced. After every stopTicks ticks, it
	// also stops if these gathered one record each or fewer, on average. This is less than what
	// starts it, so that a steady flow that starts it does not stop it.
	stopTicks = 4

	// With an explicit delay of this or more, the Reader looks at the rings without being notified:
	// see looksUnprompted. To look ten times a second takes 0.3 % of a processor.
	unpromptedDelay = 10 * time.Millisecond

	// A tick that finds more than this part of a ring filled makes the next one come sooner.
	maxFill = 0.25

	// Between two ticks a trickle may turn into a flood. The ring must have room for it, as it
	// would have if it had been drained at once. A BPF program needs at least minRecordTime to
	// submit a record (47 ns were measured), and one ns more for every copiedPerNs bytes.
	// wakeLatency is the time until the Reader drains faster than that. With a shorter one, floods
	// that an eager Reader survives were lost.
	minRecordTime = 50 // ns
	copiedPerNs   = 32
	wakeLatency   = 90 * time.Microsecond

	// The kernel lets the timers of a thread expire this late: PR_SET_TIMERSLACK in prctl(2).
	timerSlack = 50 * time.Microsecond

	// Ticks in quicker succession cost more than the notifications that they save.
	minInterval = timerSlack + 10*time.Microsecond
)

// A moderator says when to drain the rings next: at a tick, or when the kernel notifies. One
// goroutine at a time may use it.
type moderator struct {
	maxDelay time.Duration // no record is held back for longer; 0: never tick
	explicit bool          // maxDelay is of the user: the size of the rings does not limit it
	rings    []ringFlow

	ticking    bool
	unfinished bool          // the last drain was; the next one must follow at once
	interval   time.Duration // of ticks
	lastDrain  time.Time     // end of the last finished drain
	records    uint64        // drained since then, discarded ones included
	fullest    float64       // highest part of a ring that was drained since then
	ticks      int           // since gathered was 0
	gathered   uint64        // records

	drainsToEmpty int       // drains that left the rings empty, while not ticking
	firstToEmpty  time.Time // the time of the first of these
}

// A ringFlow is what a moderator knows of the flow through one ring.
type ringFlow struct {
	size   uint64 // in bytes
	record uint64 // mean size of a record; it grows at once and shrinks slowly
	bytes  uint64 // drained since lastDrain
}

func newModerator(o options, sizes ...int) moderator {
	m := moderator{maxDelay: defaultMaxDelay}
	for _, size := range sizes {
		m.rings = append(m.rings, ringFlow{size: uint64(size)})
	}
	if o.maxDelay >= 0 {
		m.maxDelay, m.explicit = o.maxDelay, true
	}
	return m
}

// next reports whether the next drain is a tick, and how long to wait for it. A pause of 0 or less
// means not to wait.
func (m *moderator) next(now time.Time) (pause time.Duration, tick bool) {
	switch {
	case !m.ticking:
		return 0, false
	case m.unfinished:
		return 0, true
	}
	return m.interval - now.Sub(m.lastDrain), true
}

// drained says what one or more successive drains of a ring did.
type drained struct {
	ring       int
	moved      uint64 // bytes of records that were copied, lent or passed
	samples    uint64
	bytes      uint64 // of the samples' records; the rest of moved were discarded ones
	unfinished bool   // a full batch stopped the drain, or it is the turn of the other rings
	idle       bool   // nothing was produced since the previous drain
}

// note records a drain that ended now.
func (m *moderator) note(now time.Time, d drained) {
	if m.maxDelay == 0 {
		return
	}
	r := &m.rings[d.ring]
	if d.samples > 0 {
		mean := d.bytes / d.samples
		r.record = max(mean, (15*r.record+mean)/16)
	}
	r.bytes += d.moved
	m.records += d.moved / max(r.record, recordHeaderSize)
	m.fullest = max(m.fullest, float64(r.bytes)/float64(r.size))
	if m.unfinished = d.unfinished; m.unfinished {
		return
	}
	interval := m.longestInterval()
	if m.ticking {
		m.ticking = !d.idle && interval >= minInterval && m.worthwhile()
	} else if m.fullest > 0 && m.frequent(now, interval) {
		// The first tick leaves a record, so it gathers one less than was produced.
		m.ticking, m.ticks, m.gathered = true, 0, 1
	}
	m.interval = interval
	if m.fullest > maxFill {
		elapsed := now.Sub(m.lastDrain)
		sooner := time.Duration(float64(elapsed) * maxFill / m.fullest)
		m.interval = min(interval, max(minInterval, sooner))
	}
	for i := range m.rings {
		m.rings[i].bytes = 0
	}
	m.records, m.fullest, m.lastDrain = 0, 0, now
}

// worthwhile counts a tick and reports whether ticks gather enough records.
func (m *moderator) worthwhile() bool {
	m.ticks++
	m.gathered += m.records
	if m.ticks < stopTicks {
		return true
	}
	enough := m.gathered > stopTicks
	m.ticks, m.gathered = 0, 0
	return enough
}

// frequent counts a drain that left the rings empty, so that the kernel notifies of the next
// record. It reports whether that happens so often that ticks at this interval are better.
func (m *moderator) frequent(now time.Time, interval time.Duration) bool {
	if m.drainsToEmpty == 0 {
		m.firstToEmpty = now
	}
	m.drainsToEmpty++
	if m.drainsToEmpty <= startCount {
		return false
	}
	m.drainsToEmpty = 0
	return interval >= minInterval && now.Sub(m.firstToEmpty)/startIntervals <= interval
}

// longestInterval returns the interval of ticks while no ring fills up.
func (m *moderator) longestInterval() time.Duration {
	interval := m.maxDelay / 2
	if m.explicit {
		return interval
	}
	for _, r := range m.rings {
		interval = min(interval, r.timeToFill(r.size))
	}
	return interval
}

// timeToFill returns how long the ring may be left alone while it has room for so many bytes. A
// flood takes longer than that to fill them.
func (r *ringFlow) timeToFill(room uint64) time.Duration {
	records := room / max(r.record, recordHeaderSize)
	return time.Duration(records*(minRecordTime+r.record/copiedPerNs)) - wakeLatency
}

// looksUnprompted reports whether the Reader does not depend on notifications. Then it looks at the
// rings at least every maxDelay, and a wakeup that a program forces while a ring fills up ends a
// pause.
func (m *moderator) looksUnprompted() bool { return m.explicit && m.maxDelay >= unpromptedDelay }
