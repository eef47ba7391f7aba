package bpftest

import (
	_ "embed"
	"testing"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// maxTries is the limit in losses.bpf.c.
const maxTries = 256

//go:embed losses.bpf.o
var lossesObject []byte

// A LossRing is a BPF ring buffer with programs that write Numbered samples into it. They use
// bpf/ringbuf.bpf.h, which counts the samples that are refused.
type LossRing struct {
	tb      testing.TB
	events  *bpf.BPFMap
	losses  *bpf.BPFMap
	trySome *bpf.BPFProg
	holdOne *bpf.BPFProg
	inner   *bpf.BPFProg
}

// NewLoss returns a ring of the given size in bytes. See New. If threshold is not 0, records
// are submitted with the flags of ringbuf_quiet for this threshold.
func NewLoss(tb testing.TB, size int, threshold uint64) *LossRing {
	tb.Helper()
	module, err := bpfobj.Load(lossesObject, func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		if err := events.SetMaxEntries(uint32(size)); err != nil {
			return err
		}
		return module.InitGlobalVariable("threshold", threshold)
	})
	if err != nil {
		skipOrFail(tb, err)
	}
	tb.Cleanup(module.Close)
	r := &LossRing{tb: tb}
	for name, m := range map[string]**bpf.BPFMap{"events": &r.events, "losses": &r.losses} {
		if *m, err = module.GetMap(name); err != nil {
			tb.Fatal(err)
		}
	}
	for name, p := range map[string]**bpf.BPFProg{"try_some": &r.trySome, "hold_one": &r.holdOne,
		"try_inner": &r.inner} {
		if *p, err = module.GetProgram(name); err != nil {
			tb.Fatal(err)
		}
	}
	return r
}

// FileDescriptor returns the ring buffer's descriptor.
func (r *LossRing) FileDescriptor() int { return r.events.FileDescriptor() }

// Counter returns the loss counter.
func (r *LossRing) Counter() *bpf.BPFMap { return r.losses }

// Try tries to write n records numbered from seq on, and returns how many were accepted. The
// program runs on the given CPU. If other programs run there, it interrupts them, if the kernel
// allows it. Try is safe for concurrent use.
func (r *LossRing) Try(cpu, producer int, seq uint64, n int) (accepted int) {
	for n > 0 {
		result := r.run(r.trySome, cpu, uint64(producer), seq, uint64(min(n, maxTries)))
		tried := int(result >> 16)
		if tried == 0 && r.tb.Failed() {
			break
		}
		accepted += int(result & (1<<16 - 1))
		seq += uint64(tried)
		n -= tried
	}
	return accepted
}

// Hold reserves a record, and writes n others as Try does, at most 256. Then it submits the
// first one, and returns the flags for it.
func (r *LossRing) Hold(cpu, n int) (flags uint32) {
	return r.run(r.holdOne, cpu, 0, 0, uint64(n))
}

// TryInner tries to write a record into the ring, which the program looks up in a map of maps.
// The record has a threshold of its own. TryInner reports whether the record was accepted.
func (r *LossRing) TryInner(cpu int, threshold uint64) bool {
	return r.run(r.inner, cpu, 0, 0, threshold) == 1
}

// SetSlot sets the struct ringbuf_counter of a CPU.
func (r *LossRing) SetSlot(cpu int, lost, position, forced uint64) {
	r.tb.Helper()
	key, slot := uint32(cpu), [8]uint64{lost, position, forced}
	if err := r.losses.Update(unsafe.Pointer(&key), unsafe.Pointer(&slot)); err != nil {
		r.tb.Fatal(err)
	}
}

func (r *LossRing) run(prog *bpf.BPFProg, cpu int, args ...uint64) uint32 {
	returned, err := testrun.RunOn(cpu, prog.FileDescriptor(), args...)
	if err != nil {
		r.tb.Errorf("run BPF program %s on CPU %d: %v", prog.Name(), cpu, err)
	}
	return returned
}
