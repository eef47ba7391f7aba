package decode

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// samples returns a function that makes the kernel submit a sample, and returns the sample.
func samples(t *testing.T) func(which, more int) []byte {
	s := kinds.New(t, 1<<16)
	r, err := ringbuf.NewReader(s.Events)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return func(which, more int) []byte {
		t.Helper()
		s.Submit(which, more)
		record, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		return record.RawSample
	}
}

func kindsTypes(t *testing.T) *Types {
	t.Helper()
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(kinds.Object()))
	if err != nil {
		t.Fatal(err)
	}
	order, err := byteOrder(rawBTF(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return &Types{spec, order}
}

// rawBTF returns the types of a spec as BTF.
func rawBTF(t *testing.T, spec *btf.Spec) []byte {
	t.Helper()
	var all []btf.Type
	for typ, err := range spec.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, typ)
	}
	builder, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func mustType(t *testing.T, types *Types, name string) *Type {
	t.Helper()
	typ, err := types.Type(name)
	if err != nil {
		t.Fatal(err)
	}
	if want := name; typ.String() != want {
		t.Errorf("type %q is called %q", want, typ)
	}
	return typ
}

// each has the values of kinds.h as text and as JSON.
var each = []struct {
	which      int
	symbol     string
	name       string
	text, json string
}{
	{kinds.Integers, "integers", "struct integers",
		`u8=255 s8=-128 u16=65534 s16=-2 u32=4294967293 s32=-3 u64=18446744073709551612 ` +
			`s64=-9223372036854775808 ` +
			`u128=1512366075204170947332355369683137040 s128=-1267650600228229401496703205376 yes=true ` +
			`no=false letter=65`,
		`{"u8":255,"s8":-128,"u16":65534,"s16":-2,"u32":4294967293,"s32":-3,"u64":18446744073709551612,` +
			`"s64":-9223372036854775808,` +
			`"u128":"1512366075204170947332355369683137040","s128":"-1267650600228229401496703205376",` +
			`"yes":true,"no":false,"letter":65}`},
	{kinds.Bits, "bits", "struct bits",
		`three=5 five=-7 flag=true color=GREEN forty=1094624909430 minus=-2147483649 after=99`,
		`{"three":5,"five":-7,"flag":true,"color":"GREEN","forty":1094624909430,"minus":-2147483649,` +
			`"after":99}`},
	{kinds.Others, "others", "struct others",
		`constant=11 ticks=12 f=1.1 d=-2.5e-300 infinite=-Inf negative_zero=-0 ` +
			`pointer=0xffff888012345678 function=0x0 ` +
			`color=GREEN unknown=3 blue=BLUE level=DEBUG`,
		`{"constant":11,"ticks":12,"f":1.1,"d":-2.5e-300,"infinite":"-Inf","negative_zero":-0,` +
			`"pointer":"0xffff888012345678","function":"0x0",` +
			`"color":"GREEN","unknown":3,"blue":"BLUE","level":"DEBUG"}`},
	{kinds.Compound, "compound", "compound_t",
		`comm="ssh" full="full" rows=["ab" "\xff\"\n"] bytes=[1 2 3] matrix=[[1 2 3] [4 5 6]] ` +
			`points=[{x=1 y=-1} {x=2 y=-2}] ` +
			`inner=21 word=67305985 octets=[1 2 3 4] address={v4=131073 v6=[1 2 3 4 5 6 7 8]} empty={} ` +
			`nested={from={x=3 y=4} to={x=5 y=6}}`,
		`{"comm":"ssh","full":"full","rows":["ab","` + "\ufffd" +
			`\"\u000a"],"bytes":[1,2,3],"matrix":[[1,2,3],[4,5,6]],"points":[{"x":1,"y":-1},{"x":2,` +
			`"y":-2}],` +
			`"inner":21,"word":67305985,"octets":[1,2,3,4],"address":{"v4":131073,"v6":[1,2,3,4,5,6,7,8]},` +
			`"empty":{},"nested":{"from":{"x":3,"y":4},"to":{"x":5,"y":6}}}`},
	{kinds.Items, "items", "struct items",
		`count=2 odd=1 items=[{x=7 y=8} {x=9 y=10}]`,
		`{"count":2,"odd":1,"items":[{"x":7,"y":8},{"x":9,"y":10}]}`},
	{kinds.Arguments, "arguments", "struct arguments",
		`count=2 odd=3 text="ls\x00-l"`,
		`{"count":2,"odd":3,"text":"ls\u0000-l"}`},
	{kinds.Outer, "outer", "struct outer",
		`kind=9 none={} bytes=[0 1 0 2 0 0] words=[256 512 0]`,
		`{"kind":9,"none":{},"bytes":[0,1,0,2,0,0],"words":[256,512,0]}`},
}

