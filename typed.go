package ringbuf

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"sync"
	"unsafe"
)

// As returns the beginning of rec.RawSample as a *T, without copying it. The view shares
// the memory of RawSample: it is valid for as long, and what is written to one is seen in
// the other. After a ReadInto that reuses the memory the view shows the next sample. Of a record
// that Records or a Lease lends, the view too can only be read, and a write is SIGSEGV.
//
// T is a sized integer, a float, a complex number, or an array or struct of such. Go lays
// it out as C does on 64-bit processors, padding included, unless C was told otherwise
// (__attribute__((packed)), bit fields). Refused are types with
//
//   - pointers, and what contains pointers: strings, slices, maps, interfaces and so on,
//   - int, uint and uintptr, which have no size of their own,
//   - bool, since a byte of a sample may be neither 0 nor 1,
//   - nothing in them, or structs whose last field has size 0: for that Go adds padding
//     that C does not.
//
// The sample may be longer than T, which may be the header of what follows:
//
//	rest := rec.RawSample[unsafe.Sizeof(*v):]
//
// A flexible array member of C begins there too, if T ends without padding; else at its
// offsetof.
//
// The error says which field of T is refused and why, that the sample is too short, or that
// it is not aligned as T must be. The latter is possible only where the caller has chosen the
// memory, as ReadInto allows; else samples are aligned to 8 bytes, which is enough for every
// T.
func As[T any](rec Record) (*T, error) {
	if err := checkView(reflect.TypeFor[T](), rec.RawSample); err != nil {
		return nil, fmt.Errorf("ringbuf: %w", err)
	}
	// SAFETY: the sample has at least the size of T and is aligned as T, and any bytes make a
	// valid T without pointers: checkView. The view is valid for as long as
	// RawSample is.
	return (*T)(unsafe.Pointer(unsafe.SliceData(rec.RawSample))), nil
}

// Samples returns an iterator over the samples of r as values of type T. Each is a view of the
// ring's memory: it can only be read, a write is SIGSEGV, and it is valid until the next
// iteration. It is Records and As in one: see both. Record.Lost is not
// seen here.
//
// For a sample that does not fit, the error of As comes in its place, and the loop goes on;
// for a T that As refuses, it comes once, and no record is read. After any other error the
// loop ends, so its body may continue whatever the error is.
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

// viewable has the types that passed checkType, of which a program has but a few.
var viewable sync.Map // of struct{} by reflect.Type

// checkView says why sample cannot be viewed as a t.
func checkView(t reflect.Type, sample []byte) error {
	if _, ok := viewable.Load(t); !ok {
		if err := checkType(t); err != nil {
			return err
		}
		viewable.Store(t, struct{}{})
	}
	if uintptr(len(sample)) < t.Size() {
		return fmt.Errorf("sample of %d bytes is too short for %v of %d bytes", len(sample), t, t.Size())
	}
	// SAFETY: the address is looked at, and not made a pointer again.
	if at := uintptr(unsafe.Pointer(unsafe.SliceData(sample))); at%uintptr(t.Align()) != 0 {
		return fmt.Errorf("sample at address %#x is not aligned to %d bytes, as %v must be: "+
			"the memory that RawSample had before ReadInto is not", at, t.Align(), t)
	}
	return nil
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

// unviewable returns where in t something is that cannot be in a view, and why. If nothing
// is, why is empty.
func unviewable(t reflect.Type) (path, why string) {
	switch t.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return "", ""
	case reflect.Int:
		return "", "is an int, whose size depends on the platform: use int64 or int32"
	case reflect.Uint, reflect.Uintptr:
		return "", fmt.Sprintf("is a %v, whose size depends on the platform: use uint64 or uint32", t.Kind())
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
			return t.Field(n - 1).Name, "is the last one and has size 0, for which Go adds padding that C does not"
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

// join returns the path of a field in a field.
func join(outer, inner string) string {
	if inner == "" || inner[0] == '[' {
		return outer + inner
	}
	return outer + "." + inner
}
