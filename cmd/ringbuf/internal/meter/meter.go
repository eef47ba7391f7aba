// Package meter measures ring buffers over intervals: how full they are, and how fast they are
// filled. It takes no records from their readers.
package meter

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
)

const (
	// A Meter looks at a ring several times in an interval, for the peak of its fill: looks times,
	// but not closer than minPause and not farther than maxPause apart.
	looks    = 10
	minPause = 10 * time.Millisecond
	maxPause = 100 * time.Millisecond

	// The next survey of the users is due after surveyPause, or later, so that surveys take no more
	// than one surveyShare-th of the time.
	surveyPause = 10 * time.Second
	surveyShare = 200

	// The Meter releases a ring that no program uses this often. If nobody else uses the ring, it
	// ceases to exist. Programs keep their rings in existence anyway.
	letGoPause = 5 * time.Second
)

// A Row has the measurements of one ring over one interval.
type Row struct {
	Ring  *rings.Ring // without a descriptor
	Usage rings.Usage

	Fill, Peak         int // in bytes; -1 if somebody has scribbled on the consumer position
	Consumer, Producer uint64

	// Interval is the time between the first and the last look at the ring. It is 0 if there was
	// only one look, as in a Measure with an interval of 0. The fields below are then not known.
	Interval time.Duration

	// Bytes is the distance that the producer position moved. It includes headers, padding and
	// discarded records.
	Bytes uint64

	// Missed is the number of these bytes that were overwritten before their records could be
	// counted. Records, Discarded and MeanSize are then estimated from the other records, or from
	// an earlier interval. They are -1 if nothing was ever counted, and for user ring buffers.
	Missed             uint64
	Records, Discarded float64
	// MeanSize is that of records, in bytes, without headers and padding. It is also -1 if there
	// were no records.
	MeanSize float64

	// Lost is the number of records that the kernel refused, or -1 if no program counts them. If
	// LostShared, it may include records of other rings.
	Lost       int64
	LostShared bool
}

// Rate returns the rate per second of n, which was counted in the interval.
func (r *Row) Rate(n float64) float64 { return n / r.Interval.Seconds() }

// A Meter measures the rings of a Query. It keeps a ring that nobody else uses in existence for a
// few seconds only. One goroutine at a time may use it.
type Meter struct {
	finder   *rings.Finder
	surveyor rings.Surveyor
	survey   *rings.Survey
	due      time.Time // of the next survey
	earliest time.Time // before which no survey is made
	letGo    time.Time // when to release rings that no program uses

	rings []*measured               // in the order of Finder.Find
	lost  map[*rings.Counter]uint64 // at the beginning of the interval
}

// New returns a Meter. It fails if the Query's Find fails now. The caller must call Close.
func New(q rings.Query) (*Meter, error) {
	finder, err := rings.NewFinder(q)
	if err != nil {
		return nil, err
	}
	return &Meter{finder: finder, lost: map[*rings.Counter]uint64{}}, nil
}

// Missing says which privileges were missing in the last survey, and what is therefore not known.
// Call Measure first.
func (m *Meter) Missing() []string { return m.survey.Missing }

// Measure measures for an interval, and returns a Row for each ring that was known at its
// beginning. The interval begins where that of the last call ended. An interval of 0 ends at
// once. If ctx is done before the end, the error is the cause of ctx.
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

// rows ends the interval, and returns its Rows.
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

// update finds the rings that exist now and, if a survey is due, their users.
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

// updateCounters adds new counters with their present value, and drops those that no ring has any
// more.
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

// Close stops watching the rings.
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
