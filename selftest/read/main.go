// Read executes itself a number of times. It checks that a BPF program on a raw tracepoint
// reported exactly these executions: their process numbers, in order, their parent and their
// file name.
package main

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

//go:embed main.bpf.o
var object []byte

// event has the layout of struct event in main.bpf.c.
type event struct {
	PID      uint32
	PPID     uint32
	Filename [248]byte
}

const executions = 50

func main() {
	if len(os.Args) > 1 {
		return // one of the executions
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "read:", err)
		os.Exit(1)
	}
}

func run() error {
	var namespace syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &namespace); err != nil {
		return err
	}
	module, err := bpfobj.Load(object, func(module *bpf.Module) error {
		return errors.Join(
			module.InitGlobalVariable("parent", uint32(os.Getpid())),
			module.InitGlobalVariable("namespace_dev", namespace.Dev),
			module.InitGlobalVariable("namespace_ino", namespace.Ino))
	})
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

	// For the first half, Read waits for the event. For the second half, the event waits for
	// Read.
	reader.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range executions / 2 {
		read := startRead(reader)
		pid, err := execute()
		if err != nil {
			return err
		}
		if err := check(<-read, pid); err != nil {
			return fmt.Errorf("execution %d: %w", i, err)
		}
	}
	var pids []uint32
	for range executions / 2 {
		pid, err := execute()
		if err != nil {
			return err
		}
		pids = append(pids, pid)
	}
	for i, pid := range pids {
		if err := check(<-startRead(reader), pid); err != nil {
			return fmt.Errorf("execution %d of the second half: %w", i, err)
		}
	}

	if err := reader.Flush(); err != nil {
		return err
	}
	if record, err := reader.Read(); !errors.Is(err, ringbuf.ErrFlushed) {
		return fmt.Errorf("after the last event there came %q, %v", record.RawSample, err)
	}
	return nil
}

// execute executes this program and returns its process number.
func execute() (uint32, error) {
	cmd := exec.Command("/proc/self/exe", "do nothing")
	if err := cmd.Run(); err != nil {
		return 0, err
	}
	return uint32(cmd.Process.Pid), nil
}

type result struct {
	record ringbuf.Record
	err    error
}

// startRead calls Read in a goroutine.
func startRead(reader *ringbuf.Reader) <-chan result {
	read := make(chan result, 1)
	go func() {
		record, err := reader.Read()
		read <- result{record, err}
	}()
	return read
}

// check compares an event with what was executed.
func check(read result, pid uint32) error {
	if read.err != nil {
		return read.err
	}
	sample := read.record.RawSample
	var got event
	if n, err := binary.Decode(sample, binary.NativeEndian, &got); err != nil || n != len(sample) {
		return fmt.Errorf("event of %d bytes, want %d", len(sample), binary.Size(got))
	}
	filename, _, _ := bytes.Cut(got.Filename[:], []byte{0})
	want := event{PID: pid, PPID: uint32(os.Getpid()), Filename: got.Filename}
	if got != want || string(filename) != "/proc/self/exe" {
		return fmt.Errorf("event is pid %d, ppid %d, %q; want %d, %d, /proc/self/exe", got.PID, got.PPID,
			filename, want.PID, want.PPID)
	}
	return nil
}
