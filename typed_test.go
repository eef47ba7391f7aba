package ringbuf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"structs"
	"testing"
	"unsafe"
)

// typedEvent is struct typed_event of C:
//
//	struct typed_event {
//		__u8 kind;
//		__u64 when;                          // at 8
//		struct { __s16 x; __s32 y; } at[2];  // at 16, y of the first at 20
//		float ratio;                         // at 32
//		_Complex double z;                   // at 40
//		char name[5];                        // at 56
//		__s8 last;                           // at 61
//	};                                           // 64 bytes
type typedEvent struct {
	_    structs.HostLayout
	Kind uint8
	When uint64
	At   [2]struct {
		X int16
		Y int32
	}
	Ratio float32
	Z     complex128
	Name  [5]byte
	Last  int8
}

// typedSample returns the bytes of a typedEvent, written offset by offset, with padding of
// 0xff and then the bytes of more.
func typedSample(more string) []byte {
	sample := bytes.Repeat([]byte{0xff}, 64)
	order := binary.NativeEndian
	sample[0] = 7
	order.PutUint64(sample[8:], 1<<63+1)
	for i, v := range []int{-300, 70_000, 300, -70_000} {
		if i%2 == 0 {
			order.PutUint16(sample[16+4*i:], uint16(v))
		} else {
			order.PutUint32(sample[16+4*i:], uint32(v))
		}
	}
	order.PutUint32(sample[32:], math.Float32bits(0.5))
	order.PutUint64(sample[40:], math.Float64bits(-1.25))
	order.PutUint64(sample[48:], math.Float64bits(math.Inf(1)))
	copy(sample[56:], "abcde")
	sample[61] = 0x80
	return append(sample, more...)
}

func wantTypedEvent(t *testing.T, got *typedEvent) {
	t.Helper()
	want := typedEvent{Kind: 7, When: 1<<63 + 1, Ratio: 0.5, Z: complex(-1.25, math.Inf(1)),
		Name: [5]byte([]byte("abcde")), Last: -128}
	want.At[0].X, want.At[0].Y = -300, 70_000
	want.At[1].X, want.At[1].Y = 300, -70_000
	if *got != want {
		t.Errorf("the view is %+v, want %+v", *got, want)
	}
}

func TestAsViewsWhatTheProgramWrote(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	for _, more := range []string{"", "and more"} {
		sample := text(string(typedSample(more)))
		ring.Emit(sample, sample)
		rec := mustRead(t, r)
		into := Record{RawSample: make([]byte, 0, 80)}
		if err := r.ReadInto(&into); err != nil {
			t.Fatal(err)
		}
		for _, rec := range []Record{rec, into} {
			view, err := As[typedEvent](rec)
			if err != nil {
				t.Fatal(err)
			}
			wantTypedEvent(t, view)
			if rest := string(rec.RawSample[unsafe.Sizeof(*view):]); rest != more {
				t.Errorf("after the view comes %q, want %q", rest, more)
			}
		}
	}
}

func TestAsSharesTheMemoryOfTheSample(t *testing.T) {
	rec := Record{RawSample: typedSample("")}
	view, err := As[typedEvent](rec)
	if err != nil {
		t.Fatal(err)
	}
	view.Name[4] = 'X'
	rec.RawSample[0] = 9
	if got := string(rec.RawSample[56:61]); got != "abcdX" || view.Kind != 9 {
		t.Errorf("the sample has the name %q and the view the kind %d, want abcdX and 9", got, view.Kind)
	}
}

// viewed returns sample as a T, or the error of As.
func viewed[T any](sample []byte) (any, error) {
	view, err := As[T](Record{RawSample: sample})
	if err != nil {
		return nil, err
	}
	return *view, nil
}

func TestAsTakesEveryTypeOfFixedLayout(t *testing.T) {
	type (
		named uint16
		blank struct {
			A uint8
			_ [3]byte
			B uint32
		}
		aligned struct {
			_ [0]uint64
			A uint32
		}
	)
	sample := make([]byte, 16)
	for i := range sample {
		sample[i] = byte(i + 1)
	}
	order := binary.NativeEndian
	u32, u64 := order.Uint32(sample), order.Uint64(sample)
	for _, tt := range []struct {
		view func([]byte) (any, error)
		want any
	}{
		{viewed[int8], int8(1)},
		{viewed[int16], int16(order.Uint16(sample))},
		{viewed[int32], int32(u32)},
		{viewed[int64], int64(u64)},
		{viewed[uint8], uint8(1)},
		{viewed[uint16], order.Uint16(sample)},
		{viewed[uint32], u32},
		{viewed[uint64], u64},
		{viewed[float32], math.Float32frombits(u32)},
		{viewed[float64], math.Float64frombits(u64)},
		{viewed[complex64], complex(math.Float32frombits(u32),
			math.Float32frombits(order.Uint32(sample[4:])))},
		{viewed[complex128], complex(math.Float64frombits(u64),
			math.Float64frombits(order.Uint64(sample[8:])))},
		{viewed[named], named(order.Uint16(sample))},
		{viewed[[2][2]byte], [2][2]byte{{1, 2}, {3, 4}}},
		{viewed[struct{ _ uint32 }], struct{ _ uint32 }{}},
		{viewed[aligned], aligned{A: u32}},
	} {
		if got, err := tt.view(sample); got != tt.want {
			t.Errorf("the view is %#v, %v; want %#v", got, err, tt.want)
		}
	}
	if got, err := As[blank](Record{RawSample: sample}); err != nil || got.A != 1 ||
		got.B != order.Uint32(sample[4:]) {
		t.Errorf("the view is %+v, %v", got, err)
	}
}

