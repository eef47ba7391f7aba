// Package capture writes recordings of BPF ring buffers to files, and reads them again.
//
// A recording is a pcapng file, the format of Wireshark, tshark and tcpdump. Each ring is an
// interface of it, with the name and the id of its map. Each record is a packet of link type
// USER0, with the time at which it was read, its original length, and the number of records that
// were lost before it. The BTF of the programs that write to a ring is stored too, so that its
// samples can be decoded on another machine.
//
// A Writer makes such a file; command ringbuf does so with "ringbuf tail -w". A Reader returns
// what is in one: [Reader.Records] has the type of the method of ringbuf.Reader, so that what
// consumes records of a ring can be tested with those of a file.
//
// # The file
//
// Samples, times, lengths and drops are where pcapng has a place for them. For two things it has
// none:
//
//   - BTF. It is in a block of type 0x80425446, from the range that pcapng reserves for local
//     use, which others skip. The body has the 8 bytes "ringbuf\x01", the number of interfaces
//     that the BTF is for, that many interface numbers, the number of bytes of BTF, and the BTF,
//     padded to a multiple of 4 bytes. Numbers have 32 bits, in the byte order of the section.
//   - Records that were missed without being counted. The packet after them has the comment
//     "missed N bytes of records", and the gap counts as one dropped packet, since there was at
//     least one.
package capture

import (
	"time"

	"github.com/libbpfgo/ringbuf"
)

// A Ring is what a recording says of a ring buffer.
type Ring struct {
	// Name and ID are those of the map. In a file, they are the name of the interface and part
	// of its description. An ID of 0 is not known.
	Name string
	ID   uint32

	// Size is the size of the ring in bytes, or 0 if it is not known.
	Size int

	// BTF describes the types of the programs that write to the ring, as the kernel and the
	// section .BTF of an object file have it. It may be empty.
	BTF []byte

	// Comment is free text.
	Comment string

	// Snaplen is the number of bytes to which samples were cut, or 0 if they were not.
	Snaplen int
}

// A Record is a record of a recording.
type Record struct {
	// Record is what a Reader or Watcher of the ring returned. Ring is an index of the rings of
	// the recording. RawSample is cut to the ring's Snaplen. Remaining is not recorded: it is 0
	// in what is read from a file.
	ringbuf.Record

	// Time is when the record was read, in nanoseconds since 1970, from 1970 on.
	Time time.Time

	// Length is the size of the sample as it was submitted.
	Length int

	// Missed is the number of bytes of records, headers and padding included, that were
	// missed in this ring before this record, and whose number is not known.
	Missed uint64

	// Comment is free text.
	Comment string
}

const (
	linkTypeUser0 = 147 // LINKTYPE_USER0 of www.tcpdump.org/linktypes.html

	missedFormat = "missed %d bytes of records"

	// The description of an interface.
	idFormat   = "BPF ring buffer, map id %d"
	sizeFormat = "BPF ring buffer, map id %d, %d bytes"
)

// Blocks of pcapng, as draft-ietf-opsawg-pcapng has them.
const (
	blockInterface  = 1
	blockPacket     = 2 // obsolete
	blockSimple     = 3
	blockStatistics = 5
	blockEnhanced   = 6
	blockSection    = 0x0a0d0d0a
	blockBTF        = 0x80425446 // local use

	byteOrderMagic = 0x1a2b3c4d
	btfSignature   = "ringbuf\x01"

	// A block is no longer: a record of a ring has less than 1 GiB.
	maxBlock = 1 << 31
)
