//go:build linux && cgo

package ringbuf

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"time"
)

// The rings of a Reader: what is in them, and libbpf that consumes it. How to wait for
// more is in wait.go.

// A lease is up to this, or an eighth of the ring.
const maxLeaseSize = 64 << 10

// libbpfRings are the rings of BPF maps, read through libbpf's ring_buffer.
type libbpfRings struct {
	door  door
	maps  []mapInfo
	rings []ringState

	others *holders

	waiter
	moderator moderator
	losses    *lossCounter // or nil
	lookedAt  struct {     // when losses were looked at: positions of the only ring
		consumer, producer uint64
	}

	request request // of the current fetch
	seen    found   // in it

	limit int // about how many bytes of a batch to fill
	next  int // index of the ring to look at next

	// Of the current tick, which may take more than one fetch.
	unticked int  // rings that it has not looked at
	idle     bool // nothing was produced in the others since the tick before

	opened        time.Time
	drains, ticks atomic.Uint64
}

// A ringState is one of these rings.
type ringState struct {
	ring
	lease    uint64 // most bytes to lend at once
	begun    bool   // somebody has found a sound position
	lent     uint64 // where to look next: all before was consumed or lent
	produced uint64 // producer position at the last look
	passed   uint64 // discards that C had found until then

	// Counters, for any goroutine.
	samples, bytes, discards atomic.Uint64
	peak                     peak
}

// openRings opens the rings of maps, of which it needs the descriptors no longer than
// that.
func openRings(maps []Map, o options) (*libbpfRings, error) {
	if len(maps) == 0 {
		return nil, errors.New("no map given")
	}
	r := &libbpfRings{limit: minBatchSize, opened: time.Now()}
	var fds []int
	defer func() { closeAll(fds) }()
	for _, m := range maps {
		fd, info, err := dupMap(m, mapInfo.check)
		if err != nil && len(maps) > 1 {
			err = fmt.Errorf("map %d: %w", len(r.maps), err)
		}
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
		for i, other := range r.maps {
			if other.id == info.id {
				return nil, fmt.Errorf("maps %d and %d are the same ring buffer %q", i, len(r.maps), info.name)
			}
		}
		r.maps = append(r.maps, info)
	}
	r.others = &holders{maps: r.maps}
	r.moderator = newModerator(o, r.sizes()...)
	if n := len(o.lossCounters); n > 1 {
		return nil, fmt.Errorf("%d loss counters, and a Reader has one", n)
	}
	for _, m := range o.lossCounters {
		var err error
		if r.losses, err = openLossCounter(m); err != nil {
			return nil, fmt.Errorf("loss counter: %w", err)
		}
	}
	err := r.open(fds, o)
	closeAll(fds) // the mappings hold the maps
	fds = nil
	if err == nil {
		err = r.openWaiter()
	}
	if err != nil {
		r.closeLosses()
		return nil, err
	}
	return r, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}

func (r *libbpfRings) open(fds []int, o options) error {
	d, failed, step, err := openDoor(fds, r.maps, o.ownMapping)
	if err != nil {
		return fmt.Errorf("%s of type ringbuf: %s: %w", r.label(max(failed, 0)), step, err)
	}
	r.door = d
	r.rings = make([]ringState, len(fds))
	for i := range r.rings {
		g := &r.rings[i]
		g.ring = d.view(i)
		g.lease = min(maxLeaseSize, g.size/8)
		if _, _, sound := g.positions(); !sound {
			d.free()
			return &unsoundError{r.label(i) + " of type ringbuf: check positions", r.maps[i].id, r.others}
		}
	}
	return nil
}

func (r *libbpfRings) openWaiter() error {
	if err := r.waiter.open(r.door); err != nil {
		r.door.free()
		return fmt.Errorf("%s of type ringbuf: add to netpoller: %w", r.label(0), err)
	}
	return nil
}

// label names a map in an error.
func (r *libbpfRings) label(i int) string {
	if len(r.maps) > 1 {
		return fmt.Sprintf("map %d, %q", i, r.maps[i].name)
	}
	return fmt.Sprintf("map %q", r.maps[i].name)
}

