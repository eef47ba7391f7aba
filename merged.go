package ringbuf

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"
	"unsafe"
)

// Merged returns an iterator over the records of all rings in the order of a key. The function key
// takes the key from a sample; usually it is the time that the BPF program wrote into it. Records
// with equal keys come in the order in which they were found.
//
// Neither a ring nor the kernel knows that order. Programs on several processors write into several
// rings, and programs take the time before they reserve a record. So Merged holds each record back
// until the time hold has passed since it found the record, or one with a higher key. The order is
// perfect if no record becomes readable more than hold after a record with a higher key. (A record
// is readable when it and all records before it in its ring are committed.) A record may come up to
// a quarter of hold later than that, but at most a millisecond later, and it waits for the body of
// the loop. A record comes earlier in three cases:
//
//   - A record is late if one with a higher key has come before. It comes at once, and Stats.Late
//     counts it. A key that is far too high makes all later records of this loop late.
//   - When a quarter of a ring is held back and there is more in it, the lowest keys of all rings
//     come at once until there is room. So give each ring four times the room of what is written
//     to it in the time hold. In a smaller ring the order may suffer, and a flood has less room
//     than with Records.
//   - After a deadline has passed or Flush was called, everything that was in the rings then comes
//     at once, in order. The error follows, as in Records.
//
// A record is a view of the ring's own memory. It can only be read, and is valid until the next
// iteration. The loop ends for the same reasons and with the same errors as a loop over Records.
// It leaves what it has not yielded to the next read.
//
// A record stays in its ring until its body has ended, and libbpf consumes in order. When the
// process is killed, the next Reader gets the records that were held back. It also gets records
// again that had come from behind these: up to a quarter of each ring and a lease.
//
// Record.Remaining counts from the place of the record in its ring, even if records behind it have
// come already. Record.Lost comes with the first record after the loss was found.
//
// Merged calls key once for each record, when it finds the record. key must not keep the record. A
// record that is held back takes 16 bytes of memory. While records are held back, the kernel
// notifies of none behind them, so the loop looks at the rings on a timer: by default every
// millisecond, or more often if a flood could fill a ring in that time. WithMaxDelay(d) makes it
// d/2, and WithMaxDelay(0) leaves it as it is by default.
//
// If other goroutines read at the same time, each gets some of the records, and Merged orders those
// that it gets.
func (r *Reader) Merged(ctx context.Context, key func(Record) uint64,
	hold time.Duration) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		q := r.queue
		defer context.AfterFunc(ctx, q.interrupt)()
		newMerger(q, key, hold).loop(ctx, yield)
	}
}

// A heldLoan is a loan with records that are held back.
type heldLoan struct {
	loan  *loan
	view  *ring         // of the loan; nil if it has entries
	keyed []keyedRecord // its records, in the order of their keys
	next  int           // index in keyed of the next one to yield
}

// A keyedRecord is a record of a loan.
type keyedRecord struct {
	key  uint64
	end  uint32 // offset in the loan where the record ends
	size uint32 // of the sample
}

// record returns the record e of the loan.
func (h *heldLoan) record(e keyedRecord) Record {
	l := h.loan
	if l.entries != nil {
		sample, end := firstOf(l.entries[e.end-(e.size+7)&^7-entryHeaderSize:])
		return Record{sample, int(l.producer - end), l.ring, 0}
	}
	end := l.start + uint64(e.end)
	sample := unsafe.Add(h.view.at(end-recordEnd(0, e.size)), recordHeaderSize)
	// SAFETY: take found the record in the window. It is mapped while the loan is out.
	return Record{unsafe.Slice((*byte)(sample), e.size), int(l.producer - end), l.ring, 0}
}

// A merger holds records back. It sorts the records of each loan by their keys, and has the loans
// in a heap. The first loan of the heap is the one whose next record has the lowest key.
type merger struct {
	q    *queue
	key  func(Record) uint64
	hold time.Duration
	now  func() time.Time // time.Now, except in tests

	heap         []head
	spare        []*heldLoan
	arrivalCount uint64 // number of loans so far
	held         []int  // for each ring, the number of loans of its memory
	until        []uint64
	taking       *loan // its keys are being taken

	// For each loan in the heap, in the order of time: when it was found, and its highest key. When
	// hold has passed since then, no record with a lower key should come.
	arrivals []arrival
	due      bound // records up to this key are due
	last     bound // the highest key that was yielded

	lost   uint64  // lost records that were not reported yet
	untold []*loan // the loans that these are from
}

