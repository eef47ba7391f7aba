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
// RawSample is a view of the ring's own memory. It can only be read: a body that writes to it
// crashes the program with SIGSEGV. It is valid until the next iteration and shows other samples
// after that. A body that keeps a sample must copy it.
//
// The loop takes one lease at a time and commits it when the body has ended for its last record. A
// loop that is left with break or return commits all records up to the current one. A loop that is
// left by a panic commits all records before the current one. The others remain for the next read.
//
// So no record is lost when the process is killed. The next Reader begins with the first record
// whose body had not ended, or up to a lease of 64 KiB before it, and returns some records again.
// There is one exception: what an earlier Read had drained is no longer in the ring.
//
// The loop ends when the Reader is closed. If ctx is done, or if Read would return an error, for
// example after a deadline or Flush, the error comes in a last iteration without a record. The end
// of ctx is noticed at once.
//
// Several goroutines may run such loops at the same time. Each loop has its own lease, so that they
// work in parallel.
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

// lendTo yields the records of a loan and gives it back. It reports whether the loop goes on.
func (q *queue) lendTo(ctx context.Context, l *loan,
	yield func(Record, error) bool) (more bool, err error) {
	l.reusable = true
	end := loopLeft // stays so if yield panics
	var read uint64
	defer func() {
		p := l.upTo(q.rings, read)
		if end == allRead {
			// All, even if records were overwritten: giving back finds that.
			p = l.all()
		}
		if back := q.giveBack(l, p); end == allRead {
			more, err = back == nil, nameOthers(back)
		}
	}()
	switch end = l.each(q.rings, stopper{ctx.Done(), &q.closing}, &read, yield); end {
	case contextDone:
		return false, ctx.Err()
	case stopped:
		return false, errClosed
	}
	return false, nil
}
