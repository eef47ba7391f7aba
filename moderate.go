package ringbuf

import "time"

// Wakeup moderation. The kernel notifies of a record if the consumer had caught up
// with it, whether or not anybody waits, and the traced program pays for that. A
// consumer that never catches up is never notified. So while samples flow, the rings
// are drained at ticks of a timer, and the newest record is left in each until the next
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

	// With an explicit delay of this or more, the Reader looks at the rings without being notified:
	// see moderator.unprompted. To look ten times a second takes 0.3 % of a processor.
	unpromptedDelay = 10 * time.Millisecond

	// A tick that finds more than this part of a ring filled makes the next one come
	// sooner.
	maxFill = 0.25

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
	rings []ringPace

	ticking  bool
	interval time.Duration // of ticks
	caughtUp time.Time     // end of the last drain that was not stopped by a full batch
	records  uint64        // drained since, discarded ones included
	fullest  float64       // of a ring: part that was filled
	ticks    int           // since gathered was 0
	gathered uint64        // records

	notified int // since first: drains that caught up, while not ticking
	first    time.Time
}

// A ringPace is what a moderator knows of one ring.
type ringPace struct {
	size   uint64 // in bytes
	record uint64 // mean size of a record; it grows at once and shrinks slowly
	bytes  uint64 // drained since caughtUp
}

func newModerator(o options, sizes ...int) moderator {
	m := moderator{max: defaultMaxDelay}
	for _, size := range sizes {
		m.rings = append(m.rings, ringPace{size: uint64(size)})
	}
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
	case m.fullest > 0: // there is more
		return 0, true
	}
	return m.interval - now.Sub(m.caughtUp), true
}

// drained is what one or more drains in succession of a ring did.
type drained struct {
	ring    int
	moved   uint64 // bytes by which the consumer position moved
	samples uint64
	bytes   uint64 // of the samples' records; the rest of moved were discarded ones
	more    bool   // a full batch stopped it, or it is the other rings' turn
	idle    bool   // nothing was produced since the last one
}

// note takes note of a drain that ended now.
func (m *moderator) note(now time.Time, d drained) {
	if m.max == 0 {
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
	if d.more {
		return
	}
	delay := m.delay()
	if m.ticking {
		m.ticking = !d.idle && delay >= minDelay && m.worthwhile()
	} else if m.fullest > 0 && m.frequent(now, delay) {
		// The first tick gathers one less than was produced.
		m.ticking, m.ticks, m.gathered = true, 0, 1
	}
	m.interval = delay
	if m.fullest > maxFill {
		elapsed := now.Sub(m.caughtUp)
		m.interval = min(delay, max(minDelay, time.Duration(float64(elapsed)*maxFill/m.fullest)))
	}
	for i := range m.rings {
		m.rings[i].bytes = 0
	}
	m.records, m.fullest, m.caughtUp = 0, 0, now
}

// worthwhile counts a tick and reports whether ticks gather enough.
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

// delay is the interval of ticks while no ring fills up.
func (m *moderator) delay() time.Duration {
	delay := m.max
	if m.given {
		return delay
	}
	for _, r := range m.rings {
		delay = min(delay, r.flood(r.size))
	}
	return delay
}

// flood returns how long the ring may be left alone while it has so many bytes of room: a flood
// takes longer than that to fill them.
func (r *ringPace) flood(room uint64) time.Duration {
	records := room / max(r.record, recordHeaderSize)
	return time.Duration(records*(minRecordTime+r.record/copiedPerNs)) - wakeLatency
}

// unprompted reports whether the Reader does not depend on notifications. Then it looks at the
// rings every delay, and a wakeup that a program forces while a ring fills up ends a pause.
func (m *moderator) unprompted() bool { return m.given && m.max >= unpromptedDelay }
