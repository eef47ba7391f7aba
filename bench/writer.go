// The other direction: how fast writers fill a user ring buffer.

package main

/*
#include <errno.h>
#include <string.h>
#include <bpf/libbpf.h>

// Writes count messages, numbered from seq on. Waits for room as libbpf does.
static int write_all(struct user_ring_buffer *ring, void *message, __u32 size, __u64 seq,
		     __u64 count)
{
	__u64 i;

	for (i = 0; i < count; i++) {
		void *sample = user_ring_buffer__reserve(ring, size);

		// This also returns on a signal, and when there is some room, but too little.
		while (!sample && (errno == ENOSPC || errno == EINTR))
			sample = user_ring_buffer__reserve_blocking(ring, size, -1);
		if (!sample)
			return -errno;
		*(__u64 *)message = seq + i;
		memcpy(sample, message, size);
		user_ring_buffer__submit(ring, sample);
	}
	return 0;
}
*/
import "C"

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

//go:embed writer.bpf.o
var writerObject []byte

const writerRing = 1 << 20

// writerTally has the layout of struct tally in writer.bpf.c.
type writerTally struct{ messages, next, gaps uint64 }

// A target is a user ring buffer and a program that drains it.
type target struct {
	module   *bpf.Module
	ring     *bpf.BPFMap
	tally    *writerTally
	program  int
	produced *uint64 // the producer position
}

func newTarget() (*target, error) {
	module, err := bpfobj.Load(writerObject, nil)
	if err != nil {
		return nil, err
	}
	t := &target{module: module}
	if t.ring, err = module.GetMap("commands"); err != nil {
		return nil, err
	}
	counts, err := module.GetMap("tally")
	if err != nil {
		return nil, err
	}
	program, err := module.GetProgram("drain")
	if err != nil {
		return nil, err
	}
	t.program = program.FileDescriptor()
	mem, err := syscall.Mmap(counts.FileDescriptor(), 0, os.Getpagesize(),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	// SAFETY: the mapping lasts until the process ends.
	t.tally = (*writerTally)(unsafe.Pointer(&mem[0]))
	if mem, err = syscall.Mmap(t.ring.FileDescriptor(), int64(os.Getpagesize()), os.Getpagesize(),
		syscall.PROT_READ, syscall.MAP_SHARED); err != nil {
		return nil, err
	}
	t.produced = (*uint64)(unsafe.Pointer(&mem[0]))
	return t, nil
}

// drain runs the program once.
func (t *target) drain() (int, error) {
	n, err := testrun.Run(t.program)
	if err == nil && int32(n) < 0 {
		err = syscall.Errno(-int32(n))
	}
	return int(n), err
}

// A sender writes count messages of one size, numbered from seq on. It returns when each is in
// the ring or refused.
type sender struct {
	send  func(size int, seq, count uint64) error
	close func()
}

const (
	writerOurs    = "ringbuf Write"
	writerReserve = "ringbuf Reserve"
	writerChannel = "libbpfgo channel"
	writerC       = "libbpf in C"
)

var allWriters = []string{writerOurs, writerReserve, writerChannel, writerC}

func newSender(name string, t *target) (*sender, error) {
	switch name {
	case writerOurs, writerReserve:
		w, err := ringbuf.NewWriter(t.ring)
		if err != nil {
			return nil, err
		}
		send := func(size int, seq, count uint64) error {
			message := make([]byte, size)
			for i := range count {
				binary.NativeEndian.PutUint64(message, seq+i)
				if _, err := w.Write(message); err != nil {
					return err
				}
			}
			return nil
		}
		if name == writerReserve {
			send = func(size int, seq, count uint64) error {
				message := make([]byte, size)
				for i := range count {
					r, err := w.Reserve(size)
					if err != nil {
						return err
					}
					binary.NativeEndian.PutUint64(message, seq+i)
					copy(r.Bytes(), message)
					if err := r.Submit(); err != nil {
						return err
					}
				}
				return nil
			}
		}
		return &sender{send, func() { w.Close() }}, nil
	case writerChannel:
		return newChannelSender(t)
	}
	ring, err := C.user_ring_buffer__new(C.int(t.ring.FileDescriptor()), nil)
	if ring == nil {
		return nil, err
	}
	return &sender{func(size int, seq, count uint64) error {
		message := make([]byte, size)
		if errno := C.write_all(ring, unsafe.Pointer(&message[0]), C.__u32(size), C.__u64(seq),
			C.__u64(count)); errno != 0 {
			return syscall.Errno(-errno)
		}
		return nil
	}, func() { C.user_ring_buffer__free(ring) }}, nil
}

// newChannelSender uses libbpfgo, whose goroutine takes messages from a channel. libbpfgo
// blocks forever when there are two errors that nobody takes.
func newChannelSender(t *target) (*sender, error) {
	messages := make(chan []byte, 1024)
	ring, err := t.module.InitUserRingBuf("commands", messages)
	if err != nil {
		return nil, err
	}
	ring.Start()
	var refused atomic.Uint64
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			if ring.Error() != nil {
				refused.Add(1)
			} else {
				time.Sleep(20 * time.Microsecond)
			}
		}
	}()
	return &sender{func(size int, seq, count uint64) error {
		start, refusedBefore := atomic.LoadUint64(t.produced), refused.Load()
		record := uint64(size+8+7) &^ 7
		for i := range count {
			message := make([]byte, size) // libbpfgo keeps the slice
			binary.NativeEndian.PutUint64(message, seq+i)
			messages <- message
		}
		for (atomic.LoadUint64(t.produced)-start)/record+refused.Load()-refusedBefore < count {
			runtime.Gosched()
		}
		return nil
	}, func() { // the module's Close stops the ring; stopping it twice panics
		stop.Store(true)
		<-ended
	}}, nil
}