// begin checks that ring i is as this Reader left it, apart from what was produced since. It
// is not if another process reads the same ring or writes its consumer position, which
// libbpf would follow anywhere. With lent records somebody may be consuming just now, and
// checks.
func (r *libbpfRings) begin(i int, lent bool) error {
	g := &r.rings[i]
	switch {
	case !g.begun:
		consumer, _, sound := g.positions()
		if !sound {
			return r.unsound(i, consumer)
		}
		r.door.setConsumed(i, consumer)
		g.begun, g.lent = true, consumer
	case !lent:
		if consumer := g.consumer(); consumer != g.lent || g.producer()-consumer > g.size {
			return r.unsound(i, consumer)
		}
	}
	return nil
}

func (r *libbpfRings) unsound(i int, consumer uint64) error {
	text := fmt.Sprintf("%s: consumer position is %d, expected %d (producer position %d): "+
		"the ring has another reader or is corrupt",
		r.label(i), consumer, r.door.consumed(i), r.rings[i].producer())
	return &unsoundError{text, r.maps[i].id, r.others}
}

// failed explains an error of libbpf's consuming ring i.
func (r *libbpfRings) failed(i int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EUCLEAN):
		return r.unsound(i, r.door.badPosition(i))
	case errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("%s: no memory for a sample of %d bytes, which is lost: %w",
			r.label(i), r.door.tooLarge(), err)
	}
	return r.waitError(err)
}

func (r *libbpfRings) waitError(err error) error {
	if errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("%s: wait for samples: somebody closed a descriptor of this Reader, "+
			"or put another file in its place: %w", r.label(0), err)
	}
	return fmt.Errorf("%s: wait for samples: %w", r.label(0), err)
}

// A found is what one look at some rings found.
type found struct {
	window
	moved uint64 // bytes of records that are behind now, in all rings that were looked at
	any   bool   // samples are in the batch, or lent by it
}

// find looks at the ring whose turn it is, and takes what is there for b. It says in f
// whether there were samples. In all but the lent rings it consumes discarded records, so
// that the kernel notifies of what follows.
func (r *libbpfRings) find(f *found, b *batch, q *request, leave bool) error {
	i := r.next
	r.next = (r.next + 1) % len(r.rings)
	g := &r.rings[i]
	lent := q.lent && q.lentOf[i]
	if err := r.begin(i, lent); err != nil {
		return err
	}
	until := uint64(math.MaxUint64)
	if q.until != nil {
		until = q.until[i]
	}
	limit := uint64(r.limit)
	if q.lend && !q.copied {
		limit = g.lease
	}
	w := &f.window
	g.look(w, g.lent, until, limit, leave)
	w.ring = i
	g.produced = w.producer
	r.door.looked(i, w.producer)
	r.noteFill(g, w.producer-g.consumer())
	var err error
	switch {
	case w.bad:
		return r.unsound(i, g.consumer())
	case w.samples > 0 && q.lend:
		b.lent = *w
		g.lent = w.end
	case w.samples > 0:
		room := b.room(max(r.limit, int(w.bytes)+w.samples*(entryHeaderSize+7)))
		err = r.took(b, i, r.door.consume(i, w.samples, w.end, room), w.discards)
	case w.discards > 0 && !lent:
		err = r.took(b, i, r.door.skip(i, w.discards, w.end, b.room(r.limit)), w.discards)
	default:
		return nil
	}
	f.moved += g.lent - w.start
	f.any = w.samples > 0 || len(b.entries) > 0
	return err
}

// noteFill takes note of how many bytes were in g at the time of r.now.
func (r *libbpfRings) noteFill(g *ringState, bytes uint64) {
	// Not more than the ring has, whatever somebody writes to the consumer position.
	g.peak.note(r.now.Sub(r.opened), min(bytes, g.size))
}

