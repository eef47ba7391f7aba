package ringbuf

// Stats says what a Reader has done since it was opened. It is a plain value, which
// encoding/json, and thus expvar.Func, can show as it is.
type Stats struct {
	// Rings is in the order of the maps.
	Rings []RingStats

	// Drains is how often libbpf was called to take records out of a ring.
	Drains uint64

	// Wakeups is how many waits ended because the kernel notified of a record. The
	// workload that is traced pays for these, and for what it notifies of while
	// nobody waits.
	Wakeups uint64

	// Ticks is how often the rings were drained on the timer of wakeup moderation.
	Ticks uint64

	// Lost is the number of records that the kernel refused, because a ring was full,
	// as counted by the map of WithLossCounter; else 0.
	Lost uint64

	// LostBefore is what that map had counted before this Reader was opened: with Lost, it is how
	// many records were refused since the map exists.
	LostBefore uint64

	// Late is the number of records that Merged yielded after one with a higher key.
	Late uint64
}

// RingStats is what Stats says of one ring.
type RingStats struct {
	Name string // of the map
	ID   uint32 // of the map
	Size int    // of the ring in bytes

	// Samples is how many libbpf has consumed. At most a batch of them is not yet returned
	// by Read. What is lent and not committed does not count.
	Samples uint64
	Bytes   uint64 // of these samples, without headers and padding

	// Discarded is the number of records that BPF programs discarded and the Reader
	// passed. There may be more: those that the kernel had overwritten before they could
	// be counted, as happens now and then while the ring is full.
	Discarded uint64

	Available int // bytes that are not yet returned, as AvailableBytes has it

	// Peak is the most bytes that were in the ring in the last minute (60 to 70 s), whenever the
	// Reader looked and at this call. It is how near the ring was to being full.
	Peak int
}

// Stats returns what the Reader has done so far, or when it was closed. It may be called
// often: nothing is counted for it but once in a drain, and it never waits for a Read.
func (r *Reader) Stats() Stats { return r.queue.stats() }
