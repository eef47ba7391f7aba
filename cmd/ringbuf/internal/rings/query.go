package rings

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Query selects rings. It is what MAP... means on the command line.
type Query struct{ terms []term }

// A term is one MAP.
type term struct {
	kind  kind
	value string
}

type kind string

// The keywords. kindBare is a value without a keyword.
const (
	kindID     kind = "id"
	kindName   kind = "name"
	kindPinned kind = "pinned"
	kindPID    kind = "pid"
	kindBare   kind = ""
)

// nameSize is the number of bytes of a name that the kernel keeps: BPF_OBJ_NAME_LEN - 1.
const nameSize = 15

// ParseQuery parses any number of MAPs. None means all rings.
func ParseQuery(args []string) (Query, error) {
	var q Query
	for len(args) > 0 {
		t := term{kind: kind(args[0])}
		switch t.kind {
		case kindID, kindName, kindPinned, kindPID:
			if len(args) < 2 {
				return Query{}, fmt.Errorf("%q is the last word: a value must follow (for a ring buffer "+
					"of that name: name %s)", args[0], args[0])
			}
			t.value, args = args[1], args[2:]
		default:
			t.kind, t.value, args = kindBare, args[0], args[1:]
		}
		if _, err := t.number(); err != nil && (t.kind == kindID || t.kind == kindPID) {
			return Query{}, err
		}
		if t.value == "" {
			return Query{}, errors.New("a MAP is empty: it must be an id, a name, a path or a pid")
		}
		q.terms = append(q.terms, t)
	}
	return q, nil
}

// All reports whether the Query selects all rings.
func (q Query) All() bool { return len(q.terms) == 0 }

// Find opens the selected rings. It returns each ring once, in the order of the MAPs. The caller
// closes them. Find fails if one of the MAPs selects no ring, or if a bare one has several
// meanings.
func (q Query) Find() (found []*Ring, err error) {
	defer func() {
		if err != nil {
			CloseAll(found)
			found = nil
		}
	}()
	if q.All() {
		return All()
	}
	for _, t := range q.terms {
		rings, err := t.find()
		if err != nil {
			return found, err
		}
		for _, r := range rings {
			if slices.ContainsFunc(found, func(f *Ring) bool { return f.ID == r.ID }) {
				r.Close()
				continue
			}
			found = append(found, r)
		}
	}
	return found, nil
}

func (t term) find() ([]*Ring, error) {
	n, _ := t.number()
	switch t.kind {
	case kindID:
		return one(Open(uint32(n)))
	case kindPinned:
		return one(OpenPinned(t.value))
	case kindName:
		rings, err := byName(t.value)
		if err == nil && len(rings) == 0 {
			err = fmt.Errorf("no ring buffer has the name %q: ringbuf list shows all", t.value)
		}
		return rings, err
	case kindPID:
		rings, err := byPID(n)
		if err == nil && len(rings) == 0 {
			err = fmt.Errorf("process %d uses no ring buffer: ringbuf list shows who does", n)
		}
		return rings, err
	}
	if strings.Contains(t.value, "/") {
		return one(OpenPinned(t.value))
	}
	return t.guess()
}

// guess finds the ring, or the rings of the process, that a bare number or name means. It fails if
// there are several meanings.
func (t term) guess() ([]*Ring, error) {
	meanings, err := t.meanings()
	if err != nil {
		return nil, err
	}
	switch len(meanings) {
	case 0:
		return nil, fmt.Errorf(
			"%q is neither the name nor the id of a ring buffer, nor the pid of a process that uses one: "+
				"ringbuf list shows all", t.value)
	case 1:
		return meanings[0].find()
	}
	var words []string
	for _, m := range meanings {
		words = append(words, fmt.Sprintf("%s %s", m.kind, m.value))
	}
	if _, err := t.number(); err != nil {
		words = append(words, fmt.Sprintf("name %s for all of them", t.value))
	}
	return nil, fmt.Errorf("%q may mean several ring buffers: say %s", t.value,
		strings.Join(words, ", or "))
}

// meanings returns all that a bare number or name can mean: an id for each ring, or a pid.
func (t term) meanings() (meanings []term, err error) {
	named, err := byName(t.value)
	if err != nil {
		return nil, err
	}
	defer CloseAll(named)
	for _, r := range named {
		meanings = append(meanings, term{kindID, fmt.Sprint(r.ID)})
	}
	n, err := t.number()
	if err != nil {
		return meanings, nil
	}
	if r, err := Open(uint32(n)); err == nil {
		r.Close()
		if m := (term{kindID, t.value}); !slices.Contains(meanings, m) {
			meanings = append(meanings, m)
		}
	}
	if held, err := byPID(n); err == nil && len(held) > 0 {
		CloseAll(held)
		meanings = append(meanings, term{kindPID, t.value})
	}
	return meanings, nil
}

// number returns the value as an id or a pid.
func (t term) number() (int, error) {
	n, err := strconv.ParseUint(t.value, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s %q: it must be a number", t.kind, t.value)
	}
	return int(n), nil
}

func one(r *Ring, err error) ([]*Ring, error) {
	if err != nil {
		return nil, err
	}
	return []*Ring{r}, nil
}

// byName returns the rings with this name.
func byName(name string) ([]*Ring, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	return keep(all, func(r *Ring) bool { return r.hasName(name) }), nil
}

// keep closes the rings for which wanted is false.
func keep(rings []*Ring, wanted func(*Ring) bool) []*Ring {
	return slices.DeleteFunc(rings, func(r *Ring) bool {
		if wanted(r) {
			return false
		}
		r.Close()
		return true
	})
}

// byPID returns the rings that a process uses.
func byPID(pid int) ([]*Ring, error) {
	p, err := readProcess(pid)
	if err != nil {
		return nil, err
	}
	programs, err := Programs()
	if err != nil {
		return nil, err
	}
	all, err := All()
	if err != nil {
		return nil, err
	}
	return keep(all, func(r *Ring) bool {
		of := slices.DeleteFunc(slices.Clone(programs),
			func(p Program) bool { return !slices.Contains(p.Maps, r.ID) })
		return len(p.uses(r, of)) > 0
	}), nil
}

// hasName reports whether the ring has this name, of which the kernel may have kept only a part.
func (r *Ring) hasName(name string) bool { return r.Name == name[:min(len(name), nameSize)] }
