package ringbuf_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
)

func Example() {
	module, err := bpf.NewModuleFromFileArgs(bpf.NewModuleArgs{BPFObjPath: "program.bpf.o",
		SkipMemlockBump: true})
	if err != nil {
		log.Fatal(err)
	}
	defer module.Close()
	if err := module.BPFLoadObject(); err != nil {
		log.Fatal(err)
	}

	events, err := module.GetMap("events") // BPF_MAP_TYPE_RINGBUF
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for record, err := range reader.Records(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample) // in the ring: read it, copy what you keep, do not write
	}
}

// The records of a lease stay in the ring until they are safe elsewhere: here, until they are
// written and synced to a file.
func ExampleReader_Lease() {
	var (
		reader *ringbuf.Reader
		file   *os.File
	)
	for {
		lease, err := reader.Lease(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		for record := range lease.Records() {
			if err == nil {
				_, err = file.Write(record.RawSample)
			}
		}
		if err == nil {
			err = file.Sync()
		}
		if err != nil {
			lease.Release() // the next Lease returns them again
			log.Fatal(err)
		}
		if err := lease.Commit(); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleReader_SetDeadline() {
	var reader *ringbuf.Reader

	reader.SetDeadline(time.Now().Add(time.Second))
	for {
		record, err := reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break // the second is over, and the samples that came within it are read
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
}

// Read everything that is in the ring before closing the Reader. Later samples are left to the
// next Reader.
func ExampleReader_Flush() {
	var reader *ringbuf.Reader

	if err := reader.Flush(); err != nil {
		log.Fatal(err)
	}
	for {
		record, err := reader.Read()
		if errors.Is(err, ringbuf.ErrFlushed) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
	if err := reader.Close(); err != nil {
		log.Fatal(err)
	}
}

// The loop ends when ctx is done, for example after a signal with signal.NotifyContext, or when
// the Reader is closed. It does not copy the samples.
func ExampleReader_Records() {
	var reader *ringbuf.Reader
	var ctx context.Context

	for record, err := range reader.Records(ctx) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
}

// Merge two rings by time. The BPF programs put bpf_ktime_get_ns() at the start of each sample.
// Merged holds each record back for 50 ms, because records with an earlier time may still come.
func ExampleReader_Merged() {
	var cpu0, cpu1 ringbuf.Map

	reader, err := ringbuf.NewMultiReader([]ringbuf.Map{cpu0, cpu1})
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	timeOf := func(rec ringbuf.Record) uint64 { return binary.NativeEndian.Uint64(rec.RawSample) }
	for record, err := range reader.Merged(context.Background(), timeOf, 50*time.Millisecond) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("ring %d: %x\n", record.Ring, record.RawSample)
	}
	fmt.Println("records that were late:", reader.Stats().Late)
}

// The loop also does other work, so it does not wait for records.
func ExampleReader_TryReadInto() {
	var reader *ringbuf.Reader
	var work chan func()

	var record ringbuf.Record
	for {
		select {
		case f := <-work:
			f()
		default:
			ok, err := reader.TryReadInto(&record)
			if err != nil {
				log.Fatal(err)
			}
			if ok {
				fmt.Printf("%x\n", record.RawSample)
			}
		}
	}
}

// Wait for one second at most. When ctx is done, only this call returns: another goroutine that
// waits in Read continues to wait.
func ExampleReader_ReadContext() {
	var reader *ringbuf.Reader

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	record, err := reader.ReadContext(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		fmt.Println("nothing happened for a second")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%x\n", record.RawSample)
}

// Read two rings with one Reader: one ring for rare events that must not be lost, and one for
// frequent events. Neither ring holds up the other. For one ring per CPU, see examples/sharded.
func ExampleNewMultiReader() {
	var module *bpf.Module

	names := []string{"alerts", "events"}
	var maps []ringbuf.Map
	for _, name := range names {
		m, err := module.GetMap(name)
		if err != nil {
			log.Fatal(err)
		}
		maps = append(maps, m)
	}
	reader, err := ringbuf.NewMultiReader(maps)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	for record, err := range reader.Records(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %x\n", names[record.Ring], record.RawSample)
	}
}

// The BPF program declares RINGBUF_LOSS_COUNTER(losses) and reserves records with
//
//	struct event *e = ringbuf_reserve(&events, &losses, sizeof(*e), 0);
func ExampleWithLossCounter() {
	var module *bpf.Module

	events, err := module.GetMap("events")
	if err != nil {
		log.Fatal(err)
	}
	losses, err := module.GetMap("losses")
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events, ringbuf.WithLossCounter(losses))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	for record, err := range reader.Records(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		if record.Lost > 0 {
			fmt.Println("records are missing here:", record.Lost)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
	fmt.Println("records lost altogether:", reader.Stats().Lost)
}

// Read a log that a workload writes to and nobody watches. The BPF program declares
// RINGBUF_LOSS_COUNTER(losses) and submits records with
//
//	bpf_ringbuf_submit(e, ringbuf_quiet(&events, &losses, RING_SIZE / 4));
//
// Then the kernel notifies only when a quarter of the ring is filled. The Reader returns each
// record after at most 100 ms.
func ExampleWithMaxDelay() {
	var events ringbuf.Map

	reader, err := ringbuf.NewReader(events, ringbuf.WithMaxDelay(100*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
}

// A Reader needs only the descriptor of a map. For example, a privileged process may have sent
// it over a Unix socket.
func ExampleFD() {
	received := 7

	reader, err := ringbuf.NewReader(ringbuf.FD(received))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
}
