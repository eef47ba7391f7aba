package main

import (
	"errors"
	"fmt"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/tail"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// findRings opens the ring buffers of a query, and makes a survey. It fails if one of them is a
// user ring buffer. The caller closes the rings.
func findRings(q rings.Query) ([]*rings.Ring, *rings.Survey, error) {
	found, err := q.Find()
	if err != nil {
		return nil, nil, err
	}
	for _, r := range found {
		if r.IsUser() {
			rings.CloseAll(found)
			return nil, nil, fmt.Errorf(
				"%s is a user ring buffer, into which programs do not write: its samples cannot be watched", r)
		}
	}
	survey, err := new(rings.Surveyor).Survey()
	if err != nil {
		rings.CloseAll(found)
		return nil, nil, err
	}
	return found, survey, nil
}

// label sets labels that distinguish the rings.
func label(all []*tail.Ring) {
	count := map[string]int{}
	for _, r := range all {
		count[r.Name]++
	}
	for _, r := range all {
		r.Label = text.Printable(r.Name)
		if r.Label == "" || count[r.Name] > 1 {
			r.Label = fmt.Sprintf("%s(%d)", r.Label, r.ID)
		}
	}
}

// watch returns a Source of the rings that leaves their records to their reader.
func watch(found []*rings.Ring, oldest bool) (tail.Source, func(), error) {
	var options []ringbuf.WatchOption
	if oldest {
		options = append(options, ringbuf.FromOldest())
	}
	var watchers []*ringbuf.Watcher
	closeAll := func() {
		for _, w := range watchers {
			w.Close()
		}
	}
	for _, r := range found {
		w, err := ringbuf.NewWatcher(r.FD(), options...)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		watchers = append(watchers, w)
	}
	return tail.Watch(watchers), closeAll, nil
}

// consume returns a Source that makes this process the reader of the rings. It counts losses only
// if there is a single ring, with a loss counter that no other ring shares.
func consume(found []*rings.Ring, survey *rings.Survey) (tail.Source, func(), error) {
	counter, sole := lossCounter(found[0], survey)
	for _, r := range found {
		if other, _ := lossCounter(r, survey); other != counter {
			sole = false
		}
	}
	if !sole {
		counter = 0
	}
	r, err := openReader(found, counter)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, nil, errors.New(
			"--consume needs libbpf, and this ringbuf was built without cgo: watch, without --consume, or " +
				"build one with \"make tool\"")
	}
	if err != nil {
		return nil, nil, err
	}
	return tail.Consume(r), func() { r.Close() }, nil
}

// openReader opens a Reader of the rings, with the loss counter that has this id, unless it is 0.
func openReader(found []*rings.Ring, counter uint32) (*ringbuf.Reader, error) {
	var maps []ringbuf.Map
	for _, r := range found {
		maps = append(maps, r.FD())
	}
	var options []ringbuf.Option
	if counter != 0 {
		handle, err := ringbuf.OpenMapID(counter)
		if err != nil {
			return nil, err
		}
		defer handle.Close()
		options = append(options, ringbuf.WithLossCounter(handle))
	}
	return ringbuf.NewMultiReader(maps, options...)
}

// lossCounter returns the id of a ring's loss counter, or 0 if there is not exactly one. sole
// reports whether the counter counts no losses of other rings.
func lossCounter(r *rings.Ring, survey *rings.Survey) (id uint32, sole bool) {
	counters, shared := survey.Counters(r)
	if len(counters) != 1 {
		return 0, false
	}
	return counters[0].ID, !shared
}
