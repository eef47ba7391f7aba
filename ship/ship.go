// Package ship sends the records of ring buffers to another machine and loses none. A record
// stays in the kernel's ring until the receiver has acknowledged it. So records survive the
// death of the shipper and an outage of the broker, until a ring is full. The kernel then
// refuses records. They are counted, and the receiver gets the count.
//
// Run takes leases from a ringbuf.Reader and appends their records to a Sink. Package jet has a
// Sink for NATS JetStream, which stores each record once and in order. NewFile and NewWriter
// make Sinks of JSON lines. On the receiving side, a Decoder turns messages back into records.
package ship

import (
	"context"
	"errors"
	"time"
)

// A Ring identifies a ring buffer. No two rings have the same Ring, on any machine, at any
// time.
type Ring struct {
	Host string
	Boot string // /proc/sys/kernel/random/boot_id of the host
	Name string // of the map
	ID   uint32 // of the map; unique within one boot
}

// A Mark is a place in the sequence of a ring's records.
type Mark struct {
	Position uint64 // where a record ends, in bytes since the ring was created; 0 is its start
	Lost     uint64 // records that the kernel refused up to this place, as far as counted
}

// A Record is a sample and the Mark at its end.
type Record struct {
	Sample []byte // in the ring: read-only, and valid until Append returns
	Mark
}

// A Batch is a sequence of records of one ring. The first follows After. Only records that the
// kernel refused or that BPF programs discarded are missing between them.
type Batch struct {
	Ring    Ring
	After   Mark // end of the previous record, or zero if there is none
	Records []Record
	Time    time.Time // when the first record was found
}

// A Sink stores records. Run calls Append and Resume from one goroutine for each ring, so calls
// for different rings may run at the same time.
type Sink interface {
	// Append appends records of b to those that the sink has of the ring. It returns how many
	// of b.Records are stored safely: the first n, and at least one if err is nil. If err is
	// not nil, it is unknown which records were stored, and Run calls Resume.
	//
	// The records must be stored directly after b.After. This also holds if an earlier Append
	// that failed takes effect only now.
	Append(ctx context.Context, b *Batch) (n int, err error)

	// Resume returns the Mark of the last record of the ring that the sink has, or the zero
	// Mark. Run calls it before the first Append for a ring, and after an Append that failed.
	Resume(ctx context.Context, ring Ring) (Mark, error)
}

// ErrPermanent is what errors.Is finds in an error of a Sink if retrying is useless. Run
// returns such an error.
var ErrPermanent = errors.New("shipping ends")
