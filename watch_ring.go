package ringbuf

import (
	"encoding/binary"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"
)

// A Watcher reads a ring that the kernel may overwrite at any time. So it copies records first, and
// then checks whether the kernel may have written there in the meantime.

// A watchedRing is a ring that a Watcher looks at. Somebody else may consume its records.
type watchedRing struct {
	ring

	// Two more positions on the page of the producer position; nil unless the ring is in overwrite
	// mode. All records before pending are committed. overwrite is the start of the oldest record
	// that the kernel is not about to overwrite.
	pendingPos, overwritePos *uint64

	pageShift int
	weak      bool          // processors may see stores out of order
	fences    atomic.Uint64 // only for the barrier that adding to it is
	walked    func()        // for tests: called between the look at the headers and the copy
}

func newWatchedRing(g ring, overwrite bool) *watchedRing {
	v := &watchedRing{ring: g, weak: weaklyOrdered,
		pageShift: bits.TrailingZeros(uint(os.Getpagesize()))}
	if overwrite {
		// SAFETY: these are on the page of the producer position, which is mapped.
		v.pendingPos = (*uint64)(unsafe.Add(unsafe.Pointer(g.producerPos), 8))
		v.overwritePos = (*uint64)(unsafe.Add(unsafe.Pointer(g.producerPos), 16))
	}
	return v
}

func (v *watchedRing) overwriting() bool { return v.overwritePos != nil }
func (v *watchedRing) pending() uint64   { return atomic.LoadUint64(v.pendingPos) }
func (v *watchedRing) overwrite() uint64 { return atomic.LoadUint64(v.overwritePos) }

// A cursor is a place in a ring, which is always a boundary of two records. From any other position
// nobody can tell where the next record begins.
type cursor struct {
	pos    uint64
	missed uint64 // bytes of the ring, so far
	found  uint64 // where the cursor was put after the last miss
}

func (v *watchedRing) cursorAt(pos uint64) cursor { return cursor{pos: pos, found: pos - v.size} }

// miss moves the cursor forward to another boundary.
func (c *cursor) miss(to uint64) {
	if to > c.pos {
		c.missed += to - c.pos
		c.pos = to
	}
	c.found = c.pos
}

// A tally counts the records of a run.
type tally struct{ samples, bytes, discards uint64 }

func (t *tally) add(o tally) {
	t.samples += o.samples
	t.bytes += o.bytes
	t.discards += o.discards
}

// A run is a copy of consecutive records that are committed or discarded.
type run struct {
	records  []byte // as in the ring, with headers
	start    uint64 // position
	producer uint64 // producer position before the copy was made
}

// overtaken reports whether the kernel may have written over the bytes at pos, or is about to. In
// overwrite mode the kernel first publishes what it will overwrite. Otherwise it writes the header
// of a record, and nothing else, before it publishes the producer position
// (__bpf_ringbuf_reserve() in kernel/bpf/ringbuf.c). So when the producer is a full ring ahead of
// pos, the header at pos counts as overwritten.
func (v *watchedRing) overtaken(pos uint64) bool {
	return v.producer()-pos >= v.size || v.overwriting() && v.overwrite() > pos
}

// intact reports whether the bytes that were read from pos on, before this call, are those that
// were committed there.
func (v *watchedRing) intact(pos uint64) bool {
	// The check must come after the copy. An atomic read-modify-write followed by an atomic load
	// ensures that. The first is a release: it waits for the earlier loads. The second is an
	// acquire: it waits for the first.
	v.fences.Add(1)
	// On some processors the kernel's stores into a new record, too, may become visible before the
	// position that publishes the record: smp_store_release() does not hold back later stores. The
	// new record overwrites what lies a full ring before the producer position. So unless it is
	// larger than half of the ring, only records in the older half of the ring are in danger.
	if v.weak && v.producer()-pos > v.size/2 {
		fenceAll()
	}
	return !v.overtaken(pos)
}

// committed returns the end of the records from pos to producer that are committed or discarded,
// and counts them. It stops after about limit bytes, but not before the first record. If the
// records are overwritten meanwhile, it returns any position between pos and producer.
func (v *watchedRing) committed(pos, producer, limit uint64) (end uint64, t tally) {
	bound := min(producer, pos+limit)
	for end = pos; end < bound; {
		header := v.header(end)
		next := recordEnd(end, header)
		if header&busyBit != 0 || next > bound && (end > pos || next > producer) {
			break
		}
		if header&discardBit != 0 {
			t.discards++
		} else {
			t.samples++
			t.bytes += uint64(header)
		}
		end = next
	}
	return end, t
}

