// Close interrupts reading under load, in each way there is, and checks that nothing is
// lost by it but what Close may lose, and that nothing is left behind.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/workload"
)

const (
	rounds     = 300
	goroutines = 3

	// What Close may lose: a batch, see Reader.Close.
	maxLost = 64<<10/workload.RecordSize + 1
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
	if err := interrupt(w, &seen); err != nil {
		return err
	}
	read := seen.Total()
	lost := uint64(0)
	before, err := openFiles()
	if err != nil {
		return err
	}
	for i := range rounds {
		n, err := closeUnderLoad(w, &seen)
		if err != nil {
			return fmt.Errorf("closing Reader %d: %w", i, err)
		}
		lost += n
	}
	after, err := openFiles()
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("%d descriptors are open, before %d Readers there were %d", after, rounds, before)
	}

	// What nobody has drained is still there, to the last event.
	if err := w.Stop(); err != nil {
		return err
	}
	counters, err := w.Counters()
	if err != nil {
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
	last := make([]batch, 1)
	if err := workload.ReadUntil(reader, ringbuf.ErrFlushed, last[0].add); err != nil {
		return err
	}
	n, err := account(&seen, last)
	if err != nil {
		return err
	}
	lost += n
	if err := seen.CheckComplete(counters); err != nil {
		return err
	}
	fmt.Printf("%d deadlines and flushes in %d events; then %d Readers closed, which lost %d of %d events\n",
		2*rounds, read, rounds, lost, seen.Total()-read)
	return nil
}

// interrupt reads with deadlines and flushes, which lose nothing.
func interrupt(w *workload.Workload, seen *workload.Sequences) error {
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return err
	}
	defer reader.Close()
	incomplete := 0
	for i := range rounds {
		errs := make(chan error)
		go func() { errs <- workload.ReadUntil(reader, os.ErrDeadlineExceeded, seen.Check) }()
		reader.SetDeadline(time.Now().Add(time.Duration(i) * 10 * time.Microsecond))
		if err := <-errs; err != nil {
			return fmt.Errorf("deadline %d: %w", i, err)
		}
		reader.SetDeadline(time.Time{})

		counters, err := w.Counters()
		if err != nil {
			return err
		}
		go func() { errs <- workload.ReadUntil(reader, ringbuf.ErrFlushed, seen.Check) }()
		if err := errors.Join(reader.Flush(), <-errs); err != nil {
			return fmt.Errorf("flush %d: %w", i, err)
		}
		for cpu, c := range counters {
			if seen[cpu] < c.Submitted {
				incomplete++
				break
			}
		}
	}
	// Events wait in the ring behind one that is reserved and not yet submitted, for
	// long only if its thread is preempted just then.
	if incomplete > rounds/4 {
		return fmt.Errorf("%d of %d flushes did not return all that was submitted before", incomplete, rounds)
	}
	// So that the next Reader finds all that this one did not return.
	if err := reader.Flush(); err != nil {
		return err
	}
	return workload.ReadUntil(reader, ringbuf.ErrFlushed, seen.Check)
}

// closeUnderLoad closes a Reader that several goroutines read, and returns how many
// events the one before it lost.
func closeUnderLoad(w *workload.Workload, seen *workload.Sequences) (lost uint64, err error) {
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return 0, err
	}
	batches := make([]batch, goroutines)
	started := make(chan struct{}, goroutines)
	errs := make(chan error)
	for i := range batches {
		go func() {
			add := func(sample []byte) error {
				select {
				case started <- struct{}{}:
				default:
				}
				return batches[i].add(sample)
			}
			errs <- workload.ReadUntil(reader, ringbuf.ErrClosed, add)
		}()
	}
	for range goroutines {
		<-started
	}
	err = reader.Close()
	for range goroutines {
		err = errors.Join(err, <-errs)
	}
	if n := reader.AvailableBytes(); n != 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes are available after Close", n))
	}
	if err != nil {
		return 0, err
	}
	return account(seen, batches)
}

// A batch has the events that one goroutine read.
type batch []workload.Event

func (b *batch) add(sample []byte) error {
	e, err := workload.Decode(sample)
	*b = append(*b, e)
	return err
}

// account takes the events of one Reader into account, and returns how many are
// missing before them.
func account(seen *workload.Sequences, batches []batch) (lost uint64, err error) {
	all := slices.Concat(batches...)
	slices.SortStableFunc(all, func(a, b workload.Event) int { return int(int64(a.Seq - b.Seq)) })
	var found [workload.MaxCPUs]bool
	for _, e := range all {
		missing := e.Seq - seen[e.CPU]
		if e.Seq < seen[e.CPU] {
			return lost, fmt.Errorf("event %d of CPU %d came twice", e.Seq, e.CPU)
		}
		if missing > 0 && found[e.CPU] {
			return lost, fmt.Errorf("event %d of CPU %d is missing", seen[e.CPU], e.CPU)
		}
		found[e.CPU] = true
		lost += missing
		seen[e.CPU] = e.Seq + 1
	}
	if lost > maxLost {
		return lost, fmt.Errorf("%d events are missing, which no batch can hold", lost)
	}
	return lost, nil
}

// openFiles returns the number of open descriptors.
func openFiles() (int, error) {
	files, err := os.ReadDir("/proc/self/fd")
	return len(files), err
}
