package ringbuf

import "time"

// Wakeup moderation. The kernel notifies of a record if the consumer had caught up
// with it, whether or not anybody waits, and the traced program pays for that. A
// consumer that never catches up is never notified. So while samples flow, the ring
// is drained at ticks of a timer, and the newest record is left in it until the next
// tick.
const (
	defaultMaxDelay = time.Millisecond

	// Ticking starts after startCount drains, each of which caught up and thus made
	// the kernel notify of the next record, within startDelays times the delay. It
	// stops at a tick before which nothing was produced, and when stopTicks in
	// succession gathered one record each or fewer, on average: so that a steady flow
	// that starts it does not stop it.
	startCount  = 8
	startDelays = 6
	stopTicks   = 4

	// A tick that finds more than one part in maxFill of the ring filled makes the
	// next one come sooner.
	maxFill = 4

	// Between two ticks a trickle may turn into a flood, and the ring must have
	// room for it, as it would have if it had been drained at once. To submit a
	// record takes a BPF program at least minRecordTime (47 ns were measured) and
	// one ns for every copiedPerNs bytes. wakeLatency is until the Reader drains faster
	// than that: with less, floods that an eager Reader survives were lost.
	minRecordTime = 50 // ns
	copiedPerNs   = 32
	wakeLatency   = 90 * time.Microsecond

	// The kernel lets a thread's timers expire this late: PR_SET_TIMERSLACK in
	// prctl(2).
	timerSlack = 50 * time.Microsecond

	// Ticks in quicker succession cost more than the notifications that they save.
	minDelay = timerSlack + 10*time.Microsecond
)

// A moderator tells when to drain a ring next: at a tick, or when the kernel
// notifies. It is used by one goroutine at a time.
type moderator struct {
	max   time.Duration // no sample waits longer than twice this; 0: never tick
	given bool          // by the user: the ring does not limit it
	size  uint64        // of the ring, in bytes

	ticking  bool
	interval time.Duration // of ticks
	caughtUp time.Time     // end of the last drain that was not stopped by a full batch
	bytes    uint64        // drained since
	record   uint64        // mean size of a record; it grows at once and shrinks slowly
	ticks    int           // since gathered was 0
	gathered uint64        // records

	notified int // since first: drains that caught up, while not ticking
	first    time.Time
}

func newModerator(o options, ringSize int) moderator {
	m := moderator{max: defaultMaxDelay, size: uint64(ringSize)}
	if o.maxDelay >= 0 {
		m.max, m.given = o.maxDelay, true
	}
	return m
}

// next reports whether the next drain is a tick, and how long to wait for it: not at
// all if 0 or less.
func (m *moderator) next(now time.Time) (pause time.Duration, tick bool) {
	switch {
	case !m.ticking:
		return 0, false
	case m.bytes > 0: // there is more
		return 0, true
	}
	return m.interval - now.Sub(m.caughtUp), true
}

// drained is what one or more drains in succession did.
type drained struct {
	moved   uint64 // bytes by which the consumer position moved
	samples uint64
	bytes   uint64 // of the samples' records; the rest of moved were discarded ones
	more    bool   // a full batch stopped it
	idle    bool   // nothing was produced since the last one
}

// note takes note of a drain that ended now.
func (m *moderator) note(now time.Time, d drained) {
	if m.max == 0 {
		return
	}
	m.bytes += d.moved
	if d.samples > 0 {
		mean := d.bytes / d.samples
		m.record = max(mean, (15*m.record+mean)/16)
	}
	if d.more {
		return
	}
	delay := m.delay()
	if m.ticking {
		m.ticking = !d.idle && delay >= minDelay && m.worthwhile()
	} else if m.bytes > 0 && m.frequent(now, delay) {
		// The first tick gathers one less than was produced.
		m.ticking, m.ticks, m.gathered = true, 0, 1
	}
	m.interval = delay
	if m.bytes > m.size/maxFill {
		elapsed := now.Sub(m.caughtUp)
		m.interval = min(delay, max(minDelay, time.Duration(float64(elapsed)*float64(m.size/maxFill)/float64(m.bytes))))
	}
	m.bytes, m.caughtUp = 0, now
}

// worthwhile counts a tick and reports whether ticks gather enough.
func (m *moderator) worthwhile() bool {
	m.ticks++
	m.gathered += m.bytes / max(m.record, recordHeaderSize)
	if m.ticks < stopTicks {
		return true
	}
	enough := m.gathered > stopTicks
	m.ticks, m.gathered = 0, 0
	return enough
}

// frequent counts a notification and reports whether they come so often that ticks
// are better.
func (m *moderator) frequent(now time.Time, delay time.Duration) bool {
	if m.notified == 0 {
		m.first = now
	}
	m.notified++
	if m.notified <= startCount {
		return false
	}
	m.notified = 0
	return delay >= minDelay && now.Sub(m.first)/startDelays <= delay
}

// delay is the interval of ticks while the ring does not fill up.
func (m *moderator) delay() time.Duration {
	if m.given {
		return m.max
	}
	records := m.size / max(m.record, recordHeaderSize)
	flood := time.Duration(records * (minRecordTime + m.record/copiedPerNs))
	return min(m.max, flood-wakeLatency)
}
