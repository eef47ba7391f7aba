// The measurements, from the parent process's side.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"
)

// The measurements.
const (
	measureDrain   = "drain"   // read a full ring: ns and allocations per sample
	measureStream  = "stream"  // producers at full speed: samples, drops and CPU
	measurePaced   = "paced"   // a given rate: cost to the producer and CPU
	measureLatency = "latency" // from submission to the return of Read
	measureIdle    = "idle"    // readers that wait: threads, memory and CPU
)

// A config says what to measure, for each reader in turn.
type config struct {
	Measure   string `json:"measure"`
	Ring      int    `json:"ring,omitempty"` // bytes
	Size      int    `json:"size,omitempty"` // bytes of a sample
	Producers int    `json:"producers,omitempty"`
	Rate      int    `json:"rate,omitempty"` // samples per second; 0: full speed
	Readers   int    `json:"readers,omitempty"`
	Cached    bool   `json:"cached,omitempty"` // drained samples are in the cache
}

func (c config) String() string {
	s := c.Measure
	if c.Ring > 0 {
		s += fmt.Sprintf(", ring of %s, samples of %d bytes", bytesName(c.Ring), c.Size)
	}
	if c.Cached {
		s += ", in the cache"
	}
	if c.Measure == measureStream {
		s += fmt.Sprintf(", %d producers flat out", c.Producers)
	}
	if c.Measure == measurePaced || c.Measure == measureLatency {
		s += fmt.Sprintf(", %d/s", c.Rate)
	}
	if c.Readers > 0 {
		s += fmt.Sprintf(", %d readers", c.Readers)
	}
	return s
}

// patience limits the time that a child needs to start, and the time that a reader needs for
// the remaining samples when the producers have ended.
const patience = 10 * time.Second

// measure makes one measurement with one reader. Durations in the result are in nanoseconds.
func measure(c config, reader string, d time.Duration) (values, error) {
	switch c.Measure {
	case measureDrain:
		return measureFullRing(c, reader, d)
	case measureIdle:
		return measureWaiting(c, reader)
	}
	if c.Measure == measureLatency {
		d *= 2
		if c.Rate < 100 {
			d *= 2
		}
	}
	t, err := trace(c, reader, d)
	if err != nil {
		return nil, err
	}
	samples := float64(t.accepted)
	v := values{"cpu": 100 * t.cpu.Seconds() / t.wall.Seconds()}
	switch c.Measure {
	case measureStream:
		v["rate"] = samples / t.wall.Seconds()
		v["refused"] = float64(t.refused) / (samples + float64(t.refused))
		v["cpu_ns"] = float64(t.cpu.Nanoseconds()) / samples
		v["producer_ns"] = float64(t.producing.Nanoseconds()) / (samples + float64(t.refused))
	case measurePaced:
		v["refused"] = float64(t.refused)
		maps.Copy(v, t.run)
	case measureLatency:
		maps.Copy(v, t.latency)
	}
	return v, nil
}

// A tracing is the result of a workload that was read.
type tracing struct {
	accepted, refused uint64
	run, latency      values        // of the producer; of the consumer
	producing         time.Duration // CPU time of the producers, at full speed
	cpu, wall         time.Duration // of the consumer, until it had read everything
}

