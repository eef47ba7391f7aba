package ringbuf

import (
	"encoding/binary"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
	"unsafe"
)

// How a Watcher reads a ring that changes under its eyes: it copies, and looks afterwards whether
// the kernel may have written there meanwhile.

// pgOffset is what bpf_ringbuf_rec_pg_off() in kernel/bpf/ringbuf.c says of a record that begins in
// the first page of the data: that page is the fourth of struct bpf_ringbuf, after one that
// cannot be mapped and those of the two positions.
const pgOffset = 3

// A watchedRing is a ring that somebody else reads, or nobody.
type watchedRing struct {
	ring

	// In overwrite mode, else nil: two more positions on the page of the producer
	// position. Before pending all records are committed. The oldest record that the kernel
	// is not about to overwrite begins at overwrite.
	pendingPos, overwritePos *uint64

	pageShift int
	weak      bool          // this processor, or another one, may see stores out of order
	fences    atomic.Uint64 // nothing but what adding to it does
	walked    func()        // for tests: called between the look at headers and the copy
}

func newWatchedRing(g ring, overwrite bool) *watchedRing {
	v := &watchedRing{ring: g, weak: weaklyOrdered,
		pageShift: bits.TrailingZeros(uint(os.Getpagesize()))}
	if overwrite {
		// SAFETY: they are on the page of the producer position.
		v.pendingPos = (*uint64)(unsafe.Add(unsafe.Pointer(g.producerPos), 8))
		v.overwritePos = (*uint64)(unsafe.Add(unsafe.Pointer(g.producerPos), 16))
	}
	return v
}

func (v *watchedRing) overwriting() bool { return v.overwritePos != nil }
func (v *watchedRing) pending() uint64   { return atomic.LoadUint64(v.pendingPos) }
func (v *watchedRing) overwrite() uint64 { return atomic.LoadUint64(v.overwritePos) }

// A cursor is how far somebody has come in a ring. It is always the boundary of two records: of
// any other position nobody can tell where the next record begins.
type cursor struct {
	pos    uint64
	missed uint64 // bytes of the ring
	found  uint64 // where it was put when it had missed some
}

func (v *watchedRing) cursorAt(pos uint64) cursor { return cursor{pos: pos, found: pos - v.size} }

// miss moves the cursor to a later boundary.
func (c *cursor) miss(to uint64) {
	if to > c.pos {
		c.missed += to - c.pos
		c.pos = to
	}
	c.found = c.pos
}

// A tally is what a run of records consists of.
type tally struct{ samples, bytes, discards uint64 }

func (t *tally) add(o tally) {
	t.samples += o.samples
	t.bytes += o.bytes
	t.discards += o.discards
}

// A run is consecutive records that are committed, or discarded.
type run struct {
	records  []byte // a copy of the ring, with headers
	start    uint64 // position
	producer uint64 // when it was copied
}

// overtaken reports whether the kernel may have written, or is about to write, over what was at
// pos. In overwrite mode it publishes first what it is about to overwrite. Else it writes the
// header of a record, and that only, before it publishes the producer position
// (__bpf_ringbuf_reserve() in kernel/bpf/ringbuf.c): so the first header of the whole size counts
// as overwritten.
func (v *watchedRing) overtaken(pos uint64) bool {
	return v.producer()-pos >= v.size || v.overwriting() && v.overwrite() > pos
}

// intact reports whether what was read since before this call, from pos on, is what was
// committed there.
func (v *watchedRing) intact(pos uint64) bool {
	// The second look must come after the copy. An atomic read-modify-write and then an atomic
	// load see to that: the first waits, as a release, for the loads before it, and the second, as
	// an acquire, for the first.
	v.fences.Add(1)
	// The kernel's stores into a new record, too, may overtake the position that publishes it, on
	// processors that allow it: smp_store_release() is no fence for what comes later. That
	// record begins a ring's size before the producer position. So unless it is larger than
	// half of the ring, only half of the ring needs this.
	if v.weak && v.producer()-pos > v.size/2 {
		fenceAll()
	}
	return !v.overtaken(pos)
}

// committed returns the end of the records from pos on that are committed, or discarded, up to
// producer, and what they are. It goes on for about limit bytes, or one record. The
// records may be overwritten at any time: then it returns anything between pos and
// producer.
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

// take copies some of the records from c on and moves c behind them. It reports false, and leaves c
// where it is, if they were overwritten. The copy is in *buf.
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
		// All of it, but on kernels where a forged consumer position lets a program write into
		// records that are committed.
		r.records = wholeRecords(*buf)
		c.pos += uint64(len(r.records))
		return r, true
	}
	if !v.overwriting() {
		return r, false
	}
	// Of the copy that is intact which begins at the boundary that the kernel tells, and was
	// committed before the headers were looked at.
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

