package ringbuf

import (
	"sync/atomic"
)

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
		end, length, _ := entryHeader(head)
		if uint64(length) > uint64(len(head)-entryHeaderSize) {
			continue
		}
		return head[entryHeaderSize:][:length:length], int(u.producer.Load() - end), at, true
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
	return u.taken.CompareAndSwap(at, at+entrySize(len(sample)))
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

// before returns the end position of the entry before the oldest, or reports that
// there is none of that ring. Nobody may put meanwhile.
func (u *unread) before(ring int) (pos uint64, ok bool) {
	at := u.taken.Load()
	if at == u.put.Load() || int(u.ring.Load()) != ring {
		return 0, false
	}
	head := (*u.memory.Load())[at-u.base.Load():]
	end, _, gap := entryHeader(head)
	return end - uint64(gap), true
}

// clear takes all entries, for nobody.
func (u *unread) clear() { u.taken.Store(u.put.Load()) }
