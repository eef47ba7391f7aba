package ship

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libbpfgo/ringbuf"
)

// A lane holds the records of one ring that are in flight.
type lane struct {
	shipper *Shipper
	ring    Ring
	work    chan struct{} // holds a value when there is something new; closed at the end
	pause   time.Duration // before the next Resume, if the next Append fails

	mu       sync.Mutex
	leases   []pending // in the order of the ring
	records  []Record  // of these leases, without those that are acknowledged
	found    Mark      // the end of the last record
	done     Mark      // the sink has everything up to here
	attempts int       // records of which a failed Append may have stored some
	stats    RingStats
}

// A pending lease waits until the sink has its records.
type pending struct {
	lease *ringbuf.Lease
	end   uint64
	bytes int // in the ring, without discarded records
	found time.Time
	room  chan<- struct{} // receives a value when the lease is committed
}

// add takes over a lease whose first record is first.
func (l *lane) add(lease *ringbuf.Lease, first ringbuf.Record, untold uint64,
	room chan<- struct{}) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	producer := lease.Position(first) + uint64(first.Remaining)
	if len(l.leases) == 0 && l.done.Position > producer {
		return fmt.Errorf("%w: the sink has ring %s (id %d) up to position %d, but it ends at %d: it "+
			"is another ring, or the sink has that of another machine with this name",
			ErrPermanent, l.ring.Name, l.ring.ID, l.done.Position, producer)
	}
	p := pending{lease: lease, found: time.Now(), room: room}
	l.found.Lost += untold
	for rec := range lease.Records() {
		p.end = lease.Position(rec)
		p.bytes += (len(rec.RawSample) + 8 + 7) &^ 7
		l.found = Mark{p.end, l.found.Lost + rec.Lost}
		if p.end > l.done.Position {
			l.records = append(l.records, Record{rec.RawSample, l.found})
		}
	}
	l.leases = append(l.leases, p)
	l.stats.InFlightBytes += p.bytes
	if err := l.commit(); err != nil { // the sink may have all of it already
		return err
	}
	select {
	case l.work <- struct{}{}:
	default:
	}
	return nil
}

// end says that no more leases will be added.
func (l *lane) end() { close(l.work) }

// run appends the added records to the sink, until end.
func (l *lane) run(ctx context.Context) error {
	for range l.work {
		for batch := l.batch(); batch != nil; batch = l.batch() {
			if err := l.append(ctx, batch); err != nil {
				return err
			}
		}
		l.tell(nil) // an attempt that failed may have taken effect
	}
	return nil
}

// append makes the sink append one batch. If that fails, append asks the sink what it has. The
// first retry comes at once, because usually only an acknowledgement was lost. If retries make
// no progress, there is a pause before each, so that a full stream is not asked all the time.
func (l *lane) append(ctx context.Context, batch *Batch) error {
	n, err := l.shipper.sink.Append(ctx, batch)
	if err == nil && n <= 0 {
		err = fmt.Errorf("%w: the sink appended nothing, and says not why", ErrPermanent)
	}
	if err == nil {
		if err := l.acknowledge(batch.Records[n-1].Mark); err != nil {
			return err
		}
		l.mu.Lock()
		l.attempts = 0 // it has not stored what it did not append
		l.mu.Unlock()
		l.pause = 0
		l.tell(nil)
		return nil
	}
	if err := l.failed(ctx, err); err != nil {
		return err
	}
	if err := sleep(ctx, l.pause); err != nil {
		return err
	}
	if err := l.resume(ctx); err != nil {
		return err
	}
	if l.done != batch.After {
		l.pause = 0
	} else {
		l.pause = min(max(2*l.pause, firstPause), lastPause)
	}
	return nil
}

// sleep waits for pause, or returns why ctx is done.
func sleep(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(pause):
		return nil
	}
}

// batch returns the next batch to append, or nil.
func (l *lane) batch() *Batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.records) == 0 {
		return nil
	}
	l.stats.Redelivered += uint64(min(l.attempts, len(l.records)))
	l.attempts = len(l.records)
	return &Batch{Ring: l.ring, After: l.done, Records: l.records[:len(l.records):len(l.records)],
		Time: l.leases[0].found}
}

// resume asks the sink what it has, until it answers.
func (l *lane) resume(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		mark, err := l.shipper.sink.Resume(ctx, l.ring)
		if err == nil {
			return l.acknowledge(mark)
		}
		if err := l.failed(ctx, err); err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// failed reports err to OnError, or returns an error if retrying is useless.
func (l *lane) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrPermanent) {
		return err
	}
	l.tell(err)
	return nil
}

// tell calls OnError for each failure, and for the first success after failures.
func (l *lane) tell(err error) {
	l.mu.Lock()
	news := err != nil || l.stats.Failing
	l.stats.Failing = err != nil
	if err != nil {
		l.stats.Failures++
	}
	l.mu.Unlock()
	if news && l.shipper.opts.OnError != nil {
		l.shipper.opts.OnError(l.ring, err)
	}
}

// acknowledge notes that the sink has everything up to mark. Records that were deleted from the
// sink are not shipped again.
func (l *lane) acknowledge(mark Mark) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mark.Position <= l.done.Position {
		return nil
	}
	n := 0
	for n < len(l.records) && l.records[n].Position <= mark.Position {
		n++
	}
	l.records = l.records[n:]
	l.attempts -= min(l.attempts, n)
	l.stats.Acknowledged += uint64(n)
	l.done = mark
	if l.found.Position < mark.Position { // only at the start
		l.found = mark
	}
	return l.commit()
}

// commit commits the leases whose records are all acknowledged. The caller holds l.mu.
func (l *lane) commit() error {
	n := 0
	for n < len(l.leases) && l.leases[n].end <= l.done.Position {
		p := l.leases[n]
		if err := p.lease.Commit(); err != nil {
			return err
		}
		l.stats.InFlightBytes -= p.bytes
		p.room <- struct{}{}
		n++
	}
	l.leases = l.leases[n:]
	return nil
}

// release leaves the records that are not acknowledged in the ring.
func (l *lane) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.leases {
		p.lease.Release()
	}
	l.leases, l.records = nil, nil
	l.stats.InFlightBytes = 0
}
