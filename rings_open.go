//go:build linux && cgo

package ringbuf

import (
	"errors"
	"fmt"
	"syscall"
	"time"
)

// openRings opens the rings of maps. It does not need the descriptors of maps afterwards.
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
	closeAll(fds) // the mappings keep the maps alive
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

// open opens the rings in C, and checks their positions.
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
