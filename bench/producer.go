// The producer process: it runs the BPF program, at full speed or at a given pace.

package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// producerOrder is the order for the role produce.
type producerOrder struct {
	Number   int // of the producer
	Size     int // of a sample
	Interval time.Duration
	Duration time.Duration
	Timed    bool // samples carry their time
	Unread   bool // nobody reads: the producer makes room
	Quiet    int  // threshold of notifications in bytes, or 0
}

type produced struct {
	Accepted, Refused uint64
	Run               values        // nanoseconds of a run with one sample, if there was a pace
	CPU               time.Duration // if there was no pace
}

const (
	burst      = 1024                  // samples of a run without a pace
	spinBelow  = 10 * time.Millisecond // longer intervals are slept, not spun
	discardAge = 512                   // runs between two calls of discard
)

// produce writes samples for the given duration.
func produce(o producerOrder) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
	p := newProgram(programFD, order{
		Seq: uint64(o.Number) << 56, Count: 1, Size: uint32(o.Size), Quiet: uint64(o.Quiet)})
	defer p.close()
	if o.Timed {
		p.order.Timed = 1
	}
	free, err := openFreeRing(o)
	if err != nil {
		return err
	}
	ready()
	if err := awaitGo(); err != nil {
		return err
	}
	var result produced
	if o.Interval > 0 {
		result, err = paced(p, o, free)
	} else {
		result, err = flatOut(p, o.Duration)
	}
	if err != nil {
		return err
	}
	return report(result)
}

func flatOut(p *program, d time.Duration) (produced, error) {
	var result produced
	p.order.Count = burst
	before, err := threadTime()
	if err != nil {
		return result, err
	}
	for start := time.Now(); time.Since(start) < d; {
		if err := p.run(); err != nil {
			return result, err
		}
		result.Refused += uint64(p.order.Refused)
		result.Accepted += uint64(burst - p.order.Refused)
	}
	after, err := threadTime()
	result.CPU = after - before
	return result, err
}

// threadTime returns the CPU time of this thread.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}

func paced(p *program, o producerOrder, free *freeRing) (produced, error) {
	var result produced
	times := make([]int64, 0, o.Duration/o.Interval+1)
	start := time.Now()
	for next := time.Duration(0); next < o.Duration; {
		if o.Interval >= spinBelow {
			time.Sleep(next - time.Since(start))
		}
		began := time.Since(start)
		for began < next {
			began = time.Since(start)
		}
		if err := p.run(); err != nil {
			return result, err
		}
		ended := time.Since(start)
		times = append(times, int64(ended-began))
		result.Refused += uint64(p.order.Refused)
		result.Accepted += uint64(1 - p.order.Refused)
		if len(times)%discardAge == 0 && free != nil {
			free.discard()
		}
		// A producer that falls behind does not catch up in a burst.
		next = max(next+o.Interval, ended)
	}
	result.Run = summary(times)
	return result, nil
}

// A freeRing makes room in a ring that has no reader, at no cost to the producer.
type freeRing struct {
	consumer, producer *uint64 // positions
	record             uint64  // bytes
}

// openFreeRing returns nil if the ring has a reader.
func openFreeRing(o producerOrder) (*freeRing, error) {
	if !o.Unread {
		return nil, nil
	}
	page := os.Getpagesize()
	consumer, err := unix.Mmap(ringFD, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map consumer position: %w", err)
	}
	producer, err := unix.Mmap(ringFD, int64(page), page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map producer position: %w", err)
	}
	// SAFETY: each mapping begins with its position, and is never unmapped.
	return &freeRing{
		consumer: (*uint64)(unsafe.Pointer(&consumer[0])),
		producer: (*uint64)(unsafe.Pointer(&producer[0])),
		record:   uint64(recordSize(o.Size)),
	}, nil
}

// discard discards all records but the newest, because the kernel notifies a consumer that has
// caught up.
func (f *freeRing) discard() {
	atomic.StoreUint64(f.consumer, atomic.LoadUint64(f.producer)-f.record)
}

// recordSize returns the bytes that a sample of this size takes in the ring.
func recordSize(size int) int {
	const ringbufHeader = 8 // BPF_RINGBUF_HDR_SZ
	return (ringbufHeader + size + 7) &^ 7
}
