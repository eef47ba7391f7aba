package ringbuf

import "slices"

// slabSize is a compromise between allocations per sample and the memory that a
// caller retains by keeping one small sample.
const slabSize = 8 << 10

// A slab makes copies of small samples without an allocation for each. It is the
// unused rest of a block of memory; the used part belongs to the callers.
type slab []byte

// clone returns a copy of p that is the caller's for ever. Its capacity is
// limited, so that an append to it cannot reach the next clone.
func (s *slab) clone(p []byte) []byte {
	if len(p) > slabSize/4 {
		return slices.Clone(p)
	}
	if len(p) > len(*s) || *s == nil {
		*s = make([]byte, slabSize)
	}
	c := (*s)[:len(p):len(p)]
	*s = (*s)[len(p):]
	copy(c, p)
	return c
}
