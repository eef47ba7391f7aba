// Package ship passes the records of ring buffers on to another machine, and loses none: a record
// stays in the kernel's ring until the other end has said that it is safe. So a shipper that is
// killed, and a broker that is away, cost nothing until a ring is full; what the kernel refuses
// then is counted, and the count arrives at the other end.
//
// Run takes leases from a ringbuf.Reader and appends their records to a Sink. Package jet has a
// Sink for NATS JetStream, which has each record once and in order. NewFile and NewWriter make
// Sinks of JSON lines. A Decoder is the other end: it makes records of messages.
package ship

import (
	"context"
	"errors"
	"time"
)

// A Ring is a ring buffer, named so that no other has the name, on any machine, ever.
type Ring struct {
	Host string
	Boot string // /proc/sys/kernel/random/boot_id there
	Name string // of the map
	ID   uint32 // of the map; no two have the same in one boot
}

// A Mark is a place in the sequence of a ring's records.
type Mark struct {
	Position uint64 // where a record ends, in bytes since the ring was made; 0 is before all
	Lost     uint64 // records that the kernel has refused up to there, as far as they were counted
}

// A Record is a record, and the Mark at its end.
type Record struct {
	Sample []byte // in the ring: read-only, and valid until Append returns
	Mark
}

// A Batch is a run of records of one ring. Its Records follow each other and After, but for
// what the kernel refused and what programs discarded.
type Batch struct {
	Ring    Ring
	After   Mark // where the record before ends, or zero if there is none
	Records []Record
	Time    time.Time // when the first of them was found
}

// A Sink is where records go. Append and Resume are called by one goroutine for each ring, so
// that those of several rings may run at once.
type Sink interface {
	// Append appends records to what the sink has of the ring. It returns how many: the first n are
	// safe now, which is at least one if err is nil. If err is not nil nobody knows what was
	// stored, and Run calls Resume.
	//
	// What it appends must follow b.After, also if an Append before that failed has its effect
	// only now.
	Append(ctx context.Context, b *Batch) (n int, err error)

	// Resume returns the Mark of the last record that the sink has of a ring, or the zero Mark. It is
	// called before the first Append for a ring, and after one that failed.
	Resume(ctx context.Context, ring Ring) (Mark, error)
}

// ErrPermanent is what errors.Is finds in an error of a Sink for which it is of no use to try
// again. Run returns it.
var ErrPermanent = errors.New("shipping ends")
