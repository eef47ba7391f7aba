package ringbuf

// Stats says what a Reader has done since it was opened. It is a plain value, so that encoding/json
// and expvar.Func can show it as it is.
type Stats struct {
	// Rings has an element for each ring, in the order of the maps.
	Rings []RingStats

	// Drains is the number of times that libbpf was called to take records out of a ring.
	Drains uint64

	// Wakeups is the number of waits that ended because the kernel notified of a record. The
	// traced workload pays for these, and for notifications that come while no goroutine waits.
	Wakeups uint64

	// Ticks is the number of times that the rings were drained on the timer of wakeup moderation.
	Ticks uint64

	// Lost is the number of records that the kernel refused, usually because a ring was full. It
	// is always 0 unless the Reader has a loss counter: see [WithLossCounter].
	Lost uint64

	// LostBefore is what the loss counter had counted before this Reader was opened. The sum of
	// Lost and LostBefore is the number of records that were refused since the map was created.
	LostBefore uint64

	// Late is the number of records that Merged yielded after one with a higher key.
	Late uint64
}

// RingStats is what Stats says of one ring.
type RingStats struct {
	Name string // of the map
	ID   uint32 // of the map
	Size int    // of the ring in bytes

	// Samples is the number of samples that libbpf has consumed. Read has not yet returned at
	// most a batch of them. Samples that are lent and not committed do not count.
	Samples uint64
	Bytes   uint64 // of these samples, without headers and padding

	// Discarded is the number of discarded records that the Reader has passed. It may be too low
	// after the ring was full: the kernel may overwrite such records before they are counted.
	Discarded uint64

	Available int // bytes that are not yet returned, as in AvailableBytes

	// Peak is the largest number of bytes that the Reader found in the ring in the last minute (60
	// to 70 s), including now. It says how close the ring was to being full.
	Peak int
}

// Stats returns what the Reader has done so far. After Close it returns the final values. It is
// cheap and may be called often, and it never waits for a Read.
func (r *Reader) Stats() Stats { return r.queue.stats() }
