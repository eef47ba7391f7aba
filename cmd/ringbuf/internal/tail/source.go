// Package tail takes the records of rings that are watched or read, or of a recording. It decodes
// and filters them, and prints them or writes them to files.
package tail

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/capture"
)

// A Source yields records of rings until ctx is done or yield returns an error. Several goroutines
// may call yield at the same time, each for different rings. A record without a time is only a gap:
// Missed is the number of bytes that were missed.
type Source func(ctx context.Context, yield func(*capture.Record) error) error

// Watch returns a Source of rings that others read. The index of a Watcher is that of its ring.
func Watch(watchers []*ringbuf.Watcher) Source {
	return func(ctx context.Context, yield func(*capture.Record) error) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var all sync.WaitGroup
		var first error
		var once sync.Once
		for i, w := range watchers {
			all.Go(func() {
				if err := watch(ctx, w, i, yield); err != nil {
					once.Do(func() { first = err })
					cancel()
				}
			})
		}
		all.Wait()
		return first
	}
}

func watch(ctx context.Context, w *ringbuf.Watcher, ring int,
	yield func(*capture.Record) error) error {
	var out capture.Record
	var now time.Time
	var produced uint64
	for rec, err := range w.Records(ctx) {
		out.Record, out.Ring = rec, ring
		// Records that were copied together have the same time. To read the clock for each record
		// took a sixth of all time.
		if n := w.Position() + uint64(rec.Remaining); n != produced || now.IsZero() {
			now, produced = time.Now(), n
		}
		out.Time, out.Length, out.Missed = now, len(rec.RawSample), 0
		if err != nil {
			var missed *ringbuf.MissedError
			if !errors.As(err, &missed) {
				return unlessDone(ctx, err)
			}
			out.Time, out.Missed = time.Time{}, missed.Bytes
		}
		if err := yield(&out); err != nil {
			return err
		}
	}
	return nil
}

// unlessDone returns err, or nil if ctx is done.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Consume returns a Source of the rings that r reads.
func Consume(r *ringbuf.Reader) Source {
	return func(ctx context.Context, yield func(*capture.Record) error) error {
		var out capture.Record
		for rec, err := range r.Records(ctx) {
			if err != nil {
				return unlessDone(ctx, err)
			}
			out.Record, out.Time, out.Length = rec, time.Now(), len(rec.RawSample)
			if err := yield(&out); err != nil {
				return err
			}
		}
		return nil
	}
}

// Replay returns a Source of the records of a recording.
func Replay(r *capture.Reader) Source {
	return func(ctx context.Context, yield func(*capture.Record) error) error {
		for rec, err := range r.All() {
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			if rec.Missed > 0 {
				gap := capture.Record{Missed: rec.Missed}
				gap.Ring = rec.Ring
				if err := yield(&gap); err != nil {
					return err
				}
				rec.Missed = 0
			}
			if err := yield(&rec); err != nil {
				return err
			}
		}
		return nil
	}
}
