//go:build linux && cgo

package ringbuf

import (
	"errors"
	"math"
	"runtime"
	"syscall"
	"time"
)

// fetch implements rings.
func (r *libbpfRings) fetch(b *batch, req request) error {
	// A field, because a variable whose address is taken would be allocated for each fetch.
	r.request = req
	r.readClock()
	err := r.act(b, &r.request)
	r.hadSamples = len(b.entries) > 0 || b.window.samples > 0
	if r.losses != nil {
		r.lookForLosses(b)
	}
	// A wake until now was about what the queue will look at next.
	r.woken.Store(false)
	return err
}

// readClock sets r.now. It also yields the processor from time to time.
func (r *libbpfRings) readClock() {
	// Reading the clock takes a sixth of a fetch. So in a flood only every ninth fetch reads it.
	if r.untimed--; r.untimed < 0 || !r.seen.cut {
		r.now, r.untimed = time.Now(), 8
	}
	if r.hadSamples {
		r.sampleDone = r.now
	}
	if r.now.Sub(r.yielded) > yieldAfter {
		runtime.Gosched()
		r.now = time.Now() // other goroutines may have run for long
		r.yielded = r.now
	}
}

// act does what is due: it looks at the rings, ticks, or waits for one of these.
func (r *libbpfRings) act(b *batch, req *request) error {
	now, left := r.now, time.Duration(math.MaxInt64)
	if !req.deadline.IsZero() {
		left = req.deadline.Sub(now)
	}
	if r.moderator.looksUnprompted() && left > r.moderator.maxDelay {
		left, req.deadline = r.moderator.maxDelay, now.Add(r.moderator.maxDelay)
	}
	pause, tick := r.moderator.next(now)
	pause = min(pause, left)
	switch {
	case !req.notBefore.IsZero() && left > 0:
		return r.waitNotBefore(min(left, req.notBefore.Sub(now)))
	case !tick || left <= 0:
		return r.findOrWait(b, req, left)
	case pause <= 0:
		return r.tick(b, req)
	case pause > parkingPause:
		return r.pauseParked(b, req, now.Add(pause-netpollGrain))
	case block():
		return r.pauseBlocked(b, req, pause)
	default: // no thread may block, and ticks by the netpoller would come late
		return r.findOrWait(b, req, left)
	}
}

// findOrWait takes what is in any ring, or waits until the kernel notifies.
func (r *libbpfRings) findOrWait(b *batch, req *request, left time.Duration) error {
	// A deadline, a flush or the end of ticking ends a tick before it has visited all rings.
	r.ringsLeft = 0
	if req.anyLoans {
		// Set before the rings are looked at: see allConsumed.
		r.looking.Store(1)
		defer r.looking.Store(0)
	}
	got, passed, err := r.findAny(b, req)
	if got || passed || err != nil || left <= 0 {
		return err
	}
	if req.anyLoans {
		return r.waitBesideLoans(left)
	}
	wait := min(left, r.blockFor-r.now.Sub(r.sampleDone))
	if left <= netpollGrain {
		wait = left
	}
	if wait > 0 && block() {
		var buf []byte
		if !req.lend {
			buf = b.room(r.limit)
		}
		err := r.door.wait(wait, buf)
		unblock()
		r.now = time.Now()
		if at := r.door.at(); at >= 0 {
			return r.finishPoll(b, at, err)
		}
		if err != nil {
			return r.waitError(err)
		}
		r.notePassed()
		if !r.door.busy() || r.door.woken() {
			return nil
		}
	}
	if left > netpollGrain && !req.deadline.IsZero() {
		req.deadline = req.deadline.Add(-netpollGrain)
	}
	return r.waitParked(req.deadline)
}

