package ringbuf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe"
)

// A Lease is a run of lent records of one ring, in the ring's own memory. The records stay in the
// ring until Commit. If the process dies before that, the next Reader gets them. Any goroutine may
// call the methods of a Lease.
type Lease struct {
	q        *queue
	loan     *loan
	returned atomic.Bool
}

// Lease waits for records like ReadContext, with the same errors. It lends all records that are in
// the ring, up to 64 KiB or an eighth of the ring, whichever is less, but at least one. The ring
// has less room while they are lent.
//
// Several leases may be out at the same time. Each has later records of its ring than the leases
// before it, unless one of those was released. The kernel gets room back in the order of the ring,
// up to the first record that is still lent. While any record is lent, the kernel notifies of no
// new records of that ring. Lease then looks for them every 1 to 10 ms.
//
// After a deadline has passed, Lease is a bounded drain. It returns what was in the rings when the
// deadline passed, lease by lease, and then os.ErrDeadlineExceeded.
//
// Records that Read or ReadInto has drained and not returned are lent first. They are in the
// Reader's memory and no longer in the ring.
func (r *Reader) Lease(ctx context.Context) (*Lease, error) {
	q := r.queue
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, q.interrupt)()
	}
	lent, err := q.lend(ctx, wish{lend: true})
	if err != nil {
		return nil, err
	}
	l := &Lease{q: q, loan: lent}
	runtime.SetFinalizer(l, (*Lease).Release) // half of what AddCleanup takes
	return l, nil
}

// Len returns the number of records of the lease.
func (l *Lease) Len() int { return l.loan.samples }

// Records returns an iterator over the records. RawSample is a view of the ring's memory. It can
// only be read: a program that writes to it crashes with SIGSEGV. It is valid until Commit or
// Release. After these the iterator yields nothing. No other goroutine may call Commit or Release
// while one is in the loop.
func (l *Lease) Records() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		var read uint64
		l.loan.each(l.q.rings, stopper{closing: &l.returned}, &read,
			func(rec Record, _ error) bool { return yield(rec) })
		runtime.KeepAlive(l)
	}
}

// Position returns the position in its ring at which a record of this lease ends. Positions count
// bytes since the creation of the map and never repeat. Together with the id of the map, a position
// identifies a record.
func (l *Lease) Position(rec Record) uint64 { return l.loan.producer - uint64(rec.Remaining) }

// Commit says that the records have been processed. libbpf consumes them as soon as all records
// before them are committed too. After Close, Commit consumes nothing and returns an error that
// wraps ErrClosed. An error that wraps syscall.EUCLEAN means the same as in Read. In that case the
// samples may have been overwritten while they were lent.
func (l *Lease) Commit() error {
	runtime.SetFinalizer(l, nil)
	l.returned.Store(true)
	return nameOthers(l.q.giveBack(l.loan, l.loan.all()))
}

// Release says that the records have not been processed. The next Lease, Read or loop returns them,
// before later records. After Commit, Release does nothing. A Lease that is dropped without either
// is released after a garbage collection.
func (l *Lease) Release() {
	runtime.SetFinalizer(l, nil)
	l.returned.Store(true)
	l.q.giveBack(l.loan, part{})
}

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

var errReleased = errors.New("ringbuf: commit: the lease was released before")

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
		offset += entrySize(rec.RawSample)
		more := yield(rec, nil)
		*read = offset
		if !more {
			return loopLeft
		}
	}
	return allRead
}

// measure returns how many samples entries have, the position at which the last one ends, and
// how many bytes of the ring all took.
func measure(entries []byte) (samples int, last, size uint64) {
	for len(entries) > 0 {
		samples++
		last = binary.NativeEndian.Uint64(entries)
		size += uint64(binary.NativeEndian.Uint32(entries[12:]))
		entries = entries[entryHeaderSize+(binary.NativeEndian.Uint32(entries[8:])+7)&^7:]
	}
	return samples, last, size
}

// lendUnread lends what is unread of b, if anything is.
func (q *queue) lendUnread(b *batch) *loan {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.unread.empty() {
		return nil
	}
	l := &loan{}
	l.entries, l.producer, l.ring, l.lost, l.lostAt = q.unread.takeAll()
	if l.entries == nil {
		return nil
	}
	b.memory = nil // it is the loan's now
	l.samples, _, _ = measure(l.entries)
	q.drained = append(q.drained, l)
	return l
}

// drainAgain makes b what was drained and lent.
func (b *batch) drainAgain(l *loan) {
	b.set(l.entries)
	b.ring, b.producer = l.ring, l.producer
	_, b.last, _ = measure(l.entries)
	b.lose(l.lost, l.lostPosition())
}

