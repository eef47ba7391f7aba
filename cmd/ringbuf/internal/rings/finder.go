package rings

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// A Finder finds the rings of a Query repeatedly, while rings come and go. It holds no descriptors
// of them. One goroutine at a time may use it.
type Finder struct {
	paths []string // of pinned rings
	terms []term   // all others
	all   bool
	known map[uint32]*Ring // by id of the map, without descriptors; nil if it is not a ring
}

// NewFinder returns a Finder for a Query. It fails if [Query.Find] fails now.
func NewFinder(q Query) (*Finder, error) {
	found, err := q.Find()
	if err != nil {
		return nil, err
	}
	CloseAll(found)
	f := &Finder{all: q.All(), known: map[uint32]*Ring{}}
	for _, t := range q.terms {
		switch {
		case t.kind == kindPinned, t.kind == kindBare && strings.Contains(t.value, "/"):
			f.paths = append(f.paths, t.value)
		case t.kind == kindBare:
			// Keep to its present meanings: later it may have others, too.
			meanings, err := t.meanings()
			if err != nil {
				return nil, err
			}
			f.terms = append(f.terms, meanings...)
		default:
			f.terms = append(f.terms, t)
		}
	}
	return f, nil
}

// Find returns the rings that exist now, without descriptors: see [Ring.Reopen]. For rings that are
// selected by a pid, it relies on the Survey.
func (f *Finder) Find(v *Survey) (found []*Ring, err error) {
	for _, path := range f.paths {
		if r, err := OpenPinned(path); err == nil {
			r.Close()
			r.path = path
			found = append(found, r)
		}
	}
	if !f.all && len(f.terms) == 0 {
		return found, nil // without a look at all maps, which takes more privileges
	}
	known := make(map[uint32]*Ring, len(f.known))
	for id, err := range mapIDs() {
		if err != nil {
			return nil, err
		}
		r, ok := f.known[id]
		if !ok {
			r, err = open(id)
			switch {
			case errors.Is(err, errNoRing):
				r = nil
			case errors.Is(err, fs.ErrNotExist):
				continue
			case err != nil:
				return nil, err
			default:
				r.Close()
			}
		}
		known[id] = r
		if r != nil && f.means(r, v) &&
			!slices.ContainsFunc(found, func(have *Ring) bool { return have.ID == id }) {
			found = append(found, r)
		}
	}
	f.known = known
	return found, nil
}

func (f *Finder) means(r *Ring, v *Survey) bool {
	return f.all || slices.ContainsFunc(f.terms, func(t term) bool {
		n, _ := t.number()
		switch t.kind {
		case kindID:
			return r.ID == uint32(n)
		case kindName:
			return r.hasName(t.value)
		}
		return slices.ContainsFunc(v.Of(r).Processes, func(p Process) bool { return p.PID == n })
	})
}

// Reopen opens a ring that [Finder.Find] has returned. The caller closes the result.
func (r *Ring) Reopen() (*Ring, error) {
	if r.path != "" {
		return OpenPinned(r.path)
	}
	return open(r.ID)
}
