package ringbuf

import "encoding/binary"

// The C code stores samples as entries, one after the other:
//
//	end position (8 bytes) | length (4) | gap (4) | sample | padding to 8
//
// in native byte order. struct cgo_ringbuf_entry in ringbuf_cgo.h is the header.
const entryHeaderSize = 16

// entryHeader decodes the header of the first of entries: the position in the ring where the record
// ends, the length of the sample, and the bytes that were consumed with it. These count from where
// the consumer position was before. So they include discarded records before the sample.
func entryHeader(entries []byte) (end uint64, length, gap uint32) {
	_ = entries[entryHeaderSize-1]
	end = binary.NativeEndian.Uint64(entries)
	length = binary.NativeEndian.Uint32(entries[8:])
	gap = binary.NativeEndian.Uint32(entries[12:])
	return end, length, gap
}

// appendEntry appends an entry of a sample to entries.
func appendEntry(entries []byte, end uint64, gap uint32, sample []byte) []byte {
	entries = binary.NativeEndian.AppendUint64(entries, end)
	entries = binary.NativeEndian.AppendUint32(entries, uint32(len(sample)))
	entries = binary.NativeEndian.AppendUint32(entries, gap)
	return append(append(entries, sample...), make([]byte, -len(sample)&7)...)
}

// entrySize returns the size of the entry of a sample of so many bytes.
func entrySize(length int) uint64 { return entryHeaderSize + uint64(length+7)&^7 }

// firstOf returns the sample of the first of entries, and where its record ends in the ring.
func firstOf(entries []byte) (sample []byte, end uint64) {
	end, length, _ := entryHeader(entries)
	return entries[entryHeaderSize:][:length:length], end
}

// offsetAfter returns the offset in entries of the first one that ends after a position.
func offsetAfter(entries []byte, position uint64) (offset uint64) {
	for {
		end, length, _ := entryHeader(entries[offset:])
		if end > position {
			return offset
		}
		offset += entrySize(int(length))
	}
}

// measure returns the number of samples in entries, the position where the last one ends, and how
// many bytes all of them took in the ring.
func measure(entries []byte) (samples int, last, size uint64) {
	for len(entries) > 0 {
		end, length, gap := entryHeader(entries)
		samples++
		last = end
		size += uint64(gap)
		entries = entries[entrySize(int(length)):]
	}
	return samples, last, size
}
