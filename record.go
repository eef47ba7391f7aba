package ringbuf

// A Record is one record of the ring: a sample and what came with it.
type Record struct {
	// RawSample is the sample as the BPF program submitted it, without header and
	// padding. It may be empty: the kernel accepts samples of size 0.
	RawSample []byte

	// Remaining is the number of bytes, headers and padding included, that were left to read
	// after this record when it was drained. There may be more by the time it is read.
	Remaining int

	// Ring is the index of the record's ring among the maps of NewMultiReader, else 0.
	Ring int

	// Lost is the number of records that the kernel refused between the previous record and
	// this one, usually because the ring was full. It is always 0 unless the Reader has a loss
	// counter: see [WithLossCounter].
	Lost uint64
}