// took completes b with what libbpf consumed of ring i and C copied. What came before an
// error is delivered, and the next call has the error too.
func (r *libbpfRings) took(b *batch, i int, err error, discards int) error {
	g := &r.rings[i]
	if large := r.door.large(); large != nil {
		b.set(large)
	} else if n := r.door.filled(); n > 0 {
		b.entries = (*b.memory)[:n]
	}
	g.lent = r.door.consumed(i)
	r.drains.Add(1)
	if g.produced < g.lent { // libbpf found one more than look
		g.produced = g.producer()
	}
	b.ring, b.last, b.producer = i, g.lent, g.produced
	g.discards.Add(uint64(discards))
	g.passed = r.door.discards(i)
	r.count(i)
	if len(b.entries) > 0 && errors.Is(err, syscall.EUCLEAN) {
		return nil
	}
	return r.failed(i, err)
}

// consume lets libbpf consume samples of ring i that were lent, up to end.
func (r *libbpfRings) consume(i, samples, discards int, end uint64) error {
	if err := r.door.consume(i, samples, end, nil); err != nil {
		return r.failed(i, err)
	}
	r.drains.Add(1)
	r.rings[i].discards.Add(uint64(discards))
	r.count(i)
	return nil
}

// count publishes what C counted.
func (r *libbpfRings) count(i int) {
	r.rings[i].samples.Store(r.door.samples(i))
	r.rings[i].bytes.Store(r.door.bytes(i))
}

// lookForLosses notes in b what was lost since the last time.
func (r *libbpfRings) lookForLosses(b *batch) {
	before := r.lookedAt
	if len(r.maps) == 1 {
		r.lookedAt.consumer, r.lookedAt.producer = r.rings[0].consumer(), r.rings[0].produced
	}
	lost, position := r.losses.look(before.consumer)
	if lost > 0 {
		// It happened when what was produced until the last time was there already. And
		// who writes to the map may write anything.
		position = min(max(position, before.producer), r.lookedAt.producer)
		if n := len(b.refused); n > 0 && len(b.entries) == 0 && b.lent.samples == 0 {
			b.refused[n-1].records += lost // not to grow while no sample comes
		} else {
			b.refused = append(b.refused, refused{position, lost})
		}
	}
}

// lookedTo returns the position up to which ring i was consumed or lent.
func (r *libbpfRings) lookedTo(i int) uint64 {
	if g := &r.rings[i]; g.begun {
		return g.lent
	}
	return r.rings[i].consumer()
}

func (r *libbpfRings) view(i int) *ring         { return &r.rings[i].ring }
func (r *libbpfRings) consumerPos(i int) uint64 { return r.rings[i].consumer() }
func (r *libbpfRings) producerPos(i int) uint64 { return r.rings[i].producer() }

func (r *libbpfRings) sizes() (sizes []int) {
	for _, info := range r.maps {
		sizes = append(sizes, int(info.size))
	}
	return sizes
}

// stats implements rings.
func (r *libbpfRings) stats() Stats {
	s := Stats{
		Rings:   make([]RingStats, len(r.maps)),
		Drains:  r.drains.Load(),
		Wakeups: r.door.wakeups() + r.parkedWakeups.Load(),
		Ticks:   r.ticks.Load(),
	}
	if r.losses != nil {
		s.Lost, s.LostBefore = r.losses.lost(), r.losses.base
	}
	at := time.Since(r.opened)
	for i, info := range r.maps {
		g := &r.rings[i]
		// It may have been there all the time, while nobody looked.
		if consumer, producer, sound := g.positions(); sound {
			g.peak.note(at, min(producer-consumer, g.size))
		}
		s.Rings[i] = RingStats{
			Name:      info.name,
			ID:        info.id,
			Size:      int(info.size),
			Samples:   g.samples.Load(),
			Bytes:     g.bytes.Load(),
			Discarded: g.discards.Load(),
			Peak:      int(g.peak.bytes(at)),
		}
	}
	return s
}

// close implements rings.
func (r *libbpfRings) close() error {
	var err error
	if r.parkFile != nil {
		err = r.parkFile.Close()
	}
	r.door.free()
	return errors.Join(err, r.closeLosses())
}

func (r *libbpfRings) closeLosses() error {
	if r.losses == nil {
		return nil
	}
	return r.losses.close()
}