// look is take, but for records that were overwritten it puts the cursor elsewhere, and goes on
// there: where the oldest record is or, if the cursor is overtaken again before it has come as
// far as the ring is long, at the producer position.
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

// count moves a cursor to the producer position, or a record that is not committed, and returns
// what was on the way.
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

// fill returns the positions, of one moment if that can be had, and how much is between them, or
// -1 if they cannot be those of a ring.
func (v *watchedRing) fill() (consumer, producer uint64, bytes int) {
	consumer, producer, sound := v.positions()
	if v.overwriting() {
		// Nobody need consume. But what is overwritten may be behind the producer that was looked
		// at before.
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

// oldest returns a boundary as far back as one is known, or the producer position.
func (v *watchedRing) oldest() uint64 {
	producer := v.producer()
	switch consumer := v.consumer(); {
	case v.overwriting():
		return v.overwrite()
	case producer < v.size:
		return 0 // nothing was overwritten yet
	case consumer != producer && v.boundary(consumer, producer) && v.settled(consumer, producer):
		return consumer
	}
	return producer
}

// maxTries is how often somebody looks who is overtaken each time.
const maxTries = 16

// maxSuspects is how many records boundary follows that may have the consumer position in their
// midst. More are as bad as one.
const maxSuspects = 1000

// maxSteps is how many headers for each 8 bytes of the ring boundary looks at, since whoever fills
// samples chooses what looks like one. If that is not enough, the position is not believed.
const maxSteps = 4

// boundary reports whether a record begins at pos, the consumer position, which anybody who holds
// the map can write. From there on records must follow each other to the very producer position.
// That is not enough: bytes of a sample may look like a header, and a record that was discarded
// has those of older records in it. But then there is another record that leads there, too, and has
// pos in its midst, unless its own header is overwritten already.
func (v *watchedRing) boundary(pos, producer uint64) bool {
	steps := maxSteps * v.size / 8
	if pos%8 != 0 || producer-pos >= v.size || !v.leads(pos, producer, &steps) {
		return false
	}
	suspects := 0
	for q := producer - v.size + 8; q < pos; q += 8 {
		header, ok := v.plausible(q)
		if !ok {
			continue
		}
		end := recordEnd(q, header)
		if end <= pos || end > producer {
			continue
		}
		if suspects++; suspects > maxSuspects || v.leads(end, producer, &steps) || steps == 0 {
			return false
		}
	}
	return true
}

// settleTime is how long nobody may move a consumer position that may be within the oldest record.
const settleTime = 2 * time.Millisecond

// settled reports whether a consumer position that is a boundary stays where it is, if it is in the
// older half of the ring. Somebody who has scribbled there may have met the record whose header is
// overwritten, which is the only way to deceive boundary, and will not leave it there if the
// ring is still read. In the newer half only a record that is larger than the older one would do.
func (v *watchedRing) settled(consumer, producer uint64) bool {
	if producer-consumer <= v.size/2 {
		return true
	}
	time.Sleep(settleTime)
	return v.consumer() == consumer
}

// leads reports whether what looks like records leads from pos to producer, in so many steps.
func (v *watchedRing) leads(pos, producer uint64, steps *uint64) bool {
	for ; pos < producer && *steps > 0; *steps-- {
		header, ok := v.plausible(pos)
		if !ok {
			return false
		}
		pos = recordEnd(pos, header)
	}
	return pos == producer
}

// plausible returns the header at pos, and whether it looks like one. A record's header also
// says in which page of struct bpf_ringbuf it is.
func (v *watchedRing) plausible(pos uint64) (header uint32, ok bool) {
	at := v.at(pos)
	page := atomic.LoadUint32((*uint32)(unsafe.Add(at, 4)))
	if page != pgOffset+uint32(pos&(v.size-1)>>v.pageShift) {
		return 0, false
	}
	header = atomic.LoadUint32((*uint32)(at))
	return header, header&busyBit == 0 || header&discardBit == 0
}

// nextRecord returns the first one of records, a copy of whole ones, and what is behind it.
func nextRecord(records []byte) (header uint32, sample, rest []byte) {
	header = binary.NativeEndian.Uint32(records)
	size := sampleSize(header)
	return header, records[recordHeaderSize:][:size:size], records[recordEnd(0, header):]
}

// wholeRecords returns those of records that do not go beyond it.
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
