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

// Options change how a Shipper works. The zero value is good.
type Options struct {
	// Host names this machine. By default that is os.Hostname.
	Host string

	// Window is how many leases of each ring may wait for the sink. A lease has 64 KiB at most, or an
	// eighth of its ring. The default is 16. It is also what is sent again at most after a failure.
	Window int

	// OnError is told of each Append or Resume that failed, after which it is tried again, and gets
	// nil when records are shipped again. It may be called by several goroutines at once.
	OnError func(ring Ring, err error)
}

// The pause before an attempt that follows a failure is twice the one before.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// A Shipper ships the records of a Reader to a Sink. Stats may be called by any goroutine.
type Shipper struct {
	reader *ringbuf.Reader
	sink   Sink
	opts   Options
	lanes  []*lane
	untold uint64 // records that were lost, of which the sink was not told
}

// New returns a Shipper. Nobody else may read from reader, which should have a loss counter if
// there is one: see ringbuf.WithLossCounter.
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

// Run ships with a new Shipper. See Shipper.Run.
func Run(ctx context.Context, reader *ringbuf.Reader, sink Sink, opts Options) error {
	s, err := New(reader, sink, opts)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Run ships until ctx is done, whose error it returns. It may be called once. What the sink has not
// acknowledged until then is still in the rings.
//
// After a Flush of the Reader, and when its deadline has passed, Run ships what was in the
// rings then, and returns nil when all is acknowledged. A failure of the sink is no reason to end,
// unless it wraps ErrPermanent: Run tries until ctx is done. Other errors are those of the
// Reader, such as syscall.EUCLEAN where somebody else reads a ring.
func (s *Shipper) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Leases are taken meanwhile, so that a Reader that is closed ends Run also if the sink is away.
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

// resume finds out what the sink has, and how many records were lost of which nobody has told it:
// because they were lost while there was no Shipper, or it ended before it could.
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

// lookAgain is how often lease looks whether the Reader was closed while there is no room.
const lookAgain = 500 * time.Millisecond

// lease has the lanes ship what there is. A lease waits for room, which comes when the sink was
// asked what it has, and again for each lease that is done.
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
			lease.Release() // the next Lease is the same, unless the Reader is closed
			continue
		}
		for rec := range lease.Records() {
			l := s.lanes[rec.Ring]
			if err := l.add(lease, rec, s.untold, room); err != nil {
				lease.Release()
				return err
			}
			s.untold = 0 // the first record was told
			break
		}
	}
}
