package bpftest

import (
	_ "embed"
	"os"
	"testing"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

//go:embed flex.bpf.o
var flexObject []byte

// Kinds of structs of flex.bpf.c.
const (
	FlexOfU8 = iota
	FlexOfU16
	FlexOfU32
	FlexOfU64
	FlexOfTailed
	FlexOfTriple
	FlexOfShorts
	FlexOfTen
	FlexNested
	FlexArrayLast
	FlexTailedLast
	FlexScalar
)

// A FlexSample asks for a struct with a flexible array member.
type FlexSample struct {
	Kind     int
	Elements int  // up to 8
	Padded   bool // sizeof(struct) bytes and the elements, not offsetof
	Extra    int  // additional bytes; may be negative
}

// A FlexLayout is the layout that the C compiler gives to a struct: struct layout of
// flex.bpf.c.
type FlexLayout struct{ Offset, Size, Align, ElementSize uint32 }

// A FlexRing is a BPF ring buffer with a program that writes structs with flexible array
// members.
type FlexRing struct {
	tb     testing.TB
	events *bpf.BPFMap
	emit   *bpf.BPFProg
}

// NewFlex returns a ring of one page. See New.
func NewFlex(tb testing.TB) *FlexRing {
	tb.Helper()
	module, err := bpfobj.Load(flexObject, func(module *bpf.Module) error {
		events, err := module.GetMap("events")
		if err != nil {
			return err
		}
		return events.SetMaxEntries(uint32(os.Getpagesize()))
	})
	if err != nil {
		skipOrFail(tb, err)
	}
	tb.Cleanup(module.Close)
	r := &FlexRing{tb: tb}
	if r.events, err = module.GetMap("events"); err != nil {
		tb.Fatal(err)
	}
	if r.emit, err = module.GetProgram("emit_flex"); err != nil {
		tb.Fatal(err)
	}
	return r
}

// FileDescriptor returns the ring buffer's descriptor.
func (r *FlexRing) FileDescriptor() int { return r.events.FileDescriptor() }

// Emit writes a struct. The test fails if it does not fit in the ring.
func (r *FlexRing) Emit(s FlexSample) {
	r.tb.Helper()
	padded := uint64(0)
	if s.Padded {
		padded = 1
	}
	r.run(uint64(s.Kind), uint64(s.Elements), padded, uint64(s.Extra), 0)
}

// EmitLayout writes the FlexLayout of a kind of struct.
func (r *FlexRing) EmitLayout(kind int) {
	r.tb.Helper()
	r.run(uint64(kind), 0, 0, 0, 1)
}

func (r *FlexRing) run(request ...uint64) {
	r.tb.Helper()
	if result := run(r.tb, r.emit, request...); result != 0 {
		r.tb.Fatalf("the program returned %d for %d", int32(result), request)
	}
}
