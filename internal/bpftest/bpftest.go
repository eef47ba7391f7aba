// Package bpftest writes records into BPF ring buffers, for tests. A BPF program in this kernel
// writes them.
package bpftest

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// Flags of a Sample, from include/uapi/linux/bpf.h.
const (
	NoWakeup    = 1 << 0 // BPF_RB_NO_WAKEUP
	ForceWakeup = 1 << 1 // BPF_RB_FORCE_WAKEUP
)

// HeaderSize is the size of a record's header in the ring, BPF_RINGBUF_HDR_SZ.
const HeaderSize = 8

// A Sample is a record to write.
type Sample struct {
	Data    []byte // less than 1 MiB
	Flags   uint32
	Discard bool // reserve and discard the record; then only the size of Data counts
}

// RecordSize returns the number of bytes that the sample takes in the ring.
func (s Sample) RecordSize() int { return (len(s.Data) + HeaderSize + 7) &^ 7 }

// Limits and types of bpftest.bpf.c.
const (
	maxSamples  = 256
	contentSize = 1 << 20
	maxCount    = 256

	kindSubmit  = 0
	kindDiscard = 1
	kindBusy    = 2

	busyIdle     = 0
	busyReserved = 1
	busyReleased = 2
)

type planned struct{ kind, size, flags, offset uint32 }

const plannedSize = int(unsafe.Sizeof(planned{}))

//go:embed bpftest.bpf.o
var object []byte

// A Ring is a BPF ring buffer with programs that write into it.
type Ring struct {
	tb     testing.TB
	module *bpf.Module
	events *bpf.BPFMap
	state  *bpf.BPFMap
	emit   *bpf.BPFProg
	count  *bpf.BPFProg
	stamp  *bpf.BPFProg
	giveUp *bpf.BPFProg

	// Mapped values of the maps of these names.
	plan, content []byte
}

// New returns a ring of the given size in bytes, a power of two and a multiple of the page
// size. The ring is released when the test ends, unless Close is called before.
//
// If this process cannot load BPF programs, New skips the test. With
// RINGBUF_KERNEL_TESTS=require in the environment, the test fails instead.
func New(tb testing.TB, size int) *Ring {
	tb.Helper()
	return newRing(tb, ofSize(size))
}

// NewOverwriting is like New, but returns a ring in overwrite mode. If the kernel has no
// overwrite mode, the test is skipped.
func NewOverwriting(tb testing.TB, size int) *Ring {
	tb.Helper()
	const overwrite = 1 << 19 // BPF_F_RB_OVERWRITE
	ring, err := bpf.CreateMap(bpf.MapTypeRingbuf, "events", 0, 0, size,
		&bpf.BPFMapCreateOpts{MapFlags: overwrite})
	if errors.Is(err, syscall.EINVAL) {
		tb.Skip("needs Linux 6.19")
	}
	if err != nil {
		skipOrFail(tb, err)
	}
	defer syscall.Close(ring.FileDescriptor())
	return newRing(tb, func(events *bpf.BPFMap) error { return events.ReuseFD(ring.FileDescriptor()) })
}

func newRing(tb testing.TB, prepare func(events *bpf.BPFMap) error) *Ring {
	tb.Helper()
	module, err := load(prepare)
	if err != nil {
		skipOrFail(tb, err)
	}
	r := &Ring{tb: tb, module: module}
	tb.Cleanup(r.Close)
	for name, m := range map[string]**bpf.BPFMap{"events": &r.events, ".bss": &r.state} {
		if *m, err = module.GetMap(name); err != nil {
			tb.Fatal(err)
		}
	}
	r.plan = r.mapMemory("plan", maxSamples*plannedSize)
	r.content = r.mapMemory("content", 2*contentSize)
	for name, p := range map[string]**bpf.BPFProg{
		"emit": &r.emit, "count": &r.count, "stamp": &r.stamp, "discard_some": &r.giveUp,
	} {
		if *p, err = module.GetProgram(name); err != nil {
			tb.Fatal(err)
		}
	}
	return r
}

