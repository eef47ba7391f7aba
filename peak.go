//go:build linux && cgo

package ringbuf

import (
	"sync/atomic"
	"time"
)

const (
	// Six spans are a minute. The seventh is the current one, which is not over.
	peakSpan  = 10 * time.Second
	peakSpans = 7
)

// A peak is the highest fill of a ring lately, in bytes. Any number of goroutines may use it.
type peak struct {
	// For each span of time, its number in the upper half and the most bytes in the lower half. So
	// the larger value is always that of the later span, or of more bytes.
	spans [peakSpans]atomic.Uint64
}

// note records how many bytes were in the ring at this time since the Reader was opened.
func (p *peak) note(at time.Duration, bytes uint64) {
	number := uint64(at / peakSpan)
	span := &p.spans[number%peakSpans]
	most := number<<32 | bytes
	for old := span.Load(); most > old && !span.CompareAndSwap(old, most); {
		old = span.Load()
	}
}

// bytes returns the highest fill of the last minute.
func (p *peak) bytes(at time.Duration) (most uint64) {
	for i := range p.spans {
		span := p.spans[i].Load()
		if span>>32+peakSpans > uint64(at/peakSpan) {
			most = max(most, span&(1<<32-1))
		}
	}
	return most
}