// An arrival says when a loan was found, and its highest key.
type arrival struct {
	at  time.Time
	key uint64
}

// A bound is a key. Without any, it is below all keys.
type bound struct {
	key uint64
	any bool
}

func (b *bound) raise(key uint64)       { b.key, b.any = max(b.key, key), true }
func (b *bound) covers(key uint64) bool { return b.any && key <= b.key }

func newMerger(q *queue, key func(Record) uint64, hold time.Duration) *merger {
	return &merger{q: q, key: key, hold: max(hold, 0), now: time.Now,
		held: make([]int, len(q.sizes)), until: make([]uint64, len(q.sizes))}
}

// loop is the loop that Merged returns.
func (m *merger) loop(ctx context.Context, yield func(Record, error) bool) {
	defer m.release() // for a panic in the caller's code
	err := m.run(ctx, yield)
	m.release()
	if err != nil && err != errLeft && !errors.Is(err, ErrClosed) {
		yield(Record{}, err)
	}
}

// errLeft says that the body has left the loop.
var errLeft = errors.New("ringbuf: the loop was left")

func (m *merger) run(ctx context.Context, yield func(Record, error) bool) error {
	stop := stopper{ctx.Done(), &m.q.closing}
	// A record may come up to this long after it is due. So to look more often is of no use.
	grain := min(max(m.hold/4, minInterval), time.Millisecond)
	for {
		now := m.now()
		full, err := m.collect(ctx)
		if err == nil {
			// Records are due only if a look that began after that found no lower key.
			m.expire(now)
			what := whatIsDue
			if full {
				what = untilRoom
			}
			err = m.deliver(ctx, stop, yield, what)
		} else {
			err = m.deliverAll(ctx, stop, yield, err)
		}
		if err != nil {
			return err
		}
		if full {
			continue
		}
		w := wish{lend: true}
		if len(m.heap) > 0 {
			w.notBefore = now.Add(grain)
			if due := m.arrivals[0].at.Add(m.hold); due.After(w.notBefore) {
				w.notBefore = due
			}
		}
		l, err := m.q.lend(ctx, w)
		if l != nil {
			m.take(l)
		}
		if err == nil {
			continue
		}
		if err == errHeldBack {
			err = nil
		}
		if err = m.deliverAll(ctx, stop, yield, err); err != nil {
			return err
		}
	}
}

// collect takes what is in the rings, if any records are held back. It reports whether a ring has
// more records than may be held back.
func (m *merger) collect(ctx context.Context) (full bool, err error) {
	if len(m.heap) == 0 {
		return false, nil
	}
	full = m.q.horizon(m.until, m.held)
	for {
		l, err := m.q.lend(ctx, wish{lend: true, now: true, until: m.until})
		if l == nil || err != nil {
			return full, err
		}
		m.take(l)
	}
}

// take adds a loan to those that are held back.
func (m *merger) take(l *loan) {
	var h *heldLoan
	if n := len(m.spare); n > 0 {
		h, m.spare = m.spare[n-1], m.spare[:n-1]
	} else {
		h = new(heldLoan)
	}
	m.taking = l
	*h = heldLoan{loan: l, keyed: h.keyed[:0]}
	if l.entries == nil {
		l.reusable = true
		h.view = m.q.rings.view(l.ring)
		m.held[l.ring]++
	}
	highest, ordered := bound{}, true
	var end uint64 // of the previous entry
	l.each(m.q.rings, stopper{}, &end, func(rec Record, _ error) bool {
		e := keyedRecord{size: uint32(len(rec.RawSample))}
		if l.entries != nil {
			e.end = uint32(end + entrySize(len(rec.RawSample)))
		} else {
			e.end = uint32(l.producer - uint64(rec.Remaining) - l.start)
		}
		rec.Lost = 0
		e.key = m.key(rec)
		ordered = ordered && (!highest.any || e.key >= highest.key)
		highest.raise(e.key)
		h.keyed = append(h.keyed, e)
		return true
	})
	m.taking = nil
	if len(h.keyed) == 0 { // the records were overwritten; giving the loan back will find that
		m.giveBack(h)
		return
	}
	if !ordered {
		slices.SortFunc(h.keyed, func(a, b keyedRecord) int {
			switch {
			case a.key < b.key:
				return -1
			case a.key > b.key:
				return 1
			}
			return int(a.end) - int(b.end)
		})
	}
	if l.lost > 0 {
		m.lost += l.lost
		m.untold = append(m.untold, l)
	}
	m.arrivals = append(m.arrivals, arrival{m.now(), highest.key})
	m.arrivalCount++
	m.heap = append(m.heap, head{h.keyed[0].key, m.arrivalCount, h})
	m.up(len(m.heap) - 1)
}

