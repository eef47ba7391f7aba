package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// A Reservation is a record that is reserved in a user ring buffer, to be filled in place. The
// kernel's drain stops at it, and does not get to what was written later, until it is submitted or
// discarded. Keep it until then, not only what Bytes returns: a Reservation that is garbage is
// discarded. Its methods may be called by any goroutine, one at a time.
type Reservation struct {
	w     *Writer
	lent  *lent
	bytes []byte
}

// A lent is what a Writer knows of a Reservation. It does not point to that, so that it may be
// garbage.
type lent struct {
	next, prev *lent
	lib        uintptr // the sample in libbpf's mapping
	offset     uint64  // in ours
	n          int     // bytes
}

// A lentList is a ring of those that are neither submitted nor discarded, nor given up after Close.
type lentList struct {
	first lent // of which only next and prev matter; nil: empty
	count int
}

func (l *lentList) add(r *lent) {
	if l.first.next == nil {
		l.first.next, l.first.prev = &l.first, &l.first
	}
	r.next, r.prev = &l.first, l.first.prev
	r.prev.next, l.first.prev = r, r
	l.count++
}

// remove reports whether r was in the list.
func (l *lentList) remove(r *lent) bool {
	if r.next == nil {
		return false
	}
	r.next.prev, r.prev.next = r.prev, r.next
	r.next, r.prev = nil, nil
	l.count--
	return true
}

var (
	errFinished  = errors.New("ringbuf: writer: the reservation was submitted or discarded before")
	errDiscarded = fmt.Errorf("ringbuf: writer: the reservation was discarded by Close: %w", ErrClosed)
)

// Reserve reserves a record for a sample of n bytes, and waits for room as Write does, with the
// same errors. The first call maps the ring once more: there its owner writes.
//
// While a reservation is out, nothing behind it is drained. A goroutine that has one and calls
// Write or Reserve may wait for room that there will not be before it has submitted: set a
// deadline, or submit first.
func (w *Writer) Reserve(n int) (*Reservation, error) {
	ctx := context.Background()
	if err := w.lockForRoom(ctx, n); err != nil {
		return nil, err
	}
	l := &lent{n: n}
	err := w.ring.reserve(l)
	if err == errFull {
		if err = w.waitForRoom(ctx, n); err != nil {
			return nil, err
		}
		err = w.ring.reserve(l)
	}
	if err != nil {
		w.mu.Unlock()
		return nil, w.failed(err)
	}
	w.lent.add(l)
	r := &Reservation{w: w, lent: l, bytes: w.ring.bytesOf(l)}
	w.mu.Unlock()
	// Other finalizers do not wait for a drain.
	runtime.SetFinalizer(r, func(r *Reservation) { go r.Discard() })
	return r, nil
}

// Bytes returns the n bytes to fill, in the ring itself. What is in them at first is what older
// records left there. They are valid until Submit or Discard, after which the kernel may be reading
// them and others writing: a program that writes to them then destroys records. After Close they
// are other memory, of zeroes, which nobody reads, until Submit or Discard.
func (r *Reservation) Bytes() []byte { return r.bytes }

// Submit hands the record over to the kernel. After Close it returns an error that wraps ErrClosed,
// and after Submit or Discard another; the record is not submitted then. Any other error is that of
// the drain function, and the record is submitted.
func (r *Reservation) Submit() error { return r.finish(true) }

// Discard gives the record up: the kernel skips it. After Submit, Discard or Close it does nothing,
// so that it can be deferred. An error of the drain function, which is called as after Submit, is
// returned by the next call that calls that, or Close.
func (r *Reservation) Discard() {
	if err := r.finish(false); err != nil && err != errFinished && err != errDiscarded {
		r.w.drainer.keep(err)
	}
}

func (r *Reservation) finish(submit bool) error {
	w := r.w
	runtime.SetFinalizer(r, nil)
	w.mu.Lock()
	r.bytes = nil
	if !w.lent.remove(r.lent) {
		w.mu.Unlock()
		return errFinished
	}
	if r.lent.lib == 0 { // Close has discarded it
		if w.released && w.lent.count == 0 {
			w.ring.free()
		}
		w.mu.Unlock()
		return errDiscarded
	}
	if submit {
		w.ring.submit(r.lent)
		w.stats.Samples++
		w.stats.Bytes += uint64(r.lent.n)
	} else {
		w.ring.discard(r.lent)
		w.stats.Discarded++
	}
	if w.closed { // Close waits for kicks, and drains then
		w.late = true
		w.mu.Unlock()
		return nil
	}
	return w.unlockAndDrain()
}

// discardLent discards what is lent, and takes the ring's memory away from who has it.
func (w *Writer) discardLent() (n int, err error) {
	if w.lent.count == 0 {
		return 0, nil
	}
	err = w.ring.detach() // before the kernel may reuse what is discarded
	for l := w.lent.first.next; l != &w.lent.first; l = l.next {
		w.ring.discard(l)
		l.lib = 0
		w.stats.Discarded++
	}
	return w.lent.count, err
}