// mapMemory maps the values of an array of the module into memory.
func (r *Ring) mapMemory(name string, size int) []byte {
	r.tb.Helper()
	m, err := r.module.GetMap(name)
	if err != nil {
		r.tb.Fatal(err)
	}
	memory, err := syscall.Mmap(m.FileDescriptor(), 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_SHARED)
	if err != nil {
		r.tb.Fatalf("map memory of %s: %v", name, err)
	}
	return memory
}

// skipOrFail ends a test that cannot load BPF programs.
func skipOrFail(tb testing.TB, err error) {
	tb.Helper()
	if os.Getenv("RINGBUF_KERNEL_TESTS") != "require" && errors.Is(err, syscall.EPERM) {
		tb.Skipf("this process cannot load BPF programs: %v", err)
	}
	tb.Fatalf("load BPF programs: %v", err)
}

func load(prepare func(events *bpf.BPFMap) error) (*bpf.Module, error) {
	return bpfobj.Load(object, func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		return prepare(events)
	})
}

func ofSize(size int) func(events *bpf.BPFMap) error {
	return func(events *bpf.BPFMap) error { return events.SetMaxEntries(uint32(size)) }
}

// Status says whether New works here, and on which kernel.
func Status() string {
	var uts syscall.Utsname
	syscall.Uname(&uts)
	release := make([]byte, 0, len(uts.Release))
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	module, err := load(ofSize(os.Getpagesize()))
	if err != nil {
		return fmt.Sprintf("kernel tests do NOT run: Linux %s does not let this process load BPF "+
			"programs: %v", release, err)
	}
	module.Close()
	return fmt.Sprintf("kernel tests run on Linux %s", release)
}

// For returns the same ring for use in tb, such as a subtest, while the test that created it
// continues. The two must not be used at the same time.
func (r *Ring) For(tb testing.TB) *Ring {
	other := *r
	other.tb = tb
	return &other
}

// FileDescriptor returns the ring buffer's descriptor.
func (r *Ring) FileDescriptor() int { return r.events.FileDescriptor() }

// BPFMap returns the ring buffer as a map of libbpfgo.
func (r *Ring) BPFMap() *bpf.BPFMap { return r.events }

// Module returns the module that the ring buffer belongs to.
func (r *Ring) Module() *bpf.Module { return r.module }

// Close releases the programs and the descriptors. Further calls do nothing.
func (r *Ring) Close() {
	if r.module != nil {
		for _, memory := range [][]byte{r.plan, r.content} {
			if memory != nil {
				syscall.Munmap(memory)
			}
		}
		r.module.Close()
		r.module = nil
	}
}

// Emit writes the samples in order. The test fails if a sample does not fit in the ring.
func (r *Ring) Emit(samples ...Sample) {
	r.tb.Helper()
	if refused := r.TryEmit(samples...); refused > 0 {
		r.tb.Fatalf("the ring was too full for %d of %d samples", refused, len(samples))
	}
}

// TryEmit writes the samples in order. It returns the number of samples that the kernel refused
// because they did not fit.
func (r *Ring) TryEmit(samples ...Sample) (refused int) {
	r.tb.Helper()
	for len(samples) > 0 {
		n, used := 0, 0
		for n < min(maxSamples, len(samples)) && used+len(samples[n].Data) < contentSize {
			used += len(samples[n].Data)
			n++
		}
		if n == 0 {
			r.tb.Fatalf("sample of %d bytes is too large", len(samples[0].Data))
		}
		refused += r.emitSome(samples[:n])
		samples = samples[n:]
	}
	return refused
}

func (r *Ring) emitSome(samples []Sample) (refused int) {
	r.tb.Helper()
	offset := 0
	for i, s := range samples {
		p := planned{kind: kindSubmit, size: uint32(len(s.Data)), flags: s.Flags, offset: uint32(offset)}
		if s.Discard {
			p.kind = kindDiscard
		}
		r.setPlan(i, p)
		offset += copy(r.content[offset:], s.Data)
	}
	return int(run(r.tb, r.emit, uint64(len(samples))))
}

