// Package decode decodes samples as C types that BTF describes, and formats them as text and JSON.
package decode

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Types has the types in the BTF of a program.
type Types struct {
	spec  *btf.Spec
	order binary.ByteOrder
}

// Parse parses BTF in the format of the kernel and of the section .BTF of object files.
func Parse(raw []byte) (*Types, error) {
	order, err := byteOrder(raw)
	if err != nil {
		return nil, err
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return &Types{spec, order}, nil
}

// btfMagic is BTF_MAGIC of include/uapi/linux/btf.h. BTF begins with it.
const btfMagic = 0xeb9f

func byteOrder(raw []byte) (binary.ByteOrder, error) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(raw) >= 2 && order.Uint16(raw) == btfMagic {
			return order, nil
		}
	}
	return nil, errors.New("it is not BTF")
}

// Load returns the types of a file: an object file with BTF, or a file that has only BTF, such as
// those in /sys/kernel/btf.
func Load(path string) (*Types, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	order, err := byteOrder(raw)
	if elfMagic := []byte("\x7fELF"); err != nil && bytes.HasPrefix(raw, elfMagic) && len(raw) > 5 {
		order, err = binary.LittleEndian, nil
		if raw[5] == 2 { // EI_DATA is ELFDATA2MSB
			order = binary.BigEndian
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s is neither BTF nor an object file with BTF", path)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if errors.Is(err, btf.ErrNotFound) {
		return nil, fmt.Errorf("%s has no BTF: compile it with clang -g", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the BTF of %s: %w", path, err)
	}
	return &Types{spec, order}, nil
}

// ErrNotFound is what errors.Is finds in the error of Type if there is no such type.
var ErrNotFound = btf.ErrNotFound

// Type returns the type with this name in C: "struct event", "union u", "enum e", or the name of a
// typedef. The name without its keyword is enough if only one type has it.
func (t *Types) Type(name string) (*Type, error) {
	keyword, rest, ok := strings.Cut(strings.Join(strings.Fields(name), " "), " ")
	if !ok {
		keyword, rest = "", keyword
	}
	all, err := t.spec.AnyTypesByName(rest)
	if err != nil && !errors.Is(err, btf.ErrNotFound) {
		return nil, err
	}
	var found []*Type
	var failed error
	for _, typ := range all {
		if k, named := keywordOf(typ); !named || keyword != "" && keyword != k {
			continue
		}
		compiled, err := t.compile(typ)
		if err != nil {
			failed = err
			continue
		}
		found = append(found, compiled)
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, f := range found {
			names = append(names, fmt.Sprintf("%s of %d bytes", f, f.size))
		}
		return nil, fmt.Errorf("type %q may be %s", name, strings.Join(names, ", or "))
	case failed != nil:
		return nil, failed
	}
	return nil, fmt.Errorf("type %q: %w", name, ErrNotFound)
}

// keywordOf returns the keyword that C has before the name of a type. It reports whether a sample
// can have such a type by name.
func keywordOf(t btf.Type) (string, bool) {
	switch t.(type) {
	case *btf.Struct:
		return "struct", true
	case *btf.Union:
		return "union", true
	case *btf.Enum:
		return "enum", true
	case *btf.Typedef, *btf.Int, *btf.Float:
		return "", true
	}
	return "", false
}

// Fitting returns the types that a sample of this size can have. It returns structs with a name,
// and typedefs of structs without one. Types of that size come first, then those with a flexible
// array that fills the rest. In each group, types with more fields come first.
func (t *Types) Fitting(size int) (fitting []*Type) {
	for typ, err := range t.spec.All() {
		if err != nil {
			return fitting
		}
		s, ok := typ.(*btf.Struct)
		if def, isTypedef := typ.(*btf.Typedef); isTypedef {
			s, ok = btf.UnderlyingType(def).(*btf.Struct)
			ok = ok && s.Name == ""
		}
		if !ok || typ.TypeName() == "" || int(s.Size) > size || len(s.Members) == 0 {
			continue
		}
		if compiled, err := t.compile(typ); err == nil && compiled.fits(size) {
			fitting = append(fitting, compiled)
		}
	}
	slices.SortStableFunc(fitting, func(a, b *Type) int {
		if exactA, exactB := a.size == size, b.size == size; exactA != exactB {
			return cmp.Compare(b.size, a.size) // the one that is not exact is smaller
		}
		if n := cmp.Compare(len(b.root.fields), len(a.root.fields)); n != 0 {
			return n
		}
		return cmp.Compare(a.name, b.name)
	})
	return slices.CompactFunc(fitting, func(a, b *Type) bool { return a.name == b.name })
}

// A Type is a type that samples can be decoded as. Any number of goroutines may use it.
type Type struct {
	name  string
	size  int // in bytes, without the elements of a flexible array
	root  *node
	order binary.ByteOrder
}

// String returns the name in C.
func (t *Type) String() string { return t.name }

func (t *Type) fits(size int) bool {
	if size == t.size {
		return true
	}
	offset, elem := t.root.flexible()
	return elem > 0 && size > t.size && (size-offset)%elem == 0
}

type kind uint8

const (
	kindInt kind = iota
	kindBool
	kindEnum
	kindPointer
	kindFloat
	kindOpaque // shown as bytes
	kindString
	kindArray
	kindStruct // or union
)

// A node says how to decode some bytes.
type node struct {
	kind   kind
	size   int // in bytes, without the elements of a flexible array
	signed bool
	names  map[uint64]string // of an enum's values
	elem   *node             // of an array
	count  int               // of an array
	fields []field
	// open is true for a flexible array, and for a type that ends with one. It takes all bytes that
	// are there.
	open   bool
	leaves int // about the number of values that are shown
}

type field struct {
	name   string
	node   *node
	offset int  // in bits
	bits   int  // the size of a bit field, or 0
	open   bool // the node is open, and no field is behind it
}

// flexible returns the offset of the flexible array in n, and the size of its elements.
func (n *node) flexible() (offset, elem int) {
	if !n.open {
		return 0, 0
	}
	if n.kind != kindStruct {
		return 0, max(n.elemSize(), 1)
	}
	for _, f := range n.fields {
		if f.open {
			offset, elem := f.node.flexible()
			return f.offset/8 + offset, elem
		}
	}
	return 0, 0
}

func (n *node) elemSize() int {
	if n.kind == kindString {
		return 1
	}
	return n.elem.size
}

func (t *Types) compile(typ btf.Type) (*Type, error) {
	keyword, _ := keywordOf(typ)
	name := strings.TrimSpace(keyword + " " + typ.TypeName())
	root, err := compiler{}.compile(typ, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &Type{name: name, size: root.size, root: root, order: t.order}, nil
}

// Only damaged BTF has types beyond these limits.
const (
	maxDepth  = 64
	maxSize   = 1 << 30 // of samples
	maxLeaves = 1 << 20
)

// A compiler makes the nodes of types, and caches them.
type compiler map[btf.Type]*node

func (c compiler) compile(typ btf.Type, depth int) (n *node, err error) {
	if n := c[typ]; n != nil {
		return n, nil
	}
	if depth > maxDepth {
		return nil, errors.New("types are in types without an end")
	}
	if n, err = c.compileNew(typ, depth); err != nil {
		return nil, err
	}
	n.leaves = 1
	switch n.kind {
	case kindArray:
		n.leaves = max(n.count, 1) * n.elem.leaves
	case kindStruct:
		for _, f := range n.fields {
			n.leaves += f.node.leaves
		}
	}
	if n.leaves > maxLeaves {
		return nil, errors.New("it has too many values to show")
	}
	c[typ] = n
	return n, nil
}

func (c compiler) compileNew(typ btf.Type, depth int) (*node, error) {
	switch t := btf.UnderlyingType(typ).(type) {
	case *btf.Int:
		if t.Encoding == btf.Bool {
			return &node{kind: kindBool, size: int(t.Size)}, checkSize(t.Size, 8)
		}
		return &node{kind: kindInt, size: int(t.Size),
			signed: t.Encoding == btf.Signed}, checkSize(t.Size, 16)
	case *btf.Enum:
		n := &node{kind: kindEnum, size: int(t.Size), signed: t.Signed, names: map[uint64]string{}}
		for _, v := range t.Values {
			if value := truncate(v.Value, n.size*8); n.names[value] == "" {
				n.names[value] = v.Name
			}
		}
		return n, checkSize(t.Size, 8)
	case *btf.Pointer:
		return &node{kind: kindPointer, size: 8}, nil
	case *btf.Float:
		if t.Size != 4 && t.Size != 8 {
			return &node{kind: kindOpaque, size: int(t.Size)}, nil
		}
		return &node{kind: kindFloat, size: int(t.Size)}, nil
	case *btf.Array:
		elem, err := c.compile(t.Type, depth+1)
		if err != nil {
			return nil, err
		}
		if int64(elem.size)*int64(t.Nelems) > maxSize || elem.size == 0 && t.Nelems > 0 {
			return nil, fmt.Errorf("an array of %d elements of %d bytes", t.Nelems, elem.size)
		}
		n := &node{kind: kindArray, elem: elem, count: int(t.Nelems), size: elem.size * int(t.Nelems)}
		n.open = t.Nelems == 0 && elem.size > 0
		if isChar(t.Type) {
			n.kind = kindString
		}
		return n, nil
	case *btf.Struct:
		return c.compileMembers(t.Members, int(t.Size), false, depth)
	case *btf.Union:
		return c.compileMembers(t.Members, int(t.Size), true, depth)
	}
	return nil, fmt.Errorf("a %T has no size", btf.UnderlyingType(typ))
}

func checkSize(size uint32, limit uint32) error {
	if size == 0 || size > limit || size&(size-1) != 0 {
		return fmt.Errorf("an integer of %d bytes", size)
	}
	return nil
}

// isChar reports whether an array of t is text. Compilers mark char only by its name.
func isChar(t btf.Type) bool {
	i, ok := btf.UnderlyingType(t).(*btf.Int)
	return ok && i.Size == 1 && (i.Name == "char" || i.Encoding == btf.Char)
}

func (c compiler) compileMembers(members []btf.Member, size int, union bool, depth int) (*node,
	error) {
	n := &node{kind: kindStruct, size: size}
	last := btf.Bits(0)
	for _, m := range members {
		last = max(last, m.Offset)
	}
	for _, m := range members {
		child, err := c.compile(m.Type, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		f := field{name: m.Name, node: child, offset: int(m.Offset), bits: int(m.BitfieldSize)}
		f.open = child.open && (union || m.Offset == last)
		if f.bits > child.size*8 || f.offset/8 > maxSize || f.bits == 0 && f.offset%8 != 0 {
			return nil, fmt.Errorf("%s: a field of %d bits at bit %d", m.Name, f.bits, f.offset)
		}
		n.open = n.open || f.open
		switch {
		case m.Name != "":
			n.fields = append(n.fields, f)
		case child.kind == kindStruct:
			// As in C, the members of a member without a name belong to the outer type.
			for _, inner := range child.fields {
				inner.offset += f.offset
				inner.open = inner.open && f.open
				n.fields = append(n.fields, inner)
			}
		}
	}
	return n, nil
}

func truncate(v uint64, bits int) uint64 {
	if bits >= 64 {
		return v
	}
	return v & (1<<bits - 1)
}

// Size returns the size in bytes, without the elements of a flexible array.
func (t *Type) Size() int { return t.size }