func wantViewError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("As returned the error %v, want %s", err, want)
	}
}

func TestAsRefusesTypesWithoutFixedLayout(t *testing.T) {
	type (
		label  string
		nested struct {
			Good  uint32
			Inner struct {
				Data [2][3]struct{ P label }
			}
		}
		embedded struct {
			fmt.Stringer
		}
		flexible struct {
			Len  uint32
			Data [0]byte
		}
		inside struct {
			F []flexible
			_ int
		}
	)
	sample := make([]byte, 128)
	for _, tt := range []struct {
		view func([]byte) (any, error)
		want string
	}{
		{viewed[*typedEvent], "*ringbuf.typedEvent cannot view a sample: it is a pointer"},
		{viewed[unsafe.Pointer], "unsafe.Pointer cannot view a sample: it is a pointer"},
		{viewed[string], "string cannot view a sample: it is a string, which has a pointer"},
		{viewed[[]byte], "[]uint8 cannot view a sample: it is a slice, which has a pointer"},
		{viewed[map[int8]int8], "map[int8]int8 cannot view a sample: it is a map, which has a pointer"},
		{viewed[chan int8], "chan int8 cannot view a sample: it is a chan, which has a pointer"},
		{viewed[func()], "func() cannot view a sample: it is a func, which has a pointer"},
		{viewed[any], "interface {} cannot view a sample: it is an interface, which has a pointer"},
		{viewed[error], "error cannot view a sample: it is an interface, which has a pointer"},
		{viewed[int], "int cannot view a sample: it is an int, whose size depends on the platform: use " +
			"int64 or int32"},
		{viewed[uint], "uint cannot view a sample: it is a uint, whose size depends on the platform: " +
			"use uint64 or uint32"},
		{viewed[uintptr], "uintptr cannot view a sample: it is a uintptr, whose size depends on the " +
			"platform: use uint64 or uint32"},
		{viewed[bool], "bool cannot view a sample: it is a bool, and a byte of a sample may be neither " +
			"0 nor 1: use uint8"},
		{viewed[struct{}], "struct {} cannot view a sample: it has size 0"},
		{viewed[[0]uint64], "[0]uint64 cannot view a sample: it has size 0"},
		{viewed[structs.HostLayout], "structs.HostLayout cannot view a sample: it has size 0"},
		{viewed[[0]int], "[0]int cannot view a sample: field [] is an int, whose size depends on the " +
			"platform: use int64 or int32"},
		{viewed[[2]bool], "[2]bool cannot view a sample: field [] is a bool, and a byte of a sample " +
			"may be neither 0 nor 1: use uint8"},
		{viewed[nested], "ringbuf.nested cannot view a sample: field Inner.Data[][].P is a string, " +
			"which has a pointer"},
		{viewed[embedded], "ringbuf.embedded cannot view a sample: field Stringer is an interface, " +
			"which has a pointer"},
		{viewed[inside], "ringbuf.inside cannot view a sample: field F is a slice, which has a pointer"},
		{viewed[struct{ _ int }],
			"struct { _ int } cannot view a sample: field _ is an int, whose size depends on the " +
				"platform: use int64 or int32"},
		{viewed[flexible], "ringbuf.flexible cannot view a sample: field Data is the last one and has " +
			"size 0, for which Go adds padding that C does not"},
		{viewed[[1]flexible],
			"[1]ringbuf.flexible cannot view a sample: field [].Data is the last one and has size 0, for " +
				"which Go adds padding that C does not"},
	} {
		// The second error must be the same.
		for range 2 {
			_, err := tt.view(sample)
			wantViewError(t, err, "ringbuf: "+tt.want)
		}
	}
}

