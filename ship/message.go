package ship

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// The header fields of a message. The fields that identify the ring are the same in all its
// messages.
const (
	HeaderHost    = "Ringbuf-Host"
	HeaderBoot    = "Ringbuf-Boot"
	HeaderRing    = "Ringbuf-Ring"  // name of the map
	HeaderID      = "Ringbuf-Id"    // id of the map
	HeaderAfter   = "Ringbuf-After" // position where the previous message ends
	HeaderEnd     = "Ringbuf-End"   // position where this message ends
	HeaderTime    = "Ringbuf-Time"  // when the first record was found: RFC 3339, UTC
	HeaderLost    = "Ringbuf-Lost"  // records that the kernel refused since the previous message
	HeaderLostAll = "Ringbuf-Lost-Total"
	HeaderRecords = "Ringbuf-Records" // number of records, if the message has frames
)

// A Message is a message for a broker.
type Message struct {
	ID      string // names the ring and the end of the message: host, boot id, map id, position
	Header  map[string]string
	Data    []byte
	End     Mark
	Records int
}

// FrameOverhead is the largest number of bytes that a record takes in a message, besides its
// sample.
const FrameOverhead = 3 * binary.MaxVarintLen64

// Pack makes a message of the first records of b: as many as fit in limit bytes of data. It
// appends the data to buf. Each record is a frame. A frame has three numbers, encoded as by
// binary.AppendUvarint, and the sample:
//
//   - bytes from the end of the previous record to the end of this one
//   - records that the kernel refused between them
//   - bytes of the sample
//
// The first record follows the position in HeaderAfter.
//
// If not even the first record fits, Pack returns an error that wraps ErrPermanent.
func (b *Batch) Pack(buf []byte, limit int) (*Message, error) {
	end := b.After
	n := 0
	start := len(buf)
	for _, rec := range b.Records {
		if len(buf)-start+FrameOverhead+len(rec.Sample) > limit {
			break
		}
		buf = binary.AppendUvarint(buf, rec.Position-end.Position)
		buf = binary.AppendUvarint(buf, rec.Lost-end.Lost)
		buf = binary.AppendUvarint(buf, uint64(len(rec.Sample)))
		buf = append(buf, rec.Sample...)
		end = rec.Mark
		n++
	}
	if n == 0 {
		return nil, b.tooLarge(0, limit)
	}
	m := b.message(b.After, end)
	m.Data, m.Records = buf[start:], n
	m.Header[HeaderRecords] = strconv.Itoa(n)
	return m, nil
}

// Single makes a message of record i of b. Its data is the sample. If the sample is larger than
// limit bytes, Single returns an error that wraps ErrPermanent.
func (b *Batch) Single(i, limit int) (*Message, error) {
	after := b.After
	if i > 0 {
		after = b.Records[i-1].Mark
	}
	if len(b.Records[i].Sample) > limit {
		return nil, b.tooLarge(i, limit)
	}
	m := b.message(after, b.Records[i].Mark)
	m.Data, m.Records = b.Records[i].Sample, 1
	return m, nil
}

func (b *Batch) tooLarge(i, limit int) error {
	return fmt.Errorf("%w: a sample of %d bytes in ring %s is too large for a message of %d bytes: "+
		"let the broker have larger ones", ErrPermanent, len(b.Records[i].Sample), b.Ring.Name, limit)
}

func (b *Batch) message(after, end Mark) *Message {
	id := strconv.FormatUint(uint64(b.Ring.ID), 10)
	position := strconv.FormatUint(end.Position, 10)
	return &Message{
		ID: b.Ring.Host + "/" + b.Ring.Boot + "/" + id + "/" + position,
		Header: map[string]string{
			HeaderHost: b.Ring.Host, HeaderBoot: b.Ring.Boot, HeaderRing: b.Ring.Name, HeaderID: id,
			HeaderAfter:   strconv.FormatUint(after.Position, 10),
			HeaderEnd:     position,
			HeaderTime:    b.Time.UTC().Format(time.RFC3339Nano),
			HeaderLost:    strconv.FormatUint(end.Lost-after.Lost, 10),
			HeaderLostAll: strconv.FormatUint(end.Lost, 10),
		},
		End: end,
	}
}
