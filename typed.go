package ringbuf

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"sync"
	"unsafe"
)

// As returns the beginning of rec.RawSample as a *T, without a copy. The view shares the memory of
// RawSample and is valid as long as RawSample is. After a ReadInto that reuses the memory, the view
// shows the next sample. The view of a record that Records or a Lease lends can only be read: a
// write to it is SIGSEGV.
//
// T is a sized integer, a float, a complex number, or an array or struct of these. Go lays out such
// types as C does on 64-bit processors, padding included, unless the C type is packed or has bit
// fields. As refuses types with
//
//   - pointers, or types that contain pointers: strings, slices, maps, interfaces and so on,
//   - int, uint and uintptr, whose size depends on the platform,
//   - bool, because a byte of a sample may be neither 0 nor 1,
//   - no size, or with a last field of size 0, for which Go adds padding that C does not add.
//
// The sample may be longer than T. For a C struct with a flexible array member, see [AsFlex].
//
// The error says which field of T is refused and why, that the sample is too short, or that it is
// not aligned for T. Only samples in memory that the caller passes to ReadInto can be misaligned.
// All others are aligned to 8 bytes, which suffices for every T.
func As[T any](rec Record) (*T, error) {
	t := reflect.TypeFor[T]()
	end, err := fieldsEnd(t)
	if err == nil {
		err = checkView(t, end, rec.RawSample)
	}
	if err != nil {
		return nil, fmt.Errorf("ringbuf: %w", err)
	}
	// SAFETY: the sample has at least the size of T and is aligned as T: checkView. Any bytes make
	// a valid T without pointers: fieldsEnd. The view is valid for as long as RawSample is.
	return (*T)(unsafe.Pointer(unsafe.SliceData(rec.RawSample))), nil
}

// AsFlex is As for a C struct that ends with a flexible array member, such as
//
//	struct event {
//		__u64 time_ns;
//		__u32 pid;
//		__u8 data[];
//	};
//
// T is the struct without that member, and E is the type of its elements. Both must be types that
// As accepts. The array begins at C's offsetof(struct event, data): where the last field of T ends,
// rounded up to the alignment of E. It has all elements of the sample, has no spare capacity, and
// is nil if there are none. The shortest valid sample ends where the array would begin.
//
// Both results share the memory of RawSample, like a view of As. C and Go pad T at its end (here
// from 12 bytes to 16), so that the first elements may lie in the padding of head. If you write to
// a sample, set the fields of head one by one, never *head as a whole. If a sample ends within the
// padding, head is a copy of the fields, because reading *head as a whole reads the padding too.
//
// An incomplete last element is an error, with one exception. A program that submits
// sizeof(struct event) bytes plus the elements also submits the padding. Such a sample is accepted,
// and array may have more elements than the program wrote. Cut it to the length that the program
// stores in the sample.
func AsFlex[T, E any](rec Record) (head *T, array []E, err error) {
	sample := rec.RawSample
	f, err := flexibleOf(reflect.TypeFor[T](), reflect.TypeFor[E]())
	n := 0
	if err == nil {
		n, err = f.elements(sample)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("ringbuf: %w", err)
	}
	// SAFETY: as in As. elements has checked that the n elements are in the sample, and aligned.
	memory := unsafe.Pointer(unsafe.SliceData(sample))
	if n > 0 {
		array = unsafe.Slice((*E)(unsafe.Add(memory, f.offset)), n)
	}
	if uintptr(len(sample)) < unsafe.Sizeof(*head) {
		head = new(T)
		copy(unsafe.Slice((*byte)(unsafe.Pointer(head)), f.end), sample)
		return head, array, nil
	}
	return (*T)(memory), array, nil
}

// Samples returns an iterator over the samples of r as values of type T. It combines
// [Reader.Records] and [As]. Each value is a view of the ring's memory. It can only be read, a
// write to it is SIGSEGV, and it is valid until the next iteration. Record.Lost is not available
// here.
//
// If a sample is too short for T, the loop yields the error of As in its place and continues. A
// longer sample is no error: the value is its beginning. If As refuses T, the loop yields that
// error once and reads no record. After any other error the loop ends. So its body can use
// continue for every error.
func Samples[T any](ctx context.Context, r *Reader) iter.Seq2[*T, error] {
	return func(yield func(*T, error) bool) {
		if err := checkType(reflect.TypeFor[T]()); err != nil {
			yield(nil, fmt.Errorf("ringbuf: %w", err))
			return
		}
		for rec, err := range r.Records(ctx) {
			var v *T
			if err == nil {
				v, err = As[T](rec)
			}
			if !yield(v, err) {
				return
			}
		}
	}
}

// viewable has the types that passed checkType, with the end of the last field of each. A program
// has only a few of them.
var viewable sync.Map // of uintptr by reflect.Type

// fieldsEnd returns the end of the last field of t. It is less than the size of t if t ends with
// padding. The error says why a sample cannot be viewed as a t.
func fieldsEnd(t reflect.Type) (uintptr, error) {
	if end, ok := viewable.Load(t); ok {
		return end.(uintptr), nil
	}
	if err := checkType(t); err != nil {
		return 0, err
	}
	end := t.Size()
	if t.Kind() == reflect.Struct {
		last := t.Field(t.NumField() - 1)
		end = last.Offset + last.Type.Size()
	}
	viewable.Store(t, end)
	return end, nil
}

