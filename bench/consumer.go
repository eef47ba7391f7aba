// The consumer process: it opens one of the readers and reads.

package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"
)

const (
	headerSize = 16 // of a sample: its number and its time, see bench.bpf.c
	endSize    = 8  // of the sample that marks the end
)

// A tally receives samples. It touches all of their bytes, and checks that the samples of each
// producer come in order, without gaps or repetitions.
type tally struct {
	want  uint64 // how many samples to receive, or noLimit
	seen  uint64
	sum   uint64
	next  [256]uint64 // by producer
	clock *clock      // if not nil, latencies are recorded
	times []int64
	err   error
}

// noLimit is the want of a tally that ends at a sample of endSize.
const noLimit = math.MaxUint64

// take receives a sample and reports whether the tally wants more.
func (t *tally) take(sample []byte) (more bool) {
	if len(sample) == endSize {
		return false
	}
	if len(sample) < headerSize {
		t.err = fmt.Errorf("got a sample of %d bytes", len(sample))
		return false
	}
	id := binary.NativeEndian.Uint64(sample)
	if t.clock != nil {
		t.times = append(t.times, t.clock.now()-int64(binary.NativeEndian.Uint64(sample[8:])))
	}
	for rest := sample; len(rest) >= 8; rest = rest[8:] {
		t.sum += binary.NativeEndian.Uint64(rest)
	}
	producer, number := id>>56, id&(1<<56-1)
	if number != t.next[producer] {
		t.err = fmt.Errorf("got sample %d of producer %d instead of %d", number, producer,
			t.next[producer])
		return false
	}
	t.next[producer]++
	t.seen++
	return t.seen != t.want
}

// consumerOrder is the order for the role consume.
type consumerOrder struct {
	Reader  string
	Rings   int
	Latency bool
}

type consumed struct {
	Samples uint64
	Latency values // nanoseconds
}

// consume reads until the end sample.
func consume(o consumerOrder) error {
	var rings []int
	for i := range o.Rings {
		rings = append(rings, ringFD+i*workloadFDs)
	}
	r, err := openReader(o.Reader, rings...)
	if err != nil {
		return err
	}
	t := &tally{want: noLimit}
	if o.Latency {
		if t.clock, err = newClock(); err != nil {
			return err
		}
		t.times = make([]int64, 0, 1<<16)
	}
	ready()
	if err := r.read(t); err != nil {
		return err
	}
	return report(consumed{Samples: t.seen, Latency: summary(t.times)})
}

// drainOrder is the order for the role drain.
type drainOrder struct {
	Reader   string
	Size     int
	Count    int // samples that fill the ring
	Cached   bool
	Duration time.Duration
}

const (
	minFills = 3        // fills that are timed, at least
	evicting = 64 << 20 // bytes; touching this many evicts everything else from the cache
)

// drain repeatedly fills the ring while nobody reads, and then measures how long it takes to
// read everything. The first fill is not timed.
func drain(o drainOrder) error {
	p := newProgram(programFD, order{Count: uint32(o.Count), Size: uint32(o.Size)})
	defer p.close()
	t := &tally{}
	ready()

	var elsewhere []byte
	if !o.Cached {
		elsewhere = make([]byte, evicting)
	}
	var r *reader
	var ns, allocations []float64
	for start := time.Now(); len(ns) <= minFills || time.Since(start) < o.Duration; {
		// An open libbpfgo reader would read while the ring is filled.
		if r != nil && o.Reader == libbpfgoChannel {
			if err := r.close(); err != nil {
				return err
			}
			r = nil
		}
		if r == nil {
			opened, err := openReader(o.Reader, ringFD)
			if err != nil {
				return err
			}
			r = &opened
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := p.run(); err != nil {
			return err
		}
		if p.order.Refused > 0 {
			return fmt.Errorf("the ring had no room for %d samples", p.order.Refused)
		}
		t.want = t.seen + uint64(o.Count)
		for i := 0; i < len(elsewhere); i += 64 {
			elsewhere[i]++
		}
		began := time.Now()
		if err := r.read(t); err != nil {
			return err
		}
		ns = append(ns, float64(time.Since(began).Nanoseconds())/float64(o.Count))
		runtime.ReadMemStats(&after)
		allocations = append(allocations, float64(after.Mallocs-before.Mallocs)/float64(o.Count))
	}
	return report(values{"ns": median(ns[1:]), "allocations": median(allocations[1:])})
}

// waitOrder is the order for the role wait.
type waitOrder struct {
	Reader  string
	Readers int
}

// wait opens readers, each of a ring of its own, and lets all of them read. It does not return.
func wait(o waitOrder) error {
	for range o.Readers {
		ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, "events", 0, 0, os.Getpagesize(), nil)
		if err != nil {
			return err
		}
		r, err := openReader(o.Reader, ring.FileDescriptor())
		if err != nil {
			return err
		}
		go func() {
			err := r.read(&tally{want: noLimit})
			fmt.Fprintln(os.Stderr, "an idle reader returned:", err)
			os.Exit(1)
		}()
	}
	ready()
	select {}
}

// summary returns the mean and quantiles.
func summary(times []int64) values {
	if len(times) == 0 {
		return nil
	}
	slices.Sort(times)
	total := 0.0
	for _, t := range times {
		total += float64(t)
	}
	// The smallest time that a share q of all times does not exceed.
	quantile := func(q float64) float64 {
		return float64(times[max(0, int(math.Ceil(q*float64(len(times))))-1)])
	}
	return values{
		"mean": total / float64(len(times)),
		"p50":  quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "p999": quantile(0.999),
	}
}