// finishPoll completes b with the sample that ring_buffer__poll found in ring i.
func (r *libbpfRings) finishPoll(b *batch, i int, err error) error {
	g := &r.rings[i]
	g.produced = g.producer()
	r.door.setProducer(i, g.produced)
	r.noteFill(g, g.produced-g.lookedTo)
	start := g.lookedTo
	r.notePassed()
	if err = r.finishBatch(b, i, err, 0); err != nil {
		return err
	}
	f := found{moved: g.lookedTo - start, any: true}
	f.ring, f.samples, f.bytes = i, 1, uint64(len(b.entries))-entryHeaderSize
	r.tellModerator(&f, g.produced > g.lookedTo, false)
	return nil
}

// notePassed notes discarded records that libbpf passed in a wait.
func (r *libbpfRings) notePassed() {
	for i := range r.rings {
		g := &r.rings[i]
		g.lookedTo = r.door.consumed(i)
		discards := r.door.discards(i)
		g.discards.Add(discards - g.passed)
		g.passed = discards
	}
}

// findAny looks at one ring after the other until one has samples. It begins behind the ring that
// had samples last, so each ring gets as many batches as the others, however much is in it. It
// reports whether it got samples, and whether it passed any records. If it only passed discarded
// ones, there may be samples behind them.
func (r *libbpfRings) findAny(b *batch, req *request) (got, passed bool, err error) {
	f := &r.seen
	*f = found{}
	for n := 0; n < len(r.rings) && err == nil && !f.any; n++ {
		err = r.find(f, b, req, false)
	}
	if err != nil {
		return f.any, false, err
	}
	r.tellModerator(f, f.cut, false)
	return f.any, f.moved > 0, nil
}

// tick makes or continues a tick of all rings, until a ring has samples. It leaves the newest
// record in each ring, so that the kernel does not notify of the next one. If a ring has no other
// sample, it takes that one too.
func (r *libbpfRings) tick(b *batch, req *request) error {
	if r.ringsLeft == 0 {
		r.ringsLeft, r.nothingNew = len(r.rings), true
		r.ticks.Add(1)
	}
	f := &r.seen
	*f = found{}
	var err error
	for r.ringsLeft > 0 && err == nil && !f.any {
		r.ringsLeft--
		i := r.next
		before := r.rings[i].produced
		err = r.find(f, b, req, true)
		if f.any || r.rings[i].produced != before {
			r.nothingNew = false
		}
		if err == nil && !f.any {
			r.next = i
			err = r.find(f, b, req, false)
		}
	}
	if err != nil {
		return err
	}
	if f.cut { // this ring has more, so the tick goes around once more
		r.ringsLeft = len(r.rings)
	}
	r.tellModerator(f, f.cut || r.ringsLeft > 0, r.nothingNew && r.ringsLeft == 0)
	return nil
}

// tellModerator tells the moderator what was found. With several rings, everything is booked to the
// one that was looked at last: the others had discarded records at most.
func (r *libbpfRings) tellModerator(f *found, unfinished, idle bool) {
	if f.cut {
		r.limit = min(2*r.limit, maxBatchSize)
	}
	d := drained{ring: f.ring, moved: f.moved, unfinished: unfinished, idle: idle}
	if f.any {
		d.samples = uint64(f.samples)
		d.bytes = f.bytes + d.samples*recordHeaderSize
	}
	r.moderator.note(r.now, d)
}

// A found says what a look at one or more rings found.
type found struct {
	window
	moved uint64 // bytes that were copied, lent or passed, in all of these rings
	any   bool   // there are samples in the batch, copied or lent
}

