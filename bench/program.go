// The BPF program that writes samples, and its ring.

package main

import (
	_ "embed"
	"errors"
	"os"
	"runtime"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"
	"golang.org/x/sys/unix"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

//go:embed bench.bpf.o
var object []byte

// A workload has the descriptors of a ring and of the program that writes into it.
type workload struct{ ring, program *os.File }

// load creates a workload with a ring of ringSize bytes.
func load(ringSize int) (*workload, error) {
	module, err := bpfobj.Load(object, func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		return events.SetMaxEntries(uint32(ringSize))
	})
	if err != nil {
		return nil, err
	}
	defer module.Close()
	events, err := module.GetMap("events")
	if err != nil {
		return nil, err
	}
	produce, err := module.GetProgram("produce")
	if err != nil {
		return nil, err
	}
	ring, err := duplicate(events.FileDescriptor())
	if err != nil {
		return nil, err
	}
	program, err := duplicate(produce.FileDescriptor())
	if err != nil {
		unix.Close(ring)
		return nil, err
	}
	return &workload{os.NewFile(uintptr(ring), "ring"), os.NewFile(uintptr(program), "program")}, nil
}

func duplicate(fd int) (int, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return own, os.NewSyscallError("fcntl", err)
}

func (w *workload) close() {
	w.ring.Close()
	w.program.Close()
}

// order has the layout of struct order in bench.bpf.c.
type order struct {
	Seq     uint64
	Unread  uint64
	Quiet   uint64
	Count   uint32
	Size    uint32
	Timed   uint32
	Refused uint32
}

// A program runs the BPF program with as little overhead as possible, because the time of a run
// is measured.
type program struct {
	order  order
	attr   testrun.Attr
	pinner runtime.Pinner
}

func newProgram(fd uintptr, o order) *program {
	p := &program{order: o}
	p.pinner.Pin(p)
	// SAFETY: the kernel accesses the order only during run, where p is alive. p does not move
	// until close.
	p.attr = testrun.Attr{
		ProgFD:    uint32(fd),
		CtxSizeIn: uint32(unsafe.Sizeof(p.order)),
		CtxIn:     uint64(uintptr(unsafe.Pointer(&p.order))),
	}
	return p
}

func (p *program) close() { p.pinner.Unpin() }

// run executes the order. It blocks this thread without telling the Go scheduler, whose work
// would be measured too.
func (p *program) run() error {
	if err := p.attr.RawRun(); err != nil {
		return err
	}
	if p.attr.Retval != 0 {
		return errors.New("BPF program refused its order")
	}
	return nil
}
