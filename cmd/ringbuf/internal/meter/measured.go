package meter

import (
	"math"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

// A measured is a ring with what the Meter has seen of it.
type measured struct {
	ring     *rings.Ring // without a descriptor
	usage    rings.Usage
	counters []*rings.Counter
	shared   bool

	watcher *ringbuf.Watcher // or nil; keeps the ring in existence
	begin   look             // at the beginning of the interval
	last    look
	peak    int
	known   known // of the last interval in which something was counted
}

// A look has the state of a ring at one time.
type look struct {
	ringbuf.WatchStats
	at time.Time
}

// ask takes the users and loss counters of the ring from a survey.
func (r *measured) ask(s *rings.Survey) {
	r.usage = s.Of(r.ring)
	r.counters, r.shared = s.Counters(r.ring)
}

// watch begins to watch the ring.
func (r *measured) watch() error {
	ring, err := r.ring.Reopen()
	if err != nil {
		return err
	}
	defer ring.Close()
	if r.watcher, err = ringbuf.NewWatcher(ring.FD()); err != nil {
		return err
	}
	r.look()
	r.begin, r.peak = r.last, r.last.Fill
	return nil
}

// release stops watching the ring. The ring may then cease to exist.
func (r *measured) release() {
	if r.watcher != nil {
		r.watcher.Close()
		r.watcher = nil
	}
}

func (r *measured) look() {
	r.last = look{r.watcher.Stats(), time.Now()}
	r.peak = max(r.peak, r.last.Fill)
}

// follow looks at the ring. If records were missed since the last look, because more was produced
// than the ring has room for, and nothing has been counted in this interval, it looks again to
// learn the size of the records. It first waits until a quarter of the ring should have been
// produced. Because records come in bursts, it then looks until something is counted.
func (r *measured) follow() {
	before := r.last
	r.look()
	if r.last.Missed == before.Missed || r.last.Samples != r.begin.Samples || r.ring.IsUser() {
		return
	}
	rate := float64(r.last.Producer-before.Producer) / r.last.at.Sub(before.at).Seconds()
	if pause := time.Duration(float64(r.ring.Size) / 4 / rate * float64(
		time.Second)); pause > minSleep {
		time.Sleep(pause)
	}
	for end := time.Now().Add(patience); r.last.at.Before(end) && r.last.Samples == before.Samples; {
		r.look()
	}
	if r.last.Samples == before.Samples && r.known.bytes == 0 {
		r.known = inRing(r.watcher)
	}
}

const (
	minSleep = 100 * time.Microsecond // shorter sleeps take about as long
	patience = time.Millisecond       // how long follow looks until something is counted
)

// inRing counts the records that are in the ring now, except discarded ones. If the producer
// shares a processor with this process, nothing is produced while this process looks, and between
// two looks more than the ring has room for. Then there is nothing else to count.
func inRing(w *ringbuf.Watcher) (k known) {
	records, err := w.Snapshot()
	if err != nil {
		return k // the Watcher was closed
	}
	for _, rec := range records {
		k.records++
		k.sample += float64(len(rec.RawSample))
		k.bytes += float64(8 + (len(rec.RawSample)+7)&^7)
	}
	return k
}

// row ends the interval at the last look, and returns its Row.
func (r *measured) row() Row {
	begin, end := r.begin, r.last
	r.begin = r.last
	row := Row{
		Ring: r.ring, Usage: r.usage,
		Fill: end.Fill, Peak: r.peak, Consumer: end.Consumer, Producer: end.Producer,
		Interval: end.at.Sub(begin.at),
		Bytes:    end.Producer - begin.Producer,
		Missed:   end.Missed - begin.Missed,
		Records:  -1, Discarded: -1, MeanSize: -1,
	}
	if row.Fill < 0 {
		row.Peak = -1
	}
	if r.ring.IsUser() {
		return row
	}
	k := known{
		records:   float64(end.Samples - begin.Samples),
		discarded: float64(end.Discarded - begin.Discarded),
		sample:    float64(end.Bytes - begin.Bytes),
		bytes:     float64(row.Bytes) - float64(row.Missed),
	}
	scale := 1.0
	if row.Missed > 0 {
		if k = k.plausible(); k.bytes == 0 {
			k = r.known
		}
		if k.bytes == 0 {
			return row
		}
		scale = float64(row.Bytes) / k.bytes
	}
	row.Records, row.Discarded = k.records*scale, k.discarded*scale
	if k.records > 0 {
		row.MeanSize = k.sample / k.records
		r.known = k
	}
	return row
}

// A known has the counts of some bytes of a ring. sample is the sum of the sizes of samples.
type known struct{ records, discarded, sample, bytes float64 }

// plausible returns k with a number of bytes that the counted records can take. k.bytes may be too
// large, because the position is read after the count and more records may come in between. It may
// be too small, because bytes that were missed in an interval may have been produced in the one
// before.
func (k known) plausible() known {
	n := k.records + k.discarded
	least, most := k.sample+8*n, k.sample+15*n
	if k.bytes < least || k.discarded == 0 && k.bytes > most {
		k.bytes = least
		if k.records > 0 {
			k.bytes = n * (8 + 8*math.Ceil(k.sample/k.records/8))
		}
	}
	return k
}
