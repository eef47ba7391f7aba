package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// mountBPF mounts a BPF file system until the end of the test.
func mountBPF(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "a b")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a BPF file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// listed runs list -o json, and returns its object for one ring.
func listed(t *testing.T, id uint32, args ...string) object {
	t.Helper()
	for _, line := range run(t, append([]string{"list", "-o", "json"}, args...)...).wantOK(t) {
		if o := decode(t, line); o.ID == id {
			return o
		}
	}
	t.Fatalf("list %q does not have the ring with id %d", args, id)
	return object{}
}

func TestListTellsTheStateOfARing(t *testing.T) {
	r := newRing(t, "my_ring", 1<<16)
	r.write(10)
	r.consume()
	r.write(7)
	o := listed(t, r.id)
	if o.Name != "my_ring" || o.Type != "ringbuf" || o.SizeBytes != 1<<16 || len(o.Flags) != 0 {
		t.Errorf("it has %q, %q, %d, %q", o.Name, o.Type, o.SizeBytes, o.Flags)
	}
	if o.ConsumerPosition != 10*recordSize || o.ProducerPosition != 17*recordSize ||
		o.FillBytes == nil || *o.FillBytes != 7*recordSize {
		t.Errorf("the positions are %d and %d, the fill %v", o.ConsumerPosition, o.ProducerPosition,
			o.FillBytes)
	}
	if got := fmt.Sprintf("%.3f", *o.FillPercent); got != "0.769" {
		t.Errorf("the fill is %s percent, want 0.769", got)
	}
	if len(o.Programs) != 1 || o.Programs[0].Name != "write" ||
		o.Programs[0].Type != "raw_tracepoint" {
		t.Errorf("the programs are %v", o.Programs)
	}
}

func TestListFindsPins(t *testing.T) {
	r := newRing(t, "pinned", 4096)
	path := filepath.Join(mountBPF(t), "some ring")
	if err := r.m.Pin(path); err != nil {
		t.Fatal(err)
	}
	if o := listed(t, r.id); !slices.Equal(o.Pins, []string{path}) {
		t.Errorf("the pins are %q, want %q", o.Pins, path)
	}
	for _, args := range [][]string{{"pinned", path}, {path}} {
		if got := run(t, append([]string{"list"}, args...)...).wantOK(t); len(got) != 2 ||
			!strings.HasSuffix(got[1], path) {
			t.Errorf("list %q printed %q", args, got)
		}
	}
}

func TestListSaysThatNothingCanBePinned(t *testing.T) {
	r := newRing(t, "unpinned", 4096)
	// The tool runs in its own mount namespace, without BPF file systems.
	got := runCommand(t, exec.Command("unshare", "--mount", "sh", "-c",
		`awk '/ - bpf /{print $5}' /proc/self/mountinfo | while read -r dir; do umount -l "$(printf `+
			`"$dir")"; done; exec "$@"`,
		"-", tool, "list", "-o", "json", "id", fmt.Sprint(r.id)))
	if o := decode(t, got.wantOK(t)[0]); o.Pins != nil {
		t.Errorf("the pins are %q, want null", o.Pins)
	}
	if want := "ringbuf: pins are not known: no BPF file system is mounted here\n"; !strings.Contains(
		got.stderr, want) {
		t.Errorf("it said %q, want %q", got.stderr, want)
	}
}

// TestListKnowsWhoUsesARing makes this process use a ring in each possible way.
func TestListKnowsWhoUsesARing(t *testing.T) {
	r := newRing(t, "used", 4096)
	via := func() []string {
		t.Helper()
		for _, p := range listed(t, r.id).Processes {
			if p.PID == os.Getpid() {
				return p.Via
			}
		}
		return nil
	}
	want := func(want ...string) {
		t.Helper()
		if got := via(); !slices.Equal(got, want) {
			t.Errorf("this process uses the ring via %q, want %q", got, want)
		}
	}
	want("descriptor", "program")
	reader, err := ringbuf.NewReader(ringbuf.FD(r.m.FD()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	want("descriptor", "mapping", "program")
	m := r.m
	m.Close()
	want("mapping", "program")
	if got := run(t, "list", "pid", strconv.Itoa(os.Getpid())).wantOK(t); !slices.ContainsFunc(got,
		func(line string) bool { return strings.Contains(line, "used") }) {
		t.Errorf("list pid printed %q", got)
	}
	p, err := r.p.Clone()
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	want("mapping", "program")
	p.Close()
	want("mapping")
	reader.Close()
	got := run(t, "list", "id", fmt.Sprint(r.id))
	if want := fmt.Sprintf(
		"ringbuf: there is no map with id %d: ringbuf list shows all ring "+
			"buffers\n", r.id); got.code != 1 || got.stderr != want {
		t.Errorf("code %d, %q, want 1, %q", got.code, got.stderr, want)
	}
}

func TestListFindsRingsInMapsOfMaps(t *testing.T) {
	inner := newRing(t, "inner", 4096)
	outer, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 2,
		InnerMap: &ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 4096},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	if err := outer.Put(uint32(1), inner.m); err != nil {
		t.Fatal(err)
	}
	user := newUser(t, "looks_up", outer)
	defer user.Close()
	var names []string
	for _, p := range listed(t, inner.id).Programs {
		names = append(names, p.Name)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"looks_up", "write"}) {
		t.Errorf("the programs are %q", names)
	}
}

