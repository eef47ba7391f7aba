package rings

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// A Surveyor finds the users of rings. It caches what does not change. One goroutine at a time may
// use a Surveyor and its Surveys.
type Surveyor struct {
	programs programCache
	kinds    map[uint32]mapKind // of maps that programs use, by id
}

// A Survey has the users of rings at one time.
type Survey struct {
	// Mounts has the directories at which BPF file systems are mounted. Without a mount, no pin can
	// be seen.
	Mounts []string

	// Missing says which privileges were missing, and what is therefore not known.
	Missing []string

	surveyor      *Surveyor
	programs      map[uint32][]Program // by the id of a map that they use
	programsKnown bool
	processes     []*process
	pins          map[uint32][]string
}

// Usage has the users of a ring.
type Usage struct {
	Programs  []Program // nil if they are not known
	Processes []Process
	Pins      []string // nil if no BPF file system is mounted
}

// A Process is a process that uses a ring.
type Process struct {
	PID  int
	Comm string
	Via  []Via

	// Reads reports whether the process has a writable mapping of the ring. A reader needs it to
	// write the consumer position. The mapping of a watcher is read-only.
	Reads bool
}

// String returns the name of the command and the pid.
func (p Process) String() string {
	return fmt.Sprintf("%s (pid %d)", text.Printable(p.Comm), p.PID)
}

// Readers returns the processes that read the ring.
func (u Usage) Readers() (readers []Process) {
	for _, p := range u.Processes {
		if p.Reads {
			readers = append(readers, p)
		}
	}
	return readers
}

// Via is a way in which a process uses a ring.
type Via string

// A process can have a descriptor of the map, a mapping of it, and a descriptor of a program that
// uses it or of a link to such a program.
const (
	ViaDescriptor Via = "descriptor"
	ViaMapping    Via = "mapping"
	ViaProgram    Via = "program"
)

// Survey looks at all programs, processes and pins. It leaves out what it is not permitted to see,
// and says so in Missing.
func (s *Surveyor) Survey() (*Survey, error) {
	v := &Survey{surveyor: s, programsKnown: true, programs: map[uint32][]Program{}}
	programs, err := s.programs.all()
	if errors.Is(err, fs.ErrPermission) {
		v.programsKnown = false
		v.Missing = append(v.Missing,
			"programs, and what processes have mapped, are not known: that takes CAP_SYS_ADMIN")
		err = nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range programs {
		for _, id := range slices.Compact(slices.Sorted(slices.Values(p.Maps))) {
			v.programs[id] = append(v.programs[id], p)
		}
	}
	maps.DeleteFunc(s.kinds, func(id uint32, _ mapKind) bool { return v.programs[id] == nil })
	var hidden int
	if v.processes, hidden, err = processes(); err != nil {
		return nil, fmt.Errorf("look at processes: %w", err)
	}
	if hidden > 0 {
		what := "processes"
		if hidden == 1 {
			what = "process"
		}
		v.Missing = append(v.Missing,
			fmt.Sprintf("%d %s could not be looked at: that takes CAP_SYS_PTRACE and every "+
				"capability that such a process has", hidden, what))
	}
	if v.Mounts, err = mounts(); err != nil {
		return nil, fmt.Errorf("look for BPF file systems: %w", err)
	}
	v.pins = pins(v.Mounts)
	return v, nil
}

// Of returns the users of a ring.
func (v *Survey) Of(r *Ring) Usage {
	u := Usage{Processes: []Process{}}
	if v.programsKnown {
		u.Programs = []Program{}
	}
	u.Programs = append(u.Programs, v.programs[r.ID]...)
	for _, p := range v.processes {
		if via := p.uses(r, u.Programs); len(via) > 0 {
			reads := slices.ContainsFunc(r.frames[:], func(frame uint64) bool { return p.frames[frame] })
			u.Processes = append(u.Processes, Process{p.pid, p.comm, via, reads})
		}
	}
	slices.SortFunc(u.Processes, func(a, b Process) int { return a.PID - b.PID })
	if len(v.Mounts) > 0 {
		u.Pins = append([]string{}, v.pins[r.ID]...)
	}
	return u
}

// uses returns the ways in which the process uses a ring. programs are those that use the ring.
func (p *process) uses(r *Ring, programs []Program) (via []Via) {
	if p.held[r.ID] {
		via = append(via, ViaDescriptor)
	}
	if slices.ContainsFunc(r.frames[:], func(frame uint64) bool {
		_, ok := p.frames[frame]
		return ok
	}) {
		via = append(via, ViaMapping)
	}
	if slices.ContainsFunc(programs, func(prog Program) bool { return p.programs[prog.ID] }) {
		via = append(via, ViaProgram)
	}
	return via
}

// Owner returns the first process that reads the ring or, if none does, the first that uses it. It
// panics if there is no process.
func (u Usage) Owner() Process { return append(u.Readers(), u.Processes...)[0] }

// Changed reports whether one of the users no longer exists. It does not look at whether the others
// still use the ring.
func (u Usage) Changed() bool {
	return slices.ContainsFunc(u.Programs, func(p Program) bool { return !programExists(p.ID) }) ||
		slices.ContainsFunc(u.Processes,
			func(p Process) bool { return !exists(fmt.Sprintf("/proc/%d", p.PID)) }) ||
		slices.ContainsFunc(u.Pins, func(path string) bool { return !exists(path) })
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
