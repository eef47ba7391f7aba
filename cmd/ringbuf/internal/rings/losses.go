package rings

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// A Counter is a map in which BPF programs count the records that the kernel refuses. They declare
// it with RINGBUF_LOSS_COUNTER of bpf/ringbuf.bpf.h.
type Counter struct {
	ID   uint32
	Name string

	slots int
}

// A lossSlot is struct ringbuf_counter of bpf/ringbuf.bpf.h.
type lossSlot struct {
	lost atomic.Uint64
	_    [7]uint64
}

const flagMmapable = 1 << 10 // BPF_F_MMAPABLE

// A mapKind says whether a map that programs use is a ring or a loss counter.
type mapKind struct {
	ring    bool
	counter *Counter // or nil
}

func kindOf(id uint32) (k mapKind, err error) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return k, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return k, err
	}
	k.ring = info.Type == ebpf.RingBuf || info.Type == ebpf.UserRingbuf
	if info.Type != ebpf.Array || info.ValueSize != uint32(unsafe.Sizeof(lossSlot{})) ||
		info.Flags&flagMmapable == 0 {
		return k, nil
	}
	// A section of variables looks the same if it has that size. libbpf names its map after the
	// section, with a dot.
	if strings.Contains(info.Name, ".") || !knowsCounter(m) {
		return k, nil
	}
	slots := int(info.MaxEntries)
	if cpus, err := ebpf.PossibleCPU(); err == nil {
		slots = min(slots, cpus)
	}
	k.counter = &Counter{ID: id, Name: info.Name, slots: slots}
	return k, nil
}

// knowsCounter reports whether the BTF of a map has the type of a counter.
func knowsCounter(m *ebpf.Map) bool {
	handle, err := m.Handle()
	if err != nil {
		return false
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return false
	}
	var counter *btf.Struct
	return spec.TypeByName("ringbuf_counter", &counter) == nil
}

// Lost returns the number of records that were ever lost.
func (c *Counter) Lost() (lost uint64, err error) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(c.ID))
	if err != nil {
		return 0, fmt.Errorf("open loss counter %s (id %d): %w", c.Name, c.ID, err)
	}
	defer m.Close()
	mem, err := syscall.Mmap(m.FD(), 0, c.slots*int(unsafe.Sizeof(lossSlot{})), syscall.PROT_READ,
		syscall.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("mmap loss counter %s (id %d): %w", c.Name, c.ID, err)
	}
	defer syscall.Munmap(mem)
	// SAFETY: the mapping is page-aligned, has that many slots, and stays until this function ends.
	slots := unsafe.Slice((*lossSlot)(unsafe.Pointer(&mem[0])), c.slots)
	for i := range slots {
		lost += slots[i].lost.Load()
	}
	return lost, nil
}

// Counters returns the counters of the programs that use a ring. shared reports whether they may
// also count records of other rings, because a program that uses one of them uses other rings, too.
func (v *Survey) Counters(r *Ring) (counters []*Counter, shared bool) {
	for _, p := range v.programs[r.ID] {
		for _, id := range p.Maps {
			if c := v.surveyor.kind(id).counter; c != nil && !slices.Contains(counters, c) {
				counters = append(counters, c)
			}
		}
	}
	for _, c := range counters {
		for _, p := range v.programs[c.ID] {
			shared = shared || slices.ContainsFunc(p.Maps, func(id uint32) bool {
				return id != r.ID && v.surveyor.kind(id).ring
			})
		}
	}
	return counters, shared
}

// kind returns the kind of a map. If the map cannot be opened, for example because it is gone, the
// kind is neither a ring nor a counter.
func (s *Surveyor) kind(id uint32) mapKind {
	k, known := s.kinds[id]
	if !known {
		var err error
		if k, err = kindOf(id); err != nil {
			return mapKind{}
		}
		if s.kinds == nil {
			s.kinds = map[uint32]mapKind{}
		}
		s.kinds[id] = k
	}
	return k
}
