package ship

import "time"

// Stats says what a Shipper has done. It is a plain value, which encoding/json, and thus
// expvar.Func, can show as it is.
type Stats struct {
	Rings []RingStats // in the order of the Reader's maps
}

// RingStats is what Stats says of one ring.
type RingStats struct {
	Ring Ring

	InFlight      int // records that were taken from the ring, and not acknowledged
	InFlightBytes int // of the ring, which they still take

	Acknowledged uint64 // records
	Redelivered  uint64 // records that were given to the sink again, since it may not have them
	Failures     uint64 // of the sink
	Failing      bool   // the last thing that it did
	Lost         uint64 // records that the kernel refused, as far as the sink was told

	LagBytes   int     // of the ring, which were produced and are not acknowledged
	LagSeconds float64 // since the oldest record that is in flight was found
}

// Stats returns what was done so far. It may be called often.
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