func TestListShowsUserRingBuffers(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "to_kernel", Type: ebpf.UserRingbuf, MaxEntries: 8192})
	if err != nil {
		if strings.Contains(kernel(t), "5.") {
			t.Skip("needs Linux 6.1")
		}
		kinds.SkipOrFail(t, err)
	}
	defer m.Close()
	if o := listed(t, mapID(t, m)); o.Type != "user_ringbuf" || o.Name != "to_kernel" ||
		o.FillBytes == nil || *o.FillBytes != 0 {
		t.Errorf("it is %q %q, the fill %v", o.Type, o.Name, o.FillBytes)
	}
	w, err := ringbuf.NewWriter(ringbuf.FD(m.FD()))
	if errors.Is(err, errors.ErrUnsupported) { // without cgo
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if o := listed(t, mapID(t, m)); *o.FillBytes != 112 || w.Stats().Fill != 112 {
		t.Errorf("beside a Writer the fill is %d, and it says %d", *o.FillBytes, w.Stats().Fill)
	}
}

func kernel(t *testing.T) string {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return string(release)
}

func TestMAPIsWhatBpftoolSays(t *testing.T) {
	a, b := newRing(t, "twice", 4096), newRing(t, "twice", 4096)
	long := newRing(t, "fifteen_bytes_1", 4096)
	id := func(r *ring) string { return fmt.Sprint(r.id) }
	for _, tt := range []struct {
		args []string
		want []*ring
	}{
		{[]string{"id", id(a)}, []*ring{a}},
		{[]string{id(b)}, []*ring{b}},
		{[]string{"name", "twice"}, []*ring{a, b}},
		{[]string{"id", id(b), id(a), "name", "twice"}, []*ring{b, a}},
		{[]string{"fifteen_bytes_1"}, []*ring{long}},
		{[]string{"fifteen_bytes_1_and_more"}, []*ring{long}},
	} {
		var got []uint32
		for _, line := range run(t, append([]string{"list", "-o", "json"}, tt.args...)...).wantOK(t) {
			got = append(got, decode(t, line).ID)
		}
		var want []uint32
		for _, r := range tt.want {
			want = append(want, r.id)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q are %v, want %v", tt.args, got, want)
		}
	}
}

func TestErrorsAreOneLineThatSaysWhatToDo(t *testing.T) {
	a, b := newRing(t, "ambiguous", 4096), newRing(t, "ambiguous", 4096)
	array, err := ebpf.NewMap(&ebpf.MapSpec{Name: "an_array", Type: ebpf.Array, KeySize: 4,
		ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer array.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"lst", 2, `there is no command "lst": did you mean "list"?`},
		{"list -x", 2, "unknown shorthand flag: 'x' in -x: see ringbuf list --help"},
		{"list -o xml", 2, `invalid argument "xml" for "-o, --output" flag: it is table or json: see ` +
			`ringbuf list --help`},
		{"list id", 2, `"id" is the last word: a value must follow (for a ring buffer of that name: ` +
			`name id)`},
		{"list id x", 2, `id "x": it must be a number`},
		{"list pid -- -1", 2, `pid "-1": it must be a number`},
		{"top -n -1", 2, "-n -1: it must not be negative"},
		{"tail -c -1 name x", 2, `invalid argument "-1" for "-c, --count" flag: it must not be ` +
			`negative: see ringbuf tail --help`},
		{"top -n x", 2, `invalid argument "x" for "-n, --iterations" flag: it must be a number: see ` +
			`ringbuf top --help`},
		{"top -n 99999999999999999999", 2, `invalid argument "99999999999999999999" for ` +
			`"-n, --iterations" flag: the number is too large: see ringbuf top --help`},
		{"tail -w f -o json id 1", 2, "-w prints nothing: leave out -o"},
		{"top -d 0", 2, "-d 0: it must be 0.01 to 86400 seconds"},
		{"top -d NaN", 2, "-d NaN: it must be 0.01 to 86400 seconds"},
		{"man", 2, "accepts 1 arg(s), received 0: see ringbuf man --help"},
		{"list name none", 1, `no ring buffer has the name "none": ringbuf list shows all`},
		{"top nothing", 1, `"nothing" is neither the name nor the id of a ring buffer, nor the pid of ` +
			`a process that uses one: ringbuf list shows all`},
		{"list id 2147483647", 1,
			"there is no map with id 2147483647: ringbuf list shows all ring buffers"},
		{"list pid 1073741824", 1, "there is no process 1073741824"},
		{"list " + file, 1, file + " is not in a BPF file system: nothing is pinned there"},
		{"list " + file + "2", 1, "stat " + file + "2: no such file or directory"},
		{"list ambiguous", 1,
			fmt.Sprintf(`"ambiguous" may mean several ring buffers: say id %d, or id %d, or name `+
				`ambiguous for all of them`, a.id, b.id)},
		{fmt.Sprint("list id ", mapID(t, array)), 1,
			fmt.Sprintf(`map %d, "an_array", has type Array: it is not a ring buffer`, mapID(t, array))},
	} {
		got := run(t, strings.Fields(tt.args)...)
		if want := "ringbuf: " + tt.want + "\n"; got.code != tt.code || got.stderr != want ||
			got.stdout != "" {
			t.Errorf("%s: code %d, want %d, %q, want %q; printed %q", tt.args, got.code, tt.code,
				got.stderr, want, got.stdout)
		}
	}
}

