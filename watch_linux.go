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

// weaklyOrdered is true if other processors may see the stores of a processor in another order.
const weaklyOrdered = runtime.GOARCH != "amd64" && runtime.GOARCH != "s390x"

// The numbers of membarrier(2), which package syscall does not have.
var sysMembarrier = map[string]uintptr{
	"arm64": 283, "loong64": 283, "ppc64": 365, "ppc64le": 365, "riscv64": 283,
}

// fenceAll makes all processors execute a memory barrier. It takes some milliseconds. If the kernel
// does not offer that, it does nothing.
func fenceAll() {
	const global = 1 << 0 // MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h
	if nr, ok := sysMembarrier[runtime.GOARCH]; ok {
		syscall.Syscall(nr, global, 0, 0)
	}
}

// checkWatched returns an error if the map cannot be watched.
func (i mapInfo) checkWatched() error {
	if i.kind != mapTypeRingbuf && i.kind != mapTypeUserRingbuf {
		return fmt.Errorf("map %q has type %v, not ringbuf or user_ringbuf", i.name, i.kind)
	}
	return nil
}

// openWatched maps the positions of a ring for reading, and the data too unless it is a user ring
// buffer. The descriptor must be for reading and writing: mmap(2) does not share a file that can
// never be written to, and bpf_map_mmap() in kernel/bpf/syscall.c refuses a mapping that is not
// shared.
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
	// SAFETY: the mapping begins with a page for each of the two positions. The data, if it is
	// mapped, is behind them. It stays until unmapWatched.
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
