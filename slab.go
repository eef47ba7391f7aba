package ringbuf

import "sync/atomic"

const (
	slabSize = 32 << 10

	// maxShared is the size in bytes of the largest samples that share an allocation.
	maxShared = 2 << 10
)

// A slab is memory that the samples of Read share, which saves an allocation for each. Any number
// of goroutines may use it.
type slab struct{ current atomic.Pointer[slabMemory] }

type slabMemory struct {
	used  atomic.Uint64
	bytes [slabSize]byte
}

// copy returns a copy of sample that belongs to the caller.
func (s *slab) copy(sample []byte) []byte {
	n := uint64(len(sample))
	if n > maxShared {
		return append(make([]byte, 0, n), sample...)
	}
	for {
		m := s.current.Load()
		if m != nil {
			end := m.used.Add((n + 7) &^ 7)
			if start := end - (n+7)&^7; end <= slabSize {
				buf := m.bytes[start:][:n:n]
				copy(buf, sample)
				return buf
			}
		}
		s.current.CompareAndSwap(m, new(slabMemory))
	}
}
