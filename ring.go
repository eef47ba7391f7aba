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

// A ring is a ring buffer in read-only memory. Its methods look at records and change nothing.
// libbpf consumes them.
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

// positions returns the consumer and the producer position of the same moment, even if somebody
// else is reading. It reports whether the positions can be those of a ring.
func (g *ring) positions() (consumer, producer uint64, sound bool) {
	for range 1000 {
		consumer, producer = g.consumer(), g.producer()
		if g.consumer() == consumer {
			return consumer, producer, consumer%8 == 0 && producer-consumer <= g.size
		}
	}
	// The consumer position moves all the time. So its reader finds it sound.
	return consumer, producer, consumer%8 == 0
}

// at returns the data at a position.
func (g *ring) at(pos uint64) unsafe.Pointer { return unsafe.Add(g.data, pos&(g.size-1)) }

// header returns the length and the flags of the record at pos, which must be below the producer
// position. The load pairs with the xchg() in the kernel's bpf_ringbuf_commit(), as libbpf's does.
func (g *ring) header(pos uint64) uint32 { return atomic.LoadUint32((*uint32)(g.at(pos))) }

// sampleSize returns the size of the sample of a record with this header.
func sampleSize(header uint32) uint64 { return uint64(header &^ (busyBit | discardBit)) }

// recordEnd returns the end of the record at pos.
func recordEnd(pos uint64, header uint32) uint64 {
	return pos + (recordHeaderSize+sampleSize(header)+7)&^7
}

// A window is a run of committed records. Unless it has no samples, the last record is a sample.
type window struct {
	ring       int
	start, end uint64 // positions
	producer   uint64 // producer position when the window was found
	samples    int
	bytes      uint64 // of the samples
	discards   int    // discarded records before the last sample, or all if there is no sample
	cut        bool   // the limit ended the window
	bad        bool   // the first bytes are not a valid record
}

// look finds the records that are committed between the positions from and until, and describes
// them in w. The samples take at most about limit bytes of the ring, but there is at least one.
//
// With leave, the window ends before the newest record, unless that takes more than an eighth of
// the ring. The kernel notifies of a record if, at its commit, the consumer position is the start
// of the record. So while the newest record is left, the kernel notifies of none.
//
// If there is no sample, the window has the discarded records.
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
			w.cut = true
			leave = false
			break
		}
		bound = next // the first sample may exceed the limit
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

// committed reports whether a record begins at pos that is committed or discarded.
func (g *ring) committed(pos, producer uint64) bool {
	return pos < producer && g.header(pos)&busyBit == 0
}

// each calls f for each sample of a window.
func (g *ring) each(w window, f func(end uint64, sample []byte)) {
	for pos := w.start; pos < w.end; {
		header := g.header(pos)
		end := recordEnd(pos, header)
		if end > w.end || header&busyBit != 0 {
			return // somebody moved the consumer position, and the kernel has overwritten the records
		}
		if header&discardBit == 0 {
			// SAFETY: the record ends before w.end, and is in one piece because the data is mapped
			// twice.
			f(end, unsafe.Slice((*byte)(unsafe.Add(g.at(pos), recordHeaderSize)), header))
		}
		pos = end
	}
}

// count returns the number of samples and of discarded records in a window.
func (g *ring) count(w window) (samples, discards int) {
	records := 0
	for pos := w.start; pos < w.end; pos = recordEnd(pos, g.header(pos)) {
		records++
	}
	g.each(w, func(uint64, []byte) { samples++ })
	return samples, records - samples
}
