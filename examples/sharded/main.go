// Sharded prints a line each second with the number of system calls on each CPU, its own
// included, until it is interrupted. Each CPU has a ring of its own, so no CPU waits for
// another one to write. One Reader reads all rings. The price is more memory, and events on
// different CPUs are not in order.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
)

//go:embed sharded.bpf.o
var object []byte

const ringSize = 1 << 20 // bytes, for each CPU

func main() {
	n := flag.Int("n", 0, "end after `n` seconds")
	flag.Parse()
	if err := run(*n); err != nil {
		fmt.Fprintln(os.Stderr, "sharded:", err)
		os.Exit(1)
	}
}

func run(n int) error {
	// Possible CPUs, not present ones, because CPUs can be added. (If their numbers had gaps,
	// this would have to be the highest number plus one.)
	cpus, err := bpf.NumPossibleCPUs()
	if err != nil {
		return err
	}
	module, err := loadObject(object, func(module *bpf.Module) error {
		rings, err := module.GetMap("rings")
		if err != nil {
			return err
		}
		return rings.SetMaxEntries(uint32(cpus))
	})
	if err != nil {
		return err
	}
	defer module.Close()
	rings, err := createRings(module, cpus)
	if err != nil {
		return err
	}
	losses, err := module.GetMap("losses")
	if err != nil {
		return err
	}
	reader, err := ringbuf.NewMultiReader(rings, ringbuf.WithLossCounter(losses))
	for _, ring := range rings {
		syscall.Close(ring.FileDescriptor()) // the array and the Reader keep the ring
	}
	if err != nil {
		return err
	}
	defer reader.Close()
	prog, err := module.GetProgram("sys_enter")
	if err != nil {
		return err
	}
	if _, err := prog.AttachRawTracepoint("sys_enter"); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	counts := make([]atomic.Uint64, cpus)
	counted := make(chan error)
	go func() {
		err := count(ctx, reader, counts)
		stop()
		counted <- err
	}()
	print(ctx, n, reader, counts)
	stop()
	return <-counted
}

// createRings creates a ring for each CPU, and puts it into the array for the BPF program.
func createRings(module *bpf.Module, cpus int) (maps []ringbuf.Map, err error) {
	rings, err := module.GetMap("rings")
	if err != nil {
		return nil, err
	}
	for cpu := range uint32(cpus) {
		ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, "events", 0, 0, ringSize, nil)
		if err != nil {
			return nil, err
		}
		fd := uint32(ring.FileDescriptor())
		// SAFETY: libbpf reads key and value during the call only.
		if err := rings.Update(unsafe.Pointer(&cpu), unsafe.Pointer(&fd)); err != nil {
			return nil, err
		}
		maps = append(maps, ring)
	}
	return maps, nil
}

// count counts the events of each ring until ctx is done.
func count(ctx context.Context, reader *ringbuf.Reader, counts []atomic.Uint64) error {
	for record, err := range reader.Records(ctx) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			return err
		}
		counts[record.Ring].Add(1)
	}
	return nil
}

// print prints n lines, or if n is 0, lines until ctx is done. A line shows what happened in
// the last second, and how full a ring was in the last minute.
func print(ctx context.Context, n int, reader *ringbuf.Reader, counts []atomic.Uint64) {
	fmt.Printf("%8s %8s %8s %8s %8s", "LOST", "DRAINS", "WAKEUPS", "TICKS", "FULLEST")
	for cpu := range counts {
		fmt.Printf(" %8s", fmt.Sprint("CPU", cpu))
	}
	fmt.Println()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var before ringbuf.Stats
	for lines := 0; n == 0 || lines < n; lines++ {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
		stats := reader.Stats()
		fullest := 0
		for _, ring := range stats.Rings {
			fullest = max(fullest, 100*ring.Peak/ring.Size)
		}
		fmt.Printf("%8d %8d %8d %8d %6d %%", stats.Lost-before.Lost, stats.Drains-before.Drains,
			stats.Wakeups-before.Wakeups, stats.Ticks-before.Ticks, fullest)
		for cpu := range counts {
			fmt.Printf(" %8d", counts[cpu].Swap(0))
		}
		fmt.Println()
		before = stats
	}
}
