//go:build linux && cgo

package ringbuf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

// A lease has at most this many bytes, or an eighth of the ring if that is less.
const maxLeaseSize = 64 << 10

// libbpfRings are the rings of a Reader, which libbpf's ring_buffer consumes. fetch.go finds what
// is in them, wait.go waits for more.
type libbpfRings struct {
	door  door
	maps  []mapInfo
	rings []ringState

	others *holders

	waiter
	moderator      moderator
	losses         *lossCounter // or nil
	lossesLookedAt struct {     // positions of the only ring when losses were looked at
		consumer, producer uint64
	}

	request request // of the current fetch
	seen    found   // by the current fetch

	limit int // about how many bytes of a batch to fill
	next  int // index of the ring to look at next

	// Of the current tick, which may take more than one fetch.
	ringsLeft  int  // number of rings that it has not looked at
	nothingNew bool // nothing was produced in the other rings since the previous tick

	opened        time.Time
	drains, ticks atomic.Uint64
}

// A ringState is the state of one of the rings.
type ringState struct {
	ring
	lease    uint64 // most bytes to lend at once
	begun    bool   // a sound consumer position was found
	lookedTo uint64 // where to look next: all records before it were consumed or lent
	produced uint64 // producer position at the last look
	passed   uint64 // discarded records that C had counted by then

	// Counters, for any goroutine.
	samples, bytes, discards atomic.Uint64
	peak                     peak
}

// unsound returns the error for a consumer position that is not where this Reader left it.
func (r *libbpfRings) unsound(i int, consumer uint64) error {
	text := fmt.Sprintf("%s: consumer position is %d, expected %d (producer position %d): "+
		"the ring has another reader or is corrupt",
		r.label(i), consumer, r.door.consumed(i), r.rings[i].producer())
	return &unsoundError{text, r.maps[i].id, r.others}
}

// failed explains an error of libbpf's ring__consume for ring i.
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

// consume implements rings.
func (r *libbpfRings) consume(i, samples, discards int, end uint64) error {
	if err := r.door.consume(i, samples, end, nil); err != nil {
		return r.failed(i, err)
	}
	r.drains.Add(1)
	r.rings[i].discards.Add(uint64(discards))
	r.count(i)
	return nil
}

// count publishes the counters of C.
func (r *libbpfRings) count(i int) {
	r.rings[i].samples.Store(r.door.samples(i))
	r.rings[i].bytes.Store(r.door.bytes(i))
}

// lookedTo implements rings.
func (r *libbpfRings) lookedTo(i int) uint64 {
	if g := &r.rings[i]; g.begun {
		return g.lookedTo
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
		// Perhaps nobody has looked for long, and this is the peak.
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