// setpriv returns a command that runs the tool as another user, with only these capabilities.
func setpriv(capabilities string, args ...string) *exec.Cmd {
	set := "-all"
	if capabilities != "" {
		set += "," + capabilities
	}
	return exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups",
		"--inh-caps=" + set, "--ambient-caps=" + set, "--bounding-set=" + set, tool}, args...)...)
}

// TestPrivileges checks what docs/tool.md says about privileges.
func TestPrivileges(t *testing.T) {
	r := newRing(t, "private", 4096)
	path := filepath.Join(mountBPF(t), "ring")
	if err := r.m.Pin(path); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(path); dir != "/tmp"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const byID = "ringbuf: to find all maps takes CAP_SYS_ADMIN: run as root: permission denied\n"
	id := fmt.Sprint(r.id)
	for _, tt := range []struct {
		capabilities string
		mode         os.FileMode
		args         []string
		code         int
		stderr       string // if the code is not 0
		programs     bool   // whether the programs are known
	}{
		{"", 0o666, []string{"list"}, 3, byID, false},
		{"+bpf,+perfmon", 0o666, []string{"list"}, 3, byID, false},
		{"+bpf,+perfmon", 0o666, []string{"top", "-n1", "-d.01"}, 3, byID, false},
		{"+bpf", 0o600, []string{"list", path}, 3,
			"ringbuf: to open " + path +
				" takes CAP_BPF, and permission to read and write the file: permission denied\n", false},
		{"+bpf", 0o666, []string{"list", "-ojson", path}, 0, "", false},
		{"+bpf", 0o666, []string{"top", "-ojson", "-n1", "-d.01", path}, 0, "", false},
		{"+sys_admin", 0o600, []string{"list", "-ojson", "id", id}, 0, "", true},
		{"+sys_admin", 0o600, []string{"top", "-ojson", "-n1", "-d.01", "id", id}, 0, "", true},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		got := runCommand(t, setpriv(tt.capabilities, tt.args...))
		if got.code != tt.code || tt.code != 0 && got.stderr != tt.stderr {
			t.Errorf("%q with %q: code %d, want %d, %q, want %q", tt.args, tt.capabilities, got.code,
				tt.code, got.stderr, tt.stderr)
		}
		if tt.code != 0 || got.code != 0 {
			continue
		}
		o := decode(t, got.wantOK(t)[0])
		if (o.Programs != nil) != tt.programs || o.ProducerPosition != 0 || o.SizeBytes != 4096 {
			t.Errorf("%q with %q: %+v, want programs: %v", tt.args, tt.capabilities, o, tt.programs)
		}
		const processes = "could not be looked at"
		if !strings.Contains(got.stderr, processes) {
			t.Errorf("%q with %q does not say %q: %q", tt.args, tt.capabilities, processes, got.stderr)
		}
		if said := strings.Contains(got.stderr,
			"programs, and what processes have mapped, are not known"); said == tt.programs {
			t.Errorf("%q with %q says %q", tt.args, tt.capabilities, got.stderr)
		}
	}
}