// A writerResult is the result of one measurement of one sender.
type writerResult struct {
	fill    float64 // ns per message, into a ring that has room, median of whole rings
	stream  float64 // messages per second, while another thread drains
	dropped float64 // percent of these messages
	latency float64 // ns from the call until the message is in the ring, median
}

func measureWriter(name string, size int, d time.Duration) (r writerResult, err error) {
	t, err := newTarget()
	if err != nil {
		return r, err
	}
	defer t.module.Close()
	s, err := newSender(name, t)
	if err != nil {
		return r, err
	}
	defer s.close()
	var seq uint64
	full := uint64(writerRing) / (uint64(size+8+7) &^ 7)

	var fills []time.Duration
	for took := time.Duration(0); took < d; {
		started := time.Now()
		if err := s.send(size, seq, full); err != nil {
			return r, err
		}
		fill := time.Since(started)
		took += fill
		fills = append(fills, fill)
		seq += full
		for n := uint64(0); n < full; {
			got, err := t.drain()
			if err != nil {
				return r, err
			}
			n += uint64(got)
		}
	}
	// Not the mean, which depends on the load of the machine.
	slices.Sort(fills)
	r.fill = float64(fills[len(fills)/2]) / float64(full)

	var latencies []time.Duration
	for range 2000 {
		position := atomic.LoadUint64(t.produced)
		started := time.Now()
		if err := s.send(size, seq, 1); err != nil {
			return r, err
		}
		latencies = append(latencies, time.Since(started))
		seq++
		if atomic.LoadUint64(t.produced) == position {
			return r, errors.New("a message was dropped, although there was room")
		}
		if _, err := t.drain(); err != nil {
			return r, err
		}
	}
	slices.Sort(latencies)
	r.latency = float64(latencies[len(latencies)/2])

	var stop atomic.Bool
	drained := make(chan error, 1)
	go func() {
		for {
			last := stop.Load()
			n, err := t.drain()
			if err != nil || last && n == 0 {
				drained <- err
				return
			}
			if n == 0 {
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	before, started := t.tally.messages, time.Now()
	sent := uint64(0)
	for time.Since(started) < d {
		if err := s.send(size, seq, 1000); err != nil {
			return r, err
		}
		seq += 1000
		sent += 1000
	}
	stop.Store(true)
	err = <-drained
	got := t.tally.messages - before
	r.stream = float64(got) / time.Since(started).Seconds()
	r.dropped = 100 * float64(sent-got) / float64(sent)
	if err == nil && name != writerChannel && (t.tally.gaps != 0 || sent != got) {
		err = fmt.Errorf("%d of %d messages came, with %d gaps", got, sent, t.tally.gaps)
	}
	return r, err
}

// benchWriters measures all senders in turn, and prints medians.
func benchWriters(out io.Writer, rounds int, d time.Duration) error {
	fmt.Fprintln(out, "| | bytes | ns a message | latency, ns | messages a second | dropped |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|")
	for _, size := range []int{16, 64, 256, 1024} {
		all := make([][]writerResult, len(allWriters))
		for range rounds {
			for i, name := range allWriters {
				r, err := measureWriter(name, size, d)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				all[i] = append(all[i], r)
			}
		}
		for i, name := range allWriters {
			median := func(value func(writerResult) float64) float64 {
				var values []float64
				for _, r := range all[i] {
					values = append(values, value(r))
				}
				slices.Sort(values)
				return values[len(values)/2]
			}
			fmt.Fprintf(out, "| %s | %d | %.1f | %.0f | %.2f million | %.1f %% |\n", name, size,
				median(func(r writerResult) float64 { return r.fill }),
				median(func(r writerResult) float64 { return r.latency }),
				median(func(r writerResult) float64 { return r.stream })/1e6,
				median(func(r writerResult) float64 { return r.dropped }))
		}
	}
	return nil
}
