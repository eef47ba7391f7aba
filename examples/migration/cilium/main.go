// Cilium prints programs that are executed. It uses cilium/ebpf's ringbuf.Reader.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/libbpfgo/ringbuf/examples/migration"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(migration.Object))
	if err != nil {
		return err
	}
	module, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	defer module.Close()
	prog := module.Programs["sched_process_exec"]
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{
		Name: "sched_process_exec", Program: prog})
	if err != nil {
		return err
	}
	defer attached.Close()

	events := module.Maps["events"]
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return err
	}
	defer reader.Close()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, func() { reader.Close() })
	fmt.Println(migration.Header)
	for {
		record, err := reader.Read()
		if errors.Is(err, ringbuf.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := migration.Print(record.RawSample); err != nil {
			return err
		}
	}
}
