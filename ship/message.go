package ship

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"time"
)

// The header fields of a message. Those of the ring are the same in all of its messages.
const (
	HeaderHost    = "Ringbuf-Host"
	HeaderBoot    = "Ringbuf-Boot"
	HeaderRing    = "Ringbuf-Ring"  // the name of the map
	HeaderID      = "Ringbuf-Id"    // of the map
	HeaderAfter   = "Ringbuf-After" // position at which the message before ends
	HeaderEnd     = "Ringbuf-End"   // position at which this one ends
	HeaderTime    = "Ringbuf-Time"  // when the first record was found: RFC 3339, UTC
	HeaderLost    = "Ringbuf-Lost"  // records that the kernel refused since the message before
	HeaderLostAll = "Ringbuf-Lost-Total"
	HeaderRecords = "Ringbuf-Records" // how many, if the message has frames
)

// A Message is a message for a broker.
type Message struct {
	ID      string // names its ring and its end: host, boot id, map id, position
	Header  map[string]string
	Data    []byte
	End     Mark
	Records int
}

// FrameOverhead is how many bytes of a message a record takes at most, beside its sample.
const FrameOverhead = 3 * binary.MaxVarintLen64

// Pack makes a message of the first records of b: as many as have room in limit bytes of data. It
// appends the data to buf. Each record is a frame: three numbers as of binary.AppendUvarint (bytes
// from the end of the record before to its own end, records that the kernel refused between
// them, bytes of the sample) and the sample. Before the first record is HeaderAfter.
//
// The error says if not even the first has room, and wraps ErrPermanent.
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

// Single makes a message of record i of b: its data is the sample.
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
