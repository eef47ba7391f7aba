// Concurrency reads, with several goroutines that share a Reader, what threads on all CPUs
// submit at the same time. It checks that each event came to exactly one goroutine, and in the
// order of its CPU.
package main

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/workload"
)

const (
	goroutines = 4
	duration   = 3 * time.Second
)

func main() {
	workload.Main()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "concurrency:", err)
		os.Exit(1)
	}
}

func run() error {
	w, err := workload.New(nil)
	if err != nil {
		return err
	}
	defer w.Close()
	reader, err := ringbuf.NewReader(w.Events)
	if err != nil {
		return err
	}
	defer reader.Close()

	results := make(chan result)
	for range goroutines {
		go func() { results <- read(reader) }()
	}
	if err := w.Start(); err != nil {
		return err
	}
	time.Sleep(duration)
	if err := w.Stop(); err != nil {
		return err
	}
	for range goroutines {
		if err := reader.Flush(); err != nil {
			return err
		}
	}
	var all events
	for range goroutines {
		r := <-results
		if r.err != nil {
			return r.err
		}
		for cpu := range r.events {
			all[cpu] = append(all[cpu], r.events[cpu]...)
		}
	}

	// Sorted, the numbers must be 0, 1, 2 and so on.
	var seen workload.Sequences
	for cpu := range all {
		slices.Sort(all[cpu])
		for _, seq := range all[cpu] {
			if seq != seen[cpu] {
				return fmt.Errorf("event %d of CPU %d is missing, or %d came twice", seen[cpu], cpu, seq)
			}
			seen[cpu]++
		}
	}
	counters, err := w.Counters()
	if err != nil {
		return err
	}
	if err := seen.CheckComplete(counters); err != nil {
		return err
	}
	fmt.Printf("%d events read by %d goroutines\n", seen.Total(), goroutines)
	return nil
}

// events has the numbers of the events of each CPU.
type events [workload.MaxCPUs][]uint64

type result struct {
	events events
	err    error
}

// read reads until the reader is flushed.
func read(reader *ringbuf.Reader) (r result) {
	r.err = workload.ReadUntil(reader, ringbuf.ErrFlushed, func(sample []byte) error {
		e, err := workload.Decode(sample)
		if err != nil {
			return err
		}
		seqs := &r.events[e.CPU]
		if n := len(*seqs); n > 0 && (*seqs)[n-1] >= e.Seq {
			return fmt.Errorf("event %d of CPU %d came after %d", e.Seq, e.CPU, (*seqs)[n-1])
		}
		*seqs = append(*seqs, e.Seq)
		return nil
	})
	return r
}
