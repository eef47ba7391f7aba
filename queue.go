package ringbuf

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// A ring is what a queue needs of a BPF ring buffer. libbpfRing is the real one;
// tests have another, to force what a kernel does only now and then.
//
// Calls of poll must not overlap with each other or with close. All other methods
// but close may be called while poll waits.
type ring interface {
	// poll drains samples into b, which must be empty. If there are none it waits
	// for some, until the deadline (zero: none) or wake; it may also return early.
	// With a deadline in the past it does not wait, and returns without samples only
	// if the ring is empty or its oldest record not committed.
	poll(b *batch, deadline time.Time) error
	// wake ends the current or the next wait of poll.
	wake()
	consumerPos() uint64
	producerPos() uint64
	size() int // in bytes
	close() error
}

var errClosed = fmt.Errorf("ringbuf: reader: %w", ErrClosed)

// A queue hands the samples of a ring out, in order, to any number of goroutines.
//
// There is one batch, and turn is a channel with room for it. Whoever finds no
// sample left receives the batch from turn, which is the right to poll the ring:
// it drives libbpf on its own thread until there are samples, or a reason to give
// up, and sends the batch back. Everybody else meanwhile waits on turn.
//
// So nothing is drained while nobody reads, nor before all that was drained earlier
// has been handed out.
type queue struct {
	ring ring
	turn chan *batch
	done chan struct{} // closed when close begins

	unread unread // of the batch; empty while it is polled into

	mu       sync.Mutex // never held while polling
	pos      uint64     // end of the last record handed out, when unread is empty
	begun    bool       // pos is valid: somebody has polled
	polling  bool       // poll may be waiting
	deadline time.Time
	flushes  int // calls of flush not yet answered by ErrFlushed
	closed   bool
}

func newQueue(r ring) *queue {
	q := &queue{ring: r, turn: make(chan *batch, 1), done: make(chan struct{})}
	q.turn <- new(batch)
	return q
}

// refill returns when there were unread samples, which others may have taken since.
func (q *queue) refill() error {
	select {
	case <-q.done:
		return errClosed
	case b := <-q.turn:
		err := q.lead(b)
		q.turn <- b
		return err
	}
}

// lead polls until there are unread samples. The caller has b from q.turn.
func (q *queue) lead(b *batch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.unread.empty() {
		if q.closed {
			return errClosed
		}
		first := !q.begun
		if first {
			q.begun = true
			q.pos = q.ring.consumerPos()
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
		err := q.ring.poll(b, deadline)
		q.mu.Lock()
		q.polling = false

		switch {
		case err != nil:
			q.begun = !first // pos may be anything if the first poll did not like it
			return fmt.Errorf("ringbuf: %w", err)
		case len(b.entries) > 0:
			q.pos = b.last
			q.unread.add(b)
			return nil
		}
		q.pos = b.consumer // past discarded records
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
		q.ring.wake()
	}
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

func (q *queue) available() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return 0
	case !q.begun:
		// In this order, because somebody else may still be reading.
		consumer := q.ring.consumerPos()
		return int(q.ring.producerPos() - consumer)
	}
	pos, ok := q.unread.before()
	if !ok {
		pos = q.pos
	}
	return int(q.ring.producerPos() - pos)
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
	return q.ring.close()
}
