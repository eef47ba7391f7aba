// Flightrecorder records the system calls of a process in a ring in overwrite mode, which keeps
// the newest ones. On SIGUSR1 it prints the last of them. On Ctrl-C it prints them once more
// and ends. Otherwise it does nothing: nobody reads the ring.
package main

import (
	"bytes"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
)

//go:embed flightrecorder.bpf.o
var object []byte

// event has the layout of struct event in flightrecorder.bpf.c.
type event struct {
	Time    uint64 // in ns since boot
	Thread  uint32
	Syscall uint32
	Comm    [16]byte
}

func main() {
	pid := flag.Uint("p", 0, "record the process with this `pid`")
	n := flag.Int("n", 20, "print the last `n` system calls")
	flag.Parse()
	if err := run(uint32(*pid), *n); err != nil {
		fmt.Fprintln(os.Stderr, "flightrecorder:", err)
		os.Exit(1)
	}
}

func run(pid uint32, n int) error {
	if pid == 0 {
		return errors.New("which process? Name one with -p")
	}
	if err := tryOverwriteMode(); err != nil {
		return err
	}
	module, err := loadObject(object, func(module *bpf.Module) error {
		return module.InitGlobalVariable("process", pid)
	})
	if err != nil {
		return err
	}
	defer module.Close()
	prog, err := module.GetProgram("sys_enter")
	if err != nil {
		return err
	}
	if _, err := prog.AttachRawTracepoint("sys_enter"); err != nil {
		return err
	}
	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
	watcher, err := ringbuf.NewWatcher(events)
	if err != nil {
		return err
	}
	defer watcher.Close()

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGINT, syscall.SIGTERM)
	fmt.Printf("recording process %d: kill -USR1 %d shows the last system calls\n", pid, os.Getpid())
	for {
		last := <-signals != syscall.SIGUSR1
		if err := print(watcher, n); err != nil || last {
			return err
		}
	}
}

// tryOverwriteMode returns an error if this kernel has no overwrite mode.
func tryOverwriteMode() error {
	const overwrite = 1 << 19 // BPF_F_RB_OVERWRITE
	ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, "try", 0, 0, os.Getpagesize(),
		&bpf.BPFMapCreateOpts{MapFlags: overwrite})
	if errors.Is(err, syscall.EINVAL) {
		return errors.New("this kernel has no ring buffers in overwrite mode: it takes Linux 6.19")
	}
	if err != nil {
		return err
	}
	return syscall.Close(ring.FileDescriptor())
}

// print prints the last n events in the ring.
func print(watcher *ringbuf.Watcher, n int) error {
	records, err := watcher.Snapshot()
	if err != nil {
		return err
	}
	fmt.Printf("%d of %d system calls that are in the ring:\n", min(n, len(records)), len(records))
	fmt.Printf("%15s %8s  %-16s %s\n", "SINCE BOOT", "THREAD", "COMM", "SYSTEM CALL")
	for _, record := range records[max(len(records)-n, 0):] {
		e, err := ringbuf.As[event](record)
		if err != nil {
			return err
		}
		comm, _, _ := bytes.Cut(e.Comm[:], []byte{0})
		fmt.Printf("%15v %8d  %-16s %d\n", time.Duration(e.Time).Truncate(time.Microsecond), e.Thread,
			comm, e.Syscall)
	}
	return nil
}
