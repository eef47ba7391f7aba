package ringbuf

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// oldest returns the oldest boundary that can be found. If there is none it is the producer
// position.
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

// maxSuspects limits the number of records that contain the consumer position and that boundary
// follows. More are as bad as one.
const maxSuspects = 1000

// maxSteps limits the number of headers that boundary looks at, for each 8 bytes of the ring.
// Programs choose the bytes of samples, and with them what looks like a header. At the limit,
// boundary does not trust the position.
const maxSteps = 4

// boundary reports whether a record begins at pos, the consumer position. Anybody who holds the
// map can write to that position. From pos on, records must follow one another up to the producer
// position. But that is not enough: bytes of a sample may look like a header, and a discarded
// record contains headers of older records. In these cases, however, another record that contains
// pos also leads to the producer position, unless its header is already overwritten.
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

// settleTime is how long a consumer position must stay where it is before settled trusts it.
const settleTime = 2 * time.Millisecond

// settled reports whether the consumer position, which boundary has accepted, can be trusted. In
// the older half of the ring it must not move for a while. There it may be in a record whose
// header is overwritten, which is the only way to deceive boundary. If the ring is being read,
// such a position does not stay. In the newer half, only a record of more than half of the ring
// could deceive.
func (v *watchedRing) settled(consumer, producer uint64) bool {
	if producer-consumer <= v.size/2 {
		return true
	}
	time.Sleep(settleTime)
	return v.consumer() == consumer
}

// leads reports whether plausible headers lead from pos to producer. It takes at most *steps steps.
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

// plausible returns the header at pos, and reports whether it looks like one. The header of a
// record also has the number of its page in struct bpf_ringbuf.
func (v *watchedRing) plausible(pos uint64) (header uint32, ok bool) {
	at := v.at(pos)
	page := atomic.LoadUint32((*uint32)(unsafe.Add(at, 4)))
	if page != pgOffset+uint32(pos&(v.size-1)>>v.pageShift) {
		return 0, false
	}
	header = atomic.LoadUint32((*uint32)(at))
	return header, header&busyBit == 0 || header&discardBit == 0
}

// pgOffset is the page number in the header of a record in the first page of the data: see
// bpf_ringbuf_rec_pg_off() in kernel/bpf/ringbuf.c. That page is the fourth of struct bpf_ringbuf.
// Before it are a page that cannot be mapped and the pages of the two positions.
const pgOffset = 3