// find looks at the next ring, and takes what is there for b. It says in f whether there were
// samples. It consumes discarded records, so that the kernel notifies of the next record. In a
// ring with loans it cannot.
func (r *libbpfRings) find(f *found, b *batch, req *request, leave bool) error {
	i := r.next
	r.next = (r.next + 1) % len(r.rings)
	g := &r.rings[i]
	hasLoans := req.anyLoans && req.hasLoans[i]
	if err := r.checkPosition(i, hasLoans); err != nil {
		return err
	}
	until := uint64(math.MaxUint64)
	if req.until != nil {
		until = req.until[i]
	}
	limit := uint64(r.limit)
	if req.lend && !req.copied {
		limit = g.lease
	}
	w := &f.window
	g.look(w, g.lookedTo, until, limit, leave)
	w.ring = i
	g.produced = w.producer
	r.door.setProducer(i, w.producer)
	r.noteFill(g, w.producer-g.consumer())
	var err error
	switch {
	case w.bad:
		return r.unsound(i, g.consumer())
	case w.samples > 0 && req.lend:
		b.window = *w
		g.lookedTo = w.end
	case w.samples > 0:
		room := b.room(max(r.limit, int(w.bytes)+w.samples*(entryHeaderSize+7)))
		err = r.door.consume(i, w.samples, w.end, room)
		err = r.finishBatch(b, i, err, w.discards)
	case w.discards > 0 && !hasLoans:
		err = r.door.skip(i, w.discards, w.end, b.room(r.limit))
		err = r.finishBatch(b, i, err, w.discards)
	default:
		return nil
	}
	f.moved += g.lookedTo - w.start
	f.any = w.samples > 0 || len(b.entries) > 0
	return err
}

// noteFill notes that so many bytes were in g at r.now.
func (r *libbpfRings) noteFill(g *ringState, bytes uint64) {
	// Somebody may have moved the consumer position, so no more than the ring has.
	g.peak.note(r.now.Sub(r.opened), min(bytes, g.size))
}

// finishBatch completes b with what libbpf consumed of ring i and C copied. Samples before an
// error are delivered. The next call finds the error again.
func (r *libbpfRings) finishBatch(b *batch, i int, err error, discards int) error {
	g := &r.rings[i]
	if large := r.door.large(); large != nil {
		b.set(large)
	} else if n := r.door.filled(); n > 0 {
		b.entries = (*b.memory)[:n]
	}
	g.lookedTo = r.door.consumed(i)
	r.drains.Add(1)
	if g.produced < g.lookedTo { // libbpf found one more record than look
		g.produced = g.producer()
	}
	b.ring, b.last, b.producer = i, g.lookedTo, g.produced
	g.discards.Add(uint64(discards))
	g.passed = r.door.discards(i)
	r.count(i)
	if len(b.entries) > 0 && errors.Is(err, syscall.EUCLEAN) {
		return nil
	}
	return r.failed(i, err)
}

// lookForLosses notes in b what was lost since the last call.
func (r *libbpfRings) lookForLosses(b *batch) {
	before := r.lossesLookedAt
	if len(r.maps) == 1 {
		r.lossesLookedAt.consumer, r.lossesLookedAt.producer = r.rings[0].consumer(), r.rings[0].produced
	}
	lost, position := r.losses.newLosses(before.consumer)
	if lost > 0 {
		// The loss is behind everything that was produced before the last call. And a program
		// may write anything into the counter.
		position = min(max(position, before.producer), r.lossesLookedAt.producer)
		if n := len(b.refused); n > 0 && len(b.entries) == 0 && b.window.samples == 0 {
			b.refused[n-1].records += lost // b.refused must not grow while no sample comes
		} else {
			b.refused = append(b.refused, refused{position, lost})
		}
	}
}

// checkPosition checks that the consumer position of ring i is where this Reader left it. It is
// not if another process reads the ring or writes to the position. libbpf would follow the
// position anywhere. While records of the ring are lent, another goroutine may be consuming at
// this moment, and checks the position itself.
func (r *libbpfRings) checkPosition(i int, hasLoans bool) error {
	g := &r.rings[i]
	switch {
	case !g.begun:
		consumer, _, sound := g.positions()
		if !sound {
			return r.unsound(i, consumer)
		}
		r.door.setConsumed(i, consumer)
		g.begun, g.lookedTo = true, consumer
	case !hasLoans:
		if consumer := g.consumer(); consumer != g.lookedTo || g.producer()-consumer > g.size {
			return r.unsound(i, consumer)
		}
	}
	return nil
}
