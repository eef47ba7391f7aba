package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// A Reservation is a record that is reserved in a user ring buffer, to be filled in place. The
// kernel's drain stops at it, until it is submitted or discarded. Records behind it have to wait.
//
// Keep the Reservation until then, not only what Bytes returns: a Reservation that is garbage is
// discarded. Any goroutine may call its methods, but only one at a time.
type Reservation struct {
	w     *Writer
	lent  *lent
	bytes []byte
}

// A lent is what a Writer knows of a Reservation. It does not point to the Reservation, which can
// therefore become garbage.
type lent struct {
	next, prev *lent
	lib        uintptr // the sample in libbpf's mapping; 0: Close has discarded it
	offset     uint64  // of the sample in our mapping
	n          int     // size of the sample in bytes
}

// A lentList is a list of reservations that are out, in a circle.
type lentList struct {
	first lent // only its next and prev are used; if these are nil the list is empty
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

// Reserve reserves a record for a sample of n bytes. If there is no room it waits as Write does,
// and it returns the same errors. The first call maps the ring a second time, for the owner to
// write to.
//
// While a reservation is out, nothing behind it is drained. If a goroutine has a reservation and
// calls Write or Reserve, that call may wait for room that only submitting can make. So submit
// first, or set a deadline.
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
	// In a goroutine, because a drain must not hold up other finalizers.
	runtime.SetFinalizer(r, func(r *Reservation) { go r.Discard() })
	return r, nil
}

// Bytes returns the n bytes to fill, in the ring itself. At first they are what older records have
// left there.
//
// They are valid until Submit or Discard. After that, the kernel reads them and other records
// replace them, so a program that still writes to them destroys records. Close replaces them by
// other memory, full of zeroes, which is valid until Submit or Discard and which nobody reads.
func (r *Reservation) Bytes() []byte { return r.bytes }

// Submit hands the record to the kernel. After Close, and after Submit or Discard, it returns an
// error and does not submit the record. After Close that error wraps ErrClosed. Any other error is
// one of the drain function. Then the record is submitted.
func (r *Reservation) Submit() error { return r.finish(true) }

// Discard gives the record up, and the kernel skips it. After Submit, Discard or Close it does
// nothing, so it can be deferred. Like Submit it calls the drain function. The next call that calls
// that function, or Close, returns its error.
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
	if w.closed { // Close waits for kicks, and drains afterwards
		w.late = true
		w.mu.Unlock()
		return nil
	}
	return w.unlockAndDrain()
}

// discardLent discards all reservations that are out, and takes the memory of the ring from their
// owners. It returns their number.
func (w *Writer) discardLent() (n int, err error) {
	if w.lent.count == 0 {
		return 0, nil
	}
	err = w.ring.detach() // before the kernel may reuse the memory of discarded records
	for l := w.lent.first.next; l != &w.lent.first; l = l.next {
		w.ring.discard(l)
		l.lib = 0
		w.stats.Discarded++
	}
	return w.lent.count, err
}