func TestEachKindOfValueIsDecoded(t *testing.T) {
	sample := samples(t)
	types := kindsTypes(t)
	for _, tt := range each {
		t.Run(tt.name, func(t *testing.T) {
			raw := sample(tt.which, 0)
			wantDecoded(t, types, tt.name, raw, tt.text, tt.json)
			if fitting := types.Fitting(len(raw)); !contains(fitting, tt.name) {
				t.Errorf("of a sample of %d bytes %v are offered", len(raw), fitting)
			}
		})
	}
}

// TestEachKindOfValueIsDecodedInTheOtherByteOrder takes the values from a big-endian object file,
// in which the compiler lays them out as it does for the kernel.
func TestEachKindOfValueIsDecodedInTheOtherByteOrder(t *testing.T) {
	if _, err := exec.LookPath("clang"); err != nil {
		if os.Getenv("RINGBUF_KERNEL_TESTS") == "require" {
			t.Fatal("clang is not installed, and make test-tool should have done so")
		}
		t.Skip("clang is not installed: this test is of no use without it")
	}
	object := filepath.Join(t.TempDir(), "kinds.o")
	out, err := exec.Command("clang", "-g", "-O2", "-target", "bpfeb", "-x", "c", "-c",
		"../kinds/kinds.h", "-o", object).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	types, err := Load(object)
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range each {
		t.Run(tt.name, func(t *testing.T) {
			for _, symbol := range symbols {
				if symbol.Name != tt.symbol {
					continue
				}
				data, err := file.Sections[symbol.Section].Data()
				if err != nil {
					t.Fatal(err)
				}
				raw := data[symbol.Value:][:symbol.Size]
				if tt.which == kinds.Arguments {
					raw = raw[:11] // the object is padded
				}
				// These fields show the same bytes in several ways.
				text := strings.NewReplacer("word=67305985 octets=[1 2 3 4]", "word=67305985 octets=[4 3 2 1]",
					"v4=131073", "v4=65538", "words=[256 512 0]", "words=[1 2 0]").Replace(tt.text)
				json := strings.NewReplacer(`"word":67305985,"octets":[1,2,3,4]`,
					`"word":67305985,"octets":[4,3,2,1]`,
					`"v4":131073`, `"v4":65538`, `"words":[256,512,0]`, `"words":[1,2,0]`).Replace(tt.json)
				wantDecoded(t, types, tt.name, raw, text, json)
				return
			}
			t.Errorf("there is no symbol %q", tt.symbol)
		})
	}
}

func wantDecoded(t *testing.T, types *Types, name string, raw []byte, text, jsonText string) {
	t.Helper()
	s := mustType(t, types, name).Decode(raw)
	if name == "struct others" && hasEnumValue(types, "WIDE") { // clang is new enough
		text += " wide=WIDE"
		jsonText = strings.TrimSuffix(jsonText, "}") + `,"wide":"WIDE"}`
	}
	if got := string(s.AppendText(nil)); got != text {
		t.Errorf("the text is\n%s\nwant\n%s", got, text)
	}
	if got := string(s.AppendJSON(nil)); got != jsonText {
		t.Errorf("the JSON is\n%s\nwant\n%s", got, jsonText)
	}
	if !json.Valid(s.AppendJSON(nil)) {
		t.Error("the JSON is not valid")
	}
	if len(s.Cut) > 0 || len(s.Extra) > 0 {
		t.Errorf("a sample that is whole has %q cut, and %x more", s.Cut, s.Extra)
	}
}

func hasEnumValue(types *Types, name string) bool {
	for typ := range types.spec.All() {
		if e, ok := typ.(*btf.Enum); ok && slices.ContainsFunc(e.Values,
			func(v btf.EnumValue) bool { return v.Name == name }) {
			return true
		}
	}
	return false
}

