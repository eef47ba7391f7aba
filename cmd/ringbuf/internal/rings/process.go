package rings

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// A process lists the BPF objects that a process has.
type process struct {
	pid      int
	comm     string
	held     map[uint32]bool // ids of the maps of its descriptors
	programs map[uint32]bool // ids of the programs of its descriptors and of its links

	// The page frames of the first pages of its mappings of maps. The value reports whether the
	// mapping is writable.
	frames map[uint64]bool
}

// processes returns the processes that have BPF objects, except this process. hidden is the number
// of processes that it was not permitted to look at.
func processes() (all []*process, hidden int, err error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, 0, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, 0, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := readProcess(pid)
		switch {
		case errors.Is(err, fs.ErrPermission):
			hidden++
		case err != nil: // it has ended
		case len(p.held)+len(p.programs)+len(p.frames) > 0:
			all = append(all, p)
		}
	}
	return all, hidden, nil
}

// readProcess looks at one process. It needs the permission of ptrace(2) to read: the same user, or
// CAP_SYS_PTRACE.
func readProcess(pid int) (*process, error) {
	p := &process{pid: pid, held: map[uint32]bool{}, programs: map[uint32]bool{},
		frames: map[uint64]bool{}}
	dir := fmt.Sprintf("/proc/%d", pid)
	comm, err := os.ReadFile(dir + "/comm")
	if err == nil {
		p.comm = strings.TrimSuffix(string(comm), "\n")
		err = p.readDescriptors(dir)
	}
	if err == nil {
		err = p.readMappings(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return nil, fmt.Errorf("there is no process %d", pid)
	case err != nil:
		return nil, needs(fmt.Sprintf("look at process %d", pid), "CAP_SYS_PTRACE", err)
	}
	return p, nil
}

func (p *process) readDescriptors(dir string) error {
	f, err := os.Open(dir + "/fd")
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		// Most descriptors are not of BPF objects. To read the link is cheaper than to read the
		// info.
		target, err := os.Readlink(filepath.Join(dir, "fd", name))
		if err != nil || !strings.HasPrefix(target, "anon_inode:bpf") {
			continue
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", name))
		if err != nil {
			continue // it was closed meanwhile
		}
		for line := range strings.Lines(string(info)) {
			key, value, _ := strings.Cut(line, ":")
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			switch {
			case err != nil:
			case key == "map_id":
				p.held[uint32(id)] = true
			case key == "prog_id": // a program, or a link to it
				p.programs[uint32(id)] = true
			}
		}
	}
	return nil
}

// readMappings finds the process's mappings of maps. A process with a mapping needs no
// descriptor: a Reader of package ringbuf keeps no descriptor of the map. The kernel reports only
// that a mapping is of a BPF map, but not of which one. Page frames tell which: the first page of
// a mapping is the ring's consumer page or its producer page.
func (p *process) readMappings(dir string) error {
	maps, err := os.Open(dir + "/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	var pagemap *os.File
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		if !strings.HasSuffix(lines.Text(), "anon_inode:bpf-map") {
			continue
		}
		start, rest, _ := strings.Cut(lines.Text(), "-")
		_, permissions, _ := strings.Cut(rest, " ")
		address, err := strconv.ParseUint(start, 16, 64)
		if err != nil {
			return fmt.Errorf("%s/maps: %w", dir, err)
		}
		if pagemap == nil {
			if pagemap, err = os.Open(dir + "/pagemap"); err != nil {
				return err
			}
			defer pagemap.Close()
		}
		if frame := frameAt(pagemap, address); frame != 0 {
			p.frames[frame] = p.frames[frame] || strings.HasPrefix(permissions, "rw")
		}
	}
	return lines.Err()
}

// firstFrames returns the page frames of a ring's consumer page and producer page.
func firstFrames(fd int) (frames [2]uint64, err error) {
	page := os.Getpagesize()
	mem, err := syscall.Mmap(fd, 0, 2*page, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return frames, fmt.Errorf("mmap: %w", err)
	}
	defer syscall.Munmap(mem)
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return frames, err
	}
	defer pagemap.Close()
	for i := range frames {
		// SAFETY: only the address is used, and the mapping stays until this function ends.
		frames[i] = frameAt(pagemap, uint64(uintptr(unsafe.Pointer(&mem[i*page]))))
	}
	return frames, nil
}

// frameAt returns the number of the page frame at an address, or 0 if the kernel does not tell it,
// for example without CAP_SYS_ADMIN.
func frameAt(pagemap *os.File, address uint64) uint64 {
	var entry [8]byte
	if _, err := pagemap.ReadAt(entry[:], int64(address/uint64(os.Getpagesize())*8)); err != nil {
		return 0
	}
	// Bits 0 to 54 are the number if bit 63 is set, which means that the page is present:
	// Documentation/admin-guide/mm/pagemap.rst.
	e := binary.NativeEndian.Uint64(entry[:])
	if e>>63 == 0 {
		return 0
	}
	return e & (1<<55 - 1)
}
