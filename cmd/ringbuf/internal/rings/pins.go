package rings

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
)

// bpfFSMagic is BPF_FS_MAGIC of include/uapi/linux/magic.h.
const bpfFSMagic = 0xcafe4a11

// inBPFFS reports whether a file is in a BPF file system.
func inBPFFS(path string) bool {
	var s syscall.Statfs_t
	return syscall.Statfs(path, &s) == nil && uint32(s.Type) == bpfFSMagic
}

// mounts returns the directories at which this process sees BPF file systems.
func mounts() (dirs []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 98:0 /root /mount options [tag]... - type source super-options:
		// proc_pid_mountinfo(5)
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if kind, _, _ := strings.Cut(after, " "); kind == "bpf" && len(fields) >= 5 {
			dirs = append(dirs, unescape(fields[4]))
		}
	}
	return dirs, lines.Err()
}

// unescape decodes the kernel's escapes for blanks and backslashes in paths.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// pins returns the paths at which maps are pinned, by the ids of the maps.
func pins(mounts []string) map[uint32][]string {
	paths := map[uint32][]string{}
	for _, dir := range mounts {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if id, ok := pinnedMap(path); ok {
					paths[id] = append(paths[id], path)
				}
			}
			return nil // skip files that were removed or are private
		})
	}
	return paths
}

// pinnedMap returns the id of the map that is pinned at path. ok is false if no map is pinned
// there, or if it cannot be opened.
func pinnedMap(path string) (id uint32, ok bool) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, false
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, false
	}
	mapID, ok := info.ID()
	return uint32(mapID), ok
}
