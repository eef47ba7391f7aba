package ringbuf

// WriterStats says what a Writer has done since it was opened. It is a plain value, which
// encoding/json, and thus expvar.Func, can show as it is.
type WriterStats struct {
	Name string // of the map
	Size int    // of the ring in bytes

	Samples uint64 // that were written or submitted
	Bytes   uint64 // of these, without headers and padding

	// Discarded is the number of reservations that were given up: by Discard, as garbage, or by Close.
	Discarded uint64

	// Repaired is the number of records that WithRepair discarded.
	Repaired uint64

	// Waits is how many calls found no room, and waited for it.
	Waits uint64

	// Drains is how often the function of WithDrain was called.
	Drains uint64

	// Reserved is the number of reservations that are out.
	Reserved int

	// Fill is how many bytes of the ring the kernel has not drained, headers and padding
	// included; or had not at Close.
	Fill int
}

// Stats returns what the Writer has done so far, or when it was closed. It may be called often, and
// waits for no room.
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stats
	s.Reserved = w.lent.count
	if w.drainer != nil {
		s.Drains = w.drainer.calls.Load()
	}
	if !w.released {
		s.Fill = w.ring.fill()
	}
	return s
}
