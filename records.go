package ringbuf

import (
	"context"
	"encoding/binary"
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
		for q.yield(ctx, yield) {
		}
	}
}

// yield yields what is unread of the batch, or makes sure that there is some. It reports
// whether there may be more.
func (q *queue) yield(ctx context.Context, yield func(Record, error) bool) bool {
	v, ok := q.unread.view()
	if !ok {
		err := q.refill(ctx)
		if err != nil && !errors.Is(err, ErrClosed) {
			yield(Record{}, err)
		}
		return err == nil
	}
	defer v.release()
	return v.yield(ctx, &q.unread, yield)
}

// yield yields what others do not take. It reports whether the loop goes on.
func (v view) yield(ctx context.Context, u *unread, yield func(Record, error) bool) bool {
	done := ctx.Done()
	for {
		if done != nil {
			select {
			case <-done:
				yield(Record{}, ctx.Err())
				return false
			default:
			}
		}
		at := u.taken.Load()
		if at >= v.put {
			return true
		}
		head := v.memory.bytes[at-v.base:]
		end := binary.NativeEndian.Uint64(head)
		size := binary.NativeEndian.Uint32(head[8:])
		sample := head[entryHeaderSize:][:size:size]
		var lost uint64
		if at == v.lostAt {
			lost = v.lost
		}
		if u.take(at, sample) && !yield(Record{sample, int(v.producer - end), v.ring, lost}, nil) {
			return false
		}
	}
}
