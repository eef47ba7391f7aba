package ringbuf

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"testing"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// The structs of internal/bpftest/flex.bpf.c without their arrays, and the elements of these.
type (
	flexHead struct {
		A uint64
		B uint32
	}
	flexByteHead struct {
		A uint64
		B uint8
	}
	flexSmallHead struct {
		A uint32
		B uint8
	}
	flexHalfHead struct {
		A uint64
		B uint16
	}
	flexNestedHead struct {
		A  uint16
		In flexInner
	}
	flexArrayHead struct {
		A uint64
		B [3]uint8
	}
	flexTailedHead struct {
		A uint64
		B [1]flexTailed
	}

	flexInner struct {
		B uint64
		C uint8
	}
	flexTailed struct {
		X uint32
		Y uint8
	}
	flexTriple struct{ X, Y, Z uint8 }
	flexShorts struct{ X, Y, Z uint16 }
	flexTen    struct{ X [5]uint16 }
)

// A flexView is the result of AsFlex.
type flexView struct {
	head     any
	elements []any
	array    []byte // memory of the elements, to its capacity
	memory   []byte // of the head, with its padding
}

// placeOf returns the offset in sample at which memory begins, or -1.
func placeOf(memory, sample []byte) int {
	offset := uintptr(unsafe.Pointer(unsafe.SliceData(memory))) - uintptr(
		unsafe.Pointer(unsafe.SliceData(sample)))
	if len(memory) == 0 || offset >= uintptr(len(sample)) {
		return -1
	}
	return int(offset)
}

// A flexKind is a pair of types for AsFlex, with the values that the program writes.
type flexKind struct {
	name    string
	kind    int
	c       bpftest.FlexLayout
	view    func(sample []byte) (flexView, error)
	as      func(sample []byte) error // As of the head
	size    int                       // of the head
	head    any
	element func(i int) any
}

func newFlexKind[T, E any](name string, kind int, c bpftest.FlexLayout, head T,
	element func(i int) E) flexKind {
	var e E
	return flexKind{
		name: name,
		kind: kind,
		c:    c,
		view: func(sample []byte) (v flexView, err error) {
			head, array, err := AsFlex[T, E](Record{RawSample: sample})
			if err != nil {
				if head != nil || array != nil {
					err = fmt.Errorf("%w, and with it %v, %v", err, head, array)
				}
				return v, err
			}
			v.head = *head
			v.memory = unsafe.Slice((*byte)(unsafe.Pointer(head)), unsafe.Sizeof(*head))
			for _, e := range array {
				v.elements = append(v.elements, e)
			}
			v.array = unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(array))),
				uintptr(cap(array))*unsafe.Sizeof(e))
			return v, nil
		},
		as: func(sample []byte) error {
			_, err := As[T](Record{RawSample: sample})
			return err
		},
		size:    int(unsafe.Sizeof(head)),
		head:    head,
		element: func(i int) any { return element(i) },
	}
}

