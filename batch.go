package ringbuf

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
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

// entries are samples as C stored them, one after the other:
//
//	end position (8 bytes) | length (4) | gap (4) | sample | padding to 8
//
// in native byte order; struct cgo_ringbuf_entry in ringbuf_cgo.h is the header.
const entryHeaderSize = 16

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
		buf = binary.NativeEndian.AppendUint64(buf, end)
		buf = binary.NativeEndian.AppendUint32(buf, uint32(len(sample)))
		buf = binary.NativeEndian.AppendUint32(buf, uint32(end-last))
		buf = append(append(buf, sample...), make([]byte, -len(sample)&7)...)
		last = end
	})
	b.set(buf)
	b.ring, b.last, b.producer = w.ring, w.end, w.producer
}

// unread is a queue of the entries of one batch. One goroutine at a time puts, when
// the queue is empty, and any number take.
//
// To take costs one atomic operation: whoever wants a sample copies it first, and
// then moves taken on, if that is still where it was. If it is not, somebody else was
// quicker, the memory may have been overwritten meanwhile, and the copy is worth
// nothing. Taken never goes back, so it cannot be there again.
type unread struct {
	taken atomic.Uint64 // bytes of entries that were taken, ever
	put   atomic.Uint64 // bytes of entries that were put, ever

	// Of the batch. They change only while taken == put.
	memory   atomic.Pointer[[]byte]
	base     atomic.Uint64 // the value of taken where memory begins
	producer atomic.Uint64
	ring     atomic.Int32
	lost     atomic.Uint64 // records that were lost before one of the entries
	lostAt   atomic.Uint64 // the value of taken where that begins
}

func (u *unread) empty() bool { return u.taken.Load() == u.put.Load() }

// peek returns the oldest entry, or reports that there is none, and what take wants
// to know.
func (u *unread) peek() (sample []byte, remaining int, at uint64, ok bool) {
	for {
		at = u.taken.Load()
		if at == u.put.Load() {
			return nil, 0, 0, false
		}
		bytes := *u.memory.Load()
		offset := at - u.base.Load()
		// What is out of bounds was taken and overwritten meanwhile. What is not may be
		// too: then take fails.
		if offset > uint64(len(bytes)-entryHeaderSize) {
			continue
		}
		head := bytes[offset:]
		end := binary.NativeEndian.Uint64(head)
		size := uint64(binary.NativeEndian.Uint32(head[8:]))
		if size > uint64(len(head)-entryHeaderSize) {
			continue
		}
		return head[entryHeaderSize:][:size:size], int(u.producer.Load() - end), at, true
	}
}

// origin returns of the entry at which peek was the ring, and how many records were lost
// before it. It is valid if take succeeds after that.
func (u *unread) origin(at uint64) (ring int, lost uint64) {
	if u.lostAt.Load() == at {
		lost = u.lost.Load()
	}
	return int(u.ring.Load()), lost
}

// take removes the entry that was peeked. If it reports false somebody else did, and
// what was read of the sample is worth nothing.
func (u *unread) take(at uint64, sample []byte) bool {
	return u.taken.CompareAndSwap(at, at+entrySize(sample))
}

func entrySize(sample []byte) uint64 { return entryHeaderSize + uint64(len(sample)+7)&^7 }

// firstOf returns the sample of the first of entries, and where its record ends in the ring.
func firstOf(entries []byte) (sample []byte, end uint64) {
	size := binary.NativeEndian.Uint32(entries[8:])
	return entries[entryHeaderSize:][:size:size], binary.NativeEndian.Uint64(entries)
}

// takeAll removes all entries and returns them, with what peek and origin say of the oldest
// one.
func (u *unread) takeAll() (entries []byte, producer uint64, ring int, lost, lostAt uint64) {
	for {
		at, put := u.taken.Load(), u.put.Load()
		if at == put {
			return nil, 0, 0, 0, 0
		}
		base := u.base.Load()
		lost = 0
		entries = (*u.memory.Load())[at-base : put-base]
		producer, ring = u.producer.Load(), int(u.ring.Load())
		if lostAt = u.lostAt.Load(); lostAt >= at {
			lost, lostAt = u.lost.Load(), lostAt-at
		}
		if u.taken.CompareAndSwap(at, put) {
			return entries, producer, ring, lost, lostAt
		}
	}
}

// add puts the entries of a batch.
func (u *unread) add(b *batch) {
	if u.memory.Load() != b.memory {
		u.memory.Store(b.memory)
	}
	at := u.put.Load()
	u.base.Store(at)
	u.producer.Store(b.producer)
	if ring := int32(b.ring); u.ring.Load() != ring {
		u.ring.Store(ring)
	}
	if u.lost.Load() != 0 {
		u.lost.Store(0)
	}
	if position, records := b.lost(b.last); records > 0 {
		u.lostAt.Store(at + offsetAfter(b.entries, position))
		u.lost.Store(records)
	}
	u.put.Store(at + uint64(len(b.entries)))
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

// offsetAfter returns where in entries the first is that ends after a position.
func offsetAfter(entries []byte, position uint64) (offset uint64) {
	for head := entries; binary.NativeEndian.Uint64(head) <= position; head = entries[offset:] {
		offset += entryHeaderSize + (uint64(binary.NativeEndian.Uint32(head[8:]))+7)&^7
	}
	return offset
}

// before returns the end position of the entry before the oldest, or reports that
// there is none of that ring. Nobody may put meanwhile.
func (u *unread) before(ring int) (pos uint64, ok bool) {
	at := u.taken.Load()
	if at == u.put.Load() || int(u.ring.Load()) != ring {
		return 0, false
	}
	head := (*u.memory.Load())[at-u.base.Load():]
	return binary.NativeEndian.Uint64(head) - uint64(binary.NativeEndian.Uint32(head[12:])), true
}

// clear takes all entries, for nobody.
func (u *unread) clear() { u.taken.Store(u.put.Load()) }
