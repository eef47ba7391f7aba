//go:build linux && cgo

package ringbuf

import (
	"sync/atomic"
	"time"
)

const (
	// The last minute, and what is over of the current span.
	peakSpan  = 10 * time.Second
	peakSpans = 7
)

// A peak is the most bytes that were in a ring lately. Any goroutine may use it.
type peak struct {
	// Of each span of time, its number in the upper half and below that the most bytes: so the
	// larger value is the one of a later span, or of more bytes.
	spans [peakSpans]atomic.Uint64
}

// note takes note of what was in the ring at a time, which counts from any one moment.
func (p *peak) note(at time.Duration, bytes uint64) {
	number := uint64(at / peakSpan)
	span := &p.spans[number%peakSpans]
	most := number<<32 | bytes
	for old := span.Load(); most > old && !span.CompareAndSwap(old, most); {
		old = span.Load()
	}
}

// bytes returns the most bytes that were noted in the last minute.
func (p *peak) bytes(at time.Duration) (most uint64) {
	for i := range p.spans {
		span := p.spans[i].Load()
		if span>>32+peakSpans > uint64(at/peakSpan) {
			most = max(most, span&(1<<32-1))
		}
	}
	return most
}
