package decode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// build returns types in the byte order of this machine, like those of its kernel.
func build(t testing.TB, types ...btf.Type) *Types {
	t.Helper()
	builder, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

var (
	u8   = &btf.Int{Name: "unsigned char", Size: 1}
	u16  = &btf.Int{Name: "unsigned short", Size: 2}
	char = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
)

// TestWhatOldCompilersDoNotMake decodes types that clang makes only from version 15 on, or never.
func TestWhatOldCompilersDoNotMake(t *testing.T) {
	types := build(t, &btf.Struct{Name: "event", Size: 48, Members: []btf.Member{
		{Name: "wide", Type: &btf.Enum{Name: "w", Size: 8,
			Values: []btf.EnumValue{{Name: "SMALL", Value: 1}, {Name: "WIDE", Value: 1 << 40}}}},
		{Name: "minus", Offset: 64, Type: &btf.Enum{Size: 8, Signed: true,
			Values: []btf.EnumValue{{Name: "MIN", Value: 1 << 63}}}},
		{Name: "none", Offset: 128, Type: &btf.Enum{Size: 8, Signed: true,
			Values: []btf.EnumValue{{Name: "MIN", Value: 1 << 63}}}},
		{Name: "long_double", Offset: 192, Type: &btf.Float{Name: "long double", Size: 16}},
		{Name: "tagged", Offset: 320, Type: &btf.TypeTag{Value: "user",
			Type: &btf.Restrict{Type: &btf.Const{Type: u16}}}},
		{Name: "letters", Offset: 336, Type: &btf.Array{Index: u8, Nelems: 2,
			Type: &btf.Int{Name: "letter", Size: 1, Encoding: btf.Char}}},
	}})
	sample := binary.NativeEndian.AppendUint64(nil, 1<<40)
	sample = binary.NativeEndian.AppendUint64(sample, 1<<63)
	sample = binary.NativeEndian.AppendUint64(sample, 1<<63-1)
	sample = append(sample, "0123456789abcdef"...)
	sample = append(binary.NativeEndian.AppendUint16(sample, 1000), "hi\x00\x00\x00\x00"...)
	s := mustNamed(t, types, "event").Decode(sample)
	want := `wide=WIDE minus=MIN none=9223372036854775807 ` +
		`long_double=30313233343536373839616263646566 tagged=1000 letters="hi"`
	if got := string(s.AppendText(nil)); got != want {
		t.Errorf("the text is\n%s\nwant\n%s", got, want)
	}
	want = `{"wide":"WIDE","minus":"MIN","none":9223372036854775807,` +
		`"long_double":"30313233343536373839616263646566","tagged":1000,"letters":"hi"}`
	if got := string(s.AppendJSON(nil)); got != want {
		t.Errorf("the JSON is\n%s\nwant\n%s", got, want)
	}
}

func mustNamed(t *testing.T, types *Types, name string) *Type {
	t.Helper()
	typ, err := types.Type(name)
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func TestATypeIsFoundByTheNameThatCHas(t *testing.T) {
	point := &btf.Struct{Name: "point", Size: 2, Members: []btf.Member{{Name: "x", Type: u16}}}
	types := build(t, point,
		&btf.Enum{Name: "both", Size: 4, Values: []btf.EnumValue{{Name: "A"}}},
		&btf.Union{Name: "both", Size: 2, Members: []btf.Member{{Name: "x", Type: u16}}},
		&btf.Typedef{Name: "point_t", Type: point},
		&btf.Fwd{Name: "later", Kind: btf.FwdStruct},
		&btf.Struct{Name: "bad", Size: 2,
			Members: []btf.Member{{Name: "f",
				Type: &btf.Func{Name: "f", Type: &btf.FuncProto{Return: u8}}}}},
	)
	for name, want := range map[string]string{
		"struct point": "struct point", "point": "struct point", " struct  point ": "struct point",
		"point_t":   "point_t",
		"enum both": "enum both", "union both": "union both", "unsigned short": "",
	} {
		typ, err := types.Type(name)
		if want == "" {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%q: %v, %v", name, typ, err)
			}
		} else if err != nil || typ.String() != want {
			t.Errorf("%q is %v, %v, want %q", name, typ, err, want)
		}
	}
	for name, want := range map[string]string{
		"struct pint":  `type "struct pint": not found`,
		"union point":  `type "union point": not found`,
		"struct later": `type "struct later": not found`,
		"":             `type "": not found`,
		"both":         `type "both" may be enum both of 4 bytes, or union both of 2 bytes`,
		"struct bad":   "struct bad: f: a *btf.Func has no size",
	} {
		if typ, err := types.Type(name); err == nil || err.Error() != want {
			t.Errorf("%q: %v, %v, want %q", name, typ, err, want)
		}
	}
}

func TestThoseThatFitBestAreOfferedFirst(t *testing.T) {
	member := func(n int) (members []btf.Member) {
		for i := range n {
			members = append(members, btf.Member{Name: fmt.Sprint("m", i), Type: u8,
				Offset: btf.Bits(8 * i)})
		}
		return members
	}
	flexible := func(name string, head int, elem btf.Type) *btf.Struct {
		return &btf.Struct{Name: name, Size: uint32(head), Members: append(member(head),
			btf.Member{Name: "rest", Offset: btf.Bits(8 * head), Type: &btf.Array{Index: u8, Type: elem}})}
	}
	types := build(t,
		&btf.Struct{Name: "four", Size: 4, Members: member(4)},
		&btf.Struct{Name: "b_six", Size: 6, Members: member(1)},
		&btf.Struct{Name: "a_six", Size: 6, Members: member(1)},
		&btf.Struct{Name: "six_of_six", Size: 6, Members: member(6)},
		&btf.Struct{Name: "", Size: 6, Members: member(6)},
		&btf.Typedef{Name: "six_t", Type: &btf.Struct{Size: 6, Members: member(2)}},
		&btf.Typedef{Name: "not_again_t", Type: &btf.Struct{Name: "c_six", Size: 6, Members: member(1)}},
		&btf.Struct{Name: "empty", Size: 6},
		flexible("text", 1, char),
		flexible("words", 4, u16),
		flexible("odd", 3, u16),
		flexible("exact", 6, u16),
	)
	got := fmt.Sprint(types.Fitting(6))
	want := "[struct exact struct six_of_six six_t struct a_six struct b_six struct c_six struct " +
		"words struct text]"
	if got != want {
		t.Errorf("of 6 bytes %s are offered, want %s", got, want)
	}
	if got := types.Fitting(0); len(got) != 0 {
		t.Errorf("of 0 bytes %v are offered", got)
	}
}

func TestTheFileOfBTF(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	object := write("kinds.o", kinds.Object())
	types, err := Load(object)
	if err != nil {
		t.Fatal(err)
	}
	raw := write("kinds.btf", rawBTF(t, types.spec))
	for _, path := range []string{object, raw} {
		types, err := Load(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if size := mustNamed(t, types, "struct integers").size; size != 80 {
			t.Errorf("%s: struct integers has %d bytes", path, size)
		}
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"):                "no such file",
		write("text", []byte("text")):             "is neither BTF nor an object file with BTF",
		write("empty", nil):                       "is neither BTF nor an object file with BTF",
		write("cut", rawBTF(t, types.spec)[:100]): "read the BTF of ",
		executable: "has no BTF: compile it with clang -g",
	} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// FuzzDecode decodes any bytes as the types of any BTF.
func FuzzDecode(f *testing.F) {
	types, err := btf.LoadSpecFromReader(strings.NewReader(string(kinds.Object())))
	if err != nil {
		f.Fatal(err)
	}
	var all []btf.Type
	for typ, err := range types.All() {
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, typ)
	}
	builder, err := btf.NewBuilder(all, nil)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	for n := range 10 {
		f.Add(raw, make([]byte, 20*n))
	}
	f.Fuzz(func(t *testing.T, raw, sample []byte) {
		types, err := Parse(raw)
		if err != nil {
			return
		}
		for typ, err := range types.spec.All() {
			if err != nil {
				return
			}
			compiled, err := types.compile(typ)
			if err != nil {
				continue
			}
			s := compiled.Decode(sample)
			if !json.Valid(s.AppendJSON(nil)) {
				t.Errorf("%s: the JSON %s is not valid", compiled, s.AppendJSON(nil))
			}
			s.AppendText(nil)
		}
		types.Fitting(len(sample))
	})
}
