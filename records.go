package ringbuf

import (
	"context"
	"errors"
	"iter"
)

// Records returns an iterator over the records, for a loop that reads them as they come:
//
//	for record, err := range reader.Records(ctx)
//
// A record's RawSample is a view of the ring's own memory: it can only be read. A body that
// writes to it crashes the program with SIGSEGV. It is valid until the next iteration, and
// shows other samples after that: a body that keeps it must copy it.
//
// The loop takes a lease at a time, and commits it when its last body has ended. A loop that
// is left with break or return commits up to and with the record whose body ran last; one
// that is left by a panic, up to the record before. The others remain for the next read. So
// when the process is killed, the next Reader begins with a record whose body had not
// ended, or up to a lease of 64 KiB before it: no record is lost, and some come again. (Only
// what another read had drained before the loop is not in the ring any more.)
//
// When the Reader is closed the loop ends. When ctx is done, at once, or for any other
// reason for which Read returns an error, such as a deadline or Flush, that error comes with
// a last iteration, without a record.
//
// Several goroutines may have a loop at once. Each has a lease of its own, so that
// they work at the same time.
func (r *Reader) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		q := r.queue
		defer context.AfterFunc(ctx, q.interrupt)()
		for {
			l, err := q.lend(ctx, wish{lend: true})
			more := err == nil
			if more {
				more, err = q.lendTo(ctx, l, yield)
			}
			if err != nil && !errors.Is(err, ErrClosed) {
				yield(Record{}, err)
			}
			if !more || err != nil {
				return
			}
		}
	}
}

// lendTo yields the records of a loan and gives it back. It reports whether the loop goes
// on.
func (q *queue) lendTo(ctx context.Context, l *loan,
	yield func(Record, error) bool) (more bool, err error) {
	l.again = true
	end := loopLeft // also if yield panics
	var read uint64
	defer func() {
		p := l.upTo(q.rings, read)
		if end == allRead {
			p = l.all() // also if the kernel has written over some, which consuming finds
		}
		if back := q.giveBack(l, p); end == allRead {
			more, err = back == nil, nameOthers(back)
		}
	}()
	switch end = l.each(q.rings, stopper{ctx.Done(), &q.closing}, &read, yield); end {
	case contextDone:
		return false, ctx.Err()
	case readerClosed:
		return false, errClosed
	}
	return false, nil
}
