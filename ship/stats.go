package ship

import "time"

// Stats says what a Shipper has done. It is a plain value, which encoding/json, and thus
// expvar.Func, can encode.
type Stats struct {
	Rings []RingStats // in the order of the Reader's maps
}

// RingStats is the part of Stats for one ring.
type RingStats struct {
	Ring Ring

	InFlight      int // records that were taken from the ring and are not acknowledged
	InFlightBytes int // bytes of the ring that these records occupy

	Acknowledged uint64 // records that the sink has acknowledged
	Redelivered  uint64 // records that were given to the sink again, because it may not have them
	Failures     uint64 // attempts of the sink that failed
	Failing      bool   // whether the last attempt failed
	Lost         uint64 // records that the kernel refused, as far as they were reported to the sink

	LagBytes   int     // bytes of the ring that were produced and are not acknowledged
	LagSeconds float64 // time since the oldest record in flight was found
}

// Stats returns the current Stats. Any goroutine may call it at any time.
func (s *Shipper) Stats() Stats {
	var stats Stats
	reader := s.reader.Stats()
	for i, l := range s.lanes {
		l.mu.Lock()
		r := l.stats
		r.Ring = l.ring
		r.InFlight = len(l.records)
		r.Lost = l.done.Lost
		r.LagBytes = r.InFlightBytes + reader.Rings[i].Available
		if len(l.leases) > 0 {
			r.LagSeconds = time.Since(l.leases[0].found).Seconds()
		}
		l.mu.Unlock()
		stats.Rings = append(stats.Rings, r)
	}
	return stats
}
