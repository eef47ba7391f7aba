package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

// weaklyOrdered says that the processor's stores may be seen in another order than they were
// made in.
const weaklyOrdered = runtime.GOARCH != "amd64" && runtime.GOARCH != "s390x"

// The number of membarrier(2), which package syscall does not have.
var sysMembarrier = map[string]uintptr{
	"arm64": 283, "loong64": 283, "ppc64": 365, "ppc64le": 365, "riscv64": 283,
}

// fenceAll has all processors go through a memory barrier, which takes some milliseconds. (Where
// the kernel does not offer that, nothing happens.)
func fenceAll() {
	const global = 1 << 0 // MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h
	if nr, ok := sysMembarrier[runtime.GOARCH]; ok {
		syscall.Syscall(nr, global, 0, 0)
	}
}

// checkWatched says why a map is none that can be watched.
func (i mapInfo) checkWatched() error {
	if i.kind != mapTypeRingbuf && i.kind != mapTypeUserRingbuf {
		return fmt.Errorf("map %q has type %v, not ringbuf or user_ringbuf", i.name, i.kind)
	}
	return nil
}

// openWatched maps the positions of a ring, and its data unless it is a user ring buffer, to be
// read only. It takes a descriptor for reading and writing: what can never be written to
// mmap(2) does not share, and bpf_map_mmap() in kernel/bpf/syscall.c refuses that.
func openWatched(m Map) (watched, error) {
	if strconv.IntSize < 64 {
		return watched{}, fmt.Errorf(
			"a Watcher needs a 64-bit processor, as positions in a ring have 64 bits, "+
				"and this program was built for %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	fd, info, err := dupMap(m, mapInfo.checkWatched)
	if err != nil {
		return watched{}, err
	}
	defer syscall.Close(fd)
	w := watched{
		name:      info.name,
		id:        info.id,
		user:      info.kind == mapTypeUserRingbuf,
		overwrite: info.flags&flagOverwrite != 0,
	}
	page := os.Getpagesize()
	length := 2 * page
	if !w.user {
		length += 2 * int(info.size)
	}
	w.mem, err = syscall.Mmap(fd, 0, length, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return watched{}, fmt.Errorf(
			"map %q: mmap, through a descriptor that must be for reading and writing: %w",
			info.name, err)
	}
	// SAFETY: the mapping begins with a page for each of the two positions, and stays until
	// unmapWatched. Behind them is the data, if that is mapped.
	start := unsafe.Pointer(&w.mem[0])
	w.ring = ring{
		size:        uint64(info.size),
		consumerPos: (*uint64)(start),
		producerPos: (*uint64)(unsafe.Add(start, page)),
	}
	if !w.user {
		w.ring.data = unsafe.Add(start, 2*page)
	}
	return w, nil
}

func unmapWatched(mem []byte) { syscall.Munmap(mem) }