// expire notes which records are due at this time.
func (m *merger) expire(now time.Time) {
	n := 0
	for ; n < len(m.arrivals) && (m.hold == 0 || now.Sub(m.arrivals[n].at) >= m.hold); n++ {
		m.due.raise(m.arrivals[n].key)
	}
	m.arrivals = slices.Delete(m.arrivals, 0, n)
}

// What deliver yields.
type extent int

const (
	whatIsDue  extent = iota
	untilRoom         // also what is not due, until a loan is given back, which makes room
	everything        // all records that are held back
)

// deliver yields records in the order of their keys.
func (m *merger) deliver(ctx context.Context, stop stopper, yield func(Record, error) bool,
	what extent) error {
	for len(m.heap) > 0 {
		if what == whatIsDue && !m.due.covers(m.heap[0].key) {
			break
		}
		switch stop.now() {
		case contextDone:
			return ctx.Err()
		case stopped:
			return errClosed
		}
		more := yield(m.first(), nil)
		if m.lost > 0 {
			m.told()
		}
		gaveBack, err := m.advance()
		switch {
		case !more:
			return errLeft
		case err != nil:
			return err
		case gaveBack && what == untilRoom:
			return nil
		}
	}
	m.forget()
	return nil
}

// first returns the first record of the heap, which is about to be yielded.
func (m *merger) first() Record {
	h := m.heap[0].held
	e := h.keyed[h.next]
	if m.last.any && e.key < m.last.key {
		m.q.late.Add(1)
	}
	m.last.raise(e.key)
	// The record may not have been due. Records with lower keys are late now, and must not wait.
	m.due.raise(m.last.key)
	rec := h.record(e)
	rec.Lost = m.lost
	return rec
}

// advance removes the first record of the heap. It reports whether it gave a loan back.
func (m *merger) advance() (gaveBack bool, err error) {
	h := m.heap[0].held
	h.next++
	if h.next == len(h.keyed) {
		m.pop()
		return true, m.giveBack(h)
	}
	m.heap[0].key = h.keyed[h.next].key
	m.down(0)
	return false, nil
}

// forget removes the arrivals of loans whose records have all been yielded, or are due already.
func (m *merger) forget() {
	n := 0
	for n < len(m.arrivals) && m.due.covers(m.arrivals[n].key) {
		n++
	}
	m.arrivals = slices.Delete(m.arrivals, 0, n)
}

// deliverAll yields everything before err ends the loop, unless err is one that ends it at once. It
// returns err, which may be nil, or another error that ended the loop first.
func (m *merger) deliverAll(ctx context.Context, stop stopper, yield func(Record, error) bool,
	err error) error {
	if errors.Is(err, errClosed) || err != nil && err == ctx.Err() {
		return err
	}
	if e := m.deliver(ctx, stop, yield, everything); e != nil {
		return e
	}
	return err
}

// told notes that all losses were reported.
func (m *merger) told() {
	for _, l := range m.untold {
		l.lost = 0
	}
	m.lost, m.untold = 0, m.untold[:0]
}

// giveBack gives back a loan that was read to its end.
func (m *merger) giveBack(h *heldLoan) error {
	l := h.loan
	if l.entries == nil {
		m.held[l.ring]--
	}
	h.loan = nil
	m.spare = append(m.spare, h)
	return m.q.giveBack(l, l.all())
}

// release gives everything back. Other readers get the records that were not yielded.
func (m *merger) release() {
	if m.taking != nil {
		m.q.giveBack(m.taking, part{})
	}
	for _, first := range m.heap {
		h := first.held
		if h.next == 0 {
			m.q.giveBack(h.loan, part{})
			continue
		}
		var unread []uint32
		for _, e := range h.keyed[h.next:] {
			unread = append(unread, e.end)
		}
		slices.Sort(unread)
		m.q.giveBackAllBut(h.loan, unread)
	}
	m.taking, m.heap = nil, nil
}