var flexKinds = []flexKind{
	newFlexKind("u8", bpftest.FlexOfU8, bpftest.FlexLayout{Offset: 12, Size: 16, Align: 8,
		ElementSize: 1},
		flexHead{1, 2}, func(i int) uint8 { return uint8(10 + i) }),
	newFlexKind("u16", bpftest.FlexOfU16, bpftest.FlexLayout{Offset: 12, Size: 16, Align: 8,
		ElementSize: 2},
		flexHead{1, 2}, func(i int) uint16 { return uint16(10 + i) }),
	newFlexKind("u32", bpftest.FlexOfU32, bpftest.FlexLayout{Offset: 8, Size: 8, Align: 4,
		ElementSize: 4},
		flexSmallHead{1, 2}, func(i int) uint32 { return uint32(10 + i) }),
	newFlexKind("u64", bpftest.FlexOfU64, bpftest.FlexLayout{Offset: 8, Size: 8, Align: 8,
		ElementSize: 8},
		struct{ A uint32 }{1}, func(i int) uint64 { return uint64(10 + i) }),
	newFlexKind("tailed", bpftest.FlexOfTailed, bpftest.FlexLayout{Offset: 12, Size: 16, Align: 8,
		ElementSize: 8},
		flexByteHead{1, 2}, func(i int) flexTailed { return flexTailed{uint32(10 + i), uint8(20 + i)} }),
	newFlexKind("triple", bpftest.FlexOfTriple, bpftest.FlexLayout{Offset: 9, Size: 16, Align: 8,
		ElementSize: 3},
		flexByteHead{1, 2}, func(i int) flexTriple {
			return flexTriple{uint8(10 + i), uint8(20 + i),
				uint8(30 + i)}
		}),
	newFlexKind("shorts", bpftest.FlexOfShorts, bpftest.FlexLayout{Offset: 12, Size: 16, Align: 8,
		ElementSize: 6},
		flexHead{1, 2}, func(i int) flexShorts {
			return flexShorts{uint16(10 + i), uint16(20 + i),
				uint16(30 + i)}
		}),
	newFlexKind("ten", bpftest.FlexOfTen, bpftest.FlexLayout{Offset: 10, Size: 16, Align: 8,
		ElementSize: 10},
		flexHalfHead{1, 2}, func(i int) flexTen {
			const unset = math.MaxUint16
			return flexTen{[5]uint16{uint16(10 + i), unset, unset, unset, uint16(20 + i)}}
		}),
	newFlexKind("nested", bpftest.FlexNested, bpftest.FlexLayout{Offset: 24, Size: 24, Align: 8,
		ElementSize: 1},
		flexNestedHead{1, flexInner{2, 3}}, func(i int) uint8 { return uint8(10 + i) }),
	newFlexKind("array last", bpftest.FlexArrayLast, bpftest.FlexLayout{Offset: 11, Size: 16,
		Align: 8, ElementSize: 1},
		flexArrayHead{1, [3]uint8{2, math.MaxUint8, 3}}, func(i int) uint8 { return uint8(10 + i) }),
	newFlexKind("tailed last", bpftest.FlexTailedLast, bpftest.FlexLayout{Offset: 16, Size: 16,
		Align: 8, ElementSize: 2},
		flexTailedHead{1, [1]flexTailed{{2, 3}}}, func(i int) uint16 { return uint16(10 + i) }),
	newFlexKind("scalar", bpftest.FlexScalar, bpftest.FlexLayout{Offset: 8, Size: 8, Align: 8,
		ElementSize: 8},
		uint16(1), func(i int) uint64 { return uint64(10 + i) }),
}

// eachFlexKind calls test for each kind, with a ring and a Reader of it. It fails unless the
// layout of the kind is what the C compiler says.
func eachFlexKind(t *testing.T, test func(t *testing.T, ring *bpftest.FlexRing, r *Reader,
	k flexKind)) {
	for _, k := range flexKinds {
		t.Run(k.name, func(t *testing.T) {
			ring := bpftest.NewFlex(t)
			r := mustNewReader(t, ring)
			ring.EmitLayout(k.kind)
			c, err := As[bpftest.FlexLayout](mustRead(t, r))
			if err != nil || *c != k.c {
				t.Fatalf("the C compiler says %+v, want %+v; %v", c, k.c, err)
			}
			test(t, ring, r, k)
		})
	}
}

// ofThatSize returns a copy of sample, aligned to 8 bytes. With AddressSanitizer, a read behind
// it ends the process.
func ofThatSize(sample []byte) []byte {
	memory := make([]byte, len(sample))
	if uintptr(unsafe.Pointer(unsafe.SliceData(memory)))%8 != 0 {
		memory = make([]byte, len(sample)+16)[:len(sample)]
	}
	copy(memory, sample)
	return memory
}

