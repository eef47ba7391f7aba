// Idle waits for samples of many rings. It checks that waiting takes neither threads nor
// processor time, and that each Reader still gets its samples.
package main

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

//go:embed main.bpf.o
var object []byte

const (
	rings    = 100 // known to main.bpf.c
	ringSize = 1 << 16

	// Go's runtime keeps threads that it once needed for itself, or to start the goroutines.
	maxThreads = 5

	window  = 2 * time.Second
	maxTime = window / 100
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "idle:", err)
		os.Exit(1)
	}
}

func run() error {
	module, err := bpfobj.Load(object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	submit, err := module.GetProgram("submit")
	if err != nil {
		return err
	}
	all, err := module.GetMap("rings")
	if err != nil {
		return err
	}
	threadsBefore, err := threads()
	if err != nil {
		return err
	}
	type result struct {
		ring   int
		sample uint64
		err    error
	}
	results := make(chan result)
	var readers []*ringbuf.Reader
	for i := range rings {
		ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, fmt.Sprintf("ring%d", i), 0, 0, ringSize, nil)
		if err != nil {
			return err
		}
		key, value := uint32(i), uint32(ring.FileDescriptor())
		if err := all.Update(unsafe.Pointer(&key), unsafe.Pointer(&value)); err != nil {
			return err
		}
		reader, err := ringbuf.NewReader(ring)
		if err != nil {
			return err
		}
		defer reader.Close()
		readers = append(readers, reader)
		go func() {
			for {
				record, err := reader.Read()
				if err != nil {
					results <- result{i, 0, err}
					return
				}
				results <- result{i, binary.NativeEndian.Uint64(record.RawSample), nil}
			}
		}()
	}

	// The second time, each Reader has read something.
	for _, when := range []string{"before", "after"} {
		// Otherwise Go gives memory back in the background, with up to a hundredth of a
		// processor.
		debug.FreeOSMemory()
		time.Sleep(500 * time.Millisecond)
		more, used, err := measure()
		// An emulated processor takes long for code that it runs for the first time. If a
		// Reader used processor time while it waits, it would do so each time. So measure
		// again.
		for i := 0; i < 2 && err == nil && used > maxTime; i++ {
			more, used, err = measure()
		}
		if err != nil {
			return err
		}
		more -= threadsBefore
		fmt.Printf("%d Readers waiting %s their first sample: %d threads more, %v of processor time in "+
			"%v\n",
			rings, when, more, used, window)
		if more > maxThreads || used > maxTime {
			return fmt.Errorf("want at most %d threads more and %v", maxThreads, maxTime)
		}
		for i := range rings {
			if returned, err := testrun.Run(submit.FileDescriptor(), uint64(i)); err != nil ||
				returned != 0 {
				return fmt.Errorf("submit to ring %d: %v, %d", i, err, int32(returned))
			}
			if r := <-results; r != (result{i, uint64(i), nil}) {
				return fmt.Errorf("ring %d gave %d, %v; the sample was for ring %d", r.ring, r.sample, r.err, i)
			}
		}
	}

	for i, reader := range readers {
		err := reader.Close()
		if r := <-results; err != nil || r.ring != i || !errors.Is(r.err, ringbuf.ErrClosed) {
			return fmt.Errorf("closing Reader %d: %v; ring %d gave %d, %v", i, err, r.ring, r.sample, r.err)
		}
	}
	return nil
}

// measure waits. It returns the number of threads at the end, and the processor time used
// meanwhile.
func measure() (threadsAfter int, used time.Duration, err error) {
	before, err := processorTime()
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(window)
	after, err := processorTime()
	if err != nil {
		return 0, 0, err
	}
	threadsAfter, err = threads()
	return threadsAfter, after - before, err
}

// threads returns the number of this process's threads.
func threads() (int, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	return len(tasks), err
}

// processorTime returns the processor time that this process has used.
func processorTime() (time.Duration, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), err
}
