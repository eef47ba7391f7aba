package ringbuf

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// rings is what a queue needs of BPF ring buffers. libbpfRings are the real ones;
// tests have others, to force what a kernel does only now and then.
//
// Calls of poll must not overlap with each other, with drainedTo or with close. All other
// methods but close may be called while poll waits.
type rings interface {
	// poll drains samples of one ring into b, which must be empty. If there are none it
	// waits for some, until the deadline (zero: none) or wake; it may also return early.
	// With a deadline in the past it does not wait, and returns without samples only
	// if each ring is empty or its oldest record not committed.
	poll(b *batch, deadline time.Time) error
	// drainedTo returns the position up to which ring i was drained.
	drainedTo(i int) uint64
	// wake ends the current or the next wait of poll.
	wake()
	consumerPos(i int) uint64
	producerPos(i int) uint64
	sizes() []int // in bytes
	stats() Stats // all but Available
	close() error
}

var errClosed = fmt.Errorf("ringbuf: reader: %w", ErrClosed)

// A queue hands the samples of rings out, each ring's in order, to any number of
// goroutines.
//
// There is one batch, and turn is a channel with room for it. Whoever finds no
// sample left receives the batch from turn, which is the right to poll the rings:
// it drives libbpf on its own thread until there are samples, or a reason to give
// up, and sends the batch back. Everybody else meanwhile waits on turn.
//
// So nothing is drained while nobody reads, nor before all that was drained earlier
// has been handed out.
type queue struct {
	rings rings
	sizes []int // of the rings in bytes
	turn  chan *batch
	done  chan struct{} // closed when close begins

	unread unread // of the batch; empty while it is polled into

	mu       sync.Mutex // never held while polling
	pos      []uint64   // of each ring: end of the last record handed out, when unread has none of it
	begun    bool       // pos is valid: somebody has polled
	polling  bool       // poll may be waiting
	deadline time.Time
	flushes  int // calls of flush not yet answered by ErrFlushed
	closed   bool
	final    *Stats // when rings are closed
}

func newQueue(r rings) *queue {
	q := &queue{rings: r, sizes: r.sizes(), turn: make(chan *batch, 1), done: make(chan struct{})}
	q.pos = make([]uint64, len(q.sizes))
	q.turn <- new(batch)
	return q
}

// refill returns when there were unread samples, which others may have taken since. When
// ctx is done it ends only if interrupt is called.
func (q *queue) refill(ctx context.Context) error {
	select {
	case <-q.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	case b := <-q.turn:
		err := q.lead(ctx, b)
		q.turn <- b
		return err
	}
}

// lead polls until there are unread samples. The caller has b from q.turn.
func (q *queue) lead(ctx context.Context, b *batch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.unread.empty() {
		if q.closed {
			return errClosed
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		first := !q.begun
		if first {
			q.begun = true
			for i := range q.pos {
				q.pos[i] = q.rings.consumerPos(i)
			}
		}
		// Only a flush or expiry that was seen before the ring was found empty
		// counts, so that no sample that came earlier is held back.
		flushed := q.flushes > 0
		expired := !q.deadline.IsZero() && !time.Now().Before(q.deadline)
		deadline := q.deadline
		if flushed {
			deadline = time.Unix(0, 0)
		}

		b.reset()
		q.polling = true
		q.mu.Unlock()
		err := q.rings.poll(b, deadline)
		q.mu.Lock()
		q.polling = false

		if err != nil {
			q.begun = !first // pos may be anything if the first poll did not like it
			return fmt.Errorf("ringbuf: %w", err)
		}
		for i := range q.pos {
			q.pos[i] = q.rings.drainedTo(i) // past discarded records
		}
		if len(b.entries) > 0 {
			q.pos[b.ring] = b.last
			q.unread.add(b)
			return nil
		}
		switch {
		case flushed:
			q.flushes--
			return ErrFlushed
		case expired:
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

// wake makes a goroutine that polls look at the queue's state again. The caller
// holds q.mu.
func (q *queue) wake() {
	if q.polling {
		q.rings.wake()
	}
}

// interrupt is for whoever's context is done while they poll.
func (q *queue) interrupt() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake()
}

func (q *queue) setDeadline(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deadline = t
	q.wake()
}

func (q *queue) flush() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosed
	}
	q.flushes++
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
	pos, ok := q.unread.before(i)
	if !ok {
		pos = q.pos[i]
	}
	return int(q.rings.producerPos(i) - pos)
}

func (q *queue) stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.final != nil {
		s := *q.final
		s.Rings = slices.Clone(s.Rings)
		return s
	}
	s := q.rings.stats()
	for i := range s.Rings {
		s.Rings[i].Available = q.availableOf(i)
	}
	return s
}

// close may be called once.
func (q *queue) close() error {
	q.mu.Lock()
	q.closed = true
	close(q.done)
	q.wake()
	q.mu.Unlock()

	<-q.turn // nobody polls, nor will again

	q.mu.Lock()
	defer q.mu.Unlock()
	q.unread.clear()
	final := q.rings.stats()
	q.final = &final
	return q.rings.close()
}
