// Execsnoop prints a line for each program that is executed on this machine, until it is
// interrupted.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/libbpfgo/ringbuf"
)

//go:embed execsnoop.bpf.o
var object []byte

// event has the layout of struct event in execsnoop.bpf.c.
type event struct {
	PID      uint32
	PPID     uint32
	UID      uint32
	Comm     [16]byte
	Filename [256]byte
}

func main() {
	demo := flag.Bool("demo", false, "start a few harmless programs, and end after ten seconds")
	flag.Parse()
	if err := run(*demo); err != nil {
		fmt.Fprintln(os.Stderr, "execsnoop:", err)
		os.Exit(1)
	}
}

func run(demo bool) error {
	module, err := loadObject(object, nil)
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
	losses, err := module.GetMap("losses")
	if err != nil {
		return err
	}
	reader, err := ringbuf.NewReader(events, ringbuf.WithLossCounter(losses))
	if err != nil {
		return err
	}
	defer reader.Close()

	// After a signal, print what is still in the ring. A second signal ends the program at
	// once, in case there is too much.
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-interrupt
		signal.Stop(interrupt)
		reader.Flush()
	}()
	if demo {
		reader.SetDeadline(time.Now().Add(10 * time.Second))
		go startPrograms()
	}

	seen, err := print(reader)
	if err != nil {
		return err
	}
	fmt.Printf("%d programs seen, %d lost\n", seen, reader.Stats().Lost)
	return nil
}

// print prints events until the reader is flushed or its deadline passes.
func print(reader *ringbuf.Reader) (seen int, err error) {
	const row = "%-15s %8v %8v %6v  %-16s %s\n"
	fmt.Printf(row, "TIME", "PID", "PPID", "UID", "COMM", "FILENAME")
	for e, err := range ringbuf.Samples[event](context.Background(), reader) {
		if errors.Is(err, ringbuf.ErrFlushed) || errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return seen, err
		}
		seen++
		fmt.Printf(row, time.Now().Format("15:04:05.000000"), e.PID, e.PPID, e.UID, cString(e.Comm[:]),
			cString(e.Filename[:]))
	}
	return seen, nil
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// startPrograms executes harmless programs for the demo, if they exist. In an empty container
// only the last one exists: this program itself.
func startPrograms() {
	for {
		for _, args := range [][]string{{"true"}, {"uname", "-a"}, {"ls", "/"}, {"sh", "-c", "date; id"},
			{"/proc/self/exe", "-help"}} {
			exec.Command(args[0], args[1:]...).Run()
			time.Sleep(250 * time.Millisecond)
		}
	}
}