// trace runs producers for the duration d against a reader.
func trace(c config, reader string, d time.Duration) (t tracing, err error) {
	rings := 1
	if reader == ringbufSharded {
		rings = c.Producers
	}
	var workloads []*workload
	for range rings {
		w, err := load(c.Ring)
		if err != nil {
			return t, err
		}
		defer w.close()
		workloads = append(workloads, w)
	}
	ctx, cancel := context.WithTimeout(context.Background(), d+2*patience)
	defer cancel()

	var consumer *child
	if reader != none {
		order := consumerOrder{Reader: reader, Rings: rings, Latency: c.Measure == measureLatency}
		if consumer, err = start(ctx, roleConsume, order, workloads...); err != nil {
			return t, err
		}
		defer consumer.stop()
	}
	var producers []*child
	for i := range c.Producers {
		order := producerOrder{
			Number: i, Size: c.Size, Duration: d,
			Timed: c.Measure == measureLatency, Unread: reader == none,
			Quiet: quietThreshold(reader, c.Ring),
		}
		if c.Rate > 0 {
			order.Interval = time.Second / time.Duration(c.Rate)
		}
		p, err := start(ctx, roleProduce, order, workloads[i%rings])
		if err != nil {
			return t, err
		}
		defer p.stop()
		producers = append(producers, p)
	}

	began := time.Now()
	before, err := consumer.cpuTime()
	if err != nil {
		return t, consumer.fail(err)
	}
	for _, p := range producers {
		if err := p.release(); err != nil {
			return t, err
		}
	}
	for _, p := range producers {
		var result produced
		if err := p.result(&result); err != nil {
			return t, err
		}
		t.accepted += result.Accepted
		t.refused += result.Refused
		t.producing += result.CPU
		t.run = result.Run
	}
	if consumer == nil {
		t.wall = time.Since(began)
		return t, nil
	}

	// When all rings are empty, one sample ends the measurement: it is the last of all rings.
	var ender *program
	for _, w := range workloads {
		ender = newProgram(w.program.Fd(), order{Seq: 255 << 56, Size: endSize})
		defer ender.close()
		if err := awaitEmpty(ender); err != nil {
			return t, consumer.fail(fmt.Errorf("%w, of samples that take %d each", err, recordSize(c.Size)))
		}
	}
	after, err := consumer.cpuTime()
	if err != nil {
		return t, consumer.fail(err)
	}
	t.cpu, t.wall = after-before, time.Since(began)
	ender.order.Count = 1
	if err := ender.run(); err != nil {
		return t, err
	}
	var result consumed
	if err := consumer.result(&result); err != nil {
		return t, err
	}
	if result.Samples != t.accepted {
		return t, fmt.Errorf("lost samples: %d were accepted, %d read", t.accepted, result.Samples)
	}
	t.latency = result.Latency
	return t, nil
}

// awaitEmpty waits until the reader has consumed everything. It sends no notification that
// would help the reader.
func awaitEmpty(p *program) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if err := p.run(); err != nil {
			return err
		}
		if p.order.Unread == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d bytes of the ring were left unread for %v", p.order.Unread, patience)
		}
	}
}

func measureFullRing(c config, reader string, d time.Duration) (values, error) {
	w, err := load(c.Ring)
	if err != nil {
		return nil, err
	}
	defer w.close()
	ctx, cancel := context.WithTimeout(context.Background(), d+2*patience)
	defer cancel()
	// The kernel never fills the last byte of a ring.
	count := min(100_000, (c.Ring-1)/recordSize(c.Size))
	order := drainOrder{Reader: reader, Size: c.Size, Count: count, Cached: c.Cached, Duration: d}
	consumer, err := start(ctx, roleDrain, order, w)
	if err != nil {
		return nil, err
	}
	defer consumer.stop()
	var v values
	return v, consumer.result(&v)
}

// Idle readers get the time settle to start and become idle. Then they are watched.
const (
	settle   = 500 * time.Millisecond
	watching = time.Second
)

func measureWaiting(c config, reader string) (values, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	consumer, err := start(ctx, roleWait, waitOrder{Reader: reader, Readers: c.Readers})
	if err != nil {
		return nil, err
	}
	defer consumer.stop()
	time.Sleep(settle)
	before, err := consumer.cpuTime()
	if err != nil {
		return nil, consumer.fail(err)
	}
	time.Sleep(watching)
	after, err := consumer.cpuTime()
	if err != nil {
		return nil, consumer.fail(err)
	}
	threads, rss, err := threadsAndRSS(consumer.cmd.Process.Pid)
	if err != nil {
		return nil, consumer.fail(err)
	}
	return values{"threads": threads, "rss": rss,
		"cpu": 100 * (after - before).Seconds() / watching.Seconds()}, nil
}

// threadsAndRSS returns a process's number of threads and its resident set size in bytes.
func threadsAndRSS(pid int) (threads, rss float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "Threads: %g", &threads); n == 1 {
			found++
		}
		if n, _ := fmt.Sscanf(line, "VmRSS: %g kB", &rss); n == 1 {
			found++
		}
	}
	if found != 2 {
		return 0, 0, errors.New("the process has ended")
	}
	return threads, 1024 * rss, nil
}
