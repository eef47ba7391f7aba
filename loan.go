package ringbuf

import (
	"math"
	"sync/atomic"
	"unsafe"
)

// A loan is a window of a ring that is lent, or what is left of it.
type loan struct {
	window
	lost, lostAt uint64 // records that were lost before the first that ends after lostAt

	entries []byte // else: what was drained and not read, in memory of the Reader
	state   loanState
	again   bool // nobody uses it when it is settled: it may be another loan then
}

type loanState int

const (
	loanOut loanState = iota
	loanCommitted
	loanReleased
)

// A part is the first samples of a loan, up to a position, and the discarded records
// between them.
type part struct {
	samples, discards int
	end               uint64
	lost              bool // the lost records were told
}

func (l *loan) all() part { return part{l.samples, l.discards, l.end, true} }

// upTo returns the part that ends at a position, or 0.
func (l *loan) upTo(r rings, end uint64) (p part) {
	switch {
	case end == 0:
		return part{}
	case l.entries != nil:
		p.end = end
		p.samples, _, _ = measure(l.entries[:end])
	case end == l.end:
		return l.all()
	default:
		w := l.window
		w.end, p.end = end, end
		p.samples, p.discards = r.view(l.ring).count(w)
	}
	p.lost = end > l.lostAt
	return p
}

// each yields the records until yield returns false or stop does. It reports which it was. Then
// *read is where the last record ends whose body has ended, also if that of the next one
// panicked; it stays as it is if there is none.
func (l *loan) each(r rings, stop stopper, read *uint64, yield func(Record, error) bool) loopEnd {
	if l.entries != nil {
		return l.eachEntry(stop, read, yield)
	}
	g := r.view(l.ring)
	data, mask := g.data, g.size-1
	start, end, producer, ring := l.start, l.end, l.producer, l.ring
	lostAt := l.lostAt
	if l.lost == 0 {
		lostAt = math.MaxUint64
	}
	for pos := start; pos < end; {
		// It was committed when it was lent.
		record := unsafe.Add(data, pos&mask)
		header := *(*uint32)(record)
		pos = recordEnd(pos, header)
		if pos > end || header&busyBit != 0 {
			break // somebody wrote the consumer position, and the kernel over the records
		}
		if header&discardBit != 0 {
			continue
		}
		if end := stop.now(); end != allRead {
			return end
		}
		lost := uint64(0)
		if pos > lostAt {
			lost, lostAt = l.lost, math.MaxUint64
		}
		// SAFETY: the record ends before l.end and is in one piece. It is mapped while the
		// loan is out.
		sample := unsafe.Slice((*byte)(unsafe.Add(record, recordHeaderSize)), header)
		more := yield(Record{sample, int(producer - pos), ring, lost}, nil)
		*read = pos
		if !more {
			return loopLeft
		}
	}
	return allRead
}

// A loopEnd says why a loop over a loan ended.
type loopEnd int

const (
	allRead loopEnd = iota
	loopLeft
	contextDone
	readerClosed
)

// A stopper is what may end a loop, or nil.
type stopper struct {
	done    <-chan struct{} // of a context
	closing *atomic.Bool    // of the Reader, or of a lease that was given back
}

func (s stopper) now() loopEnd {
	if s.closing != nil && s.closing.Load() {
		return readerClosed
	}
	if s.done != nil {
		select {
		case <-s.done:
			return contextDone
		default:
		}
	}
	return allRead
}

// eachEntry is each of what was drained. Then lostAt and part.end are offsets.
func (l *loan) eachEntry(stop stopper, read *uint64, yield func(Record, error) bool) loopEnd {
	for offset := uint64(0); offset < uint64(len(l.entries)); {
		if end := stop.now(); end != allRead {
			return end
		}
		sample, end := firstOf(l.entries[offset:])
		rec := Record{sample, int(l.producer - end), l.ring, 0}
		if offset == l.lostAt {
			rec.Lost = l.lost
		}
		offset += entrySize(len(rec.RawSample))
		more := yield(rec, nil)
		*read = offset
		if !more {
			return loopLeft
		}
	}
	return allRead
}

// lostPosition is lostAt as a position in the ring.
func (l *loan) lostPosition() uint64 {
	if l.entries == nil || l.lost == 0 {
		return l.lostAt
	}
	end, _, _ := entryHeader(l.entries[l.lostAt:])
	return end - 1
}

// skipEntries removes the first entries.
func (l *loan) skipEntries(p part) {
	l.entries = l.entries[p.end:]
	l.samples -= p.samples
	if p.lost {
		l.lost = 0
	}
	l.lostAt -= min(l.lostAt, p.end)
}

// carve returns what is to be in the place of a loan of which only these samples are unread: runs
// that are committed or released, by turns. It returns nothing if the ring is not what it was.
func (l *loan) carve(r rings, unread []uint32) (pieces []*loan) {
	if l.entries != nil {
		return []*loan{l.pick(unread)}
	}
	g := r.view(l.ring)
	last := l.start
	g.each(l.window, func(end uint64, sample []byte) {
		state := loanCommitted
		if len(unread) > 0 && end-l.start == uint64(unread[0]) {
			state, unread = loanReleased, unread[1:]
		}
		if n := len(pieces); n == 0 || pieces[n-1].state != state {
			piece := &loan{window: l.window, state: state}
			piece.start, piece.samples, piece.bytes = last, 0, 0
			pieces = append(pieces, piece)
		}
		piece := pieces[len(pieces)-1]
		piece.end = end
		piece.samples++
		piece.bytes += uint64(len(sample))
		last = end
	})
	if last != l.end || len(unread) > 0 {
		return nil
	}
	for _, piece := range pieces {
		_, piece.discards = g.count(piece.window)
	}
	return pieces
}

// pick returns a loan of those drained entries that end at these offsets.
func (l *loan) pick(unread []uint32) *loan {
	rest := &loan{window: l.window, state: loanReleased}
	rest.samples = len(unread)
	for offset := uint64(0); len(unread) > 0; {
		sample, _ := firstOf(l.entries[offset:])
		end := offset + entrySize(len(sample))
		if end == uint64(unread[0]) {
			rest.entries = append(rest.entries, l.entries[offset:end]...)
			unread = unread[1:]
		}
		offset = end
	}
	return rest
}
