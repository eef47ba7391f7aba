package bpftest

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

// The limits in stress.bpf.c.
const (
	maxProducers = 64
	maxRecords   = 64
	offsets      = 1024
)

//go:embed stress.bpf.o
var stressObject []byte

// A StressRing is a BPF ring buffer with producers that write records of all sizes. The content
// of a record follows from the seed, the producer and the record's number.
type StressRing struct {
	Producers int // one for each CPU, up to a limit

	tb        testing.TB
	seed      uint64
	maxSample uint64 // the size of the largest sample that the ring accepts
	module    *bpf.Module
	events    *bpf.BPFMap
	variables *bpf.BPFMap
	produce   *bpf.BPFProg
	serve     *bpf.BPFProg
	fill      *bpf.BPFProg

	content []byte // samples are pieces of it, except for their identity
}

// NewStress returns a ring of the given size in bytes. See New.
func NewStress(tb testing.TB, size int, seed uint64) *StressRing {
	tb.Helper()
	// The kernel leaves the last 8 bytes of a ring unused.
	r := &StressRing{tb: tb, seed: seed, Producers: min(runtime.NumCPU(), maxProducers),
		maxSample: uint64(size - HeaderSize - 8)}
	r.content = make([]byte, size+offsets)
	rand.NewChaCha8([32]byte(binary.NativeEndian.AppendUint64(make([]byte, 24), seed))).Read(r.content)
	module, err := r.load(size)
	if errors.Is(err, syscall.E2BIG) {
		// In older kernels, values in maps cannot be larger: KMALLOC_MAX_SIZE.
		r.maxSample = 4<<20 - offsets
		module, err = r.load(size)
	}
	if err != nil {
		skipOrFail(tb, err)
	}
	tb.Cleanup(module.Close)
	r.module = module
	if r.events, err = module.GetMap("events"); err != nil {
		tb.Fatal(err)
	}
	if r.variables, err = module.GetMap(".bss"); err != nil {
		tb.Fatal(err)
	}
	for name, p := range map[string]**bpf.BPFProg{"produce": &r.produce, "serve": &r.serve,
		"fill": &r.fill} {
		if *p, err = module.GetProgram(name); err != nil {
			tb.Fatal(err)
		}
	}
	content, err := module.GetMap("content")
	if err != nil {
		tb.Fatal(err)
	}
	for producer := range uint32(r.Producers) {
		if err := content.Update(unsafe.Pointer(&producer), unsafe.Pointer(&r.content[0])); err != nil {
			tb.Fatal(err)
		}
	}
	return r
}

func (r *StressRing) load(size int) (*bpf.Module, error) {
	return bpfobj.Load(stressObject, func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		content, err := module.GetMap("content")
		if err != nil {
			return err
		}
		return errors.Join(
			events.SetMaxEntries(uint32(size)),
			content.SetMaxEntries(uint32(r.Producers)),
			content.SetValueSize(uint32(r.maxSample+offsets)),
			module.InitGlobalVariable("seed", r.seed),
			module.InitGlobalVariable("max_sample", uint32(r.maxSample)))
	})
}

// FileDescriptor returns the ring buffer's descriptor.
func (r *StressRing) FileDescriptor() int { return r.events.FileDescriptor() }

// Produce writes records until stop is closed. Call it in one goroutine for each producer. Each
// producer has a CPU of its own.
func (r *StressRing) Produce(producer int, stop <-chan struct{}) {
	runtime.LockOSThread() // for good: the thread ends with its goroutine
	var cpus cpuSet
	cpus[producer/64] = 1 << (producer % 64)
	affinity(syscall.SYS_SCHED_SETAFFINITY, 0, &cpus) // without this CPU, any will do
	rng := rand.New(rand.NewPCG(r.seed, uint64(producer)))
	for {
		select {
		case <-stop:
			return
		default:
		}
		run(r.tb, r.produce, uint64(producer), uint64(1+rng.IntN(maxRecords)))
		if rng.IntN(50) == 0 {
			// Let readers become idle sometimes.
			pause := syscall.NsecToTimespec(rng.Int64N(3e6) >> rng.IntN(10))
			syscall.Nanosleep(&pause, nil)
		}
	}
}

