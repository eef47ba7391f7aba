package ringbuf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

// What the kernel says of maps, and descriptors of maps. This needs no libbpf.

// mapInfo is the part of the kernel's struct bpf_map_info that is used here.
type mapInfo struct {
	name      string
	kind      mapType
	id        uint32
	flags     uint32
	size      uint32 // max_entries, which is the size of a ring buffer in bytes
	valueSize uint32
}

// Of include/uapi/linux/bpf.h.
const (
	mapTypeRingbuf     mapType = 27 // BPF_MAP_TYPE_RINGBUF
	mapTypeUserRingbuf mapType = 31 // BPF_MAP_TYPE_USER_RINGBUF

	// BPF_F_RB_OVERWRITE: new records overwrite the oldest ones, and the kernel keeps the position
	// of the oldest one where libbpf does not look.
	flagOverwrite = 1 << 19
)

// A mapType is a number of enum bpf_map_type in include/uapi/linux/bpf.h.
type mapType uint32

// mapTypes has the names that libbpf and bpftool use, by number.
var mapTypes = [...]string{
	"unspec", "hash", "array", "prog_array", "perf_event_array", "percpu_hash",
	"percpu_array", "stack_trace", "cgroup_array", "lru_hash", "lru_percpu_hash", "lpm_trie",
	"array_of_maps", "hash_of_maps", "devmap", "sockmap", "cpumap", "xskmap", "sockhash",
	"cgroup_storage", "reuseport_sockarray", "percpu_cgroup_storage", "queue", "stack",
	"sk_storage", "devmap_hash", "struct_ops", "ringbuf", "inode_storage", "task_storage",
	"bloom_filter", "user_ringbuf", "cgrp_storage", "arena",
}

func (t mapType) String() string {
	if int64(t) < int64(len(mapTypes)) {
		return mapTypes[t]
	}
	return strconv.FormatUint(uint64(t), 10)
}

// check returns an error if libbpf cannot consume the map.
func (i mapInfo) check() error {
	if i.kind != mapTypeRingbuf {
		hint := ""
		if i.kind == mapTypeUserRingbuf {
			hint = ": NewWriter writes to it"
		}
		return fmt.Errorf("map %q has type %v, not ringbuf%s", i.name, i.kind, hint)
	}
	if i.flags&flagOverwrite != 0 {
		return fmt.Errorf("map %q of type ringbuf is in overwrite mode (BPF_F_RB_OVERWRITE), which "+
			"libbpf cannot consume", i.name)
	}
	return nil
}

// openPinned returns a new descriptor of the map that is pinned at path.
func openPinned(path string) (fd int, err error) {
	pathC, err := syscall.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	var pin runtime.Pinner
	pin.Pin(pathC)
	defer pin.Unpin()
	// SAFETY: pathC ends with a 0 byte and does not move until Unpin. The kernel reads both during
	// the call only.
	attr := struct {
		pathname     uint64
		bpfFD, flags uint32
	}{pathname: uint64(uintptr(unsafe.Pointer(pathC)))}
	fd, err = bpfCommand(bpfObjGet, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err == syscall.EACCES {
		err = fmt.Errorf("%s: %w", whyNoAccess(path), err)
	}
	return checked(fd, err)
}

// BPF_FS_MAGIC of include/uapi/linux/magic.h.
const bpfFSMagic = 0xcafe4a11

// whyNoAccess says for which of its reasons bpf_obj_get_user() in kernel/bpf/inode.c returned
// EACCES.
func whyNoAccess(path string) string {
	var fs syscall.Statfs_t
	if syscall.Statfs(path, &fs) == syscall.EACCES {
		return unsearchable(path) + ", which takes execute permission on it"
	}
	if uint32(fs.Type) != bpfFSMagic {
		return "no object that is pinned in a BPF file system: pin the map in one, such as /sys/fs/bpf"
	}
	info, err := os.Stat(path)
	if err != nil || info.IsDir() {
		return "no object that is pinned in a BPF file system, but a directory of one"
	}
	const atFDCWD, readOK, writeOK, atEAccess = -100, 4, 2, 0x200
	may := func(mode uint32) bool { return syscall.Faccessat(atFDCWD, path, mode, atEAccess) == nil }
	missing := ""
	switch read, write := may(readOK), may(writeOK); {
	case read && write: // perhaps a security module
		return "not permitted, or no map, program or link"
	case read:
		missing = "write"
	case write:
		missing = "read"
	default:
		missing = "read and write"
	}
	owner := ""
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = fmt.Sprintf(" of user %d, group %d", stat.Uid, stat.Gid)
	}
	return fmt.Sprintf("this process has no %s permission on the file%s, with mode %04o: "+
		"chmod or chown it, since a Reader takes both", missing, owner, info.Mode().Perm())
}

