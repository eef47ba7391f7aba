// Package capture writes recordings of BPF ring buffers to files, and reads them again.
//
// A recording is a pcapng file, the format of Wireshark, tshark and tcpdump. Each ring is an
// interface, with the name and the id of its map. Each record is a packet of link type USER0, with
// the time at which it was read, its original length, and the number of records that were lost
// before it. The file also has the BTF of the programs that write to a ring, so that another
// machine can decode the samples.
//
// A Writer writes such a file, and so does the command "ringbuf tail -w". A Reader returns the
// records of a file. [Reader.Records] has the type of the Records method of ringbuf.Reader. Code
// that consumes the records of a ring can therefore be tested with a recording.
//
// # File format
//
// Samples, times, lengths and drops are in the standard fields of pcapng. For two things pcapng has
// no field:
//
//   - BTF. It is in a block of type 0x80425446, which is in the range for local use. Other programs
//     skip it. The body has the 8 bytes "ringbuf\x01", the number of interfaces that the BTF is
//     for, their interface numbers, the number of bytes of BTF, and the BTF, padded to a multiple
//     of 4 bytes. Numbers have 32 bits, in the byte order of the section.
//   - Records that were missed but not counted. The next packet has the comment "missed N bytes of
//     records". The gap counts as one dropped packet, because at least one record was missed.
package capture

import (
	"time"

	"github.com/libbpfgo/ringbuf"
)

// A Ring describes a ring buffer of a recording.
type Ring struct {
	// Name and ID are the name and the id of the map. An ID of 0 means that it is not known. In a
	// file, Name is the name of the interface, and ID is a part of its description.
	Name string
	ID   uint32

	// Size is the size of the ring in bytes, or 0 if it is not known.
	Size int

	// BTF has the types of the programs that write to the ring, in the format of the kernel and of
	// the section .BTF of an object file. It may be empty.
	BTF []byte

	// Comment is free text.
	Comment string

	// Snaplen is the number of bytes to which samples are cut, or 0 if they are not cut.
	Snaplen int
}

// A Record is a record of a recording.
type Record struct {
	// Record is the record that a ringbuf.Reader or Watcher returned. Ring is an index of the rings
	// of the recording. RawSample is cut to the ring's Snaplen. Remaining is not recorded: it is 0
	// in records that are read from a file.
	ringbuf.Record

	// Time is when the record was read. It has a resolution of a nanosecond and is not before 1970.
	Time time.Time

	// Length is the size in bytes of the sample as it was submitted.
	Length int

	// Missed is the number of bytes that were missed in this ring before this record, headers and
	// padding included. The number of these records is not known.
	Missed uint64

	// Comment is free text.
	Comment string
}

const (
	linkTypeUser0 = 147 // LINKTYPE_USER0 of www.tcpdump.org/linktypes.html

	missedFormat = "missed %d bytes of records"

	// Formats of the description of an interface.
	idFormat   = "BPF ring buffer, map id %d"
	sizeFormat = "BPF ring buffer, map id %d, %d bytes"
)

// Block types and other constants of pcapng: see draft-ietf-opsawg-pcapng.
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

	// The maximum length of a block. A record of a ring has less than 1 GiB.
	maxBlock = 1 << 31
)
