package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Watcher looks at the records of a ring buffer and consumes none. Any number of Watchers, in any
// processes, may look at a ring beside the Reader that reads it. They move no position, cause no
// notification, and delay nobody. So the kernel may overwrite records before a Watcher has copied
// them. A Watcher says how much it has missed, and never yields an incomplete record.
//
// A Watcher needs neither libbpf nor cgo. It also watches rings in overwrite mode
// (BPF_F_RB_OVERWRITE, Linux 6.19), which libbpf cannot consume.
//
// Only one goroutine at a time may run a loop over Records. Any number of goroutines may call the
// other methods at the same time.
type Watcher struct {
	watched // its mem is nil once the ring is no longer mapped
	view    *watchedRing
	cleanup runtime.Cleanup

	close   func()
	closing atomic.Bool
	closed  chan struct{}

	mapped sync.RWMutex // held for reading while somebody looks at view

	looping  atomic.Bool
	records  cursor        // of Records
	batch    run           // copied and not yet yielded
	buffer   []byte        // memory of batch
	position atomic.Uint64 // for Position

	counting sync.Mutex
	counter  cursor // of Stats
	stats    WatchStats
}

// A WatchOption changes how a Watcher watches.
type WatchOption func(*watchOptions)

type watchOptions struct{ oldest bool }

// FromOldest makes Records begin with the oldest record in the ring that can be found. That is the
// first record of Snapshot. By default Records begins with the first record that is reserved after
// NewWatcher.
func FromOldest() WatchOption { return func(o *watchOptions) { o.oldest = true } }

// Watcher.Records yields a MissedError in place of records that were overwritten before it could
// copy them. The loop continues after it.
type MissedError struct {
	// Bytes is the number of bytes that these records took in the ring, headers and padding
	// included. The number of records is not known.
	Bytes uint64
}

func (e *MissedError) Error() string {
	return fmt.Sprintf("ringbuf: missed %d bytes of records, which were overwritten before they "+
		"were copied", e.Bytes)
}

// NewWatcher returns a Watcher of m, which is a ring buffer (BPF_MAP_TYPE_RINGBUF), in overwrite
// mode or not, or a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF). Of a user ring buffer it has only
// Stats.
//
// It maps the ring for reading. So m may be closed afterwards, and the ring exists until Close. It
// needs a descriptor of the map for reading and writing: with BPF_F_RDONLY or BPF_F_WRONLY the
// kernel refuses to map it. It needs no capability, except on kernels before 6.0 where the sysctl
// kernel.unprivileged_bpf_disabled is set. There it needs CAP_BPF.
//
// The error names the map and the step that failed, and wraps the errno if there is one. On other
// systems than Linux it wraps errors.ErrUnsupported.
//
// Close releases the mapping. If a Watcher is dropped without Close, that happens after a garbage
// collection.
func NewWatcher(m Map, opts ...WatchOption) (*Watcher, error) {
	var o watchOptions
	for _, opt := range opts {
		opt(&o)
	}
	opened, err := openWatched(m)
	if err != nil {
		return nil, fmt.Errorf("ringbuf: watch: %w", err)
	}
	return newWatcher(opened, o), nil
}

// A watched is a ring that is mapped for a Watcher, and what is known of its map.
type watched struct {
	name      string // of the map
	id        uint32
	user      bool // it is a user ring buffer, so that only the positions are mapped
	overwrite bool
	mem       []byte // the mapping
	ring      ring   // in mem
}

func newWatcher(m watched, o watchOptions) *Watcher {
	w := &Watcher{
		watched: m,
		view:    newWatchedRing(m.ring, m.overwrite),
		closed:  make(chan struct{}),
	}
	w.close = sync.OnceFunc(w.doClose)
	w.cleanup = runtime.AddCleanup(w, unmapWatched, m.mem)
	w.counter = w.view.cursorAt(w.view.producer())
	w.records = w.counter
	if o.oldest && !w.user {
		w.records = w.view.cursorAt(w.view.oldest())
	}
	w.position.Store(w.records.pos)
	return w
}

