// Package filter evaluates conditions over decoded samples.
package filter

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/types"
	"github.com/expr-lang/expr/vm"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
)

// A Filter is a condition over the fields of a type. One goroutine at a time may use it.
type Filter struct {
	program *vm.Program
	vm      vm.VM
	used    map[string]bool // names of the fields in the condition; nil for all
	env     map[string]any
}

// New returns a Filter for a condition in the language of github.com/expr-lang/expr. In addition,
// a ~ "pattern" means a matches "regular expression", and a !~ "pattern" the opposite. In a
// pattern, * stands for any text, ? for any character, and [a-z] and [!a-z] for one of a set of
// characters.
//
// In a condition, fields have the type that they have in C, with these exceptions:
//
//   - enums are strings if the value has a name, else integers
//   - char arrays are strings
//   - pointers (0x and hexadecimal) and integers of 128 bits (decimal) are strings
//   - unsigned integers that an int64 cannot hold are floats
//   - fields that a sample is too short for are nil
//
// The error of New is one line.
func New(condition string, typ *decode.Type) (*Filter, error) {
	source, err := expandGlobs(condition)
	if err != nil {
		return nil, err
	}
	// A decoded sample of zeros has all names and types.
	zero := typ.Decode(make([]byte, typ.Size()))
	fields, ok := zero.Value.(decode.Struct)
	if !ok {
		return nil, fmt.Errorf("%s has no fields", typ)
	}
	names, _ := typeOf(fields).(types.Map)
	f := &Filter{used: map[string]bool{}, env: map[string]any{}}
	f.program, err = expr.Compile(source, expr.Env(names), expr.AsBool())
	if err != nil {
		message, _, _ := strings.Cut(err.Error(), "\n") // the rest shows the place
		return nil, fmt.Errorf("%s", message)
	}
	node := f.program.Node()
	ast.Walk(&node, f)
	return f, nil
}

// Visit implements ast.Visitor. It collects the names that the condition uses.
func (f *Filter) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		f.used[n.Value] = true
		if n.Value == "$env" {
			f.used = nil // all of them
		}
	}
}

// Match reports whether the condition is true for a sample. It returns an error if the condition
// cannot be evaluated, for example because the sample is too short for a field that matters.
func (f *Filter) Match(s *decode.Sample) (bool, error) {
	fields, ok := s.Value.(decode.Struct)
	if !ok {
		return false, errors.New("the sample is empty")
	}
	for _, field := range fields {
		if f.used == nil || f.used[field.Name] {
			f.env[field.Name] = valueOf(field.Value)
		}
	}
	result, err := f.vm.Run(f.program, f.env)
	if err != nil {
		message, _, _ := strings.Cut(err.Error(), "\n")
		return false, fmt.Errorf("%s", message)
	}
	match, isBool := result.(bool)
	if !isBool {
		return false, fmt.Errorf("it is not true or false but %v", result)
	}
	return match, nil
}

// typeOf returns the type that values like v have in a condition.
func typeOf(v decode.Value) types.Type {
	switch v := v.(type) {
	case decode.Struct:
		fields := types.Map{}
		for _, f := range v {
			fields[f.Name] = typeOf(f.Value)
		}
		return fields
	case decode.Array:
		if len(v.Elems) == 0 {
			return types.Array(types.Any)
		}
		return types.Array(typeOf(v.Elems[0]))
	case bool:
		return types.Bool
	case float32, float64:
		return types.Float64
	case int64:
		return types.Int
	case uint64, decode.Enum:
		return types.Any
	}
	return types.String
}

func valueOf(v decode.Value) any {
	switch v := v.(type) {
	case decode.Struct:
		fields := make(map[string]any, len(v))
		for _, f := range v {
			fields[f.Name] = valueOf(f.Value)
		}
		return fields
	case decode.Array:
		elems := make([]any, 0, len(v.Elems))
		for _, e := range v.Elems {
			elems = append(elems, valueOf(e))
		}
		return elems
	case decode.String:
		return v.Text
	case decode.Enum:
		if v.Name != "" {
			return v.Name
		}
		return valueOf(v.Value)
	case decode.Absent:
		return nil
	case int64:
		return int(v)
	case uint64:
		if v > math.MaxInt64 {
			return float64(v)
		}
		return int(v)
	case float32:
		return float64(v)
	case float64, bool:
		return v
	}
	return decode.Text(v)
}

// expandGlobs replaces ~ and !~, which expr does not have, by its matches.
func expandGlobs(condition string) (string, error) {
	var b strings.Builder
	for rest := condition; rest != ""; {
		i := strings.IndexAny(rest, "~\"'`")
		if i < 0 {
			b.WriteString(rest)
			break
		}
		if rest[i] != '~' {
			end := stringEnd(rest, i)
			b.WriteString(rest[:end])
			rest = rest[end:]
			continue
		}
		operator := " matches "
		before := rest[:i]
		if strings.HasSuffix(before, "!") {
			before, operator = before[:len(before)-1], " not matches "
		}
		after := strings.TrimLeft(rest[i+1:], " \t\n")
		if after == "" || !strings.ContainsRune("\"'`", rune(after[0])) {
			return "", fmt.Errorf(`~ takes a pattern in quotes, as in comm ~ "ssh*"`)
		}
		end := stringEnd(after, 0)
		pattern, err := unquote(after[:end])
		if err != nil {
			return "", fmt.Errorf("the pattern %s: it has no end, or a wrong escape", after[:end])
		}
		expression := globRegexp(pattern)
		if _, err := regexp.Compile(expression); err != nil {
			return "", fmt.Errorf("the pattern %s: %w", after[:end], err)
		}
		b.WriteString(before + operator + strconv.Quote(expression))
		rest = after[end:]
	}
	return b.String(), nil
}

// stringEnd returns the end of the string that begins at start, or the end of s if it has none.
func stringEnd(s string, start int) int {
	for i := start + 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && s[start] != '`':
			i++
		case s[i] == s[start]:
			return i + 1
		}
	}
	return len(s)
}

func unquote(s string) (string, error) {
	if s[0] == '\'' && len(s) >= 2 && s[len(s)-1] == '\'' {
		s = `"` + strings.NewReplacer(`\'`, `'`, `"`, `\"`).Replace(s[1:len(s)-1]) + `"`
	}
	return strconv.Unquote(s)
}

// globRegexp returns the regular expression for a pattern.
func globRegexp(pattern string) string {
	var b strings.Builder
	b.WriteString(`(?s)^`)
	for i := 0; i < len(pattern); {
		c := pattern[i]
		i++
		switch c {
		case '*':
			b.WriteString(".*")
		case '?':
			b.WriteString(".")
		case '[':
			end := strings.IndexByte(pattern[min(i+1, len(pattern)):], ']')
			if end < 0 {
				b.WriteString(`\[`)
				continue
			}
			set := pattern[i : i+1+end]
			i += len(set) + 1
			b.WriteByte('[')
			if set[0] == '!' || set[0] == '^' {
				b.WriteByte('^')
				set = set[1:]
			}
			b.WriteString(strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(set))
			b.WriteByte(']')
		case '\\':
			if i < len(pattern) {
				i++
			}
			b.WriteString(regexp.QuoteMeta(pattern[i-1 : i]))
		default:
			b.WriteString(regexp.QuoteMeta(pattern[i-1 : i]))
		}
	}
	b.WriteString("$")
	return b.String()
}
