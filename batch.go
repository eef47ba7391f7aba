package ringbuf

import (
	"slices"
)

// A batch holds what one fetch from the rings found: either samples that libbpf has consumed and C
// has copied, or a window of a ring that they are still in.
type batch struct {
	memory  *[]byte // C writes to it, Go only reads
	entries []byte  // copied samples, in memory
	window  window  // samples that are still in the ring

	ring     int    // of all of these samples
	last     uint64 // position where the last one ends
	producer uint64 // producer position after the fetch

	refused []refused // losses that were not reported yet, in the order of positions
}

// refused is a number of records that the kernel refused while the producer was at this position.
type refused struct{ position, records uint64 }

const (
	// A batch starts small, because many Readers see few samples. It grows to 16 KiB, which stays
	// in the first-level cache between the two copies.
	minBatchSize = 4 << 10
	maxBatchSize = 16 << 10
)

// keptMemory is the most memory in bytes that a batch keeps for the next fetch. A larger sample
// gets memory of its own.
const keptMemory = 2 * maxBatchSize

// reset empties b for the next fetch.
func (b *batch) reset() {
	b.entries, b.window = nil, window{}
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

// set makes buf the entries of b. Nobody else may use buf.
func (b *batch) set(buf []byte) { b.memory, b.entries = &buf, buf }

// copyWindow copies a window of g to entries of b. They get new memory. C may overwrite old memory
// while a reader still looks at it, unseen by the race detector; Go may not.
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

// lose puts records that were lost at this position before all other losses.
func (b *batch) lose(records, position uint64) {
	if records > 0 {
		b.refused = slices.Insert(b.refused, 0, refused{position, records})
	}
}

// lost removes the losses before the record that ends at last. It returns the number of lost
// records and the position of the first loss.
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

// drainAgain makes the entries of a loan those of b.
func (b *batch) drainAgain(l *loan) {
	b.set(l.entries)
	b.ring, b.producer = l.ring, l.producer
	_, b.last, _ = measure(l.entries)
	b.lose(l.lost, l.lostPosition())
}
