// Close interrupts reading under load in every way. It checks that only Close loses events, no
// more than it may, and that no resource leaks.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/workload"
)

const (
	rounds     = 300
	goroutines = 3

	// What Close may lose: a batch of 16 KiB of the ring and one event. See Reader.Close. In
	// the ring, an event has a header of 8 bytes.
	maxLost = 16<<10/(workload.EventSize+8) + 1
)

func main() {
	workload.Main()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "close:", err)
		os.Exit(1)
	}
}

func run() error {
	w, err := workload.New(nil)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Start(); err != nil {
		return err
	}
	var seen workload.Sequences
	incomplete, err := interrupt(w, &seen)
	if err != nil {
		return err
	}
	interrupted := seen.Total()
	before, err := openFiles()
	if err != nil {
		return err
	}
	all := collection{next: seen}
	for i := range rounds {
		if err := closeUnderLoad(w, &all, i); err != nil {
			return fmt.Errorf("closing Reader %d: %w", i, err)
		}
		if all.lost > i*maxLost {
			return fmt.Errorf("%d Readers lost %d events, of batches that hold %d", i, all.lost, maxLost)
		}
	}
	after, err := openFiles()
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("%d descriptors are open, before %d Readers there were %d", after, rounds,
			before)
	}

	// Records that nobody has drained must still be in the ring.
	if err := w.Stop(); err != nil {
		return err
	}
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return err
	}
	defer reader.Close()
	if err := reader.Flush(); err != nil {
		return err
	}
	if err := errors.Join(workload.ReadUntil(reader, ringbuf.ErrFlushed, all.add),
		all.endReader()); err != nil {
		return err
	}
	counters, err := w.Counters()
	if err != nil {
		return err
	}
	// The last Reader that was closed may have lost the last events.
	lost := all.lost
	for cpu, c := range counters {
		lost += int(c.Submitted - all.next[cpu])
	}
	if lost > rounds*maxLost {
		return fmt.Errorf("%d Readers lost %d events, of batches that hold %d", rounds, lost, maxLost)
	}
	fmt.Printf("%d deadlines and flushes in %d events, %d flushes before a record that was not yet "+
		"submitted\n", 2*rounds, interrupted, incomplete)
	fmt.Printf("%d Readers closed in %d events, of which they lost %d\n", rounds,
		all.next.Total()-interrupted, lost)
	return nil
}

// interrupt reads with deadlines and flushes, which lose nothing. It returns the number of
// flushes that did not return everything that was submitted before.
func interrupt(w *workload.Workload, seen *workload.Sequences) (incomplete int, err error) {
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	for i := range rounds {
		end := make(chan error, 1)
		go func() { end <- workload.ReadUntil(reader, os.ErrDeadlineExceeded, seen.Check) }()
		reader.SetDeadline(time.Now().Add(time.Duration(i) * 10 * time.Microsecond))
		if err := <-end; err != nil {
			return 0, fmt.Errorf("deadline %d: %w", i, err)
		}
		reader.SetDeadline(time.Time{})

		counters, err := w.Counters()
		if err != nil {
			return 0, err
		}
		go func() { end <- workload.ReadUntil(reader, ringbuf.ErrFlushed, seen.Check) }()
		if err := errors.Join(reader.Flush(), <-end); err != nil {
			return 0, fmt.Errorf("flush %d: %w", i, err)
		}
		for cpu, c := range counters {
			if seen[cpu] < c.Submitted {
				incomplete++
				break
			}
		}
	}
	// Events wait in the ring behind one that is reserved and not yet submitted. That takes
	// long only if its thread is preempted at that moment.
	if incomplete > rounds/10 {
		return 0, fmt.Errorf("%d of %d flushes did not return all that was submitted before", incomplete,
			rounds)
	}
	// Flush, so that the next Reader finds everything that this one did not return.
	if err := reader.Flush(); err != nil {
		return 0, err
	}
	return incomplete, workload.ReadUntil(reader, ringbuf.ErrFlushed, seen.Check)
}

// closeUnderLoad closes a Reader while several goroutines read from it.
func closeUnderLoad(w *workload.Workload, all *collection, round int) error {
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return err
	}
	defer reader.Close()
	started := make(chan struct{}, 1)
	end := make(chan error, goroutines)
	for range goroutines {
		go func() {
			n := 0
			end <- workload.ReadUntil(reader, ringbuf.ErrClosed, func(sample []byte) error {
				if n++; n == 1+10*(round%20) {
					select {
					case started <- struct{}{}:
					default: // another goroutine was first
					}
				}
				return all.add(sample)
			})
		}()
	}
	select {
	case <-started:
	case err := <-end:
		return errors.Join(errors.New("a Read failed before Close"), err)
	}
	err = reader.Close()
	for range goroutines {
		err = errors.Join(err, <-end)
	}
	if n := reader.AvailableBytes(); n != 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes are available after Close", n))
	}
	return errors.Join(err, all.endReader())
}

// A collection has the events that several goroutines read from successive Readers.
type collection struct {
	next workload.Sequences
	lost int // events that were lost before the first one of a Reader

	mu   sync.Mutex
	read [workload.MaxCPUs][]uint64 // numbers of the events of the current Reader
}

func (c *collection) add(sample []byte) error {
	e, err := workload.Decode(sample)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[e.CPU] = append(c.read[e.CPU], e.Seq)
	return nil
}

// endReader checks that a Reader lost nothing between the events that it returned.
func (c *collection) endReader() error {
	for cpu, seqs := range c.read {
		if len(seqs) == 0 {
			continue
		}
		slices.Sort(seqs)
		if seqs[0] < c.next[cpu] {
			return fmt.Errorf("event %d of CPU %d came twice", seqs[0], cpu)
		}
		c.lost += int(seqs[0] - c.next[cpu])
		for i, seq := range seqs {
			if seq != seqs[0]+uint64(i) {
				return fmt.Errorf("event %d of CPU %d is missing, or %d came twice", seqs[0]+uint64(i), cpu,
					seq)
			}
		}
		c.next[cpu] = seqs[len(seqs)-1] + 1
		c.read[cpu] = seqs[:0]
	}
	return nil
}

// openFiles returns the number of open descriptors.
func openFiles() (int, error) {
	files, err := os.ReadDir("/proc/self/fd")
	return len(files), err
}
