package ringbuf

import (
	"slices"
)

// A batch is what one fetch of the rings after the other found: samples that libbpf has
// consumed and C has copied, or a window of a ring in which they still are.
type batch struct {
	memory  *[]byte // C writes to it, Go only reads
	entries []byte  // the samples that were copied, in memory
	lent    window  // or those that were not

	ring     int    // whose samples they are
	last     uint64 // end position of the last one
	producer uint64 // producer position after the fetch

	refused []refused // not yet told of, in the order of positions
}

// refused is a number of records that the kernel refused when the producer position was at
// this.
type refused struct{ position, records uint64 }

const (
	// A batch starts small, for the many Readers that see few samples, and grows. With
	// 16 KiB it stays in the first-level cache between the two copies.
	minBatchSize = 4 << 10
	maxBatchSize = 16 << 10
)

// keptMemory is how much memory a batch keeps for the next one. A larger sample has memory
// of its own.
const keptMemory = 2 * maxBatchSize

// reset makes b ready for the next fetch. What it has is no longer unread.
func (b *batch) reset() {
	b.entries, b.lent = nil, window{}
	if b.memory != nil && len(*b.memory) > keptMemory {
		b.memory = nil
	}
}

// room returns memory for size bytes of entries.
func (b *batch) room(size int) []byte {
	if b.memory == nil || len(*b.memory) < size {
		buf := make([]byte, size)
		b.memory = &buf
	}
	return *b.memory
}

// set makes buf, which is new, the entries of b.
func (b *batch) set(buf []byte) { b.memory, b.entries = &buf, buf }

// copyWindow makes entries of a window of g, in memory of their own: C writes to memory
// unseen by the race detector, but this is Go.
func (b *batch) copyWindow(g *ring, w window) {
	buf := make([]byte, 0, int(w.bytes)+w.samples*(entryHeaderSize+7))
	last := w.start
	g.each(w, func(end uint64, sample []byte) {
		buf = appendEntry(buf, end, uint32(end-last), sample)
		last = end
	})
	b.set(buf)
	b.ring, b.last, b.producer = w.ring, w.end, w.producer
}

// lose puts records that were lost at a position before other losses.
func (b *batch) lose(records, position uint64) {
	if records > 0 {
		b.refused = slices.Insert(b.refused, 0, refused{position, records})
	}
}

// lost returns how many records were lost before the one that ends at last, and the position
// of the first, and forgets these losses.
func (b *batch) lost(last uint64) (position, records uint64) {
	n := 0
	for ; n < len(b.refused) && b.refused[n].position < last; n++ {
		records += b.refused[n].records
	}
	if n > 0 {
		position = b.refused[0].position
		b.refused = b.refused[:copy(b.refused, b.refused[n:])]
	}
	return position, records
}

// drainAgain makes b what was drained and lent.
func (b *batch) drainAgain(l *loan) {
	b.set(l.entries)
	b.ring, b.producer = l.ring, l.producer
	_, b.last, _ = measure(l.entries)
	b.lose(l.lost, l.lostPosition())
}
