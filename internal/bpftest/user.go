package bpftest

import (
	_ "embed"
	"errors"
	"os"
	"syscall"
	"testing"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

const mapTypeUserRingbuf = 31 // BPF_MAP_TYPE_USER_RINGBUF

//go:embed user.bpf.o
var userObject []byte

// Control is struct control of user.bpf.c, in memory that is shared with the program.
type Control struct {
	Flags uint64 // of the drain
	Limit uint64 // the most samples in one drain, or 0
	Quiet uint64 // 1: do not send samples back

	Samples, Bytes uint64 // samples that were drained, and their bytes
	Refused        uint64 // replies that did not fit
	_              uint64
}

// A UserRing is a BPF user ring buffer with a program that drains it. The program sends each
// sample of less than 1 MiB back through a ring buffer.
type UserRing struct {
	tb      testing.TB
	module  *bpf.Module
	memory  []byte
	ring    *bpf.BPFMap
	replies *bpf.BPFMap
	drain   *bpf.BPFProg
}

// NewUser returns a user ring buffer and a ring buffer for replies, of these sizes in bytes.
// See New. If the kernel has no user ring buffers, the test is skipped.
func NewUser(tb testing.TB, size, repliesSize int) *UserRing {
	tb.Helper()
	m, err := bpf.CreateMap(mapTypeUserRingbuf, "try", 0, 0, os.Getpagesize(), nil)
	if errors.Is(err, syscall.EINVAL) {
		tb.Skip("needs Linux 6.1")
	}
	if err != nil {
		skipOrFail(tb, err)
	}
	syscall.Close(m.FileDescriptor())
	r := &UserRing{tb: tb}
	r.module, err = bpfobj.Load(userObject, func(module *bpf.Module) error {
		for name, size := range map[string]int{"commands": size, "replies": repliesSize} {
			m, err := module.GetMap(name)
			if err != nil {
				return err
			}
			if err := m.SetMaxEntries(uint32(size)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		skipOrFail(tb, err)
	}
	tb.Cleanup(r.Close)
	for name, m := range map[string]**bpf.BPFMap{"commands": &r.ring, "replies": &r.replies} {
		if *m, err = r.module.GetMap(name); err != nil {
			tb.Fatal(err)
		}
	}
	if r.drain, err = r.module.GetProgram("drain"); err != nil {
		tb.Fatal(err)
	}
	control, err := r.module.GetMap("control")
	if err != nil {
		tb.Fatal(err)
	}
	if r.memory, err = syscall.Mmap(control.FileDescriptor(), 0, os.Getpagesize(),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err != nil {
		tb.Fatal(err)
	}
	return r
}

// FileDescriptor returns the user ring buffer's descriptor.
func (r *UserRing) FileDescriptor() int { return r.ring.FileDescriptor() }

// BPFMap returns the user ring buffer as a map of libbpfgo.
func (r *UserRing) BPFMap() *bpf.BPFMap { return r.ring }

// Replies returns the ring buffer for replies.
func (r *UserRing) Replies() *bpf.BPFMap { return r.replies }

// Program returns the program that drains the ring.
func (r *UserRing) Program() *bpf.BPFProg { return r.drain }

// Control returns the program's memory. It is valid until Close.
func (r *UserRing) Control() *Control { return (*Control)(unsafe.Pointer(&r.memory[0])) }

// Drain runs the program once, and returns the result of bpf_user_ringbuf_drain.
func (r *UserRing) Drain() int {
	r.tb.Helper()
	n, err := testrun.Run(r.drain.FileDescriptor())
	if err != nil {
		r.tb.Errorf("run BPF program: %v", err)
	}
	return int(int32(n))
}

// Close releases the programs and the descriptors. Further calls do nothing.
func (r *UserRing) Close() {
	if r.module != nil {
		syscall.Munmap(r.memory)
		r.module.Close()
		r.module = nil
	}
}
