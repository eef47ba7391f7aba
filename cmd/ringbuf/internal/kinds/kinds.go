// Package kinds submits samples for tests: samples with values of each kind that BTF knows, and
// many numbered ones. C lays them out and fills them in.
package kinds

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

//go:embed kinds.bpf.o
var object []byte

// Object returns the object file of the program, with its BTF.
func Object() []byte { return object }

// The samples, in the order of enum which of kinds.bpf.c. Count is their number.
const (
	Integers = iota
	Bits
	Others
	Compound
	Items
	Arguments
	Outer
	Count
)

// A Submitter is the loaded program, with its ring.
type Submitter struct {
	tb     testing.TB
	Events *ebpf.Map
	submit *ebpf.Program
	flood  *ebpf.Program
}

// New loads the program, with a ring of this size in bytes, until the end of the test. If this
// process may not load BPF programs, New skips the test, or fails it if the environment has
// RINGBUF_KERNEL_TESTS=require. New also skips the test if the kernel does not know all the kinds.
func New(tb testing.TB, size int) *Submitter {
	tb.Helper()
	_ = rlimit.RemoveMemlock() // for kernels before 5.11; if it may not, loading fails too
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		tb.Fatal(err)
	}
	spec.Maps["events"].MaxEntries = uint32(size)
	collection, err := ebpf.NewCollection(spec)
	if errors.Is(err, syscall.EINVAL) && strings.Contains(err.Error(), "load btf") {
		tb.Skip("needs Linux 6.0") // for enums of 64 bits; internal/vmtest knows these words
	}
	if err != nil {
		SkipOrFail(tb, err)
	}
	tb.Cleanup(collection.Close)
	return &Submitter{tb: tb, Events: collection.Maps["events"],
		submit: collection.Programs["submit"], flood: collection.Programs["flood"]}
}

// SkipOrFail ends a test that cannot load BPF programs because of err. If a permission is
// missing, it skips the test, unless the environment has RINGBUF_KERNEL_TESTS=require. Otherwise
// it fails it.
func SkipOrFail(tb testing.TB, err error) {
	tb.Helper()
	if errors.Is(err, syscall.EPERM) && os.Getenv("RINGBUF_KERNEL_TESTS") != "require" {
		tb.Skipf("this process cannot load BPF programs: %v", err)
	}
	tb.Fatalf("load BPF programs: %v", err)
}

// MAP returns the arguments of the tool that select the ring.
func (s *Submitter) MAP() []string {
	s.tb.Helper()
	info, err := s.Events.Info()
	if err != nil {
		s.tb.Fatal(err)
	}
	id, _ := info.ID()
	return []string{"id", fmt.Sprint(id)}
}

// Submit submits a sample with more bytes added at its end or, if more is negative, cut off.
func (s *Submitter) Submit(which, more int) {
	s.tb.Helper()
	if result := s.run(s.submit, uint64(which), uint64(more)); result != 0 {
		s.tb.Fatalf("submit sample %d with %d bytes more: %d", which, more, int32(result))
	}
}

// NumberedSize is the size of a numbered sample, and RecordSize that of its record.
const (
	NumberedSize = 64
	RecordSize   = NumberedSize + 8
)

const maxFlood = 4096

// Flood submits up to n samples with numbers from first on. It returns how many the ring had room
// for.
func (s *Submitter) Flood(first, n int) (added int) {
	s.tb.Helper()
	for added < n {
		want := min(n-added, maxFlood)
		got := int(s.run(s.flood, uint64(first+added), uint64(want)))
		added += got
		if got < want {
			break
		}
	}
	return added
}

// Numbered returns the sample that kinds.bpf.c makes for a number.
func Numbered(number int) []byte {
	b := make([]byte, 0, NumberedSize)
	for i := range uint64(NumberedSize / 8) {
		b = binary.NativeEndian.AppendUint64(b, uint64(number)*(i+1))
	}
	return b
}

func (s *Submitter) run(prog *ebpf.Program, args ...uint64) uint32 {
	s.tb.Helper()
	var context []byte
	for _, arg := range args {
		context = binary.NativeEndian.AppendUint64(context, arg)
	}
	result, err := prog.Run(&ebpf.RunOptions{Context: context})
	if err != nil {
		s.tb.Fatal(err)
	}
	return result
}