// take copies some of the records behind c to *buf and moves c behind them. If they were
// overwritten, it reports false and leaves c where it is.
func (v *watchedRing) take(c *cursor, limit uint64, buf *[]byte) (r run, ok bool) {
	r = run{start: c.pos, producer: v.producer()}
	if v.overtaken(c.pos) {
		return r, false
	}
	pending := r.producer
	if v.overwriting() {
		pending = v.pending()
	}
	end, _ := v.committed(c.pos, r.producer, limit)
	if v.walked != nil {
		v.walked()
	}
	// SAFETY: this is less than the size of the ring, whose data is mapped twice in a row.
	*buf = append((*buf)[:0], unsafe.Slice((*byte)(v.at(c.pos)), end-c.pos)...)
	if v.intact(c.pos) {
		// That is the whole copy, except on kernels where a forged consumer position lets a program
		// write into committed records.
		r.records = wholeRecords(*buf)
		c.pos += uint64(len(r.records))
		return r, true
	}
	if !v.overwriting() {
		return r, false
	}
	// A part of the copy is intact: what lies behind the overwrite position, which is a boundary,
	// and was committed before the headers were looked at.
	first, last := v.overwrite(), min(end, pending)
	if first >= last || first <= c.pos {
		return r, false
	}
	r.records = wholeRecords((*buf)[first-c.pos : last-c.pos])
	if len(r.records) == 0 {
		return r, false
	}
	r.start = first
	c.miss(first)
	c.pos += uint64(len(r.records))
	return r, true
}

// look is like take, but continues after a miss. It puts the cursor at the oldest record. If the
// cursor is overtaken again before it has moved by the size of the ring, it puts the cursor at the
// producer position.
func (v *watchedRing) look(c *cursor, limit uint64, buf *[]byte) run {
	for range maxTries {
		if r, ok := v.take(c, limit, buf); ok {
			return r
		}
		if c.pos-c.found < v.size {
			c.miss(v.producer())
		} else {
			c.miss(v.oldest())
		}
	}
	return run{start: c.pos, producer: v.producer()}
}

// count moves a cursor up to the producer position, or to a record that is not committed. It
// returns what it passed.
func (v *watchedRing) count(c *cursor) (t tally) {
	for until := v.producer(); c.pos < until; {
		producer := v.producer()
		if v.overtaken(c.pos) {
			c.miss(v.producer())
			continue
		}
		end, some := v.committed(c.pos, producer, watchLimit)
		if !v.intact(c.pos) {
			c.miss(v.producer())
			continue
		}
		if end == c.pos {
			break
		}
		c.pos = end
		t.add(some)
	}
	return t
}

// fill returns the positions, of the same moment if possible, and the number of bytes between them.
// That is -1 if the positions cannot be those of a ring.
func (v *watchedRing) fill() (consumer, producer uint64, bytes int) {
	consumer, producer, sound := v.positions()
	if v.overwriting() {
		// Nobody has to consume. The overwrite position may be newer than the producer position
		// that was read before, and thus ahead of it.
		sound = consumer%8 == 0 && consumer <= producer
		first := min(max(consumer, v.overwrite()), producer)
		bytes = int(producer - first)
	} else {
		bytes = int(producer - consumer)
	}
	if !sound || bytes < 0 || uint64(bytes) > v.size {
		bytes = -1
	}
	return consumer, producer, bytes
}

// maxTries is how often a Watcher tries again when it is overtaken each time.
const maxTries = 16

// nextRecord splits records, which must be whole, into the first one and the rest.
func nextRecord(records []byte) (header uint32, sample, rest []byte) {
	header = binary.NativeEndian.Uint32(records)
	size := sampleSize(header)
	return header, records[recordHeaderSize:][:size:size], records[recordEnd(0, header):]
}

// wholeRecords returns the beginning of records that consists of whole records.
func wholeRecords(records []byte) []byte {
	end := uint64(0)
	for rest := records; len(rest) > 0; {
		header := binary.NativeEndian.Uint32(rest)
		size := recordEnd(0, header)
		if header&busyBit != 0 || size > uint64(len(rest)) {
			break
		}
		end += size
		rest = rest[size:]
	}
	return records[:end]
}
