// Package workload is what the selftests trace: a process with a thread on each of some CPUs.
// The threads make system calls. A BPF program reports them, numbered for each CPU.
package workload

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

// MaxCPUs is one more than the highest number of a CPU.
const MaxCPUs = 256

// EventSize is the size of an event in bytes.
const EventSize = 16

// Each thread makes a burst of system calls, and then sleeps. So it is sometimes ahead of a
// Reader, and sometimes behind.
const (
	burst = 200
	pause = 200 * time.Microsecond

	maxThreads = 4 // more threads would always be ahead of one Reader
)

//go:embed workload.bpf.o
var object []byte

// A Workload is a process that is traced.
type Workload struct {
	Module *bpf.Module
	Events *bpf.BPFMap // the ring buffer

	cmd   *exec.Cmd
	stdin io.WriteCloser // the process works from the first byte to the end
}

// argument makes a program a workload process.
const argument = "be a workload"

// Main is the main function of processes that New started. In other processes it does nothing.
// Programs call it first.
func Main() {
	if len(os.Args) != 2 || os.Args[1] != argument {
		return
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// New starts a workload process, which does nothing until Start. It calls prepare, unless that
// is nil, before it loads the BPF program.
func New(prepare func(*bpf.Module) error) (*Workload, error) {
	w := &Workload{cmd: exec.Command("/proc/self/exe", argument)}
	w.cmd.Stderr = os.Stderr
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	if err := w.trace(prepare); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Workload) trace(prepare func(*bpf.Module) error) (err error) {
	if w.Module, w.Events, err = Load(w.cmd.Process.Pid, prepare); err != nil {
		return err
	}
	prog, err := w.Module.GetProgram("task_rename")
	if err != nil {
		return err
	}
	_, err = prog.AttachRawTracepoint("task_rename")
	return err
}

// Load loads the BPF program without attaching it.
func Load(pid int, prepare func(*bpf.Module) error) (*bpf.Module, *bpf.BPFMap, error) {
	var namespace syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &namespace); err != nil {
		return nil, nil, err
	}
	module, err := bpfobj.Load(object, func(module *bpf.Module) error {
		if prepare != nil {
			if err := prepare(module); err != nil {
				return err
			}
		}
		return errors.Join(
			module.InitGlobalVariable("traced_pid", uint32(pid)),
			module.InitGlobalVariable("namespace_dev", namespace.Dev),
			module.InitGlobalVariable("namespace_ino", namespace.Ino))
	})
	if err != nil {
		return nil, nil, err
	}
	events, err := module.GetMap("events")
	if err != nil {
		module.Close()
		return nil, nil, err
	}
	return module, events, nil
}

// Start makes the workload begin.
func (w *Workload) Start() error {
	_, err := w.stdin.Write([]byte{1})
	return err
}

// Stop ends the workload. When Stop returns, all events are in the ring.
func (w *Workload) Stop() error {
	w.stdin.Close()
	return w.cmd.Wait()
}

// Close kills the process and releases all resources.
func (w *Workload) Close() {
	w.cmd.Process.Kill()
	w.cmd.Wait()
	if w.Module != nil {
		w.Module.Close()
	}
}

// A Counter counts the events of a CPU.
type Counter struct{ Submitted, Refused uint64 }

// Counters returns the counters of all CPUs.
func (w *Workload) Counters() (counters [MaxCPUs]Counter, err error) {
	variables, err := w.Module.GetMap(".bss")
	if err != nil {
		return counters, err
	}
	key := uint32(0)
	value, err := variables.GetValue(unsafe.Pointer(&key))
	if err != nil {
		return counters, err
	}
	_, err = binary.Decode(value, binary.NativeEndian, &counters)
	return counters, err
}

// An Event is one system call of the workload.
type Event struct {
	CPU uint32
	TID uint32 // of the thread
	Seq uint64 // counted for each CPU
}

// Decode decodes a sample.
func Decode(sample []byte) (e Event, err error) {
	n, err := binary.Decode(sample, binary.NativeEndian, &e)
	if err != nil || n != len(sample) || e.CPU >= MaxCPUs {
		return e, fmt.Errorf("%x is no event of the workload: %v", sample, err)
	}
	return e, nil
}

// Sequences has the number of the next event for each CPU.
type Sequences [MaxCPUs]uint64

// Check decodes a sample. It returns an error unless the sample is the next event of its CPU.
func (s *Sequences) Check(sample []byte) error {
	e, err := Decode(sample)
	if err != nil {
		return err
	}
	if e.Seq != s[e.CPU] {
		return fmt.Errorf("event %d of CPU %d where %d was next", e.Seq, e.CPU, s[e.CPU])
	}
	s[e.CPU]++
	return nil
}

// CheckComplete returns an error unless everything that was submitted has been checked.
func (s *Sequences) CheckComplete(counters [MaxCPUs]Counter) error {
	total := uint64(0)
	for cpu, c := range counters {
		if s[cpu] != c.Submitted {
			return fmt.Errorf("%d of %d events of CPU %d were read", s[cpu], c.Submitted, cpu)
		}
		total += c.Submitted
	}
	if total == 0 {
		return errors.New("nothing was submitted")
	}
	return nil
}

// Total returns the number of events of all CPUs.
func (s *Sequences) Total() (n uint64) {
	for _, next := range s {
		n += next
	}
	return n
}

// ReadUntil calls use with each sample until Read returns the error end. It returns any other
// error.
func ReadUntil(reader *ringbuf.Reader, end error, use func(sample []byte) error) error {
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		if errors.Is(err, end) {
			return nil
		}
		if err == nil {
			err = use(record.RawSample)
		}
		if err != nil {
			return err
		}
	}
}

