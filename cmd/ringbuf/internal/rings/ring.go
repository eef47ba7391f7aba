// Package rings finds the BPF ring buffers of this machine, and the programs, processes and pins
// that use them. It does not change them.
package rings

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"

	"github.com/cilium/ebpf"

	"github.com/libbpfgo/ringbuf"
)

const (
	// FlagOverwrite is BPF_F_RB_OVERWRITE of include/uapi/linux/bpf.h: new records overwrite the
	// oldest.
	FlagOverwrite = 1 << 19
	// flagNUMANode is BPF_F_NUMA_NODE.
	flagNUMANode = 1 << 2
)

// A Ring is a ring buffer or user ring buffer. Its descriptor keeps the map in existence until
// Close.
type Ring struct {
	ID    uint32
	Name  string // the kernel keeps 15 bytes
	Type  ebpf.MapType
	Flags uint32 // BPF_F_...
	Size  int    // of the data, in bytes

	m      *ebpf.Map
	path   string    // where it is pinned, for Reopen; or empty
	frames [2]uint64 // page frames of its first pages; see process.readMappings
}

// FD returns the descriptor. It is valid until Close.
func (r *Ring) FD() ringbuf.FD { return ringbuf.FD(r.m.FD()) }

// IsUser reports whether it is a user ring buffer, which user space writes into.
func (r *Ring) IsUser() bool { return r.Type == ebpf.UserRingbuf }

// TypeName returns bpftool's name of the type.
func (r *Ring) TypeName() string {
	if r.IsUser() {
		return "user_ringbuf"
	}
	return "ringbuf"
}

// Overwrites reports whether new records overwrite the oldest ones.
func (r *Ring) Overwrites() bool { return r.Flags&FlagOverwrite != 0 }

// FlagNames returns the names of the flags. Flags without a name here are one hexadecimal number.
func (r *Ring) FlagNames() []string {
	names := []string{}
	rest := r.Flags
	for _, f := range []struct {
		flag uint32
		name string
	}{{flagNUMANode, "numa_node"}, {FlagOverwrite, "overwrite"}} {
		if rest&f.flag != 0 {
			names = append(names, f.name)
			rest &^= f.flag
		}
	}
	if rest != 0 {
		names = append(names, fmt.Sprintf("%#x", rest))
	}
	return names
}

// String returns the name and the id.
func (r *Ring) String() string { return fmt.Sprintf("%s (id %d)", r.Name, r.ID) }

// Close closes the descriptor. The fields of r remain valid.
func (r *Ring) Close() error { return r.m.Close() }

// errNoRing is the error of newRing if the map is not a ring buffer.
var errNoRing = errors.New("it is not a ring buffer")

// newRing returns m as a Ring. It takes over m, and closes it on error.
func newRing(m *ebpf.Map) (r *Ring, err error) {
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	info, err := m.Info()
	if err != nil {
		return nil, err
	}
	id, ok := info.ID()
	if !ok {
		return nil, errors.New("the kernel does not tell the ids of maps: Linux 5.8 or newer is needed")
	}
	if info.Type != ebpf.RingBuf && info.Type != ebpf.UserRingbuf {
		return nil, fmt.Errorf("map %d, %q, has type %s: %w", id, info.Name, info.Type, errNoRing)
	}
	r = &Ring{ID: uint32(id), Name: info.Name, Type: info.Type, Flags: info.Flags,
		Size: int(info.MaxEntries), m: m}
	r.frames, err = firstFrames(m.FD())
	if err != nil {
		return nil, fmt.Errorf("look at ring buffer %s: %w", r, err)
	}
	return r, nil
}

// Open opens the ring buffer with this id. It needs CAP_SYS_ADMIN.
func Open(id uint32) (*Ring, error) {
	r, err := open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no map with id %d: ringbuf list shows all ring buffers", id)
	}
	return r, err
}

func open(id uint32) (*Ring, error) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil, needs("open a map by its id", "CAP_SYS_ADMIN", err)
	}
	return newRing(m)
}

// OpenPinned opens the ring buffer that is pinned at path. It needs CAP_BPF, and permission to read
// and write the file.
func OpenPinned(path string) (*Ring, error) {
	_, statErr := os.Stat(path)
	// A ring can be mapped only by a descriptor for reading and writing.
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		return newRing(m)
	}
	switch {
	case statErr != nil:
		return nil, statErr
	case !inBPFFS(path):
		return nil, fmt.Errorf("%s is not in a BPF file system: nothing is pinned there", path)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("to open %s takes CAP_BPF, and permission to read and write the file: %w",
			path, fs.ErrPermission)
	}
	return nil, fmt.Errorf("what is pinned at %s is no map: %w", path, err)
}

// mapIDs returns the ids of all maps, in ascending order.
func mapIDs() iter.Seq2[uint32, error] {
	return func(yield func(uint32, error) bool) {
		for id := ebpf.MapID(0); ; {
			var err error
			id, err = ebpf.MapGetNextID(id)
			if errors.Is(err, fs.ErrNotExist) {
				return
			}
			if err != nil {
				yield(0, needs("find all maps", "CAP_SYS_ADMIN", err))
				return
			}
			if !yield(uint32(id), nil) {
				return
			}
		}
	}
}

// All opens all ring buffers of this machine, in the order of their ids. It needs CAP_SYS_ADMIN.
func All() (all []*Ring, err error) {
	for id, err := range mapIDs() {
		var ring *Ring
		if err == nil {
			ring, err = open(id)
		}
		switch {
		case errors.Is(err, errNoRing), errors.Is(err, fs.ErrNotExist): // no ring, or gone
		case err != nil:
			CloseAll(all)
			return nil, err
		default:
			all = append(all, ring)
		}
	}
	return all, nil
}

// CloseAll closes all these rings.
func CloseAll(rings []*Ring) {
	for _, r := range rings {
		r.Close()
	}
}

// needs wraps the error of a step. If a privilege is missing, the text names the capability.
func needs(step, capability string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		hint := "run as root"
		if os.Geteuid() == 0 {
			hint = "root lacks it here, as in a container"
		}
		return fmt.Errorf("to %s takes %s: %s: %w", step, capability, hint, fs.ErrPermission)
	}
	return fmt.Errorf("%s: %w", step, err)
}