// checkView returns an error if sample cannot be viewed as a t, whose last field ends at end.
func checkView(t reflect.Type, end uintptr, sample []byte) error {
	if size := uintptr(len(sample)); size < end {
		return fmt.Errorf("sample of %d bytes is too short for %v of %d bytes", size, t, t.Size())
	} else if size < t.Size() {
		return fmt.Errorf("sample of %d bytes is too short for %v of %d bytes, "+
			"the last %d of which are padding: AsFlex takes it", size, t, t.Size(), t.Size()-end)
	}
	return checkAligned(t, sample)
}

func checkAligned(t reflect.Type, sample []byte) error {
	// SAFETY: the address is only looked at. It does not become a pointer again.
	if at := uintptr(unsafe.Pointer(unsafe.SliceData(sample))); at%uintptr(t.Align()) != 0 {
		return fmt.Errorf("sample at address %#x is not aligned to %d bytes, as %v must be: "+
			"the memory that RawSample had before ReadInto is not", at, t.Align(), t)
	}
	return nil
}

// A flexible is a C struct of the fields of head and a flexible array member of element.
type flexible struct {
	head, element reflect.Type
	end           uintptr // of the last field of head
	offset        uintptr // of the array
}

func flexibleOf(head, element reflect.Type) (f flexible, err error) {
	f = flexible{head: head, element: element}
	if f.end, err = fieldsEnd(head); err != nil {
		return f, err
	}
	_, err = fieldsEnd(element)
	f.offset = alignUp(f.end, element.Align())
	return f, err
}

// elements returns the number of elements in sample. The error says why sample cannot be viewed.
func (f flexible) elements(sample []byte) (int, error) {
	size := uintptr(len(sample))
	if size < f.offset {
		return 0, fmt.Errorf(
			"sample of %d bytes is too short for %v, behind which an array of %v begins at byte %d",
			size, f.head, f.element, f.offset)
	}
	aligned := f.head
	if f.element.Align() > aligned.Align() {
		aligned = f.element
	}
	if err := checkAligned(aligned, sample); err != nil {
		return 0, err
	}
	padding := alignUp(f.offset, aligned.Align()) - f.offset // sizeof less offsetof in C
	n, rest := (size-f.offset)/f.element.Size(), (size-f.offset)%f.element.Size()
	if rest != 0 && (size < f.offset+padding || rest != padding%f.element.Size()) {
		return 0, fmt.Errorf(
			"sample of %d bytes ends in the middle of an element: behind %v it has %d of %v, "+
				"of %d bytes each, from byte %d on, and %d bytes more",
			size, f.head, n, f.element, f.element.Size(), f.offset, rest)
	}
	return int(n), nil
}

func alignUp(n uintptr, align int) uintptr {
	return (n + uintptr(align) - 1) &^ (uintptr(align) - 1)
}

func checkType(t reflect.Type) error {
	path, why := unviewable(t)
	if why == "" && t.Size() == 0 {
		why = "has size 0"
	}
	switch {
	case why == "":
		return nil
	case path == "":
		return fmt.Errorf("%v cannot view a sample: it %s", t, why)
	default:
		return fmt.Errorf("%v cannot view a sample: field %s %s", t, path, why)
	}
}

// unviewable returns the path of the first field of t that cannot be in a view, and why. If there
// is none, why is empty.
func unviewable(t reflect.Type) (path, why string) {
	switch t.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return "", ""
	case reflect.Int:
		return "", "is an int, whose size depends on the platform: use int64 or int32"
	case reflect.Uint, reflect.Uintptr:
		return "", fmt.Sprintf("is a %v, whose size depends on the platform: use uint64 or uint32",
			t.Kind())
	case reflect.Bool:
		return "", "is a bool, and a byte of a sample may be neither 0 nor 1: use uint8"
	case reflect.Array:
		if path, why = unviewable(t.Elem()); why != "" {
			return join("[]", path), why
		}
		return "", ""
	case reflect.Struct:
		for i := range t.NumField() {
			if path, why = unviewable(t.Field(i).Type); why != "" {
				return join(t.Field(i).Name, path), why
			}
		}
		if n := t.NumField(); n > 0 && t.Size() > 0 && t.Field(n-1).Type.Size() == 0 {
			return t.Field(n - 1).Name,
				"is the last one and has size 0, for which Go adds padding that C does not"
		}
		return "", ""
	case reflect.Pointer, reflect.UnsafePointer:
		return "", "is a pointer"
	case reflect.Interface:
		return "", "is an interface, which has a pointer"
	default: // string, slice, map, chan, func
		return "", fmt.Sprintf("is a %v, which has a pointer", t.Kind())
	}
}

// join returns the path of the field inner of outer.
func join(outer, inner string) string {
	if inner == "" || inner[0] == '[' {
		return outer + inner
	}
	return outer + "." + inner
}
