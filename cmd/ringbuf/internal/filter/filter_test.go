package filter

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
)

// eventType is this type:
//
//	struct event {
//		__u32 pid;
//		int len;
//		char comm[8];
//		enum { OPEN = 1 } type;
//		struct { float f; } in[1];
//		__u64 big;
//		void *at;
//	}
func eventType(t testing.TB) *decode.Type {
	t.Helper()
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	builder, err := btf.NewBuilder([]btf.Type{&btf.Struct{Name: "event", Size: 40,
		Members: []btf.Member{
			{Name: "pid", Type: u32},
			{Name: "len", Type: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Offset: 32},
			{Name: "comm", Type: &btf.Array{Index: u32, Type: char, Nelems: 8}, Offset: 64},
			{Name: "type", Type: &btf.Enum{Size: 4, Values: []btf.EnumValue{{Name: "OPEN", Value: 1}}},
				Offset: 128},
			{Name: "inner", Type: &btf.Array{Index: u32, Nelems: 1,
				Type: &btf.Struct{Size: 4, Members: []btf.Member{
					{Name: "f", Type: &btf.Float{Name: "float", Size: 4}}}}}, Offset: 160},
			{Name: "big", Type: &btf.Int{Name: "unsigned long", Size: 8}, Offset: 192},
			{Name: "at", Type: &btf.Pointer{Target: char}, Offset: 256},
		}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	all, err := decode.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	typ, err := all.Type("struct event")
	if err != nil {
		t.Fatal(err)
	}
	return typ
}

func sample(pid uint32, comm string, kind uint32, big uint64) []byte {
	b := binary.NativeEndian.AppendUint32(nil, pid)
	b = binary.NativeEndian.AppendUint32(b, 0xffffffff)
	b = append(b, append([]byte(comm), bytes.Repeat([]byte{0}, 8-len(comm))...)...)
	b = binary.NativeEndian.AppendUint32(b, kind)
	b = binary.NativeEndian.AppendUint32(b, 0x3fc00000) // 1.5
	b = binary.NativeEndian.AppendUint64(b, big)
	return binary.NativeEndian.AppendUint64(b, 0xffff888000000000)
}

func TestConditions(t *testing.T) {
	typ := eventType(t)
	ssh := typ.Decode(sample(42, "sshd", 1, 1<<63))
	bash := typ.Decode(sample(43, "b*\"'\\", 9, 5))
	for condition, want := range map[string][2]bool{
		`pid == 42 && comm ~ "ssh*"`:  {true, false},
		`pid == 42 and comm ~ 'ss?d'`: {true, false},
		`comm~"ssh"`:                  {false, false},
		`comm !~ "*ssh*"`:             {false, true},
		`comm ~ "b*"`:                 {false, true},
		`comm ~ "b\\**"`:              {false, true},
		`comm ~ "ss\\**"`:             {false, false},
		`comm ~ "[a-r]*"`:             {false, true},
		`comm ~ "[!a-r]*"`:            {true, false},
		`comm ~ "*\"*"`:               {false, true},
		`comm ~ '*\'*'`:               {false, true},
		`comm ~ '*"*'`:                {false, true},
		"comm ~ `*\\\\*`":             {false, true},
		`comm ~ "*[]"`:                {false, false},
		`"éè" ~ "\\é?"`:               {true, true},
		`"é" ~ "\\è"`:                 {false, false},
		`comm ~ "."`:                  {false, false},
		`comm ~ "ssh*" ? pid > 42 : comm ~ "b[*]*"`: {false, true},
		`comm matches "^ssh"`:                       {true, false},
		`comm startsWith "ssh"`:                     {true, false},
		`comm in ["sshd", "~"]`:                     {true, false},
		`len == -1 && len(comm) == 4`:               {false, false}, // see below
		`type == "OPEN"`:                            {true, false},
		`type == 9`:                                 {false, true},
		`inner[0].f == 1.5`:                         {true, true},
		`any(inner, .f > 1)`:                        {true, true},
		`big > 6`:                                   {true, false},
		`big == 5`:                                  {false, true},
		`at == "0xffff888000000000"`:                {true, true},
		`$env["pid"] == 42`:                         {true, false},
	} {
		f, err := New(condition, typ)
		if strings.Contains(condition, "len(comm)") {
			// A field hides a function of the language.
			if err == nil || !strings.Contains(err.Error(), "not callable") {
				t.Errorf("%s: %v", condition, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", condition, err)
			continue
		}
		for i, s := range []decode.Sample{ssh, bash} {
			if got, err := f.Match(&s); got != want[i] || err != nil {
				t.Errorf("%s is %v, %v of sample %d, want %v", condition, got, err, i, want[i])
			}
		}
	}
}

func TestAWrongConditionIsOneLine(t *testing.T) {
	typ := eventType(t)
	for condition, want := range map[string]string{
		`pidd == 1`:       "unknown name pidd (1:1)",
		`inner[0].g == 1`: "unknown field g (1:10)",
		`comm == 1`:       "invalid operation: == (mismatched types string and int) (1:6)",
		`len`:             "expected bool, but got int",
		`pid ==`:          "unexpected token EOF (1:6)",
		``:                "unexpected token EOF",
		`comm ~ ssh`:      `~ takes a pattern in quotes, as in comm ~ "ssh*"`,
		`comm ~`:          `~ takes a pattern in quotes, as in comm ~ "ssh*"`,
		`comm ~ "ssh`:     `the pattern "ssh: it has no end, or a wrong escape`,
		`comm ~ "[z-a]"`:  `the pattern "[z-a]": error parsing regexp: invalid character class range`,
		`comm == "~`:      "literal not terminated",
	} {
		_, err := New(condition, typ)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", condition, err, want)
		}
	}
}

func TestASampleThatIsTooShortIsAnErrorOnlyWhereItMatters(t *testing.T) {
	typ := eventType(t)
	short := typ.Decode(sample(42, "sshd", 1, 5)[:10])
	for condition, want := range map[string]bool{`pid == 42`: true, `pid == 42 || big > 5`: true,
		`big == nil`: true, `comm ~ "ss*"`: true} {
		f, err := New(condition, typ)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Match(&short); got != want || err != nil {
			t.Errorf("%s is %v, %v", condition, got, err)
		}
	}
	f, err := New(`big > 5`, typ)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Match(&short); got || err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a condition over what is not there is %v, %v", got, err)
	}
	whole := typ.Decode(sample(42, "sshd", 1, 6))
	if got, err := f.Match(&whole); !got || err != nil {
		t.Errorf("afterwards it is %v, %v", got, err)
	}
	// The fields of the previous sample are gone.
	empty := typ.Decode(nil)
	if got, err := f.Match(&empty); got || err == nil {
		t.Errorf("of an empty sample it is %v, %v", got, err)
	}
}

func FuzzNew(f *testing.F) {
	f.Add(`pid == 42 && comm ~ "ssh*"`)
	f.Add("comm !~ '[a-z' || comm ~ `x`")
	typ := eventType(f)
	whole := typ.Decode(sample(42, "sshd", 1, 5))
	f.Fuzz(func(t *testing.T, condition string) {
		filter, err := New(condition, typ)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %q", err)
			}
			return
		}
		filter.Match(&whole)
	})
}