// TestAsFlexViewsWhatTheProgramWrote views structs whose layout the C compiler has chosen: in
// the ring, in memory from Read, and in memory of exactly their size.
func TestAsFlexViewsWhatTheProgramWrote(t *testing.T) {
	eachFlexKind(t, func(t *testing.T, ring *bpftest.FlexRing, r *Reader, k flexKind) {
		offset, elementSize := int(k.c.Offset), int(k.c.ElementSize)
		check := func(sample []byte, n int) {
			t.Helper()
			v, err := k.view(sample)
			if err != nil {
				t.Fatalf("%d bytes with %d elements: %v", len(sample), n, err)
			}
			if v.head != k.head {
				t.Errorf("of %d bytes the head is %+v, want %+v", len(sample), v.head, k.head)
			}
			if shared := placeOf(v.memory, sample) == 0; shared != (len(sample) >= k.size) {
				t.Errorf("of %d bytes the head is in the sample: %v; it has %d bytes", len(sample), shared,
					k.size)
			}
			// If the padding was submitted too, more elements may fit.
			if all := (len(sample) - offset) / elementSize; len(v.elements) != all ||
				len(v.array) != all*elementSize {
				t.Fatalf("of %d bytes there are %d elements and room for %d bytes, want %d elements",
					len(sample), len(v.elements), len(v.array), all)
			}
			if at := placeOf(v.array, sample); len(v.elements) > 0 && at != offset {
				t.Errorf("the array begins at byte %d, want %d", at, offset)
			}
			for i := range n {
				if v.elements[i] != k.element(i) {
					t.Errorf("of %d bytes element %d is %+v, want %+v", len(sample), i, v.elements[i],
						k.element(i))
				}
			}
		}
		for n := range 9 {
			for _, padded := range []bool{false, true} {
				size := offset + n*elementSize
				if padded {
					size = int(k.c.Size) + n*elementSize
				}
				for range 2 {
					ring.Emit(bpftest.FlexSample{Kind: k.kind, Elements: n, Padded: padded})
				}
				for rec, err := range r.Records(t.Context()) {
					if err != nil || len(rec.RawSample) != size {
						t.Fatalf("there is a sample of %d bytes, %v; want %d", len(rec.RawSample), err, size)
					}
					check(rec.RawSample, n)
					break
				}
				sample := mustRead(t, r).RawSample
				check(sample, n)
				check(ofThatSize(sample), n)
			}
		}
	})
}

// TestAsFlexTakesWholeElementsOnly tries every size of a sample.
func TestAsFlexTakesWholeElementsOnly(t *testing.T) {
	eachFlexKind(t, func(t *testing.T, ring *bpftest.FlexRing, r *Reader, k flexKind) {
		offset, padded, elementSize := int(k.c.Offset), int(k.c.Size), int(k.c.ElementSize)
		head, element := reflect.TypeOf(k.head), reflect.TypeOf(k.element(0))
		ring.Emit(bpftest.FlexSample{Kind: k.kind, Elements: 4})
		whole := mustRead(t, r).RawSample
		for size := range len(whole) + 1 {
			want := ""
			if size < offset {
				want = fmt.Sprintf("ringbuf: sample of %d bytes is too short for %v, behind which an array "+
					"of %v begins at byte %d",
					size, head, element, offset)
			} else if (size-offset)%elementSize != 0 && (size < padded || (size-padded)%elementSize != 0) {
				want = fmt.Sprintf("ringbuf: sample of %d bytes ends in the middle of an element: behind %v "+
					"it has %d of %v, "+
					"of %d bytes each, from byte %d on, and %d bytes more",
					size, head, (size-offset)/elementSize, element, elementSize, offset, (size-offset)%elementSize)
			}
			v, err := k.view(ofThatSize(whole[:size]))
			switch {
			case want != "":
				wantViewError(t, err, want)
			case err != nil || v.head != k.head:
				t.Errorf("of %d bytes the head is %+v, %v", size, v.head, err)
			}
		}
	})
}

