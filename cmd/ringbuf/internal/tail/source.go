// Package tail passes on the records of rings, watched, read, or from a recording: it prints,
// decodes and filters them, and writes them to files.
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
// may call yield at once, each for other rings. A record without a time stands for nothing but
// the bytes that it says were missed.
type Source func(ctx context.Context, yield func(*capture.Record) error) error

// Watch is a Source of rings that others read.
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
		// Those that are copied at once have one time: to ask for each took a sixth of all time.
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

// unlessDone returns err, unless that is because ctx is done.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Consume is a Source of rings of which r is the reader.
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

// Replay is a Source of what was recorded.
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
