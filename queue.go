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

// rings is what a queue needs from BPF ring buffers. libbpfRings implements it. Tests have other
// implementations, which force what a kernel does only now and then.
//
// Calls of fetch must not overlap with each other or with close. While fetch waits, one goroutine
// at a time may call the other methods, except close and lookedTo.
type rings interface {
	// fetch finds samples of one ring and puts them into b, which must be empty. If there are none,
	// it waits until there are, until the deadline, or until wake. It may also return early without
	// samples. With a deadline in the past it does not wait, and it returns without samples only if
	// in each ring there is no record or the oldest record is not committed.
	fetch(b *batch, q request) error
	// consume consumes lent samples of ring i, in order, up to the position end.
	consume(i, samples, discards int, end uint64) error
	// allConsumed must be called when all lent records of ring i are consumed.
	allConsumed(i int)
	// lookedTo returns the position up to which records of ring i were consumed or lent.
	lookedTo(i int) uint64
	// wake ends the current wait of fetch, or the next one.
	wake()
	view(i int) *ring
	consumerPos(i int) uint64
	producerPos(i int) uint64
	sizes() []int // in bytes
	stats() Stats // all fields except Available
	close() error
}

// A request says what fetch is to do.
type request struct {
	deadline  time.Time // zero: none
	lend      bool      // leave the samples in the ring
	copied    bool      // with lend: the caller copies them at once
	anyLoans  bool      // older records are still lent, so the kernel does not notify
	hasLoans  []bool    // for each ring, whether records of it are lent
	until     []uint64  // for each ring, the position to stop at; nil: none
	notBefore time.Time // not zero: do not look before this time, unless a ring fills up
}

var errClosed = fmt.Errorf("ringbuf: reader: %w", ErrClosed)

// A queue hands out the samples of rings to any number of goroutines, in the order of each ring.
//
// There is one batch, and a channel with room for it, turn. A goroutine that runs out of samples
// receives the batch from turn. Holding the batch is the right to fetch. The goroutine fetches
// until there are samples or a reason to give up, and sends the batch back. The other goroutines
// wait on turn.
//
// So nothing is consumed while nobody reads, or before all samples of the last batch are handed
// out.
type queue struct {
	rings rings
	sizes []int // of the rings in bytes
	turn  chan *batch

	done    chan struct{} // closed when close begins
	closing atomic.Bool   // set at the same time

	unread unread        // the entries of the batch; empty during a fetch
	slab   slab          // for samples that callers may keep
	late   atomic.Uint64 // Stats.Late

	mu         sync.Mutex // never held during a fetch
	pos        []uint64   // for each ring without unread entries: end of the last record handed out
	begun      bool       // pos is valid, because there was a fetch
	fetching   bool       // fetch may be waiting
	deadline   time.Time
	expired    bool       // the deadline was found to have passed
	passed     []uint64   // producer positions at that time
	flushes    [][]uint64 // producer positions at each call of flush that is not yet answered
	unreadTo   uint64     // end of the last entry that was added to unread
	loans      [][]*loan  // for each ring, loans that libbpf has not consumed, in order
	hasLoans   []bool     // for each ring, whether it has loans; passed to fetch
	windowsOut int        // loans of windows that are out; after Close the last one closes the rings
	spare      *loan      // to use again, or nil
	drained    []*loan    // loans of entries that were drained, in order
	closed     bool
	final      *Stats // set when the rings are closed
}

func newQueue(r rings) *queue {
	q := &queue{rings: r, sizes: r.sizes(), turn: make(chan *batch, 1), done: make(chan struct{})}
	q.pos = make([]uint64, len(q.sizes))
	q.loans = make([][]*loan, len(q.sizes))
	q.hasLoans = make([]bool, len(q.sizes))
	q.turn <- new(batch)
	return q
}

// A wish says what a caller wants of a fetch.
type wish struct {
	lend      bool      // lend the records
	now       bool      // wait neither for records nor for the turn, and ignore the deadline
	until     []uint64  // with now: for each ring, the position to stop at; then ignore flushes, too
	notBefore time.Time // not zero: the caller holds records back, and wants no look before this time
}

// holding reports whether the caller holds records back.
func (w wish) holding() bool { return !w.notBefore.IsZero() }

// errHeldBack tells a caller who holds records back that a flush or the deadline wants these. All
// other records were returned.
var errHeldBack = errors.New("ringbuf: records are held back")

