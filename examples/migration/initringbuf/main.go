// Initringbuf prints programs that are executed. It uses libbpfgo's InitRingBuf.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

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

	events := make(chan []byte)
	reader, err := module.InitRingBuf("events", events)
	if err != nil {
		return err
	}
	reader.Poll(300)
	defer reader.Close()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	fmt.Println(migration.Header)
	for {
		select {
		case <-ctx.Done():
			return nil
		case sample := <-events:
			if err := migration.Print(sample); err != nil {
				return err
			}
		}
	}
}
