package ship

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Received is the content of one message.
type Received struct {
	Ring    Ring
	Time    time.Time // when the shipper found the first record
	Missed  uint64    // bytes of the ring, before the first record, whose messages are missing
	Again   int       // records that were left out, because an earlier message had them
	Records []ReceivedRecord
}

// A ReceivedRecord is one record of a message.
type ReceivedRecord struct {
	Sample   []byte // part of the message's data
	Position uint64 // where the record ends in the ring
	Lost     uint64 // records that the kernel refused between the previous record and this one
}

// A Decoder turns messages back into records, for any number of rings. It returns each record
// once, in the order of its ring, even if messages are repeated. The zero value is ready to
// use. A Decoder is not safe for concurrent use.
type Decoder struct {
	ends map[Ring]Mark
}

// Decode decodes a message that Pack or Single made. get returns the value of a header field,
// or "" if there is none. The result is valid until the next call. Its samples are parts of
// data, and are valid as long as data is.
//
// Decode returns an error if the message is malformed. The Decoder is then unchanged.
func (d *Decoder) Decode(get func(field string) string, data []byte) (*Received, error) {
	h, err := parseHeader(get)
	if err != nil {
		return nil, err
	}
	r := &Received{Ring: h.ring, Time: h.time}
	last, known := d.ends[h.ring]
	if !known {
		last = h.after
	}
	if last.Position < h.after.Position {
		r.Missed = h.after.Position - last.Position
	}
	end := h.after
	for n := range h.records {
		rec := ReceivedRecord{Sample: data, Position: h.end.Position}
		lost := h.end.Lost - h.after.Lost
		if h.framed {
			var step uint64
			if rec.Sample, step, lost, data, err = nextFrame(data); err != nil {
				return nil, fmt.Errorf("frame %d of %d: %w", n, h.records, err)
			}
			rec.Position = end.Position + step
		}
		end = Mark{rec.Position, end.Lost + lost}
		if rec.Position <= last.Position {
			r.Again++
			continue
		}
		if end.Lost > last.Lost { // losses that were reported before are not reported again
			rec.Lost = end.Lost - last.Lost
		}
		last = Mark{end.Position, max(end.Lost, last.Lost)}
		r.Records = append(r.Records, rec)
	}
	if end != h.end || h.framed && len(data) > 0 {
		return nil, fmt.Errorf("the frames end at %+v, with %d bytes more, but the header says %+v",
			end, len(data), h.end)
	}
	if d.ends == nil {
		d.ends = map[Ring]Mark{}
	}
	d.ends[h.ring] = last
	return r, nil
}

var errFrame = errors.New("it is cut")

func nextFrame(data []byte) (sample []byte, step, lost uint64, rest []byte, err error) {
	var size uint64
	for _, number := range []*uint64{&step, &lost, &size} {
		n := 0
		if *number, n = binary.Uvarint(data); n <= 0 {
			return nil, 0, 0, nil, errFrame
		}
		data = data[n:]
	}
	if size > uint64(len(data)) {
		return nil, 0, 0, nil, errFrame
	}
	return data[:size:size], step, lost, data[size:], nil
}

// A header is the decoded header of a message.
type header struct {
	ring       Ring
	after, end Mark
	time       time.Time
	framed     bool
	records    int
}

// parseHeader parses a header that Batch.message made.
func parseHeader(get func(field string) string) (h header, err error) {
	number := func(field string) uint64 {
		n, numberErr := strconv.ParseUint(get(field), 10, 63)
		if numberErr != nil && err == nil {
			err = fmt.Errorf("the message was not shipped by this package: its header %s is %q", field,
				get(field))
		}
		return n
	}
	h.ring = Ring{get(HeaderHost), get(HeaderBoot), get(HeaderRing), uint32(number(HeaderID))}
	h.end = Mark{number(HeaderEnd), number(HeaderLostAll)}
	h.after = Mark{number(HeaderAfter), h.end.Lost - number(HeaderLost)}
	h.records = 1
	if h.framed = get(HeaderRecords) != ""; h.framed {
		h.records = int(number(HeaderRecords))
	}
	h.time, _ = time.Parse(time.RFC3339Nano, get(HeaderTime))
	return h, err
}

// MarkOf returns the Ring of a message and the Mark at its end. Sinks use it to resume after
// the last message that is stored. get is as in Decode.
func MarkOf(get func(field string) string) (Ring, Mark, error) {
	h, err := parseHeader(get)
	return h.ring, h.end, err
}