// lostPosition is lostAt as a position in the ring.
func (l *loan) lostPosition() uint64 {
	if l.entries == nil || l.lost == 0 {
		return l.lostAt
	}
	return binary.NativeEndian.Uint64(l.entries[l.lostAt:]) - 1
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

// lending reports whether records are in any ring that libbpf cannot consume yet, and notes
// in which. The caller holds q.mu.
func (q *queue) lending() (any bool) {
	for i, loans := range q.loans {
		q.lentOf[i] = len(loans) > 0
		any = any || q.lentOf[i]
	}
	return any
}

// released lends the first records that were released. The caller holds q.mu.
func (q *queue) released() (*loan, error) {
	for i, l := range q.drained {
		if l.state == loanReleased {
			again := *l // who released it may still have l
			again.state = loanOut
			q.drained[i] = &again
			return &again, nil
		}
	}
	for i, loans := range q.loans {
		for j, l := range loans {
			if l.state != loanReleased {
				continue
			}
			again := *l // who released it may still have l
			again.state, again.again = loanOut, false
			loans[j] = &again
			q.lent++
			return &again, nil
		}
		if err := q.settle(i); err != nil { // an error before may have stopped it
			return nil, err
		}
	}
	return nil, nil
}

// borrow lends what was found for b. The caller holds q.mu.
func (q *queue) borrow(b *batch) *loan {
	l := q.spare
	if q.spare = nil; l == nil {
		l = new(loan)
	}
	*l = loan{window: b.lent}
	l.lostAt, l.lost = b.lost(l.end)
	q.loans[l.ring] = append(q.loans[l.ring], l)
	q.lent++
	return l
}

// giveBack ends a loan: the records of p were read, the others were not.
func (q *queue) giveBack(l *loan, p part) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.state != loanOut {
		if l.state == loanReleased && p.samples > 0 {
			return errReleased
		}
		return nil
	}
	l.state = loanReleased
	if p.samples > 0 {
		l.state = loanCommitted
	}
	q.noLongerLent(l)
	if q.closed {
		if p.samples > 0 {
			return errClosed
		}
		return nil
	}
	if p.samples < l.samples {
		q.wake() // somebody may wait for what there is again
	}
	if l.entries != nil {
		q.giveBackEntries(l, p)
		return nil
	}
	if p.samples > 0 && p.samples < l.samples {
		q.split(l, p)
	}
	return q.settle(l.ring)
}

// noLongerLent counts a loan that nobody uses any more. The caller holds q.mu.
func (q *queue) noLongerLent(l *loan) {
	if l.entries != nil {
		return
	}
	q.lent--
	if q.final != nil && q.lent == 0 {
		q.rings.close()
	}
}

// giveBackRest ends a loan of which some samples were read, but those were not that end at these
// offsets in it, in order.
func (q *queue) giveBackRest(l *loan, unread []uint32) {
	pieces := l.carve(q.rings, unread)
	q.mu.Lock()
	defer q.mu.Unlock()
	if pieces == nil { // the kernel has written over it, which consuming finds
		l.state = loanReleased
		pieces = []*loan{l}
	}
	q.noLongerLent(l)
	if q.closed {
		return
	}
	q.wake()
	if l.entries != nil {
		i := slices.Index(q.drained, l)
		q.drained = slices.Replace(q.drained, i, i+1, pieces...)
		return
	}
	loans := q.loans[l.ring]
	i := slices.Index(loans, l)
	q.loans[l.ring] = slices.Replace(loans, i, i+1, pieces...)
	q.settle(l.ring)
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
		end := offset + entrySize(sample)
		if end == uint64(unread[0]) {
			rest.entries = append(rest.entries, l.entries[offset:end]...)
			unread = unread[1:]
		}
		offset = end
	}
	return rest
}

// giveBackEntries keeps for others what is behind p. The caller holds q.mu.
func (q *queue) giveBackEntries(l *loan, p part) {
	i := slices.Index(q.drained, l)
	if p.samples == l.samples {
		q.drained = slices.Delete(q.drained, i, i+1)
		return
	}
	rest := *l
	rest.state = loanReleased
	rest.skipEntries(p)
	q.drained[i] = &rest
}

// split releases what is behind p. The caller holds q.mu.
func (q *queue) split(l *loan, p part) {
	rest := *l
	rest.state, rest.again = loanReleased, false
	rest.start = p.end
	rest.samples -= p.samples
	rest.discards -= p.discards
	if p.lost {
		rest.lost = 0
	}
	l.end, l.samples, l.discards = p.end, p.samples, p.discards
	loans := q.loans[l.ring]
	q.loans[l.ring] = slices.Insert(loans, slices.Index(loans, l)+1, &rest)
}

// settle lets libbpf consume the first loans of ring i, as far as they are committed. The
// caller holds q.mu.
func (q *queue) settle(i int) error {
	loans := q.loans[i]
	var p part
	n := 0
	for ; n < len(loans) && loans[n].state == loanCommitted; n++ {
		p.samples += loans[n].samples
		p.discards += loans[n].discards
		p.end = loans[n].end
	}
	if n == 0 {
		return nil
	}
	if err := q.rings.consume(i, p.samples, p.discards, p.end); err != nil {
		return fmt.Errorf("ringbuf: %w", err)
	}
	for _, l := range loans[:n] {
		if l.again {
			q.spare = l
		}
	}
	q.loans[i] = slices.Delete(loans, 0, n)
	if n == len(loans) {
		q.rings.caughtUp(i)
	}
	return nil
}