// unsearchable names the first directory of path that this process cannot search.
func unsearchable(path string) string {
	for i, c := range path {
		if c != '/' || i == 0 {
			continue
		}
		if _, err := os.Stat(path[:i] + "/."); errors.Is(err, syscall.EACCES) {
			return fmt.Sprintf("this process cannot search the directory %q", path[:i])
		}
	}
	return "this process cannot search a directory"
}

// openID returns a new descriptor of the map with this id.
func openID(id uint32) (fd int, err error) {
	attr := struct{ id, nextID, openFlags uint32 }{id: id}
	fd, err = bpfCommand(bpfMapGetFDByID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return checked(fd, err)
}

// checked returns fd if it is a descriptor of a map that can be watched, or of a loss counter.
// Otherwise it closes fd.
func checked(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	info, err := infoOf(fd)
	if err == nil && info.checkCounter() != nil {
		err = info.checkWatched()
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// dupMap returns a new descriptor of m, if check accepts the map. The caller must close it.
func dupMap(m Map, check func(mapInfo) error) (fd int, info mapInfo, err error) {
	if v := reflect.ValueOf(m); m == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		return -1, info, errors.New("no map given")
	}
	given := m.FileDescriptor()
	fd, err = dup(given)
	runtime.KeepAlive(m) // its descriptor may be closed as soon as it is garbage
	if err != nil {
		return -1, info, fmt.Errorf("descriptor %d: %w", given, err)
	}
	info, err = infoOf(fd)
	if err == nil {
		err = check(info)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, info, fmt.Errorf("descriptor %d: %w", given, err)
	}
	return fd, info, nil
}

func infoOf(fd int) (mapInfo, error) {
	if err := checkIsMap(fd); err != nil {
		return mapInfo{}, err
	}
	// The beginning of struct bpf_map_info.
	info := new(struct {
		kind, id, keySize, valueSize, maxEntries, flags uint32
		name                                            [16]byte
	})
	var pin runtime.Pinner
	pin.Pin(info)
	defer pin.Unpin()
	// SAFETY: info does not move until Unpin. The kernel writes no more than infoLen bytes.
	attr := struct {
		bpfFD, infoLen uint32
		info           uint64
	}{uint32(fd), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	if _, err := bpfCommand(bpfObjGetInfoByFD, unsafe.Pointer(&attr),
		unsafe.Sizeof(attr)); err != nil {
		return mapInfo{}, fmt.Errorf("get map info: %w", err)
	}
	name, _, _ := bytes.Cut(info.name[:], []byte{0})
	return mapInfo{
		name:      string(name),
		kind:      mapType(info.kind),
		id:        info.id,
		flags:     info.flags,
		size:      info.maxEntries,
		valueSize: info.valueSize,
	}, nil
}

// checkIsMap refuses descriptors of anything but BPF maps. It needs procfs, and accepts everything
// without. The kernel alone does not do: asked for the info of a map, it answers for a BPF program
// with the info of the program.
func checkIsMap(fd int) error {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && target != "anon_inode:bpf-map" {
		return fmt.Errorf("%s is not a BPF map", target)
	}
	return nil
}

func closeFD(fd int) error { return syscall.Close(fd) }
