package ringbuf

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"
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
// d/2.
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

// A merger holds records back. It sorts the records of each loan by their keys, and has the loans
// in a heap. The first loan of the heap is the one whose next record has the lowest key.
type merger struct {
	q    *queue
	key  func(Record) uint64
	hold time.Duration
	now  func() time.Time // time.Now, except in tests

	heap   []head
	spare  []*heldLoan
	arrivalCount  uint64 // number of loans so far
	held   []int  // for each ring, the number of loans of its memory
	until  []uint64
	taking *loan // its keys are being taken

	// For each loan in the heap, in the order of time: when it was found, and its highest key. When
	// hold has passed since then, no record with a lower key should come.
	arrivals []arrival
	due   bound // records up to this key are due
	last  bound // the highest key that was yielded

	lost   uint64  // lost records that were not reported yet
	untold []*loan // the loans that these are from
}

type arrival struct {
	at  time.Time
	key uint64
}

// A bound is a key, or, without any, below all keys.
type bound struct {
	key uint64
	any bool
}

func (b *bound) raise(key uint64) { b.key, b.any = max(b.key, key), true }

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
	// To look more often is of no use: this is how late a record may be that is due.
	grain := min(max(m.hold/4, minInterval), time.Millisecond)
	for {
		now := m.now()
		full, err := m.collect(ctx)
		if err == nil {
			// Records are due only if a look that began after that found no lower key.
			m.expire(now)
			err = m.deliver(ctx, stop, yield, full, false)
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
		if err == errHeldBack {
			err = m.deliverAll(ctx, stop, yield, nil)
		} else if err != nil {
			err = m.deliverAll(ctx, stop, yield, err)
		}
		if err != nil {
			return err
		}
	}
}

// collect takes what is in the rings, if any records are held back. It reports whether a ring has more
// records than may be held back.
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

// horizon sets the position in each ring up to which to look: the producer position, or that of
// the flush or deadline that is to be answered next. In a ring with held records it is at most a
// quarter of the ring. horizon reports whether there is more in a ring.
func (q *queue) horizon(until []uint64, held []int) (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false // the rings may be gone, and all held records in memory of the Reader
	}
	for i := range until {
		switch {
		case len(q.flushes) > 0:
			until[i] = q.flushes[0][i]
		case q.expired:
			until[i] = q.passed[i]
		default:
			until[i] = q.rings.producerPos(i)
		}
		most := q.rings.consumerPos(i) + uint64(q.sizes[i])/4
		if held[i] > 0 && most < until[i] {
			until[i], more = most, true
		}
	}
	return more
}

// take adds a loan to those that are held back.
func (m *merger) take(l *loan) {
	var r *heldLoan
	if n := len(m.spare); n > 0 {
		r, m.spare = m.spare[n-1], m.spare[:n-1]
	} else {
		r = new(heldLoan)
	}
	m.taking = l
	*r = heldLoan{loan: l, keyed: r.keyed[:0]}
	if l.entries == nil {
		l.reusable = true
		r.view = m.q.rings.view(l.ring)
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
		r.keyed = append(r.keyed, e)
		return true
	})
	m.taking = nil
	if len(r.keyed) == 0 { // the records were overwritten; giving the loan back will find that
		m.giveBack(r)
		return
	}
	if !ordered {
		slices.SortFunc(r.keyed, func(a, b keyedRecord) int {
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
	m.heap = append(m.heap, head{r.keyed[0].key, m.arrivalCount, r})
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

// deliver yields the records that are due, or all of them. With full, a ring has more records than
// may be held back. Then deliver yields until it gives a loan back, which makes room to look
// further.
func (m *merger) deliver(ctx context.Context, stop stopper, yield func(Record, error) bool,
	full, all bool) error {
	for len(m.heap) > 0 {
		r := m.heap[0].held
		e := r.keyed[r.next]
		if !full && !all && !(m.due.any && e.key <= m.due.key) {
			break
		}
		switch stop.now() {
		case contextDone:
			return ctx.Err()
		case stopped:
			return errClosed
		}
		if m.last.any && e.key < m.last.key {
			m.q.late.Add(1)
		}
		m.last.raise(e.key)
		m.due.raise(m.last.key)
		rec := r.record(e)
		rec.Lost = m.lost
		more := yield(rec, nil)
		if m.lost > 0 {
			m.told()
		}
		r.next++
		var err error
		done := r.next == len(r.keyed)
		if done {
			m.pop()
			err = m.giveBack(r)
		} else {
			m.heap[0].key = r.keyed[r.next].key
			m.down(0)
		}
		switch {
		case !more:
			return errLeft
		case err != nil:
			return err
		case done && full && !all:
			return nil
		}
	}
	// Loans whose records have all been yielded need not become due.
	n := 0
	for n < len(m.arrivals) && m.due.any && m.arrivals[n].key <= m.due.key {
		n++
	}
	m.arrivals = slices.Delete(m.arrivals, 0, n)
	return nil
}

// deliverAll yields all records that are held back, unless err is one that ends the loop at once.
func (m *merger) deliverAll(ctx context.Context, stop stopper, yield func(Record, error) bool,
	err error) error {
	if errors.Is(err, errClosed) || err != nil && err == ctx.Err() {
		return err
	}
	if e := m.deliver(ctx, stop, yield, false, true); e != nil {
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
func (m *merger) giveBack(r *heldLoan) error {
	l := r.loan
	if l.entries == nil {
		m.held[l.ring]--
	}
	r.loan = nil
	m.spare = append(m.spare, r)
	return m.q.giveBack(l, l.all())
}

// release gives everything back. Other readers get the records that were not yielded.
func (m *merger) release() {
	if m.taking != nil {
		m.q.giveBack(m.taking, part{})
	}
	for _, h := range m.heap {
		r := h.held
		if r.next == 0 {
			m.q.giveBack(r.loan, part{})
			continue
		}
		var unread []uint32
		for _, e := range r.keyed[r.next:] {
			unread = append(unread, e.end)
		}
		slices.Sort(unread)
		m.q.giveBackAllBut(r.loan, unread)
	}
	m.taking, m.heap = nil, nil
}
