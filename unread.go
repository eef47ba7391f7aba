package ringbuf

import (
	"sync/atomic"
)

// unread is a queue of the entries of one batch. One goroutine at a time adds entries, and only
// when the queue is empty. Any number of goroutines take.
//
// Taking costs one atomic operation. A goroutine first copies the sample, and then moves taken on,
// if taken still has the same value. If not, another goroutine was quicker: the memory may have
// been overwritten during the copy, which is therefore dropped. taken never decreases, so the same
// value cannot come back.
type unread struct {
	taken atomic.Uint64 // bytes of entries that were taken, ever
	put   atomic.Uint64 // bytes of entries that were put, ever

	// Of the batch. These change only while taken == put.
	memory   atomic.Pointer[[]byte]
	base     atomic.Uint64 // the value of taken where memory begins
	producer atomic.Uint64
	ring     atomic.Int32
	lost     atomic.Uint64 // records that were lost before one of the entries
	lostAt   atomic.Uint64 // the value of taken where this entry begins
}

func (u *unread) empty() bool { return u.taken.Load() == u.put.Load() }

// peek returns the oldest entry and its place for take, or reports that there is none.
func (u *unread) peek() (sample []byte, remaining int, at uint64, ok bool) {
	for {
		at = u.taken.Load()
		if at == u.put.Load() {
			return nil, 0, 0, false
		}
		bytes := *u.memory.Load()
		offset := at - u.base.Load()
		// An entry out of bounds was taken and overwritten in the meantime. An entry within bounds
		// may have been, too; then take fails.
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

// origin returns the ring of the entry that peek found at this place, and the number of records
// that were lost before it. The result is valid only if take succeeds afterwards.
func (u *unread) origin(at uint64) (ring int, lost uint64) {
	if u.lostAt.Load() == at {
		lost = u.lost.Load()
	}
	return int(u.ring.Load()), lost
}

// take removes the entry that peek returned. It reports false if another goroutine has taken it;
// then sample may be garbage.
func (u *unread) take(at uint64, sample []byte) bool {
	return u.taken.CompareAndSwap(at, at+entrySize(len(sample)))
}

// takeAll removes and returns all entries. The other results are those of peek and origin for the
// oldest one.
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

// add adds the entries of a batch.
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

// before returns the position where the entry before the oldest one ends. It reports false if there
// is no entry of that ring. Nobody may call add at the same time.
func (u *unread) before(ring int) (pos uint64, ok bool) {
	at := u.taken.Load()
	if at == u.put.Load() || int(u.ring.Load()) != ring {
		return 0, false
	}
	head := (*u.memory.Load())[at-u.base.Load():]
	end, _, gap := entryHeader(head)
	return end - uint64(gap), true
}

// clear drops all entries.
func (u *unread) clear() { u.taken.Store(u.put.Load()) }
