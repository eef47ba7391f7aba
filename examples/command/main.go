// Command prints programs that are executed. Each line of its input is a command: from then on,
// Command prints only programs whose name begins with that line. After an empty line it prints
// all. The filter is in the BPF program, which receives commands through a user ring buffer
// (Linux 6.1) while it runs.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
)

//go:embed command.bpf.o
var object []byte

const (
	executed      = 0 // kinds of an event
	filterChanged = 1

	commSize = 16
)

// event has the layout of struct event in command.bpf.c.
type event struct {
	Kind uint32
	ID   uint32 // of the process or the command
	Comm [commSize]byte
}

// command has the layout of struct command in command.bpf.c.
type command struct {
	ID     uint32
	Length uint32
	Prefix [commSize]byte
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "command:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if err := tryUserRingBuffers(); err != nil {
		return err
	}
	module, err := loadObject(object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return err
	}
	defer reader.Close()
	commands, err := module.GetMap("commands")
	if err != nil {
		return err
	}
	drain, err := module.GetProgram("drain")
	if err != nil {
		return err
	}
	writer, err := ringbuf.NewWriter(commands, ringbuf.WithDrainProgram(drain))
	if err != nil {
		return err
	}
	defer writer.Close()
	tracer, err := module.GetProgram("sched_process_exec")
	if err != nil {
		return err
	}
	if _, err := tracer.AttachRawTracepoint("sched_process_exec"); err != nil {
		return err
	}

	fmt.Println("all programs: type the beginning of a name, or Ctrl-C")
	go func() {
		if err := sendCommands(writer); err != nil && !errors.Is(err, ringbuf.ErrClosed) {
			fmt.Fprintln(os.Stderr, "command:", err)
		}
	}()
	for record, err := range reader.Records(ctx) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := ringbuf.As[event](record)
		if err != nil {
			return err
		}
		comm, _, _ := bytes.Cut(e.Comm[:], []byte{0})
		if e.Kind == filterChanged {
			fmt.Printf("command %d: from here on only %s*\n", e.ID, comm)
		} else {
			fmt.Printf("%8d %s\n", e.ID, comm)
		}
	}
	return nil
}

// sendCommands sends each line of the input as a command.
func sendCommands(writer *ringbuf.Writer) error {
	lines := bufio.NewScanner(os.Stdin)
	for id := uint32(1); lines.Scan(); id++ {
		// The command is filled in directly in the ring's memory.
		reservation, err := writer.Reserve(int(unsafe.Sizeof(command{})))
		if err != nil {
			return err
		}
		c := (*command)(unsafe.Pointer(unsafe.SliceData(reservation.Bytes())))
		*c = command{ID: id}
		c.Length = uint32(copy(c.Prefix[:], lines.Text()))
		if err := reservation.Submit(); err != nil {
			return err
		}
	}
	return lines.Err()
}

// tryUserRingBuffers returns an error if this kernel has no user ring buffers.
func tryUserRingBuffers() error {
	const userRingbuf = 31 // BPF_MAP_TYPE_USER_RINGBUF
	m, err := bpf.CreateMap(userRingbuf, "try", 0, 0, os.Getpagesize(), nil)
	if errors.Is(err, syscall.EINVAL) {
		return errors.New("this kernel has no user ring buffers: it takes Linux 6.1")
	}
	if err != nil {
		return err
	}
	return syscall.Close(m.FileDescriptor())
}