// use locks the mapping until done is called. It fails if there are no records to look at.
func (w *Watcher) use() (done func(), err error) {
	if w.user {
		return nil, fmt.Errorf("ringbuf: map %q is a user ring buffer, which has only Stats: %w",
			w.name, errors.ErrUnsupported)
	}
	w.mapped.RLock()
	if w.mem == nil {
		w.mapped.RUnlock()
		return nil, fmt.Errorf("ringbuf: watch: %w", ErrClosed)
	}
	return w.mapped.RUnlock, nil
}

const (
	// watchLimit is about how many bytes a Watcher copies before it looks again how far the
	// producer is.
	watchLimit = 64 << 10

	// When a loop over Records has found everything, it pauses for the time in which an eighth of
	// the ring is produced. These are the limits.
	minWatchPause = time.Millisecond
	maxWatchPause = 10 * time.Millisecond
)

// Records returns an iterator over the records that are reserved after NewWatcher, as they are
// submitted:
//
//	for record, err := range watcher.Records(ctx)
//
// RawSample is a copy. It is valid until the next iteration and may be written to. Remaining is the
// number of bytes that were behind the record when it was copied. Lost is 0. Records that were
// discarded are skipped. A record that is reserved and not yet submitted holds back all records
// behind it.
//
// A *MissedError comes in place of records that were overwritten. The loop misses records when more
// than fits in the ring is produced while its body runs or while it pauses. It pauses for 10 ms
// when nothing comes, and for less, down to 1 ms, the faster the ring fills up. After a miss it
// continues with the oldest record that it can find. If it is overtaken again before it has seen as
// much as fits in the ring, it continues with the newest.
//
// The loop ends when the Watcher is closed. When ctx is done, the error of ctx comes at once, in a
// last iteration without a record. A loop that is left with break or return can be followed by
// another one, which continues with the next record.
func (w *Watcher) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if !w.looping.CompareAndSwap(false, true) {
			yield(Record{}, errors.New(
				"ringbuf: watch: another loop over Records of this Watcher is running"))
			return
		}
		defer w.looping.Store(false)
		stop := stopper{ctx.Done(), &w.closing}
		pace := watchPace{size: w.view.size}
		for {
			switch end := w.yieldBatch(stop, yield); end {
			case allRead:
			case contextDone:
				yield(Record{}, ctx.Err())
				return
			default:
				return
			}
			missed, err := w.look()
			switch {
			case errors.Is(err, ErrClosed):
				return
			case err != nil:
				yield(Record{}, err)
				return
			case missed > 0:
				w.position.Store(w.batch.start)
				if !yield(Record{}, &MissedError{missed}) {
					return
				}
			case len(w.batch.records) == 0:
				w.pause(ctx, pace.next(w.batch.producer, time.Now()))
			}
		}
	}
}

// look copies the next records to w.batch. It returns how many bytes it missed before them.
func (w *Watcher) look() (missed uint64, err error) {
	done, err := w.use()
	if err != nil {
		return 0, err
	}
	defer done()
	before := w.records.missed
	w.batch = w.view.look(&w.records, watchLimit, &w.buffer)
	return w.records.missed - before, nil
}

// yieldBatch yields what is left of the batch.
func (w *Watcher) yieldBatch(stop stopper, yield func(Record, error) bool) loopEnd {
	b := &w.batch
	for {
		if why := stop.now(); why != goOn {
			return why
		}
		if len(b.records) == 0 {
			return allRead
		}
		header, sample, rest := nextRecord(b.records)
		b.start = recordEnd(b.start, header)
		b.records = rest
		if header&discardBit != 0 {
			continue
		}
		w.position.Store(b.start)
		if !yield(Record{RawSample: sample, Remaining: int(b.producer - b.start)}, nil) {
			return loopLeft
		}
	}
}

// A watchPace decides how long a loop over Records pauses.
type watchPace struct {
	size, producer uint64
	looked         time.Time
	rate           float64 // in bytes a nanosecond
}

// next returns how long to pause when the producer is at this position now. Each look halves the
// weight of an earlier burst.
func (p *watchPace) next(producer uint64, now time.Time) time.Duration {
	if !p.looked.IsZero() {
		rate := float64(producer-p.producer) / float64(max(now.Sub(p.looked), 1))
		p.rate = max(rate, p.rate/2)
	}
	p.producer, p.looked = producer, now
	pause := float64(p.size) / 8 / p.rate // infinite if nothing was produced
	return time.Duration(min(max(pause, float64(minWatchPause)), float64(maxWatchPause)))
}

