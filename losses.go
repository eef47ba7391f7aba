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

// A lossSlot is struct ringbuf_counter of bpf/ringbuf.bpf.h: what was refused on one CPU.
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
	seen  []seenSlot // what look found in each slot
	base  uint64     // lost before it was opened
}

type seenSlot struct{ lost, position uint64 }

// openLossCounter maps the counter m. It takes a descriptor for reading and writing: what
// can never be written to mmap(2) does not share, and bpf_map_mmap() in kernel/bpf/syscall.c
// refuses that.
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
	c.base, _ = c.look(0)
	for i := range c.seen {
		c.seen[i].position = 0 // of a ring that was read before
	}
	return c, nil
}

// checkCounter says why a map is no loss counter.
func (i mapInfo) checkCounter() error {
	if i.kind == mapTypeArray && int(i.valueSize) == lossSlotSize && i.flags&flagMmapable != 0 {
		return nil
	}
	return fmt.Errorf("map %q is not a RINGBUF_LOSS_COUNTER of bpf/ringbuf.bpf.h: "+
		"it has type %v, values of %d bytes and flags %#x, not type array, %d bytes and BPF_F_MMAPABLE "+
		"(%#x)",
		i.name, i.kind, i.valueSize, i.flags, lossSlotSize, flagMmapable)
}

// possibleCPUs returns the highest CPU number that this kernel may use, plus one, or 0
// where that cannot be known. The numbers may have gaps: how many there are does not do.
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

// look returns how many records were refused since it was called last and, if that is known,
// the producer position at the first of them: it is missing before the record that begins
// there. Else, and if it is not known of all CPUs, the position is 0.
//
// A CPU's slot keeps the position of its first loss until the consumer gets there. So if the
// consumer was not yet there at the last call, the losses since may be on both sides of
// it: consumer is where it was then. That a position is too high is possible only if the consumer
// got to the first loss and the ring was full again, all since the last call. A call after each
// look at the ring excludes that, since a program counts a loss before it notes where the producer
// is; unless the ring was empty just then, because the program was interrupted in between.
//
// One goroutine at a time may call it, until close.
func (c *lossCounter) look(consumer uint64) (lost, position uint64) {
	for i := range c.slots {
		slot, seen := &c.slots[i], &c.seen[i]
		// In this order: see ringbuf_lose() there.
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

// lost returns how many records were refused since the counter was opened. Any goroutine
// may call it until close.
func (c *lossCounter) lost() uint64 {
	sum := -c.base
	for i := range c.slots {
		sum += c.slots[i].lost.Load()
	}
	return sum
}

func (c *lossCounter) close() error { return syscall.Munmap(c.mem) }
