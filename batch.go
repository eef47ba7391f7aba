package ringbuf

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
)

// A batch is where one poll of the rings after the other puts what it drained.
type batch struct {
	memory  *memory
	used    int    // bytes of memory that callers may keep
	keeping bool   // callers kept samples of the last poll, or would have liked to
	entries []byte // what the last poll drained, in memory behind used

	ring     int    // whose samples they are
	last     uint64 // end position of the last entry
	producer uint64 // producer position after the poll

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

const recordHeaderSize = 8 // in the ring, BPF_RINGBUF_HDR_SZ

const (
	// maxKept is the size in bytes of the largest samples that Read does not copy.
	// Larger ones would use up memory for a batch quickly.
	maxKept = 2 << 10

	// maxKeptMemory is how much a caller may retain by keeping a sample.
	maxKeptMemory = 64 << 10
)

// memory is what entries are in. C writes to it, Go only reads.
type memory struct {
	bytes []byte
	kept  atomic.Bool  // Read gave samples in it away for ever, or did not because it is large
	views atomic.Int32 // goroutines that may use a sample in it for a while
}

func (m *memory) large() bool { return len(m.bytes) > maxKeptMemory }

// reset makes b ready for the next poll. What it has is no longer unread.
func (b *batch) reset() {
	b.keeping = b.memory != nil && b.memory.kept.Load()
	switch {
	case !b.keeping && (b.memory == nil || b.memory.views.Load() == 0):
		b.used = 0
	case !b.keeping || b.memory.large():
		b.memory, b.used = nil, 0
	default:
		b.used += len(b.entries)
	}
	b.entries = nil
}

// room returns memory for entries, at least min bytes of it. If it must be made, it
// gets as many as size says.
func (b *batch) room(min, size int) []byte {
	if b.memory == nil || len(b.memory.bytes)-b.used < min {
		b.set(make([]byte, size), 0)
	}
	return b.memory.bytes[b.used:]
}

// set makes the first n bytes of buf, which is new, the entries of b.
func (b *batch) set(buf []byte, n int) {
	b.memory, b.used, b.entries = &memory{bytes: buf}, 0, buf[:n]
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
	memory   atomic.Pointer[memory]
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
		bytes := u.memory.Load().bytes
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
	return u.taken.CompareAndSwap(at, at+entryHeaderSize+uint64(len(sample)+7)&^7)
}

// copySample copies a sample that was peeked to buf, if it has room, and returns the
// copy. The race detector must not see it: whoever took the sample meanwhile may write
// to it, and then take fails. It sees appends and copies even here.
//
//go:norace
func copySample(buf, sample []byte) []byte {
	if !raceEnabled {
		return append(buf[:0], sample...)
	}
	buf = slices.Grow(buf[:0], len(sample))[:len(sample)]
	//lint:ignore S1001 see above
	for i := range sample {
		buf[i] = sample[i]
	}
	return buf
}

// keep is called between peek and take by who wants the sample without copying it. It
// reports whether that is possible.
func (u *unread) keep(sample []byte) bool {
	if len(sample) > maxKept {
		return false
	}
	// If this is not the memory of the sample, it will not be taken.
	m := u.memory.Load()
	if !m.kept.Load() {
		m.kept.Store(true)
	}
	return !m.large()
}

// A view is an unread batch for who uses samples without copying them: until release
// nobody writes to its memory.
type view struct {
	memory   *memory
	base     uint64 // as of unread
	put      uint64
	producer uint64
	ring     int
	lost     uint64
	lostAt   uint64
}

// view returns a view of the batch, or reports that all of it was taken.
func (u *unread) view() (v view, ok bool) {
	for {
		at := u.taken.Load()
		if at == u.put.Load() {
			return view{}, false
		}
		v = view{
			memory:   u.memory.Load(),
			base:     u.base.Load(),
			put:      u.put.Load(),
			producer: u.producer.Load(),
			ring:     int(u.ring.Load()),
			lost:     u.lost.Load(),
			lostAt:   u.lostAt.Load(),
		}
		v.memory.views.Add(1)
		if u.taken.Load() == at { // so all of that is of one batch, and it is not reused
			return v, true
		}
		v.release()
	}
}

func (v *view) release() { v.memory.views.Add(-1) }

// add puts the entries of a batch.
func (u *unread) add(b *batch) {
	if u.memory.Load() != b.memory {
		u.memory.Store(b.memory)
	}
	at := u.put.Load()
	u.base.Store(at - uint64(b.used))
	u.producer.Store(b.producer)
	if ring := int32(b.ring); u.ring.Load() != ring {
		u.ring.Store(ring)
	}
	if u.lost.Load() != 0 {
		u.lost.Store(0)
	}
	if offset, records := b.lost(); records > 0 {
		u.lostAt.Store(at + offset)
		u.lost.Store(records)
	}
	u.put.Store(at + uint64(len(b.entries)))
}

// lost returns where in the entries the first is that comes after a loss, how many records
// were lost before it and the others, and forgets these losses.
func (b *batch) lost() (offset, records uint64) {
	n := 0
	for ; n < len(b.refused) && b.refused[n].position < b.last; n++ {
		records += b.refused[n].records
	}
	if n == 0 {
		return 0, 0
	}
	for head := b.entries; binary.NativeEndian.Uint64(head) <= b.refused[0].position; head = b.entries[offset:] {
		offset += entryHeaderSize + (uint64(binary.NativeEndian.Uint32(head[8:]))+7)&^7
	}
	b.refused = b.refused[:copy(b.refused, b.refused[n:])]
	return offset, records
}

// before returns the end position of the entry before the oldest, or reports that
// there is none of that ring. Nobody may put meanwhile.
func (u *unread) before(ring int) (pos uint64, ok bool) {
	at := u.taken.Load()
	if at == u.put.Load() || int(u.ring.Load()) != ring {
		return 0, false
	}
	head := u.memory.Load().bytes[at-u.base.Load():]
	return binary.NativeEndian.Uint64(head) - uint64(binary.NativeEndian.Uint32(head[12:])), true
}

// clear takes all entries, for nobody.
func (u *unread) clear() { u.taken.Store(u.put.Load()) }