func TestAsRefusesShortSamples(t *testing.T) {
	for _, size := range []int{0, 1, 61} {
		_, err := As[typedEvent](Record{RawSample: make([]byte, size)})
		wantViewError(t, err,
			fmt.Sprintf("ringbuf: sample of %d bytes is too short for ringbuf.typedEvent of 64 bytes", size))
	}
	_, err := As[uint8](Record{})
	wantViewError(t, err, "ringbuf: sample of 0 bytes is too short for uint8 of 1 bytes")

	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text(""))
	_, err = As[uint16](mustRead(t, r))
	wantViewError(t, err, "ringbuf: sample of 0 bytes is too short for uint16 of 2 bytes")
}

func TestAsRefusesMemoryThatIsNotAligned(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text(string(typedSample(""))))
	memory := make([]byte, 128) // aligned to much more than 8
	rec := Record{RawSample: memory[4:]}
	if err := r.ReadInto(&rec); err != nil {
		t.Fatal(err)
	}
	_, err := As[typedEvent](rec)
	want := fmt.Sprintf("ringbuf: sample at address %p is not aligned to 8 bytes, as "+
		"ringbuf.typedEvent must be: "+
		"the memory that RawSample had before ReadInto is not", &memory[4])
	wantViewError(t, err, want)

	// As takes a type for which the alignment of the memory is sufficient.
	view, err := As[[16]uint32](rec)
	if err != nil || view[9] != math.MaxUint32 {
		t.Errorf("As returned %v, %v", view, err)
	}
	rec.RawSample = rec.RawSample[1:]
	if _, err := As[uint16](rec); err == nil ||
		!strings.Contains(err.Error(), "not aligned to 2 bytes") {
		t.Errorf("at an odd address As returned the error %v", err)
	}
	if _, err := As[[63]byte](rec); err != nil {
		t.Error(err)
	}
}

// TestSamplesAreAligned checks what the documentation of As says about memory that the caller
// has not chosen.
func TestSamplesAreAligned(t *testing.T) {
	ring, r := newRingAndReader(t, 16*os.Getpagesize())
	for _, size := range []int{8, 9, 15, 17, 100, 2048, 2048 + 1, 3*2048 + 7} {
		for range 4 {
			ring.Emit(text(strings.Repeat("x", size)))
		}
		for i := range 4 {
			var rec Record
			if i%2 == 0 {
				rec = mustRead(t, r)
			} else if err := r.ReadInto(&rec); err != nil {
				t.Fatal(err)
			}
			if _, err := As[uint64](rec); err != nil || len(rec.RawSample) != size {
				t.Errorf("a sample of %d bytes, want %d: %v", len(rec.RawSample), size, err)
			}
		}
	}
}

func TestAsDoesNotAllocate(t *testing.T) {
	rec := Record{RawSample: typedSample("")}
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := As[typedEvent](rec); err != nil {
			t.Fatal(err)
		}
	})
	// With AddressSanitizer, and only then, sync.Map allocates.
	event := reflect.TypeFor[typedEvent]()
	lookup := testing.AllocsPerRun(100, func() { viewable.Load(event) })
	if allocs != lookup {
		t.Errorf("As allocates %v times, and to look up a type %v times", allocs, lookup)
	}
}

func BenchmarkAs(b *testing.B) {
	rec := Record{RawSample: typedSample("")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := As[typedEvent](rec); err != nil {
			b.Fatal(err)
		}
	}
}

func TestSamplesAreRecordsOfOneType(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("12345678"), text("1234567"), text("87654321+"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	for v, err := range Samples[[8]byte](ctx, r) {
		switch {
		case err == nil:
			got = append(got, string(v[:]))
		case v != nil:
			t.Errorf("%v comes with a value", err)
		case errors.Is(err, context.Canceled):
			got = append(got, "canceled")
		default:
			got = append(got, err.Error())
		}
		if len(got) == 3 {
			cancel()
		}
	}
	want := []string{"12345678", "ringbuf: sample of 7 bytes is too short for [8]uint8 of 8 bytes",
		"87654321", "canceled"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the loop saw %q, want %q", got, want)
	}

	ring.Emit(text("12345678"))
	times := 0
	for v, err := range Samples[[8]bool](t.Context(), r) {
		if times++; v != nil || err == nil || !strings.Contains(err.Error(), "is a bool") {
			t.Errorf("the loop saw %v, %v", v, err)
		}
	}
	if times != 1 {
		t.Errorf("the loop saw %d errors, want 1", times)
	}
	wantSample(t, r, "12345678")
}

func TestSamplesEndWhereTheLoopDoes(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("12345678"), text("87654321"))
	for range Samples[uint64](t.Context(), r) {
		break
	}
	wantSample(t, r, "87654321")
}
