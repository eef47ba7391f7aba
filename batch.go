package ringbuf

import "encoding/binary"

// A batch is what one poll of the ring drained.
type batch struct {
	buf      []byte  // memory of the entries, reused by the next poll
	entries  entries // what the poll drained
	consumer uint64  // consumer position after the drain
	producer uint64  // producer position after the drain
}

// entries are samples as C stored them, one after the other:
//
//	end position (8 bytes) | length (4) | unused (4) | sample | padding to 8
//
// in native byte order; struct cgo_ringbuf_entry in ringbuf_cgo.h is the header.
type entries []byte

const (
	entryHeaderSize  = 16
	recordHeaderSize = 8 // in the ring, BPF_RINGBUF_HDR_SZ
)

// next removes the oldest sample. It reports the sample, a view into the entries,
// and the position in the ring of its record's end.
func (e *entries) next() (sample []byte, end uint64) {
	end = binary.NativeEndian.Uint64(*e)
	size := binary.NativeEndian.Uint32((*e)[8:])
	body := (*e)[entryHeaderSize:]
	*e = body[(uint64(size)+7)&^7:]
	return body[:size:size], end
}
