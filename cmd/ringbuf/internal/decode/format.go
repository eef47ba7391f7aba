package decode

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"unicode/utf8"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// AppendText appends a sample as text for the user. The fields of a struct are name=value.
func (s *Sample) AppendText(b []byte) []byte {
	if fields, ok := s.Value.(Struct); ok {
		b = appendFields(b, fields)
	} else {
		b = appendText(b, s.Value)
	}
	if len(s.Extra) > 0 {
		b = fmt.Appendf(b, " <%d bytes more: %x>", len(s.Extra), s.Extra)
	}
	return b
}

func appendFields(b []byte, fields Struct) []byte {
	for i, f := range fields {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, text.Printable(f.Name)...)
		b = append(b, '=')
		b = appendText(b, f.Value)
	}
	return b
}

func appendText(b []byte, v Value) []byte {
	switch v := v.(type) {
	case Struct:
		return append(appendFields(append(b, '{'), v), '}')
	case Array:
		b = append(b, '[')
		for i, e := range v.Elems {
			if i > 0 {
				b = append(b, ' ')
			}
			b = appendText(b, e)
		}
		if len(v.Elems) < v.Want {
			b = fmt.Appendf(b, "<%d of %d elements>", len(v.Elems), v.Want)
		}
		return append(b, ']')
	case String:
		b = strconv.AppendQuote(b, v.Text)
		if v.Have < v.Want {
			b = fmt.Appendf(b, "<%d of %d bytes>", v.Have, v.Want)
		}
		return b
	case Enum:
		if v.Name == "" {
			return appendText(b, v.Value)
		}
		return append(b, text.Printable(v.Name)...)
	case Absent:
		return fmt.Appendf(b, "<%d of %d bytes>", v.Have, v.Want)
	}
	return appendScalar(b, v)
}

// appendScalar appends a value that has the same form in text and JSON, except for quotes.
func appendScalar(b []byte, v Value) []byte {
	switch v := v.(type) {
	case int64:
		return strconv.AppendInt(b, v, 10)
	case uint64:
		return strconv.AppendUint(b, v, 10)
	case float32:
		return strconv.AppendFloat(b, float64(v), 'g', -1, 32)
	case float64:
		return strconv.AppendFloat(b, v, 'g', -1, 64)
	case bool:
		return strconv.AppendBool(b, v)
	case Pointer:
		return strconv.AppendUint(append(b, "0x"...), uint64(v), 16)
	case Wide:
		return v.bigInt().Append(b, 10)
	case Opaque:
		return fmt.Appendf(b, "%x", []byte(v))
	}
	panic(fmt.Sprintf("a value of type %T", v))
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

func (w Wide) bigInt() *big.Int {
	i := new(big.Int).SetUint64(w.High)
	if w.Signed {
		i.SetInt64(int64(w.High))
	}
	i.Lsh(i, 64)
	return i.Add(i, new(big.Int).SetUint64(w.Low))
}

// AppendJSON appends a sample's value as JSON:
//
//   - Structs and unions are objects, with the fields in the order of C.
//   - Arrays are arrays.
//   - Integers of up to 64 bits, floats and bools are numbers and bools.
//   - Char arrays and the names of enum values are strings. Enum values without a name are numbers.
//   - Integers of 128 bits (decimal), pointers (0x and hexadecimal), floats that are infinite or
//     not a number, and other values (the bytes in hexadecimal) are strings.
//   - Absent values are null.
func (s *Sample) AppendJSON(b []byte) []byte { return appendJSON(b, s.Value) }

func appendJSON(b []byte, v Value) []byte {
	switch v := v.(type) {
	case Struct:
		b = append(b, '{')
		for i, f := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = AppendJSONString(b, f.Name)
			b = append(b, ':')
			b = appendJSON(b, f.Value)
		}
		return append(b, '}')
	case Array:
		b = append(b, '[')
		for i, e := range v.Elems {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, e)
		}
		return append(b, ']')
	case String:
		return AppendJSONString(b, v.Text)
	case Enum:
		if v.Name == "" {
			return appendJSON(b, v.Value)
		}
		return AppendJSONString(b, v.Name)
	case Absent:
		return append(b, "null"...)
	case float32:
		if finite(float64(v)) {
			return appendScalar(b, v)
		}
	case float64:
		if finite(v) {
			return appendScalar(b, v)
		}
	case int64, uint64, bool:
		return appendScalar(b, v)
	}
	return append(appendScalar(append(b, '"'), v), '"')
}

// AppendJSONString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func AppendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029':
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// Text returns a value in the format of AppendText.
func Text(v Value) string { return string(appendText(nil, v)) }
