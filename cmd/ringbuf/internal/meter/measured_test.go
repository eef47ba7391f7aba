package meter

import (
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

// TestAnIntervalOfWhichNothingWasCountedIsEstimated has all records of an interval overwritten
// before they could be counted, but for some that came after the count.
func TestAnIntervalOfWhichNothingWasCountedIsEstimated(t *testing.T) {
	begin := time.Now()
	r := measured{ring: &rings.Ring{}, begin: look{at: begin}}
	r.last = look{ringbuf.WatchStats{Producer: 7200, Samples: 100, Bytes: 6400},
		begin.Add(time.Second)}
	if row := r.row(); row.Records != 100 || row.MeanSize != 64 {
		t.Errorf("of 100 records of 64 bytes it tells %v of %v bytes", row.Records, row.MeanSize)
	}
	stats := r.last.WatchStats
	stats.Producer, stats.Missed = 72000, 64800-720
	r.last = look{stats, begin.Add(2 * time.Second)}
	if row := r.row(); row.Records != 900 || row.MeanSize != 64 || row.Missed != 64800-720 {
		t.Errorf("of 900 records of 64 bytes that it missed it tells %v of %v bytes", row.Records,
			row.MeanSize)
	}
}
