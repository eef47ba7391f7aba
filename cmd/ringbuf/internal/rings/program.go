package rings

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
)

// A Program is a loaded BPF program.
type Program struct {
	ID   uint32
	Name string // the kernel keeps 15 bytes
	Type ebpf.ProgramType
	Maps []uint32 // ids of the maps that it uses, and of the maps inside maps of maps
}

// programTypes has bpftool's names of enum bpf_prog_type of include/uapi/linux/bpf.h.
var programTypes = []string{
	"unspec", "socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp",
	"perf_event", "cgroup_skb", "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops",
	"sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint", "cgroup_sock_addr",
	"lwt_seg6local", "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl",
	"raw_tracepoint_writable", "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm",
	"sk_lookup", "syscall", "netfilter",
}

// TypeName returns bpftool's name of the type.
func (p Program) TypeName() string {
	if int(p.Type) < len(programTypes) {
		return programTypes[p.Type]
	}
	return fmt.Sprint("type ", uint32(p.Type))
}

// Programs returns the programs of this machine that use maps. It needs CAP_SYS_ADMIN.
func Programs() ([]Program, error) { return new(programCache).all() }

// A programCache caches programs by id. The maps that a program uses do not change, but the maps
// inside maps of maps do. Maps of a cached program does not have these.
type programCache struct{ known map[uint32]Program }

func (c *programCache) all() (all []Program, err error) {
	known, inner := map[uint32]Program{}, map[uint32][]uint32{}
	for id := ebpf.ProgramID(0); ; {
		id, err = ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			c.known = known
			return all, nil
		}
		if err != nil {
			return nil, needs("find all programs", "CAP_SYS_ADMIN", err)
		}
		p, ok := c.known[uint32(id)]
		if !ok {
			p, err = openProgram(id)
		}
		if errors.Is(err, fs.ErrNotExist) { // gone already
			continue
		}
		if err != nil {
			return nil, err
		}
		known[p.ID] = p
		if p.Maps = withInner(p.Maps, inner); len(p.Maps) > 0 {
			all = append(all, p)
		}
	}
}

func openProgram(id ebpf.ProgramID) (Program, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return Program{}, needs("open a program by its id", "CAP_SYS_ADMIN", err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return Program{}, err
	}
	p := Program{ID: uint32(id), Name: info.Name, Type: info.Type}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		p.Maps = append(p.Maps, uint32(id))
	}
	return p, nil
}

// programExists reports whether a program is still loaded.
func programExists(id uint32) bool {
	next, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id - 1))
	return err == nil && uint32(next) == id
}

// withInner returns maps, and the maps inside those that are maps of maps. Programs use a map of
// maps to have a ring for each CPU. inner caches the maps inside a map, by its id.
func withInner(maps []uint32, inner map[uint32][]uint32) []uint32 {
	all := slices.Clone(maps)
	for _, id := range maps {
		in, known := inner[id]
		if !known {
			in = innerMaps(id)
			inner[id] = in
		}
		all = append(all, in...)
	}
	return all
}

func innerMaps(id uint32) (ids []uint32) {
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil
	}
	defer m.Close()
	if m.Type() != ebpf.ArrayOfMaps && m.Type() != ebpf.HashOfMaps {
		return nil
	}
	key := make([]byte, m.KeySize())
	var in uint32
	for entries := m.Iterate(); entries.Next(&key, &in); {
		ids = append(ids, in)
	}
	return ids
}