// TestAsFlexWantsTheAlignmentOfTheWholeStruct places samples at every address.
func TestAsFlexWantsTheAlignmentOfTheWholeStruct(t *testing.T) {
	eachFlexKind(t, func(t *testing.T, ring *bpftest.FlexRing, r *Reader, k flexKind) {
		ring.Emit(bpftest.FlexSample{Kind: k.kind, Elements: 2})
		sample := mustRead(t, r).RawSample
		memory := make([]byte, 256)
		for at := range 16 {
			_, err := k.view(append(memory[at:at], sample...))
			if aligned := at%int(k.c.Align) == 0; aligned != (err == nil) {
				t.Errorf("at an address that is %d from one aligned to 16 bytes: %v", at, err)
			}
		}
	})
}

// TestAsSaysWhereAShortSampleLacksNothingButPadding looks at the shortest records of all kinds.
func TestAsSaysWhereAShortSampleLacksNothingButPadding(t *testing.T) {
	_, err := As[flexHead](Record{RawSample: ofThatSize(make([]byte, 12))})
	wantViewError(t, err,
		"ringbuf: sample of 12 bytes is too short for ringbuf.flexHead of 16 bytes, "+
			"the last 4 of which are padding: AsFlex takes it")
	_, err = As[flexHead](Record{RawSample: make([]byte, 11)})
	wantViewError(t, err, "ringbuf: sample of 11 bytes is too short for ringbuf.flexHead of 16 bytes")
	eachFlexKind(t, func(t *testing.T, ring *bpftest.FlexRing, r *Reader, k flexKind) {
		ring.Emit(bpftest.FlexSample{Kind: k.kind})
		sample := mustRead(t, r).RawSample
		if err := k.as(sample); (err == nil) != (len(sample) >= k.size) {
			t.Errorf("of %d bytes As makes %d: %v", len(sample), k.size, err)
		}
	})
}

func TestAsFlexRefusesTypesAsAsDoes(t *testing.T) {
	rec := Record{RawSample: ofThatSize(make([]byte, 64))}
	const isInt = "int cannot view a sample: it is an int, whose size depends on the platform: use " +
		"int64 or int32"
	_, _, err := AsFlex[int, byte](rec)
	wantViewError(t, err, "ringbuf: "+isInt)
	_, _, err = AsFlex[uint32, int](rec)
	wantViewError(t, err, "ringbuf: "+isInt)
	_, _, err = AsFlex[struct{ S string }, byte](rec)
	wantViewError(t, err,
		"ringbuf: struct { S string } cannot view a sample: field S is a string, which has a pointer")
	_, _, err = AsFlex[uint32, struct{}](rec)
	wantViewError(t, err, "ringbuf: struct {} cannot view a sample: it has size 0")
	_, _, err = AsFlex[struct {
		N    uint32
		Data [0]byte
	}, byte](rec)
	wantViewError(t, err,
		"ringbuf: struct { N uint32; Data [0]uint8 } cannot view a sample: field Data is the last one "+
			"and has size 0, for which Go adds padding that C does not")
}

func TestTheHeadOfAShortSampleIsItsOwn(t *testing.T) {
	sample := ofThatSize(make([]byte, 12))
	head, array, err := AsFlex[flexHead, byte](Record{RawSample: sample})
	if err != nil || array != nil {
		t.Fatal(array, err)
	}
	*head = flexHead{1, 2}
	if !bytes.Equal(sample, make([]byte, 12)) {
		t.Errorf("a write to the copy changed the sample to %x", sample)
	}
}

func TestAsFlexDoesNotAllocateForAView(t *testing.T) {
	rec := Record{RawSample: ofThatSize(make([]byte, 20))}
	allocs := testing.AllocsPerRun(100, func() {
		if _, _, err := AsFlex[flexHead, uint16](rec); err != nil {
			t.Fatal(err)
		}
	})
	head, element := reflect.TypeFor[flexHead](), reflect.TypeFor[uint16]()
	lookups := testing.AllocsPerRun(100, func() { // see TestAsDoesNotAllocate
		viewable.Load(head)
		viewable.Load(element)
	})
	if allocs != lookups {
		t.Errorf("AsFlex allocates %v times, and to look up two types %v times", allocs, lookups)
	}
}
