package ringbuf

import (
	"sync/atomic"
	"unsafe"
)

// Headers of records, as include/uapi/linux/bpf.h has them.
const (
	recordHeaderSize = 8       // BPF_RINGBUF_HDR_SZ
	busyBit          = 1 << 31 // BPF_RINGBUF_BUSY_BIT
	discardBit       = 1 << 30 // BPF_RINGBUF_DISCARD_BIT
)

// A ring is a ring buffer in memory that can only be read. Its methods look at records and
// change nothing; libbpf consumes them.
//
// SAFETY: the pointers are valid until the Reader is closed and no lease is out. The kernel
// maps the data twice in a row, so that each record is in one piece.
type ring struct {
	size                     uint64
	data                     unsafe.Pointer
	consumerPos, producerPos *uint64
}

func (g *ring) consumer() uint64 { return atomic.LoadUint64(g.consumerPos) }
func (g *ring) producer() uint64 { return atomic.LoadUint64(g.producerPos) }

// positions returns the consumer and the producer position of one moment, though somebody
// else may be reading. It reports whether they can be those of a ring.
func (g *ring) positions() (consumer, producer uint64, sound bool) {
	for range 1000 {
		consumer, producer = g.consumer(), g.producer()
		if g.consumer() == consumer {
			return consumer, producer, consumer%8 == 0 && producer-consumer <= g.size
		}
	}
	return consumer, producer, consumer%8 == 0 // it moves all the time, so somebody can read it
}

// at returns the data at a position.
func (g *ring) at(pos uint64) unsafe.Pointer { return unsafe.Add(g.data, pos&(g.size-1)) }

// header returns the length and flags of the record at pos, which is below the producer
// position. Like libbpf's load it pairs with the xchg() in the kernel's bpf_ringbuf_commit().
func (g *ring) header(pos uint64) uint32 { return atomic.LoadUint32((*uint32)(g.at(pos))) }

// sampleSize returns what a header says of the size of a sample.
func sampleSize(header uint32) uint64 { return uint64(header &^ (busyBit | discardBit)) }

// recordEnd returns the end of the record at pos.
func recordEnd(pos uint64, header uint32) uint64 {
	return pos + (recordHeaderSize+sampleSize(header)+7)&^7
}

// A window is a run of records that somebody looked at. The last one is a sample.
type window struct {
	ring       int
	start, end uint64 // positions
	producer   uint64 // producer position then
	samples    int
	bytes      uint64 // of the samples
	discards   int    // discarded records between them, or all there are if samples is 0
	more       bool   // the limit ended it
	bad        bool   // it begins with what is no record
}

// look says in w what is committed from position from on, up to the position until: samples
// in about limit bytes of the ring, or one. With leave it stops before the newest record,
// so that the kernel, which notifies of a record that is committed when the consumer position
// is its start, notifies of none. A record that takes more than an eighth of the ring is
// not left in it. Without a sample the window has the discarded records that are there.
func (g *ring) look(w *window, from, until, limit uint64, leave bool) {
	producer := g.producer()
	*w = window{start: from, end: from, producer: producer}
	until = min(until, producer)
	bound := min(until, from+limit)
	data, mask := g.data, g.size-1
	var last uint32 // header of the last sample
	discards, before := 0, 0
	pos, end := from, from // the current record, and the end of the last sample
	prev := from           // the end of the sample before that
	samples, bytes := 0, uint64(0)
	for pos < until {
		header := atomic.LoadUint32((*uint32)(unsafe.Add(data, pos&mask)))
		next := pos + (uint64(header)+recordHeaderSize+7)&^7
		if header < discardBit && next <= bound {
			samples++
			bytes += uint64(header)
			last, before, prev = header, w.discards, end
			w.discards = discards
			pos, end = next, next
			continue
		}
		if header&busyBit != 0 {
			break
		}
		next = recordEnd(pos, header)
		if next > producer || next-pos > g.size {
			w.bad = samples == 0
			break
		}
		if header&discardBit != 0 {
			discards++
			pos = next
			continue
		}
		if samples > 0 {
			w.more = true
			leave = false
			break
		}
		bound = next // the first may be as large as it is
	}
	w.samples, w.bytes, w.end = samples, bytes, end
	if samples == 0 {
		w.end, w.discards = pos, discards
		return
	}
	if leave && recordEnd(0, last) <= g.size/8 && !g.committed(end, producer) {
		w.samples, w.bytes, w.end, w.discards = samples-1, bytes-uint64(last), prev, before
	}
}

// committed reports whether there is a record at pos that is committed, or discarded.
func (g *ring) committed(pos, producer uint64) bool {
	return pos < producer && g.header(pos)&busyBit == 0
}

// each calls f for each sample of a window.
func (g *ring) each(w window, f func(end uint64, sample []byte)) {
	for pos := w.start; pos < w.end; {
		header := g.header(pos)
		end := recordEnd(pos, header)
		if end > w.end || header&busyBit != 0 {
			return // somebody wrote the consumer position, and the kernel over these records
		}
		if header&discardBit == 0 {
			// SAFETY: the record ends before w.end, and is in one piece.
			f(end, unsafe.Slice((*byte)(unsafe.Add(g.at(pos), recordHeaderSize)), header))
		}
		pos = end
	}
}

// count returns how many samples and discarded records a window has.
func (g *ring) count(w window) (samples, discards int) {
	records := 0
	for pos := w.start; pos < w.end; pos = recordEnd(pos, g.header(pos)) {
		records++
	}
	g.each(w, func(uint64, []byte) { samples++ })
	return samples, records - samples
}
