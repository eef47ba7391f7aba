package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// rings is what a queue needs of BPF ring buffers. libbpfRings are the real ones;
// tests have others, to force what a kernel does only now and then.
//
// Calls of fetch must not overlap with each other or with close. All other methods but
// close may be called while fetch waits, by one goroutine at a time; lookedTo only while
// nobody fetches.
type rings interface {
	// fetch finds samples of one ring for b, which must be empty. If there are none it
	// waits for some, until the deadline or wake; it may also return early. With a deadline
	// in the past it does not wait, and returns without samples only if each ring is empty
	// or its oldest record not committed. With a rest it looks at nothing before that is over.
	fetch(b *batch, q request) error
	// consume consumes samples of ring i that were lent, in order: up to the position end.
	consume(i, samples, discards int, end uint64) error
	// caughtUp is called when all that was lent of ring i is consumed.
	caughtUp(i int)
	// lookedTo returns the position up to which ring i was consumed or lent.
	lookedTo(i int) uint64
	// wake ends the current or the next wait of fetch.
	wake()
	view(i int) *ring
	consumerPos(i int) uint64
	producerPos(i int) uint64
	sizes() []int // in bytes
	stats() Stats // all but Available
	close() error
}

// A request is what fetch is to do.
type request struct {
	deadline time.Time // zero: none
	lend     bool      // leave the samples in the ring
	copied   bool      // but they are copied at once
	lent     bool      // older ones are still in a ring: of that the kernel does not notify
	lentOf   []bool    // of each ring, whether they are
	until    []uint64  // of each ring, the position up to which records count; or nil
	rest     time.Time // not zero: wait until then without a look, while no ring fills up
}

var errClosed = fmt.Errorf("ringbuf: reader: %w", ErrClosed)

// A queue hands the samples of rings out, each ring's in order, to any number of
// goroutines.
//
// There is one batch, and turn is a channel with room for it. A goroutine that finds no
// sample receives the batch from turn, which is the right to fetch the rings: it fetches until
// there are samples, or a reason to give up, and sends the batch back. Everybody else
// meanwhile waits on turn.
//
// So nothing is consumed while nobody reads, nor before all that was copied earlier
// has been handed out.
type queue struct {
	rings rings
	sizes []int // of the rings in bytes
	turn  chan *batch

	done    chan struct{} // closed when close begins
	closing atomic.Bool   // likewise

	unread unread // of the batch; empty while it is fetched into
	slab   slab   // for samples that callers may keep
	late   atomic.Uint64

	mu       sync.Mutex // never held while fetching
	pos      []uint64   // of each ring: end of the last record handed out, when unread has none of it
	begun    bool       // pos is valid: somebody has fetched
	fetching bool       // fetch may be waiting
	deadline time.Time
	expired  bool       // it was found to have passed
	passed   []uint64   // producer positions then
	flushes  [][]uint64 // producer positions at each call of flush not yet answered
	unreadTo uint64     // end of the last entry that was put into unread
	loans    [][]*loan  // of each ring, in order: see lease.go
	lentOf   []bool     // rings that have loans, for fetch
	lent     int        // of these, how many are out
	spare    *loan      // to use again, or nil
	drained  []*loan    // loans of what was drained, in order
	closed   bool
	final    *Stats // when rings are closed
}

func newQueue(r rings) *queue {
	q := &queue{rings: r, sizes: r.sizes(), turn: make(chan *batch, 1), done: make(chan struct{})}
	q.pos = make([]uint64, len(q.sizes))
	q.loans = make([][]*loan, len(q.sizes))
	q.lentOf = make([]bool, len(q.sizes))
	q.turn <- new(batch)
	return q
}

// A wish is what somebody wants of a fetch, beside records.
type wish struct {
	lend  bool      // leave them in the ring
	now   bool      // wait neither for records nor for the turn; the deadline does not matter
	until []uint64  // positions up to which to look, with now; flushes do not matter either
	rest  time.Time // who has this holds records back: do not look, but wait until then
}

