package ringbuf

import (
	"context"
	"iter"
	"runtime"
	"sync/atomic"
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
// new records of that ring. Lease then looks for them every 1 to 10 ms, or at the ticks of wakeup
// moderation while these go on.
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
		l.loan.each(l.q.rings, stopper{flag: &l.returned}, &read,
			func(rec Record, _ error) bool { return yield(rec) })
		runtime.KeepAlive(l)
	}
}

// Position returns the position in its ring at which a record of this lease ends. Positions count
// bytes since the creation of the map and never repeat. Together with the id of the map, a position
// identifies a record.
func (l *Lease) Position(rec Record) uint64 { return l.loan.producer - uint64(rec.Remaining) }

// Commit says that the records have been processed. libbpf consumes them as soon as all records
// before them are committed too. A second Commit does nothing. After Close, Commit consumes
// nothing and returns an error that wraps ErrClosed. An error that wraps syscall.EUCLEAN means the
// same as in Read. In that case the samples may have been overwritten while they were lent.
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
