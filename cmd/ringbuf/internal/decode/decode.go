package decode

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// A Value is a decoded sample, or a part of one. It has one of the types
//
//	Struct, Array, String, Enum, Pointer, Wide, Opaque, Absent, int64, uint64, float32,
//	float64, bool
type Value any

// A Struct has the fields of a struct or union, including those of members without a name.
type Struct []Field

// A Field is a field of a Struct.
type Field struct {
	Name  string
	Value Value
}

// An Array has the elements that are in the sample: fewer than Want if it is too short.
type Array struct {
	Elems []Value
	Want  int
}

// A String is an array of char. The Text of an array with a size ends before the first 0. The Text
// of a flexible array ends before the zeros at its end.
type String struct {
	Text       string
	Have, Want int // bytes of the array
}

// An Enum is a value of an enum. Name is empty if the enum has no name for the value.
type Enum struct {
	Name  string
	Value Value // int64 or uint64
}

// A Pointer is an address.
type Pointer uint64

// A Wide is an integer of 128 bits.
type Wide struct {
	High, Low uint64
	Signed    bool
}

// An Opaque value has a type without an equivalent in Go, such as a float of 16 bytes.
type Opaque []byte

// Absent stands for a value that the sample is too short for.
type Absent struct{ Have, Want int } // bytes

// A Sample is a decoded sample.
type Sample struct {
	Value Value
	// Cut names the values that are absent or incomplete because the sample is too short.
	Cut []string
	// Extra has the bytes behind the type if the sample is too long.
	Extra []byte
}

// Decode decodes a sample. Extra and Opaque values are parts of the memory of the sample.
func (t *Type) Decode(sample []byte) (s Sample) {
	d := decoder{order: t.order}
	data := sample
	if !t.root.open && len(sample) > t.size {
		data, s.Extra = sample[:t.size], sample[t.size:]
	}
	s.Value = d.value(t.root, data)
	s.Cut = d.cut
	return s
}

type decoder struct {
	order binary.ByteOrder
	path  []string // of the value that is being decoded
	cut   []string
}

func (d *decoder) absent(have, want int) Absent {
	d.notWhole()
	return Absent{have, want}
}

func (d *decoder) notWhole() {
	d.cut = append(d.cut, strings.TrimPrefix(strings.Join(d.path, ""), "."))
}

// value decodes data. There is less data than the node's size if the sample is too short, and more
// only if the node is open.
func (d *decoder) value(n *node, data []byte) Value {
	switch n.kind {
	case kindString:
		return d.text(n, data)
	case kindArray:
		return d.array(n, data)
	}
	if len(data) == 0 && n.size > 0 || n.kind != kindStruct && len(data) < n.size {
		return d.absent(len(data), n.size)
	}
	switch n.kind {
	case kindStruct:
		return d.members(n, data)
	case kindOpaque:
		return Opaque(data)
	}
	high, low := d.load(data[:n.size])
	return n.scalar(high, low, n.size*8)
}

// load returns up to 16 bytes as a number of 128 bits.
func (d *decoder) load(b []byte) (high, low uint64) {
	for i := range b {
		octet := b[i]
		if d.order == binary.LittleEndian {
			octet = b[len(b)-1-i]
		}
		high = high<<8 | low>>56
		low = low<<8 | uint64(octet)
	}
	return high, low
}

// scalar returns the value of a number of so many bits. The bits above them are 0.
func (n *node) scalar(high, low uint64, bits int) Value {
	switch n.kind {
	case kindBool:
		return high|low != 0
	case kindPointer:
		return Pointer(low)
	case kindFloat:
		if n.size == 4 {
			return math.Float32frombits(uint32(low))
		}
		return math.Float64frombits(low)
	}
	if n.size == 16 {
		if n.signed && bits < 128 { // a bit field
			high, low = signExtend(high, low, bits)
		}
		return Wide{high, low, n.signed}
	}
	var v Value = low
	if n.signed {
		_, low = signExtend(0, low, bits)
		v = int64(low)
	}
	if n.kind == kindEnum {
		return Enum{n.names[truncate(low, n.size*8)], v}
	}
	return v
}

func signExtend(high, low uint64, bits int) (uint64, uint64) {
	if bits > 64 {
		shift := 128 - bits
		return uint64(int64(high<<shift) >> shift), low
	}
	shift := 64 - bits
	low = uint64(int64(low<<shift) >> shift)
	return uint64(int64(low) >> 63), low
}

func (d *decoder) members(n *node, data []byte) Value {
	s := make(Struct, 0, len(n.fields))
	for i := range n.fields {
		f := &n.fields[i]
		d.path = append(d.path, "."+f.name)
		s = append(s, Field{f.name, d.field(f, data)})
		d.path = d.path[:len(d.path)-1]
	}
	return s
}

func (d *decoder) field(f *field, data []byte) Value {
	if f.bits > 0 {
		return d.bitField(f, data)
	}
	data = data[min(f.offset/8, len(data)):]
	if !f.open {
		data = data[:min(f.node.size, len(data))]
	}
	return d.value(f.node, data)
}

// bitField decodes a bit field. BTF counts its offset from the lowest bit on little-endian
// machines, and from the highest on big-endian ones.
func (d *decoder) bitField(f *field, data []byte) Value {
	first, end := f.offset/8, (f.offset+f.bits+7)/8
	if end > len(data) {
		return d.absent(max(len(data)-first, 0), end-first)
	}
	shift := f.offset % 8
	if d.order == binary.BigEndian {
		shift = end*8 - f.offset - f.bits
	}
	var high, low uint64
	for i := range f.bits { // from the highest bit on
		bit := shift + f.bits - 1 - i // counted from the lowest bit of the bytes as a number
		at := first + bit/8
		if d.order == binary.BigEndian {
			at = end - 1 - bit/8
		}
		high = high<<1 | low>>63
		low = low<<1 | uint64(data[at]>>(bit%8)&1)
	}
	return f.node.scalar(high, low, f.bits)
}

func (d *decoder) text(n *node, data []byte) Value {
	s := String{Have: len(data), Want: n.size}
	if n.open {
		s.Want = len(data)
		s.Text = strings.TrimRight(string(data), "\x00")
		return s
	}
	if s.Have < s.Want {
		d.notWhole()
	}
	s.Text, _, _ = strings.Cut(string(data), "\x00")
	return s
}

func (d *decoder) array(n *node, data []byte) Value {
	a := Array{Want: n.count}
	if n.open {
		a.Want = (len(data) + n.elem.size - 1) / n.elem.size
	}
	for i := 0; i < a.Want && len(data) > 0; i++ {
		d.path = append(d.path, fmt.Sprintf("[%d]", i))
		size := min(n.elem.size, len(data))
		a.Elems = append(a.Elems, d.value(n.elem, data[:size]))
		d.path = d.path[:len(d.path)-1]
		data = data[size:]
	}
	if len(a.Elems) < a.Want {
		d.notWhole()
	}
	return a
}
