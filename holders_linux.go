package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// The error that a ring has another reader names the processes that may be it.

const (
	// The most descriptors to look at. Each takes some 2 µs.
	maxLooks = 1 << 16

	// The most processes to name for a map.
	maxHolders = 4

	// Most programs still have the descriptor that they passed to NewReader.
	givenMark = ", as a rule the one that NewReader was given"
)

// An unsoundError says that a consumer position is not what it should be. It wraps EUCLEAN.
type unsoundError struct {
	text   string
	mapID  uint32
	others *holders
}

func (e *unsoundError) Error() string { return e.text + ": " + syscall.EUCLEAN.Error() }
func (e *unsoundError) Unwrap() error { return syscall.EUCLEAN }

// nameOthers adds to an unsoundError which other processes have the map open, if that can be
// known. It may take a tenth of a second, once in the life of a Reader. So the caller must hold
// neither the turn nor the mutex of a queue.
func nameOthers(err error) error {
	if !errors.Is(err, syscall.EUCLEAN) {
		return err // without an allocation, because deadlines may pass often
	}
	var unsound *unsoundError
	if !errors.As(err, &unsound) {
		return err
	}
	if who := unsound.others.of(unsound.mapID); who != "" {
		return fmt.Errorf("%w; the map is also open in %s", err, who)
	}
	return err
}

// holders are the processes that had the maps of a Reader open when of was first called. A process
// that has closed its descriptors and only maps the ring, as a Reader does, is not found: the
// kernel does not tell which map a mapping is of.
type holders struct {
	maps []mapInfo
	once sync.Once
	who  map[uint32]string // by the map's id
}

func (h *holders) of(id uint32) string {
	h.once.Do(func() {
		var ids []uint32
		for _, info := range h.maps {
			ids = append(ids, info.id)
		}
		h.who = namesOfHolders(ids, maxLooks)
	})
	return h.who[id]
}

// namesOfHolders names the processes that have each of these maps open, this one included.
func namesOfHolders(ids []uint32, looks int) map[uint32]string {
	others, here := findHolders(ids, looks)
	who := make(map[uint32]string)
	for _, id := range ids {
		names := atMost(maxHolders, others[id])
		if fds := here[id]; len(fds) > 0 {
			names = append(names,
				"this process (descriptor "+strings.Join(fds, " and ")+givenMark+")")
		}
		who[id] = strings.Join(names, ", ")
	}
	return who
}

// atMost returns the first n names, and how many more there are.
func atMost(n int, names []string) []string {
	if more := len(names) - n; more > 0 {
		return append(names[:n:n], fmt.Sprintf("%d other processes", more))
	}
	return names
}

// findHolders returns, for each of these maps, the names of other processes that have a descriptor
// of it, as far as procfs shows them, and the descriptors of this process. It looks at no more than
// looks descriptors.
func findHolders(ids []uint32, looks int) (others, here map[uint32][]string) {
	others, here = make(map[uint32][]string), make(map[uint32][]string)
	self, _ := os.Readlink("/proc/self") // which may be of another PID namespace than os.Getpid
	processes, _ := os.ReadDir("/proc")
	for _, process := range processes {
		pid := process.Name()
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if looks <= 0 {
			break
		}
		for id, fds := range mapsOf(pid, ids, &looks) {
			if pid == self {
				here[id] = fds
			} else {
				others[id] = append(others[id], fmt.Sprintf("pid %s (%s)", pid, nameOf(pid)))
			}
		}
	}
	return others, here
}

// mapsOf returns the descriptors that a process has of these maps.
func mapsOf(pid string, ids []uint32, looks *int) map[uint32][]string {
	found := make(map[uint32][]string)
	dir, err := os.Open("/proc/" + pid + "/fd")
	if err != nil {
		return found
	}
	defer dir.Close()
	fds, _ := dir.Readdirnames(*looks)
	*looks -= len(fds)
	for _, fd := range fds {
		if target, _ := os.Readlink("/proc/" + pid + "/fd/" + fd); target != "anon_inode:bpf-map" {
			continue
		}
		info, _ := os.ReadFile("/proc/" + pid + "/fdinfo/" + fd)
		_, rest, _ := strings.Cut(string(info), "\nmap_id:\t")
		number, _, _ := strings.Cut(rest, "\n")
		if id, err := strconv.ParseUint(number, 10, 32); err == nil && slices.Contains(ids, uint32(id)) {
			found[uint32(id)] = append(found[uint32(id)], fd)
		}
	}
	return found
}

// nameOf returns the name of a process, which it may choose itself, in quotes.
func nameOf(pid string) string {
	comm, _ := os.ReadFile("/proc/" + pid + "/comm")
	return strconv.Quote(strings.TrimSuffix(string(comm), "\n"))
}
