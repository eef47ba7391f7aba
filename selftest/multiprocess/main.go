// Multiprocess lets two processes take turns to read a pinned ring, while events keep coming.
// It checks that no hand-over loses or repeats an event. Each turn ends with Flush, Read until
// ErrFlushed, and Close.
package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/workload"
)

const (
	statusSkip = 4 // for selftest/main.go
	turns      = 400
	events     = 500 // to read in a turn, before Flush

	argument = "in a mount namespace"
)

var errMount = errors.New("to mount a BPF file system takes CAP_SYS_ADMIN")

func main() {
	workload.Main()
	role := runInNamespace
	switch {
	case len(os.Args) == 2 && os.Args[1] == argument:
		role = run
	case len(os.Args) == 2:
		role = func() error { return readByTurns(os.Args[1]) }
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, "multiprocess:", err)
		if errors.Is(err, errMount) {
			os.Exit(statusSkip)
		}
		os.Exit(1)
	}
}

// runInNamespace runs the test in a process that has mounts of its own. The mounts end with the
// process, however it ends.
func runInNamespace() error {
	cmd := exec.Command("/proc/self/exe", argument)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	err := cmd.Run()
	if errors.Is(err, syscall.EPERM) {
		return errMount
	}
	return err
}

func run() error {
	// In a chroot, / is not a mount point, and the call is invalid.
	err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	if err != nil && err != syscall.EINVAL {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := os.MkdirTemp("", "bpffs")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := syscall.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	path := filepath.Join(dir, "events")

	// libbpf pins the map at path, or uses the map that is pinned there.
	w, err := workload.New(pinAt(path))
	if err != nil {
		return err
	}
	defer w.Close()
	var readers [2]process
	for i := range readers {
		if readers[i], err = start(path); err != nil {
			return err
		}
		defer readers[i].stop()
	}
	if err := w.Start(); err != nil {
		return err
	}
	var seen workload.Sequences
	for i := range turns {
		if err := readers[i%2].read(turn{events, seen}, &seen); err != nil {
			return fmt.Errorf("turn %d: %w", i, err)
		}
	}
	if err := w.Stop(); err != nil {
		return err
	}
	if err := readers[0].read(turn{0, seen}, &seen); err != nil {
		return fmt.Errorf("last turn: %w", err)
	}
	counters, err := w.Counters()
	if err != nil {
		return err
	}
	if err := seen.CheckComplete(counters); err != nil {
		return err
	}
	fmt.Printf("%d events read in %d turns\n", seen.Total(), turns+1)
	return nil
}

// pinAt makes libbpf pin the ring.
func pinAt(path string) func(*bpf.Module) error {
	return func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		return events.SetPinPath(path)
	}
}

// A turn says what a process is to read: this many events, and then the rest of the ring.
type turn struct {
	Events int
	Next   workload.Sequences
}

// A report is the answer to a turn.
type report struct {
	Next workload.Sequences
	Err  string
}

// A process reads in its turns.
type process struct {
	turns   *gob.Encoder
	reports *gob.Decoder
	stop    func()
}

func start(path string) (p process, err error) {
	cmd := exec.Command("/proc/self/exe", path)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return p, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return p, err
	}
	stop := func() {
		stdin.Close()
		cmd.Wait()
	}
	return process{gob.NewEncoder(stdin), gob.NewDecoder(stdout), stop}, cmd.Start()
}

func (p process) read(t turn, next *workload.Sequences) error {
	if err := p.turns.Encode(t); err != nil {
		return err
	}
	var r report
	if err := p.reports.Decode(&r); err != nil {
		return err
	}
	*next = r.Next
	if r.Err != "" {
		return errors.New(r.Err)
	}
	return nil
}

// readByTurns is the main function of the processes.
func readByTurns(path string) error {
	module, events, err := workload.Load(0, pinAt(path))
	if err != nil {
		return err
	}
	defer module.Close()
	turns, reports := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var t turn
		if err := turns.Decode(&t); err != nil {
			return nil // no more turns
		}
		r := report{Next: t.Next}
		if err := readTurn(events, t.Events, &r.Next); err != nil {
			r.Err = err.Error()
		}
		if err := reports.Encode(r); err != nil {
			return err
		}
	}
}

// readTurn reads one turn.
func readTurn(events *bpf.BPFMap, n int, next *workload.Sequences) error {
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		return err
	}
	defer reader.Close()
	var record ringbuf.Record
	for range n {
		if err := reader.ReadInto(&record); err != nil {
			return err
		}
		if err := next.Check(record.RawSample); err != nil {
			return err
		}
	}
	if err := reader.Flush(); err != nil {
		return err
	}
	if err := workload.ReadUntil(reader, ringbuf.ErrFlushed, next.Check); err != nil {
		return err
	}
	return reader.Close()
}
