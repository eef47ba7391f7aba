package meter

import (
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

// TestAnIntervalOfWhichNothingWasCountedIsEstimated has an interval in which all records were
// overwritten before they could be counted, except some that came after the count.
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

func TestCountsTakeAsManyBytesAsTheyCan(t *testing.T) {
	for _, tt := range []struct{ counted, want known }{
		{known{}, known{}},
		{known{bytes: 5000}, known{}},                            // all came after the count
		{known{10, 0, 640, 720}, known{10, 0, 640, 720}},         // exact
		{known{10, 0, 640, -100}, known{10, 0, 640, 720}},        // missed before
		{known{10, 0, 640, 9000}, known{10, 0, 640, 720}},        // came after
		{known{10, 0, 605, 700}, known{10, 0, 605, 700}},         // of several sizes
		{known{10, 5, 640, 100_000}, known{10, 5, 640, 100_000}}, // discarded ones may be large
		{known{0, 5, 0, 10}, known{0, 5, 0, 40}},
	} {
		if got := tt.counted.plausible(); got != tt.want {
			t.Errorf("%v is taken for %v, want %v", tt.counted, got, tt.want)
		}
	}
}

func TestRecordsInTheRingTellTheirSize(t *testing.T) {
	s := kinds.New(t, 1<<16)
	w, err := ringbuf.NewWatcher(ringbuf.FD(s.Events.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if got := inRing(w); got != (known{}) {
		t.Errorf("in an empty ring it found %v", got)
	}
	s.Flood(0, 10)
	if got, want := inRing(w), (known{10, 0, 10 * kinds.NumberedSize,
		10 * kinds.RecordSize}); got != want {
		t.Errorf("it found %v, want %v", got, want)
	}
}
