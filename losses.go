//go:build linux

package ringbuf

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	// BPF_MAP_TYPE_ARRAY and BPF_F_MMAPABLE of include/uapi/linux/bpf.h.
	mapTypeArray mapType = 2
	flagMmapable         = 1 << 10
)

// A lossSlot is struct ringbuf_counter of bpf/ringbuf.bpf.h: the records that were refused on one
// CPU.
type lossSlot struct {
	lost     atomic.Uint64
	position atomic.Uint64
	_        [6]uint64
}

const lossSlotSize = int(unsafe.Sizeof(lossSlot{}))

// A lossCounter is a map of RINGBUF_LOSS_COUNTER in bpf/ringbuf.bpf.h, mapped into memory.
type lossCounter struct {
	mem   []byte
	slots []lossSlot // in mem
	seen  []seenSlot // what newLosses found in each slot
	base  uint64     // lost before the counter was opened
}

// A seenSlot is what newLosses found in a slot.
type seenSlot struct{ lost, position uint64 }

// openLossCounter maps the counter m, whose descriptor must be for reading and writing: mmap(2)
// does not share a file that can never be written to, and bpf_map_mmap() in kernel/bpf/syscall.c
// refuses a mapping that is not shared.
func openLossCounter(m Map) (*lossCounter, error) {
	fd, info, err := dupMap(m, mapInfo.checkCounter)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	slots := int(info.size)
	if cpus := possibleCPUs(); cpus > 0 {
		slots = min(slots, cpus)
	}
	mem, err := syscall.Mmap(fd, 0, slots*lossSlotSize, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf(
			"map %q: mmap loss counter, through a descriptor that must be for reading and writing: %w",
			info.name, err)
	}
	c := &lossCounter{mem: mem, seen: make([]seenSlot, slots)}
	// SAFETY: the mapping is page-aligned, has that many slots and stays until close.
	c.slots = unsafe.Slice((*lossSlot)(unsafe.Pointer(&mem[0])), slots)
	c.base, _ = c.newLosses(0)
	for i := range c.seen {
		c.seen[i].position = 0 // it may be of another ring that was read before
	}
	return c, nil
}

// checkCounter says why a map is no loss counter.
func (i mapInfo) checkCounter() error {
	if i.kind == mapTypeArray && int(i.valueSize) == lossSlotSize && i.flags&flagMmapable != 0 {
		return nil
	}
	return fmt.Errorf("map %q is not a RINGBUF_LOSS_COUNTER of bpf/ringbuf.bpf.h: "+
		"it has type %v, values of %d bytes and flags %#x, "+
		"not type array, %d bytes and BPF_F_MMAPABLE (%#x)",
		i.name, i.kind, i.valueSize, i.flags, lossSlotSize, flagMmapable)
}

// possibleCPUs returns the highest CPU number that this kernel may use, plus one, or 0 if that
// cannot be known. The number of CPUs does not do, because their numbers may have gaps.
func possibleCPUs() int {
	list, err := os.ReadFile("/sys/devices/system/cpu/possible") // such as 0-3,8-11
	if err != nil {
		return 0
	}
	return afterLastCPU(string(list))
}

func afterLastCPU(list string) int {
	list = strings.TrimSpace(list)
	last, err := strconv.Atoi(list[strings.LastIndexAny(list, ",-")+1:])
	if err != nil {
		return 0
	}
	return last + 1
}

// newLosses returns how many records were refused since the last call, and the producer position
// at the first of these losses. The lost records are missing before the record that begins there.
// The position is 0 if it is not known for each CPU.
//
// The slot of a CPU keeps the position of its first loss until the consumer gets there. If the
// consumer was not there at the last call, later losses may be on both sides of it. The argument
// consumer is the consumer position at the last call.
//
// A position is too high only if, since the last call, the consumer got to the first loss and the
// ring was full again. A call after each look at the ring excludes that, because a program
// counts a loss before it notes the producer position. There is one exception: the program was
// interrupted between the two, and the ring was empty just then.
//
// One goroutine at a time may call newLosses, until close.
func (c *lossCounter) newLosses(consumer uint64) (lost, position uint64) {
	for i := range c.slots {
		slot, seen := &c.slots[i], &c.seen[i]
		// The order matters: see ringbuf_lose() in bpf/ringbuf.bpf.h.
		n := slot.lost.Load()
		if n == seen.lost {
			continue
		}
		p := slot.position.Load()
		first := p
		if seen.position > consumer {
			first = 0
		}
		if lost == 0 || first < position {
			position = first
		}
		lost += n - seen.lost
		seen.lost, seen.position = n, p
	}
	return lost, position
}

// lost returns how many records were refused since the counter was opened. Any number of goroutines
// may call it, until close.
func (c *lossCounter) lost() uint64 {
	sum := -c.base
	for i := range c.slots {
		sum += c.slots[i].lost.Load()
	}
	return sum
}

func (c *lossCounter) close() error { return syscall.Munmap(c.mem) }
