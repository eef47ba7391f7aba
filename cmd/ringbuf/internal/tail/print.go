package tail

import (
	"bufio"
	"encoding/hex"
	"io"
	"strconv"

	"github.com/libbpfgo/ringbuf/capture"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// A Printer prints records as text or as JSON. It buffers its output.
type Printer struct {
	out  *bufio.Writer
	json bool
	line []byte
}

// NewPrinter returns a Printer that writes text or, if json is true, one JSON object a line to w.
func NewPrinter(w io.Writer, json bool) *Printer {
	return &Printer{out: bufio.NewWriterSize(w, 64<<10), json: json}
}

// Flush writes the buffer.
func (p *Printer) Flush() error { return p.out.Flush() }

// record prints a record of a ring: s, its decoded sample, or its bytes if s is nil.
func (p *Printer) record(r *Ring, rec *capture.Record, s *decode.Sample) error {
	if p.json {
		p.line = appendJSONRecord(p.line[:0], r, rec, s)
	} else {
		p.line = appendTextRecord(p.line[:0], r, rec, s)
	}
	_, err := p.out.Write(p.line)
	return err
}

// missed prints how many bytes of records of a ring were missed.
func (p *Printer) missed(r *Ring, bytes uint64) error {
	b := p.line[:0]
	if p.json {
		b = appendJSONRing(append(b, '{'), r)
		b = strconv.AppendUint(append(b, `,"missed_bytes":`...), bytes, 10)
		b = append(b, "}\n"...)
	} else {
		b = append(b, text.Printable(r.Label)...)
		b = strconv.AppendUint(append(b, ": missed "...), bytes, 10)
		b = append(b, " bytes of records\n"...)
	}
	p.line = b
	_, err := p.out.Write(b)
	return err
}

func appendTextRecord(b []byte, r *Ring, rec *capture.Record, s *decode.Sample) []byte {
	b = rec.Time.Local().AppendFormat(b, "15:04:05.000000 ")
	b = append(b, text.Printable(r.Label)...)
	b = append(b, ' ')
	if len(rec.RawSample) < rec.Length {
		b = strconv.AppendInt(b, int64(len(rec.RawSample)), 10)
		b = append(b, " of "...)
	}
	b = strconv.AppendInt(b, int64(rec.Length), 10)
	b = append(b, " bytes"...)
	if rec.Lost > 0 {
		b = strconv.AppendUint(append(b, ", "...), rec.Lost, 10)
		b = append(b, " lost before"...)
	}
	if rec.Comment != "" {
		b = append(append(append(b, " ("...), text.Printable(rec.Comment)...), ')')
	}
	if s != nil {
		b = append(b, ": "...)
		return append(s.AppendText(b), '\n')
	}
	return appendDump(append(b, '\n'), rec.RawSample)
}

// appendDump appends bytes in the format of tcpdump -X.
func appendDump(b, data []byte) []byte {
	const width = 16
	for at := 0; at < len(data); at += width {
		row := data[at:min(at+width, len(data))]
		b = append(b, "\t0x"...)
		for shift := 12; shift >= 0; shift -= 4 {
			b = append(b, "0123456789abcdef"[at>>shift&15])
		}
		b = append(b, ": "...)
		for i := range width {
			if i%2 == 0 {
				b = append(b, ' ')
			}
			if i < len(row) {
				b = hex.AppendEncode(b, row[i:i+1])
			} else {
				b = append(b, "  "...)
			}
		}
		b = append(b, "  "...)
		for _, c := range row {
			if c < ' ' || c > '~' {
				c = '.'
			}
			b = append(b, c)
		}
		b = append(b, '\n')
	}
	return b
}

// appendJSONRing appends the fields that identify the ring.
func appendJSONRing(b []byte, r *Ring) []byte {
	if r.Host != "" {
		b = append(decode.AppendJSONString(append(b, `"host":`...), r.Host), ',')
	}
	b = decode.AppendJSONString(append(b, `"ring":`...), r.Name)
	return strconv.AppendUint(append(b, `,"id":`...), uint64(r.ID), 10)
}

func appendJSONRecord(b []byte, r *Ring, rec *capture.Record, s *decode.Sample) []byte {
	b = rec.Time.UTC().AppendFormat(append(b, `{"time":`...), `"2006-01-02T15:04:05.000000000Z",`)
	b = appendJSONRing(b, r)
	b = strconv.AppendInt(append(b, `,"size":`...), int64(rec.Length), 10)
	if len(rec.RawSample) < rec.Length {
		b = strconv.AppendInt(append(b, `,"captured":`...), int64(len(rec.RawSample)), 10)
	}
	if rec.Lost > 0 {
		b = strconv.AppendUint(append(b, `,"lost":`...), rec.Lost, 10)
	}
	if rec.Comment != "" {
		b = decode.AppendJSONString(append(b, `,"comment":`...), rec.Comment)
	}
	if s == nil {
		b = hex.AppendEncode(append(b, `,"data":"`...), rec.RawSample)
		return append(b, "\"}\n"...)
	}
	b = decode.AppendJSONString(append(b, `,"type":`...), r.typ.String())
	b = s.AppendJSON(append(b, `,"fields":`...))
	if len(s.Cut) > 0 {
		b = append(b, `,"cut":`...)
		for i, path := range s.Cut {
			b = append(b, "[,"[min(i, 1)])
			b = decode.AppendJSONString(b, path)
		}
		b = append(b, ']')
	}
	if len(s.Extra) > 0 {
		b = hex.AppendEncode(append(b, `,"extra":"`...), s.Extra)
		b = append(b, '"')
	}
	return append(b, "}\n"...)
}