// errHeldBack is for who holds records back: everything else was returned that a flush or the
// deadline wants.
var errHeldBack = errors.New("ringbuf: records are held back")

// receive receives the turn, or nothing if w does not want to wait so long. When ctx is done it
// ends only if interrupt is called.
func (q *queue) receive(ctx context.Context, w wish) (*batch, error) {
	select {
	case b := <-q.turn: // as a rule, and quicker
		return b, nil
	default:
	}
	var late <-chan time.Time
	switch {
	case w.now && q.closing.Load():
		return nil, errClosed
	case w.now:
		return nil, nil
	case !w.rest.IsZero():
		timer := time.NewTimer(time.Until(w.rest))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-late:
		return nil, nil
	case <-q.done:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	case b := <-q.turn:
		return b, nil
	}
}

// read fetches until it can copy a sample to rec.
func (q *queue) read(ctx context.Context, rec *Record, own bool) (err error) {
	defer func() { err = nameOthers(err) }() // when somebody else has the turn
	b, err := q.receive(ctx, wish{})
	if err != nil {
		return err
	}
	// Also if ctx, which is the caller's, panics.
	defer func() { q.turn <- b }()
	// While it has the turn: so that who waited has the first, also when Close waits for it.
	for !q.take(rec, own) {
		if l, err := q.fetch(ctx, b, wish{}); err != nil {
			return err
		} else if l != nil {
			if err := q.keep(b, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// tryRead is read without a wait. It reports whether there was a sample.
func (q *queue) tryRead(rec *Record) (ok bool, err error) {
	defer func() { err = nameOthers(err) }() // as in read
	w := wish{now: true}
	b, err := q.receive(context.Background(), w)
	if b == nil {
		return false, err
	}
	defer func() { q.turn <- b }()
	for !q.take(rec, false) {
		l, err := q.fetch(context.Background(), b, w)
		if err == nil && l != nil {
			err = q.keep(b, l)
		}
		if err != nil {
			return false, err
		}
		if l == nil && q.unread.empty() {
			return false, nil
		}
	}
	return true, nil
}

// keep makes a loan unread: of records that libbpf cannot consume yet, because others before
// these are lent, or that were drained.
func (q *queue) keep(b *batch, l *loan) error {
	read := part{} // nothing, if the Reader is closed
	defer func() { q.giveBack(l, read) }()
	if l.entries != nil {
		b.drainAgain(l)
	} else {
		b.copyWindow(q.rings.view(l.ring), l.window)
		b.lose(l.lost, l.lostAt)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	q.add(b)
	read = l.all()
	return nil
}

// lend returns samples that stay in the ring, or what is unread of the batch. It returns
// nothing only to who does not want to wait for it.
func (q *queue) lend(ctx context.Context, w wish) (l *loan, err error) {
	defer func() { err = nameOthers(err) }() // as in read
	b, err := q.receive(ctx, w)
	if b == nil {
		return nil, err
	}
	defer func() { q.turn <- b }()
	for {
		if l := q.lendUnread(b); l != nil {
			return l, nil
		}
		l, err := q.fetch(ctx, b, w)
		if l != nil || err != nil {
			return l, err
		}
		if (w.now || !w.rest.IsZero()) && q.unread.empty() {
			return nil, nil
		}
	}
}

// fetch fetches once. It returns a loan of samples that are still in the ring, or has put
// samples into unread, or neither. The caller has b from q.turn, and nothing is unread.
func (q *queue) fetch(ctx context.Context, b *batch, w wish) (*loan, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, errClosed
	}
	first := !q.begun
	if first {
		q.begun = true
		for i := range q.pos {
			q.pos[i] = q.rings.consumerPos(i)
		}
	}
	if l, err := q.released(); l != nil || err != nil {
		return l, err
	}
	// Only a flush or expiry that was seen before the rings were found empty counts, so
	// that no sample that came earlier is held back.
	req := request{deadline: q.deadline, lent: q.lending(), lentOf: q.lentOf, copied: !w.lend}
	req.lend = w.lend || req.lent
	flushed := len(q.flushes) > 0 && w.until == nil
	expired := !q.deadline.IsZero() && !time.Now().Before(q.deadline) && !w.now
	switch {
	case flushed:
		req.until, req.deadline = q.flushes[0], time.Unix(0, 0)
	case w.now:
		req.until, req.deadline = w.until, time.Unix(0, 0)
	case expired:
		if !q.expired {
			q.expired, q.passed = true, q.produced(q.passed)
		}
		req.until = q.passed
	default:
		req.rest = w.rest
	}

	b.reset()
	q.fetching = true
	q.mu.Unlock()
	err := q.rings.fetch(b, req)
	q.mu.Lock()
	q.fetching = false

	if err != nil {
		q.begun = !first // pos may be anything if the first fetch did not like it
		return nil, fmt.Errorf("ringbuf: %w", err)
	}
	for i := range q.pos {
		q.pos[i] = q.rings.lookedTo(i) // past discarded records
	}
	switch {
	case b.lent.samples > 0:
		return q.borrow(b), nil
	case len(b.entries) > 0:
		q.pos[b.ring] = b.last
		q.add(b)
	case (flushed || expired) && !w.rest.IsZero():
		return nil, errHeldBack
	case flushed:
		q.flushes = q.flushes[1:]
		return nil, ErrFlushed
	case expired:
		q.expired = false
		return nil, os.ErrDeadlineExceeded
	}
	return nil, nil
}

// add makes the entries of b unread. The caller holds q.mu.
func (q *queue) add(b *batch) {
	q.unreadTo = b.last
	q.unread.add(b)
}

// produced returns the producer positions, in buf if it has room. The caller holds q.mu.
func (q *queue) produced(buf []uint64) []uint64 {
	buf = buf[:0]
	for i := range q.pos {
		buf = append(buf, q.rings.producerPos(i))
	}
	return buf
}

// wake makes a goroutine that fetches look at the queue's state again. The caller
// holds q.mu.
func (q *queue) wake() {
	if q.fetching {
		q.rings.wake()
	}
}

// interrupt is for whoever's context is done while they fetch.
func (q *queue) interrupt() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake()
}

func (q *queue) setDeadline(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deadline, q.expired = t, false
	q.wake()
}

func (q *queue) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	q.flushes = append(q.flushes, q.produced(nil))
	q.wake()
	return nil
}

func (q *queue) available() (sum int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.pos {
		sum += q.availableOf(i)
	}
	return sum
}

// availableOf returns the bytes of ring i that were produced and not handed out. The caller
// holds q.mu.
func (q *queue) availableOf(i int) int {
	switch {
	case q.closed:
		return 0
	case !q.begun:
		// In this order, because somebody else may still be reading.
		consumer := q.rings.consumerPos(i)
		return int(q.rings.producerPos(i) - consumer)
	}
	n := int(q.rings.producerPos(i) - q.pos[i])
	if before, ok := q.unread.before(i); ok {
		n += int(q.unreadTo - before)
	}
	for _, l := range q.loans[i] {
		if l.state == loanReleased {
			n += int(l.end - l.start)
		}
	}
	for _, l := range q.drained {
		if l.ring == i && l.state == loanReleased {
			_, _, size := measure(l.entries)
			n += int(size)
		}
	}
	return n
}

func (q *queue) stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.final != nil {
		s := *q.final
		s.Rings = slices.Clone(s.Rings)
		s.Late = q.late.Load()
		return s
	}
	s := q.rings.stats()
	s.Late = q.late.Load()
	for i := range s.Rings {
		s.Rings[i].Available = q.availableOf(i)
	}
	return s
}

// close may be called once.
func (q *queue) close() error {
	q.mu.Lock()
	q.closed = true
	q.closing.Store(true)
	close(q.done)
	q.wake()
	q.mu.Unlock()

	<-q.turn // nobody fetches, nor will again

	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread.clear()
	final := q.rings.stats()
	q.final = &final
	if q.lent > 0 {
		return nil // whoever gives the last loan back closes the rings
	}
	return q.rings.close()
}
