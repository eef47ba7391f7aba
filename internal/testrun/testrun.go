// Package testrun runs BPF programs with the command BPF_PROG_TEST_RUN of bpf(2), for tests and
// benchmarks. It needs only the program's descriptor. libbpfgo has such a function only since
// v0.8.
package testrun

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/sysbpf"
)

// Attr is the part of union bpf_attr that BPF_PROG_TEST_RUN uses.
type Attr struct {
	ProgFD, Retval           uint32
	DataSizeIn, DataSizeOut  uint32
	DataIn, DataOut          uint64
	Repeat, Duration         uint32
	CtxSizeIn, CtxSizeOut    uint32
	CtxIn, CtxOut            uint64 // pointers to memory that does not move
	Flags, CPU, BatchSize, _ uint32 // the kernel accepts zeros for fields that it does not know
}

const (
	cmdProgTestRun = 10     // BPF_PROG_TEST_RUN
	flagRunOnCPU   = 1 << 0 // BPF_F_TEST_RUN_ON_CPU, since Linux 5.10
)

// Run runs the program. The error is the errno of bpf(2).
func (a *Attr) Run() error { return a.call(syscall.Syscall) }

// RawRun is like Run, but does not tell Go's scheduler, which would take part of a measured
// time. The program must be short.
func (a *Attr) RawRun() error { return a.call(syscall.RawSyscall) }

func (a *Attr) call(call func(trap, a1, a2, a3 uintptr) (r1, r2 uintptr,
	errno syscall.Errno)) error {
	// SAFETY: the kernel accesses a only during the call.
	if _, _, errno := call(sysbpf.Number(), cmdProgTestRun, uintptr(unsafe.Pointer(a)),
		unsafe.Sizeof(*a)); errno != 0 {
		return fmt.Errorf("BPF_PROG_TEST_RUN: %w", errno)
	}
	return nil
}

// Run runs the program with descriptor fd once, with args as its context. It returns the
// program's result.
func Run(fd int, args ...uint64) (uint32, error) { return run(fd, Attr{}, args) }

// RunOn is like Run, but runs the program on the given CPU.
func RunOn(cpu, fd int, args ...uint64) (uint32, error) {
	return run(fd, Attr{Flags: flagRunOnCPU, CPU: uint32(cpu)}, args)
}

func run(fd int, attr Attr, args []uint64) (uint32, error) {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	if len(args) > 0 {
		pinner.Pin(&args[0])
		attr.CtxIn, attr.CtxSizeIn = uint64(uintptr(unsafe.Pointer(&args[0]))), uint32(8*len(args))
	}
	attr.ProgFD = uint32(fd)
	err := attr.Run()
	return attr.Retval, err
}