// TestASampleOfAnotherSizeSaysWhatIsMissing also decodes samples that are cut at each byte.
func TestASampleOfAnotherSizeSaysWhatIsMissing(t *testing.T) {
	sample := samples(t)
	types := kindsTypes(t)
	for _, tt := range []struct {
		which, more int
		name        string
		text        string // the end of the text
		cut         []string
	}{
		{kinds.Integers, 3, "struct integers", " letter=65 <3 bytes more: eeeeee>", nil},
		{kinds.Integers, 18 - 80, "struct integers",
			" s32=-3 u64=<2 of 8 bytes> s64=<0 of 8 bytes> u128=<0 of 16 bytes> " +
				"s128=<0 of 16 bytes> yes=<0 of 1 bytes> no=<0 of 1 bytes> letter=<0 of 1 bytes>",
			[]string{"u64", "s64", "u128", "s128", "yes", "no", "letter"}},
		{kinds.Bits, 3 - 16, "struct bits",
			" color=GREEN forty=<1 of 6 bytes> minus=<0 of 5 bytes> after=<0 of 1 bytes>",
			[]string{"forty", "minus", "after"}},
		{kinds.Compound, 10 - 104, "compound_t",
			`comm="ssh" full="fu"<2 of 4 bytes> rows=[<0 of 2 elements>] bytes=[<0 of 3 elements>] ` +
				"matrix=[<0 of 2 elements>] points=[<0 of 2 elements>] inner=<0 of 4 bytes> word=<0 of 4 " +
				"bytes> octets=[<0 of 4 elements>] " +
				"address=<0 of 16 bytes> empty={} nested=<0 of 16 bytes>",
			[]string{"full", "rows", "bytes", "matrix", "points", "inner", "word", "octets", "address",
				"nested"}},
		{kinds.Compound, 30 - 104, "compound_t",
			" matrix=[[1 <2 of 4 bytes><2 of 3 elements>]<1 of 2 elements>] points=[<0 of 2 elements>] " +
				"inner=<0 of 4 bytes> word=<0 of 4 bytes> octets=[<0 of 4 elements>] address=<0 of 16 bytes> " +
				"empty={} nested=<0 of 16 bytes>",
			[]string{"matrix[0][1]", "matrix[0]", "matrix", "points", "inner", "word", "octets", "address",
				"nested"}},
		{kinds.Compound, 95 - 104, "compound_t",
			" nested={from={x=3 y=<3 of 4 bytes>} to=<0 of 8 bytes>}", []string{"nested.from.y",
				"nested.to"}},
		{kinds.Items, -3, "struct items", " items=[{x=7 y=8} {x=9 y=<1 of 4 bytes>}]",
			[]string{"items[1].y"}},
		{kinds.Items, 4, "struct items", " items=[{x=7 y=8} {x=9 y=10} {x=-4370 y=<0 of 4 bytes>}]",
			[]string{"items[2].y"}},
		{kinds.Items, -16, "struct items", "count=2 odd=1 items=[]", nil},
		{kinds.Arguments, -7, "struct arguments", `count=2 odd=<0 of 1 bytes> text=""`, []string{"odd"}},
	} {
		s := mustType(t, types, tt.name).Decode(sample(tt.which, tt.more))
		if got := string(s.AppendText(nil)); !strings.HasSuffix(got, tt.text) {
			t.Errorf("the text is\n%s\nwant\n%s", got, tt.text)
		}
		if !slices.Equal(s.Cut, tt.cut) {
			t.Errorf("%q is cut, want %q", s.Cut, tt.cut)
		}
	}
	for _, tt := range each {
		raw := sample(tt.which, 0)
		for n := range len(raw) {
			s := mustType(t, types, tt.name).Decode(raw[:n:n])
			if !json.Valid(s.AppendJSON(nil)) || len(s.AppendText(nil)) == 0 {
				t.Errorf("%d bytes of %s: %s", n, tt.name, s.AppendJSON(nil))
			}
			if n < mustType(t, types, tt.name).size-16 && len(s.Cut) == 0 { // except padding
				t.Errorf("%d bytes of %s: nothing is cut", n, tt.name)
			}
		}
	}
}

func contains(types []*Type, name string) bool {
	for _, t := range types {
		if t.String() == name {
			return true
		}
	}
	return false
}