// receive waits for the turn and returns the batch. It returns nil if w does not want to wait that
// long. When ctx is done, the caller must also call interrupt to end the fetch of the goroutine.
func (q *queue) receive(ctx context.Context, w wish) (*batch, error) {
	select {
	case b := <-q.turn: // the usual case, quicker than the select below
		return b, nil
	default:
	}
	var timeIsUp <-chan time.Time
	switch {
	case w.now && q.closing.Load():
		return nil, errClosed
	case w.now:
		return nil, nil
	case w.holding():
		timer := time.NewTimer(time.Until(w.notBefore))
		defer timer.Stop()
		timeIsUp = timer.C
	}
	select {
	case <-timeIsUp:
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
	defer func() { err = nameOthers(err) }() // this takes long, so without the turn
	b, err := q.receive(ctx, wish{})
	if err != nil {
		return err
	}
	// Deferred, because a method of ctx, which is the caller's code, may panic.
	defer func() { q.turn <- b }()
	// Take while holding the turn. So the goroutine that waited gets the first sample, even if
	// Close waits for the turn.
	for !q.take(rec, own) {
		if l, err := q.fetch(ctx, b, wish{}); err != nil {
			return err
		} else if l != nil {
			if err := q.copyToUnread(b, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// take copies the oldest unread sample to rec, into memory of its own or into what RawSample
// has. It reports false if there is none.
func (q *queue) take(rec *Record, own bool) bool {
	buf := rec.RawSample
	for {
		sample, remaining, at, ok := q.unread.peek()
		if !ok {
			return false
		}
		if own {
			buf = q.slab.copy(sample)
		} else {
			buf = append(buf[:0], sample...)
		}
		ring, lost := q.unread.origin(at)
		if q.unread.take(at, sample) {
			// One by one: a copy of a whole Record takes 5 ns.
			rec.RawSample, rec.Remaining = buf, remaining
			rec.Ring, rec.Lost = ring, lost
			return true
		}
	}
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
			err = q.copyToUnread(b, l)
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

// copyToUnread makes the entries of a loan unread. Read gets loans of two kinds: records that
// libbpf cannot consume yet, because earlier ones are lent, and entries that were drained and
// released.
func (q *queue) copyToUnread(b *batch, l *loan) error {
	read := part{} // read nothing, if the Reader is closed
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

// lend returns a loan of samples in a ring, or of the unread entries of the batch. It returns nil
// only if w does not want to wait.
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
		if (w.now || w.holding()) && q.unread.empty() {
			return nil, nil
		}
	}
}

// fetch fetches once. It returns a loan of samples that are still in the ring, or adds samples to
// unread, or does neither. The caller must hold the turn, and unread must be empty.
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
	if l, err := q.lendReleased(); l != nil || err != nil {
		return l, err
	}
	req, flushed, expired := q.plan(w)
	b.reset()
	q.fetching = true
	q.mu.Unlock()
	err := q.rings.fetch(b, req)
	q.mu.Lock()
	q.fetching = false

	if err != nil {
		q.begun = !first // pos may be anything if the first fetch failed
		return nil, fmt.Errorf("ringbuf: %w", err)
	}
	for i := range q.pos {
		q.pos[i] = q.rings.lookedTo(i) // discarded records are behind now
	}
	switch {
	case b.window.samples > 0:
		return q.lendWindow(b), nil
	case len(b.entries) > 0:
		q.pos[b.ring] = b.last
		q.add(b)
	case (flushed || expired) && w.holding():
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

// plan returns the request for a fetch, and whether it is to answer a flush or the deadline. Only a
// flush or an expired deadline that was seen before the rings were found empty counts. So all
// samples that came earlier are returned first. The caller must hold q.mu.
func (q *queue) plan(w wish) (req request, flushed, expired bool) {
	req = request{deadline: q.deadline, anyLoans: q.noteLoans(), hasLoans: q.hasLoans, copied: !w.lend}
	req.lend = w.lend || req.anyLoans
	flushed = len(q.flushes) > 0 && w.until == nil
	expired = !q.deadline.IsZero() && !time.Now().Before(q.deadline) && !w.now
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
		req.notBefore = w.notBefore
	}
	return req, flushed, expired
}

// add makes the entries of b unread. The caller must hold q.mu.
func (q *queue) add(b *batch) {
	q.unreadTo = b.last
	q.unread.add(b)
}

// produced returns the producer positions, in buf if that has room. The caller must hold q.mu.
func (q *queue) produced(buf []uint64) []uint64 {
	buf = buf[:0]
	for i := range q.pos {
		buf = append(buf, q.rings.producerPos(i))
	}
	return buf
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

// wake makes the goroutine that fetches look at the state of the queue again. The caller must hold
// q.mu.
func (q *queue) wake() {
	if q.fetching {
		q.rings.wake()
	}
}

// interrupt makes a fetching goroutine look at its context again.
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

// availableOf returns the number of bytes of ring i that were produced and not handed out. The
// caller must hold q.mu.
func (q *queue) availableOf(i int) int {
	switch {
	case q.closed:
		return 0
	case !q.begun:
		// The consumer position first, because another process may still be reading.
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

// close closes the queue. It may be called once.
func (q *queue) close() error {
	q.mu.Lock()
	q.closed = true
	q.closing.Store(true)
	close(q.done)
	q.wake()
	q.mu.Unlock()

	<-q.turn // now nobody is fetching, and nobody will

	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread.clear()
	final := q.rings.stats()
	q.final = &final
	if q.windowsOut > 0 {
		return nil // giving back the last loan closes the rings
	}
	return q.rings.close()
}
