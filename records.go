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
// A record's RawSample is not copied: it is a view of the batch that was drained, and valid
// until the next iteration. The body may change it.
//
// When the Reader is closed the loop ends. When ctx is done, at once, or for any other
// reason for which Read returns an error, such as a deadline or Flush, that error comes with
// a last iteration, without a record. Records that the loop does not reach remain
// for others, also those of the same batch.
//
// Several goroutines may have a loop at once, and call Read beside it. Then a batch that
// somebody has a view of is not used again, and memory for another one is allocated; with
// one loop nothing is.
func (r *Reader) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		q := r.queue
		defer context.AfterFunc(ctx, q.interrupt)()
		var held *memory
		defer func() { held.release() }()
		done := ctx.Done()
		for {
			select {
			case <-done:
				yield(Record{}, ctx.Err())
				return
			default:
			}
			sample, remaining, at, ok := q.unread.peek()
			if !ok {
				held.release()
				held = nil
				if err := q.refill(ctx); err != nil {
					if !errors.Is(err, ErrClosed) {
						yield(Record{}, err)
					}
					return
				}
				continue
			}
			if m := q.unread.hold(held); m != held {
				held = m
				continue
			}
			ring, lost := q.unread.origin(at)
			if q.unread.take(at, sample) && !yield(Record{sample, remaining, ring, lost}, nil) {
				return
			}
		}
	}
}
