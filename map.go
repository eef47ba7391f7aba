package ringbuf

import (
	"fmt"
	"os"
)

// A Map is a BPF map: a ring buffer (BPF_MAP_TYPE_RINGBUF), or the loss counter of
// WithLossCounter. *libbpfgo.BPFMap, *libbpfgo.BPFMapLow, *MapHandle and FD are Maps. What
// is given one keeps it from being garbage until it has duplicated the descriptor.
type Map interface {
	FileDescriptor() int
}

// FD is a Map given by its bare file descriptor, for example one that was
// received from another process.
type FD int

// FileDescriptor returns fd.
func (fd FD) FileDescriptor() int { return int(fd) }

// mapInfo is the part of the kernel's struct bpf_map_info that matters here.
type mapInfo struct {
	name      string
	kind      uint32
	kindName  string
	id        uint32
	flags     uint32
	size      uint32 // max_entries: of a ring buffer, its size in bytes
	valueSize uint32
}

const (
	// BPF_MAP_TYPE_RINGBUF of enum bpf_map_type in include/uapi/linux/bpf.h.
	mapTypeRingbuf = 27
	// BPF_F_RB_OVERWRITE of the same file: new records overwrite the oldest, and
	// their positions are kept where libbpf does not look. Newer than the headers
	// that this package must compile with.
	flagOverwrite = 1 << 19
)

// check says why a map is none that libbpf can consume.
func (i mapInfo) check() error {
	if i.kind != mapTypeRingbuf {
		return fmt.Errorf("map %q has type %s, not ringbuf", i.name, i.kindName)
	}
	if i.flags&flagOverwrite != 0 {
		return fmt.Errorf("map %q of type ringbuf is in overwrite mode (BPF_F_RB_OVERWRITE), which libbpf cannot consume", i.name)
	}
	return nil
}

// checkIsMap refuses descriptors of anything but BPF maps, as far as procfs is
// there to tell. The kernel answers a request for a map's info on a BPF program
// with the program's.
func checkIsMap(fd int) error {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && target != "anon_inode:bpf-map" {
		return fmt.Errorf("%s is not a BPF map", target)
	}
	return nil
}
