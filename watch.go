package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// A Watcher looks at the records of a ring buffer and takes none. Any number of Watchers, of any
// processes, may look at a ring beside the Reader that reads it. They move no position and
// cause no notification, and the kernel does not wait for them: what they are too late for
// is missed, and told.
//
// A Watcher needs neither libbpf nor cgo. It also watches rings in overwrite mode
// (BPF_F_RB_OVERWRITE, Linux 6.19), which libbpf cannot consume.
//
// One goroutine at a time may be in a loop over Records, which beside it any number may call
// the other methods.
type Watcher struct{}

// A WatchOption changes how a Watcher watches.
type WatchOption func(*watchOptions)

type watchOptions struct{ oldest bool }

// FromOldest makes Records begin with the oldest record that is still in the ring and can be found,
// as Snapshot has it, and not with the first that is submitted after NewWatcher.
func FromOldest() WatchOption { return func(o *watchOptions) { o.oldest = true } }

// A MissedError comes from Watcher.Records, with no record, in the place of records that the kernel
// overwrote before they could be copied. The loop goes on: the next iteration has a later
// record.
type MissedError struct {
	// Bytes is how much of the ring they took, headers and padding included. How many
	// records that were nobody knows.
	Bytes uint64
}

func (e *MissedError) Error() string {
	return fmt.Sprintf("ringbuf: %d bytes of records were overwritten before they could be copied", e.Bytes)
}

// NewWatcher returns a Watcher of m: a ring buffer (BPF_MAP_TYPE_RINGBUF), in overwrite mode or
// not, or a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF), of which it tells nothing but Stats.
func NewWatcher(m Map, opts ...WatchOption) (*Watcher, error) {
	return nil, fmt.Errorf("ringbuf: watch: %w", errors.ErrUnsupported)
}

// Records returns an iterator over the records that are submitted after NewWatcher, as they come:
//
//	for record, err := range watcher.Records(ctx)
//
// RawSample is a copy that is valid until the next iteration. Remaining is the number of
// bytes that were behind the record when it was copied. Lost is 0.
//
// A *MissedError comes in place of records that were missed, and the loop goes on. When the
// Watcher is closed the loop ends. When ctx is done, its error comes with a last iteration,
// without a record. A loop that follows another one goes on where that was left.
func (w *Watcher) Records(ctx context.Context) iter.Seq2[Record, error] { return nil }

// Position returns where the record, or gap, ends that the loop over Records yielded last. It is
// the position that Lease.Position tells of the same record. Before the first it is where
// the Watcher begins.
func (w *Watcher) Position() uint64 { return 0 }

// Snapshot returns copies of all records that are in the ring now and can be found, oldest first:
// those that nobody has consumed, and in overwrite mode, or as long as the ring was not filled
// once, also older ones. They belong to the caller. Their Remaining is the number of
// bytes behind them in the ring. It is independent of Records.
func (w *Watcher) Snapshot() ([]Record, error) { return nil, nil }

// WatchStats is what Watcher.Stats says of a ring.
type WatchStats struct {
	Name string // of the map
	ID   uint32 // of the map
	Size int    // of the ring in bytes

	Consumer, Producer uint64 // positions: bytes since the map was created

	// Fill is how many bytes are between them, which were produced and not consumed. In
	// overwrite mode it is how many bytes were not overwritten and not consumed. It is -1 if
	// somebody has written a consumer position that no ring can have.
	Fill int

	// Samples and Bytes are what was produced since NewWatcher: samples, and their bytes without
	// headers and padding. Discarded is the number of records that were discarded. They are
	// counted by calls of Stats, which look at the headers of what is new since the last call: some
	// nanoseconds each. Records need not run for that.
	Samples, Bytes, Discarded uint64

	// Missed is how many bytes of the ring, headers and padding included, were overwritten before a
	// call of Stats could count what was there: those where more than the whole ring was
	// produced between two calls. Who wants the mean size of samples in such a ring may call
	// Stats twice, a few milliseconds apart.
	Missed uint64
}

// Stats returns the state of the ring, and what was produced in it. After Close it returns what
// it was then.
func (w *Watcher) Stats() WatchStats { return WatchStats{} }

// Close ends loops over Records and releases the Watcher's mapping. Further calls do nothing
// and return nil.
func (w *Watcher) Close() error { return nil }