// work makes system calls on all CPUs until its input ends.
func work() error {
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 {
		return nil // closed before it began
	}
	stop := make(chan struct{})
	errs := make(chan error)
	cpus, err := ownCPUs()
	if err != nil {
		return fmt.Errorf("find CPUs: %w", err)
	}
	cpus = cpus[:min(maxThreads, len(cpus))]
	for _, cpu := range cpus {
		go func() { errs <- workOn(cpu, stop) }()
	}
	io.Copy(io.Discard, os.Stdin)
	close(stop)
	for range cpus {
		err = errors.Join(err, <-errs)
	}
	return err
}

// workOn makes system calls on one CPU.
func workOn(cpu int, stop <-chan struct{}) error {
	runtime.LockOSThread() // for good: the thread ends with its goroutine
	var mask cpuSet
	mask[cpu/64] = 1 << (cpu % 64)
	if err := mask.call(syscall.SYS_SCHED_SETAFFINITY); err != nil {
		return fmt.Errorf("move to CPU %d: %w", cpu, err)
	}
	name := []byte("workload\x00")
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		for range burst {
			// SAFETY: the kernel reads name only during the call.
			syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0)
		}
		time.Sleep(pause)
	}
}

// cpuSet is the kernel's cpumask, large enough for any kernel.
type cpuSet [8192 / 64]uint64

// call calls sched_getaffinity(2) or sched_setaffinity(2) for this thread.
func (s *cpuSet) call(trap uintptr) error {
	// SAFETY: the kernel accesses s only during the call.
	_, _, errno := syscall.RawSyscall(trap, 0, unsafe.Sizeof(*s), uintptr(unsafe.Pointer(s)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ownCPUs returns the CPUs on which this process may run.
func ownCPUs() (cpus []int, err error) {
	var mask cpuSet
	if err := mask.call(syscall.SYS_SCHED_GETAFFINITY); err != nil {
		return nil, err
	}
	for cpu := range MaxCPUs {
		if mask[cpu/64]>>(cpu%64)&1 != 0 {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