// A Counter counts the records of a producer.
type Counter struct{ Accepted, Refused uint64 }

// Counters returns the counters of all producers.
func (r *StressRing) Counters() []Counter {
	var all [maxProducers]Counter
	key := uint32(0)
	value, err := r.variables.GetValue(unsafe.Pointer(&key))
	if err == nil {
		_, err = binary.Decode(value, binary.NativeEndian, &all)
	}
	if err != nil {
		r.tb.Fatal(err)
	}
	return all[:r.Producers]
}

// A RecordID identifies a record: the producer and its number.
type RecordID uint64

// ID returns the identity of record n of a producer.
func ID(producer int, n uint64) RecordID { return RecordID(uint64(producer)<<48 | n) }

// IDSize is the size of the smallest sample that begins with its identity.
const IDSize = 8

// IDOf returns the identity of a sample of at least IDSize.
func IDOf(sample []byte) RecordID { return RecordID(binary.NativeEndian.Uint64(sample)) }

// Producer returns the number of the record's producer.
func (id RecordID) Producer() int { return int(id >> 48) }

// Seq returns the record's number, counted for each producer.
func (id RecordID) Seq() uint64 { return uint64(id) & (1<<48 - 1) }

func (id RecordID) String() string {
	return fmt.Sprintf("record %d of producer %d", id.Seq(), id.Producer())
}

// random has the same result as random_of of stress.bpf.c.
func (r *StressRing) random(id RecordID) uint64 {
	x := r.seed + uint64(id)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Planned returns the size of a record's sample, or reports that the record is discarded.
func (r *StressRing) Planned(id RecordID) (size int, discarded bool) {
	random := r.random(id)
	switch {
	case random&7 == 0:
		return 0, true
	case random>>4&63 != 0:
		return int(random >> 32 & 127), false
	case random>>10&3 != 0:
		return int(random >> 32 & 2047), false
	}
	return int(random >> 32 % (r.maxSample + 1) >> (random >> 12 & 15)), false
}

// Check returns an error if a sample differs from what was written.
func (r *StressRing) Check(sample []byte) error {
	if len(sample) < IDSize {
		return nil // it may be a piece of any record
	}
	id := IDOf(sample)
	if id.Producer() >= r.Producers {
		return fmt.Errorf("a sample of %d bytes begins with %x", len(sample), sample[:IDSize])
	}
	size, discarded := r.Planned(id)
	if discarded {
		return fmt.Errorf("%v came though discarded", id)
	}
	if len(sample) != size {
		return fmt.Errorf("%v has %d bytes, want %d", id, len(sample), size)
	}
	offset := r.random(id) >> 16 & (offsets - IDSize)
	if want := r.content[offset:][:size]; !bytes.Equal(sample[IDSize:], want[IDSize:]) {
		return fmt.Errorf("%v of %d bytes has other bytes than were written", id, size)
	}
	return nil
}

// Serve writes n records of 8 bytes, numbered from 0. It writes each when the previous one has
// been drained. It ends early if stop is closed.
func (r *StressRing) Serve(n uint64, stop <-chan struct{}) { r.write(r.serve, n, stop) }

// Fill writes n records that fill the ring and begin with their number, from 0. It writes each
// as soon as the previous one has been drained. It ends early if stop is closed.
func (r *StressRing) Fill(n uint64, stop <-chan struct{}) { r.write(r.fill, n, stop) }

func (r *StressRing) write(prog *bpf.BPFProg, n uint64, stop <-chan struct{}) {
	for written := uint64(0); written < n; {
		select {
		case <-stop:
			return
		default:
		}
		written += uint64(run(r.tb, prog, min(n-written, maxRecords)))
	}
}
