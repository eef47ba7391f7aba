package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libbpfgo/ringbuf"
)

// Options change how a Shipper works. The zero value means the defaults.
type Options struct {
	// Host is the name of this machine. The default is os.Hostname.
	Host string

	// Window is the number of leases, for each ring, that may wait for the sink. The rings
	// share them. A lease is at most 64 KiB, or an eighth of its ring. The default is 16. After
	// a failure, at most this much is sent again.
	Window int

	// OnError is called with the error of each Append or Resume that failed and is retried. It
	// is called with nil when records are shipped again. Several goroutines may call it at the
	// same time.
	OnError func(ring Ring, err error)
}

// The pause before a retry doubles after each failure, between these limits.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// A Shipper ships the records of a Reader to a Sink. Any goroutine may call Stats.
type Shipper struct {
	reader *ringbuf.Reader
	sink   Sink
	opts   Options
	lanes  []*lane
	untold uint64 // records that were lost, and not yet reported to the sink
}

// New returns a Shipper. Nobody else may read from reader. If the BPF programs have a loss
// counter, give it to reader: see ringbuf.WithLossCounter.
func New(reader *ringbuf.Reader, sink Sink, opts Options) (*Shipper, error) {
	if opts.Host == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		opts.Host = host
	}
	opts.Window = cmp.Or(max(opts.Window, 0), 16)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("which boot this is: %w", err)
	}
	s := &Shipper{reader: reader, sink: sink, opts: opts}
	for _, r := range reader.Stats().Rings {
		s.lanes = append(s.lanes, &lane{
			shipper: s,
			ring:    Ring{opts.Host, strings.TrimSpace(string(boot)), r.Name, r.ID},
			work:    make(chan struct{}, 1),
		})
	}
	return s, nil
}

// Run creates a Shipper and calls its Run method.
func Run(ctx context.Context, reader *ringbuf.Reader, sink Sink, opts Options) error {
	s, err := New(reader, sink, opts)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Run ships until ctx is done, and returns the error of ctx. It may be called once. Records
// that the sink has not acknowledged by then are still in the rings.
//
// After a Flush of the Reader, or when its deadline has passed, Run ships what was in the rings
// at that time. It returns nil when everything is acknowledged. When the sink fails, Run
// retries until ctx is done, except if the error wraps ErrPermanent. Other errors are those of
// the Reader, such as syscall.EUCLEAN if somebody else reads a ring.
func (s *Shipper) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Lease while the lanes resume, so that closing the Reader ends Run even if the sink is
	// away.
	room := make(chan struct{}, s.opts.Window*len(s.lanes))
	var all sync.WaitGroup
	all.Go(func() {
		if err := s.resume(ctx); err != nil {
			cancel(err)
			return
		}
		for _, l := range s.lanes {
			all.Go(func() {
				if err := l.run(ctx); err != nil {
					cancel(err)
				}
			})
		}
		for range cap(room) {
			room <- struct{}{}
		}
	})
	err := s.lease(ctx, room)
	if errors.Is(err, ringbuf.ErrFlushed) ||
		errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		err = nil
	} else {
		cancel(err)
	}
	for _, l := range s.lanes {
		l.end()
	}
	all.Wait()
	for _, l := range s.lanes {
		l.release()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// resume asks the sink what it has. It also computes how many losses were never reported to the
// sink, because they happened while there was no Shipper, or before a Shipper could report
// them.
func (s *Shipper) resume(ctx context.Context) error {
	s.untold = s.reader.Stats().LostBefore
	for _, l := range s.lanes {
		if err := l.resume(ctx); err != nil {
			return err
		}
		l.tell(nil)
		s.untold -= min(s.untold, l.done.Lost)
	}
	return nil
}

// lookAgain is how often lease checks whether the Reader was closed while there is no room.
const lookAgain = 500 * time.Millisecond

// lease takes leases and adds them to the lanes. Each lease waits for room. There is room when
// the sink has answered resume, and again for each lease that is committed.
func (s *Shipper) lease(ctx context.Context, room chan struct{}) error {
	for {
		lease, err := s.reader.Lease(ctx)
		if err != nil {
			return err
		}
		select {
		case <-room:
		case <-ctx.Done():
			lease.Release()
			return ctx.Err()
		case <-time.After(lookAgain):
			lease.Release() // the next Lease returns the same records, unless the Reader is closed
			continue
		}
		for rec := range lease.Records() {
			l := s.lanes[rec.Ring]
			if err := l.add(lease, rec, s.untold, room); err != nil {
				lease.Release()
				return err
			}
			s.untold = 0 // they were reported with the first record
			break
		}
	}
}