func (w *Watcher) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-w.closed:
	}
}

// Position returns the position in the ring at which the last record, or gap, that Records has
// yielded ends. Before the first it is where the Watcher begins. Lease.Position returns the same
// position for the same record. Together with the id of the map it identifies the record.
func (w *Watcher) Position() uint64 { return w.position.Load() }

// Snapshot returns copies of the records that are in the ring now, from the oldest that can be
// found up to the first that is not submitted yet. The copies belong to the caller and share one
// allocation. Remaining is the number of bytes that were behind the record in the ring.
//
// Snapshot finds the records that were not consumed. In overwrite mode it finds those that are not
// overwritten, which are the last ones before the call. Until the ring has been filled once, it
// finds all records. It may find none if somebody has written a consumer position where no record
// begins, or if producers overtake it again and again.
//
// Snapshot does not affect Records. Close waits for it.
func (w *Watcher) Snapshot() ([]Record, error) {
	done, err := w.use()
	if err != nil {
		return nil, err
	}
	defer done()
	var buf []byte
	for range maxTries {
		c := w.view.cursorAt(w.view.oldest())
		if r, ok := w.view.take(&c, w.view.size, &buf); ok {
			return r.split(), nil
		}
	}
	return nil, nil
}

// split returns the samples of a run.
func (r run) split() []Record {
	var all []Record
	for pos := r.start; len(r.records) > 0; {
		header, sample, rest := nextRecord(r.records)
		pos = recordEnd(pos, header)
		r.records = rest
		if header&discardBit == 0 {
			all = append(all, Record{RawSample: sample, Remaining: int(r.producer - pos)})
		}
	}
	return all
}

// WatchStats is the state of a ring as Watcher.Stats returns it. It is a plain value, so that
// encoding/json can show it as it is.
type WatchStats struct {
	Name string // of the map
	ID   uint32 // of the map
	Size int    // of the ring in bytes

	// The positions count bytes since the creation of the map. In a user ring buffer the producer
	// is in user space, and the consumer is a BPF program.
	Consumer, Producer uint64

	// Fill is the number of bytes that were produced and not consumed and, in overwrite mode, not
	// overwritten. It is -1 if the positions are not valid, because somebody has written to them.
	Fill int

	// Samples, Bytes and Discarded count what was produced between NewWatcher and the last call of
	// Stats: samples, their bytes without headers and padding, and discarded records. Stats looks
	// at the header of each record that is new since the last call, whether or not Records has
	// yielded it. For a user ring buffer they are 0.
	Samples, Bytes, Discarded uint64

	// Missed is the number of bytes, headers and padding included, that Stats could not count
	// because they were overwritten: more than fits in the ring was produced between two calls. In
	// such a ring two calls a few milliseconds apart show the mean size of samples.
	Missed uint64
}

// Stats returns the state of the ring and counts what was produced in it. After Close it returns
// the final values.
func (w *Watcher) Stats() WatchStats {
	w.mapped.RLock()
	defer w.mapped.RUnlock()
	w.counting.Lock()
	defer w.counting.Unlock()
	if w.mem != nil {
		w.updateStats()
	}
	return w.stats
}

func (w *Watcher) updateStats() {
	s := &w.stats
	s.Name, s.ID, s.Size = w.name, w.id, int(w.view.size)
	var t tally
	if !w.user {
		t = w.view.count(&w.counter)
	}
	s.Samples += t.samples
	s.Bytes += t.bytes
	s.Discarded += t.discards
	s.Missed = w.counter.missed
	s.Consumer, s.Producer, s.Fill = w.view.fill()
}

// Close ends the loop over Records, waits for a Snapshot that is being taken, and releases the
// mapping. Further calls do nothing. Close always returns nil.
func (w *Watcher) Close() error {
	w.close()
	return nil
}

func (w *Watcher) doClose() {
	w.closing.Store(true)
	close(w.closed)
	w.Stats()
	w.mapped.Lock()
	defer w.mapped.Unlock()
	w.cleanup.Stop()
	unmapWatched(w.mem)
	w.mem = nil
}