// Busy reserves a record of 8 bytes, in a thread of its own. submit commits the record, and
// returns when that is done. If submit is not called within some seconds, the program commits
// the record itself, and submit fails the test.
func (r *Ring) Busy(data [8]byte) (submit func()) {
	r.tb.Helper()
	copy(r.content, data[:])
	r.setPlan(0, planned{kind: kindBusy, size: 8})
	done := make(chan uint32, 1)
	restore, err := runAlone(func() { done <- run(r.tb, r.emit, 1) })
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(restore)
	for r.busyState() != busyReserved {
		if len(done) > 0 {
			r.tb.Fatal("the busy record was refused, or committed too early")
		}
		runtime.Gosched()
	}
	return func() {
		r.tb.Helper()
		if r.busyState() != busyReserved {
			r.tb.Error("the busy record was committed too early")
		}
		state := uint32(busyReleased)
		key := uint32(0)
		if err := r.state.Update(unsafe.Pointer(&key), unsafe.Pointer(&state)); err != nil {
			r.tb.Fatal(err)
		}
		if refused := <-done; refused != 0 {
			r.tb.Error("the kernel refused the busy record")
		}
		restore()
	}
}

func (r *Ring) busyState() uint32 {
	key := uint32(0)
	state, err := r.state.GetValue(unsafe.Pointer(&key))
	if err != nil {
		r.tb.Fatal(err)
	}
	return binary.NativeEndian.Uint32(state)
}

// A Numbered is a sample that Count writes.
type Numbered struct {
	CPU      uint32
	Producer uint32
	Seq      uint64
}

// NumberedSize is the size of a Numbered sample.
const NumberedSize = 16

// DecodeNumbered decodes a sample that Count wrote.
func DecodeNumbered(sample []byte) Numbered {
	if len(sample) != NumberedSize {
		panic(fmt.Sprintf("sample of %d bytes is not a numbered one", len(sample)))
	}
	return Numbered{
		CPU:      binary.NativeEndian.Uint32(sample),
		Producer: binary.NativeEndian.Uint32(sample[4:]),
		Seq:      binary.NativeEndian.Uint64(sample[8:]),
	}
}

// Count writes up to n records, numbered from seq on. It returns how many fit in the ring.
// Unlike Emit and Busy it is safe for concurrent use.
func (r *Ring) Count(producer int, seq uint64, n int, flags uint32) (added int) {
	return r.add(r.count, producer, seq, n, flags)
}

// A Stamped is a sample that Stamp writes.
type Stamped struct {
	Time     uint64 // bpf_ktime_get_ns() before the record was reserved
	Producer uint64
	Seq      uint64
}

// StampedSize is the size of a Stamped sample.
const StampedSize = 24

// DecodeStamped decodes a sample that Stamp wrote.
func DecodeStamped(sample []byte) Stamped {
	if len(sample) != StampedSize {
		panic(fmt.Sprintf("sample of %d bytes is not a stamped one", len(sample)))
	}
	return Stamped{
		Time:     binary.NativeEndian.Uint64(sample),
		Producer: binary.NativeEndian.Uint64(sample[8:]),
		Seq:      binary.NativeEndian.Uint64(sample[16:]),
	}
}

// Stamp is like Count, but the samples also have the time.
func (r *Ring) Stamp(producer int, seq uint64, n int) (added int) {
	return r.add(r.stamp, producer, seq, n, 0)
}

func (r *Ring) add(prog *bpf.BPFProg, producer int, seq uint64, n int, flags uint32) (added int) {
	for added < n {
		want := min(n-added, maxCount)
		got := int(run(r.tb, prog, uint64(producer), seq+uint64(added), uint64(want), uint64(flags)))
		added += got
		if got < want {
			break
		}
	}
	return added
}

// Discard reserves and discards up to n records of 8 bytes. Like Count, it is safe for
// concurrent use.
func (r *Ring) Discard(n int) { run(r.tb, r.giveUp, uint64(n)) }

func (r *Ring) setPlan(index int, p planned) {
	*(*planned)(unsafe.Pointer(&r.plan[index*plannedSize])) = p
}

// run runs prog once and returns its result.
func run(tb testing.TB, prog *bpf.BPFProg, args ...uint64) uint32 {
	returned, err := testrun.Run(prog.FileDescriptor(), args...)
	if err != nil {
		tb.Errorf("run BPF program %s: %v", prog.Name(), err)
	}
	return returned
}
