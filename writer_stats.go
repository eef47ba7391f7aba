package ringbuf

// WriterStats says what a Writer has done since it was opened. It is a plain value, so that
// encoding/json and expvar.Func can show it as it is.
type WriterStats struct {
	Name string // of the map
	Size int    // of the ring in bytes

	Samples uint64 // that were written or submitted
	Bytes   uint64 // of these samples, without headers and padding

	// Discarded is the number of reservations that were given up: by Discard, by Close, or because
	// they were garbage.
	Discarded uint64

	// Repaired is the number of records that WithRepair discarded.
	Repaired uint64

	// Waits is the number of calls that waited for room.
	Waits uint64

	// Drains is the number of times that the function of WithDrain was called.
	Drains uint64

	// Reserved is the number of reservations that are out.
	Reserved int

	// Fill is the number of bytes of the ring that the kernel has not drained, headers and padding
	// included. After Close it is that number at Close.
	Fill int
}

// Stats returns what the Writer has done so far. After Close it returns the final values. It may be
// called often, and it does not wait for a call that waits for room.
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
