package ringbuf

import (
	"math"
	"sync/atomic"
	"unsafe"
)

// A loan is a window of a ring that is lent, or a number of entries.
type loan struct {
	window
	lost, lostAt uint64 // records that were lost before the first record that ends after lostAt

	entries  []byte // drained and not read, in memory of the Reader; nil: the window is lent
	state    loanState
	reusable bool // nobody refers to the loan once it is settled
}

type loanState int

const (
	loanOut loanState = iota
	loanCommitted
	loanReleased
)

// A part is the beginning of a loan: some samples, and the discarded records between them.
type part struct {
	samples, discards int
	end               uint64 // position, or offset in the entries
	lost              bool   // the lost records were reported
}

func (l *loan) all() part { return part{l.samples, l.discards, l.end, true} }

// upTo returns the part that ends at a position. If end is 0 the part is empty.
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

// each yields the records, until yield returns false or stop says to stop. It returns why it ended.
// *read becomes the end of the last record whose body has ended. That also holds after a panic in
// the body of the next one. If no body has ended, *read is unchanged.
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
		// The record was committed when it was lent, so the load needs no order.
		record := unsafe.Add(data, pos&mask)
		header := *(*uint32)(record)
		pos = recordEnd(pos, header)
		if pos > end || header&busyBit != 0 {
			break // somebody moved the consumer position, and the kernel has overwritten the records
		}
		if header&discardBit != 0 {
			continue
		}
		if why := stop.now(); why != goOn {
			return why
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

// A loopEnd says why a loop over records ended.
type loopEnd int

const (
	goOn    loopEnd = iota // it has not ended
	allRead                // there are no more records
	loopLeft
	contextDone
	stopped // the Reader was closed, or the lease given back
)

// A stopper says whether to end a loop. Each field may be nil.
type stopper struct {
	done <-chan struct{} // of a context
	flag *atomic.Bool    // the Reader is closed, or the lease was given back
}

// now returns why the loop must end now, or goOn.
func (s stopper) now() loopEnd {
	if s.flag != nil && s.flag.Load() {
		return stopped
	}
	if s.done != nil {
		select {
		case <-s.done:
			return contextDone
		default:
		}
	}
	return goOn
}

// eachEntry is each for a loan of entries. There, lostAt and *read are offsets.
func (l *loan) eachEntry(stop stopper, read *uint64, yield func(Record, error) bool) loopEnd {
	for offset := uint64(0); offset < uint64(len(l.entries)); {
		if why := stop.now(); why != goOn {
			return why
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

// lostPosition returns lostAt as a position in the ring.
func (l *loan) lostPosition() uint64 {
	if l.entries == nil || l.lost == 0 {
		return l.lostAt
	}
	end, _, _ := entryHeader(l.entries[l.lostAt:])
	return end - 1
}

// skipEntries removes the entries of p.
func (l *loan) skipEntries(p part) {
	l.entries = l.entries[p.end:]
	l.samples -= p.samples
	if p.lost {
		l.lost = 0
	}
	l.lostAt -= min(l.lostAt, p.end)
}

// carve cuts a loan into pieces, by turns committed and released. unread has the offsets where the
// released samples end, in order. It returns nil if the ring has changed.
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

// pick returns a loan of the entries that end at these offsets.
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
