// Ringbuf prints programs that are executed. It uses this repository's ringbuf.Reader.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/examples/migration"
)

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	module, err := loadObject(migration.Object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	prog, err := module.GetProgram("sched_process_exec")
	if err != nil {
		return err
	}
	if _, err := prog.AttachRawTracepoint("sched_process_exec"); err != nil {
		return err
	}

	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
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
