// Package meter measures ring buffers over intervals: how full they are, and how fast they are
// filled. It takes nothing from who reads them.
package meter

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

const (
	// In an interval a ring is looked at some times, for the peak of its fill: that many, but not
	// closer than minPause and not farther than maxPause apart.
	looks    = 10
	minPause = 10 * time.Millisecond
	maxPause = 100 * time.Millisecond

	// Who uses the rings is asked again after surveyPause, but such that this takes no more
	// than a part of the time, one surveyShare-th.
	surveyPause = 10 * time.Second
	surveyShare = 200

	// So often a ring that no program uses is let go: if nobody else uses it, it ceases to exist.
	// Programs keep theirs in existence anyway.
	letGoPause = 5 * time.Second
)

// A Row is what was measured of one ring over one interval.
type Row struct {
	Ring  *rings.Ring // without a descriptor
	Usage rings.Usage

	Fill, Peak         int // in bytes; -1 if somebody has scribbled on the consumer position
	Consumer, Producer uint64

	// Interval is 0 for a ring that was not yet there at its beginning. Then the rest of the
	// Row, which is of the interval, is not known.
	Interval time.Duration

	// Bytes is how far the producer position moved: headers, padding and what was discarded are
	// included.
	Bytes uint64

	// Missed is how many of Bytes were overwritten before the records in them could be counted.
	// Records, Discarded and MeanSize are estimated from the others then, or from an earlier
	// interval. They are -1 if nothing was counted ever, and for user ring buffers.
	Missed             uint64
	Records, Discarded float64
	// of records, in bytes without headers and padding; -1 also if there were none
	MeanSize float64

	// Lost is how many records the kernel refused, or -1 if no program counts them. If
	// LostShared, those of other rings are counted, too.
	Lost       int64
	LostShared bool
}

// Rate returns n, which is of the interval, for a second.
func (r *Row) Rate(n float64) float64 { return n / r.Interval.Seconds() }

// A Meter measures the rings that a Query means. It keeps a ring that nobody else uses in
// existence for seconds only. One goroutine at a time may use it.
type Meter struct {
	finder   *rings.Finder
	surveyor rings.Surveyor
	survey   *rings.Survey
	due      time.Time // when to make a survey
	earliest time.Time // when one may be made
	letGo    time.Time // when to let go of rings

	rings []*measured               // in the order of Finder.Find
	lost  map[*rings.Counter]uint64 // at the beginning of the interval
}

// New returns a Meter. It is an error if the Query means no ring now.
func New(q rings.Query) (*Meter, error) {
	finder, err := rings.NewFinder(q)
	if err != nil {
		return nil, err
	}
	return &Meter{finder: finder, lost: map[*rings.Counter]uint64{}}, nil
}

// Missing says which privileges are missing, and what is therefore not known. It is of the last
// Measure.
func (m *Meter) Missing() []string { return m.survey.Missing }

// Measure measures for an interval, and returns what there is at its end. The interval begins where
// that of the last call ended. One of 0 ends at once. The error is that of ctx if it is done
// before the end.
func (m *Meter) Measure(ctx context.Context, interval time.Duration) ([]Row, error) {
	if m.survey == nil {
		if err := m.update(); err != nil {
			return nil, err
		}
	}
	end := time.Now().Add(interval)
	pause := min(max(interval/looks, minPause), maxPause)
	for left := interval; left > 0; left = time.Until(end) {
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		for _, r := range m.rings {
			r.follow()
		}
	}
	rows := m.rows()
	return rows, m.update()
}

// rows ends the interval.
func (m *Meter) rows() []Row {
	lost := map[*rings.Counter]int64{}
	for c, before := range m.lost {
		if now, err := c.Lost(); err == nil {
			m.lost[c], lost[c] = now, int64(now-before)
		}
	}
	rows := make([]Row, 0, len(m.rings))
	for _, r := range m.rings {
		row := r.row()
		row.Lost, row.LostShared = -1, r.shared
		for _, c := range r.counters {
			if n, ok := lost[c]; ok {
				row.Lost = max(row.Lost, 0) + n
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// update finds out which rings there are now, and who uses them.
func (m *Meter) update() (err error) {
	surveyed := m.survey == nil || !time.Now().Before(m.due)
	if surveyed {
		began := time.Now()
		if m.survey, err = m.surveyor.Survey(); err != nil {
			return err
		}
		now := time.Now()
		m.earliest = now.Add(surveyShare * now.Sub(began))
		m.due = later(m.earliest, now.Add(surveyPause))
	}
	letGo := !time.Now().Before(m.letGo)
	if letGo {
		m.letGo = time.Now().Add(letGoPause)
	}
	have := map[uint32]*measured{}
	for _, r := range m.rings {
		have[r.ring.ID] = r
		if surveyed {
			r.ask(m.survey)
		}
		changed := r.usage.Changed()
		if changed {
			m.due = m.earliest
		}
		if changed || letGo && len(r.usage.Programs) == 0 {
			r.release()
		}
	}
	found, err := m.finder.Find(m.survey)
	if err != nil {
		return err
	}
	m.rings = m.rings[:0:0]
	for _, ring := range found {
		r := have[ring.ID]
		if r == nil {
			r = &measured{ring: ring}
			r.ask(m.survey)
			if !surveyed {
				m.due = m.earliest
			}
		}
		delete(have, ring.ID)
		if r.watcher == nil {
			if err := r.watch(); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
		}
		m.rings = append(m.rings, r)
	}
	for _, gone := range have {
		gone.release()
	}
	return m.updateCounters()
}

// updateCounters begins to look at counters that are new, and ends to do so at those that no
// ring has any more.
func (m *Meter) updateCounters() error {
	lost := map[*rings.Counter]uint64{}
	for _, r := range m.rings {
		for _, c := range r.counters {
			n, ok := m.lost[c]
			if !ok {
				var err error
				if n, err = c.Lost(); errors.Is(err, fs.ErrNotExist) {
					continue
				} else if err != nil {
					return err
				}
			}
			lost[c] = n
		}
	}
	m.lost = lost
	return nil
}

// Close releases the rings.
func (m *Meter) Close() {
	for _, r := range m.rings {
		r.release()
	}
	m.rings = nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
