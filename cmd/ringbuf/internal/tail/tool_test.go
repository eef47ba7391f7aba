package tail_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/cilium/ebpf"

	"github.com/libbpfgo/ringbuf/capture"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/tooltest"
)

// These tests run "ringbuf tail" as its users do, with the samples of package kinds.

func TestMain(m *testing.M) { tooltest.Main(m) }

// start starts "tail" and waits until it watches the ring or reads, or has ended.
func start(t *testing.T, args ...string) *tooltest.Process {
	t.Helper()
	return startProgram(t, tooltest.Path, args...)
}

func startProgram(t *testing.T, program string, args ...string) *tooltest.Process {
	t.Helper()
	p := tooltest.Start(t, program, append([]string{"tail"}, args...)...)
	p.Await(": watching ", ": reading ")
	return p
}

// run runs "tail" to its end.
func run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return start(t, args...).End()
}

// mustRun runs "tail", which must end with code 0, and returns the lines on standard output.
func mustRun(t *testing.T, args ...string) []string {
	t.Helper()
	return wantLines(t, start(t, args...))
}

func wantLines(t *testing.T, p *tooltest.Process) []string {
	t.Helper()
	stdout, stderr, code := p.End()
	if code != 0 {
		t.Fatalf("ended with code %d: %s", code, stderr)
	}
	return splitLines(stdout)
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// An object is a JSON object that tail prints.
type object struct {
	Time     time.Time       `json:"time"`
	Ring     string          `json:"ring"`
	ID       uint32          `json:"id"`
	Size     int             `json:"size"`
	Captured *int            `json:"captured"`
	Lost     uint64          `json:"lost"`
	Comment  string          `json:"comment"`
	Data     string          `json:"data"`
	Type     string          `json:"type"`
	Fields   json.RawMessage `json:"fields"`
	Cut      []string        `json:"cut"`
	Extra    string          `json:"extra"`
	Missed   uint64          `json:"missed_bytes"`
}

func parse(t *testing.T, line string) (o object) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return o
}

// discard reads the records that s submits, and drops them, until the test ends or closes the
// Reader.
func discard(t *testing.T, s *kinds.Submitter) *ringbuf.Reader {
	t.Helper()
	r, err := ringbuf.NewReader(s.Events)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { r.Close(); <-done })
	go func() {
		defer close(done)
		var rec ringbuf.Record
		for r.ReadInto(&rec) == nil {
		}
	}()
	return r
}

func TestWatchingShowsWhatIsSubmitted(t *testing.T) {
	s := kinds.New(t, 1<<16)
	s.Flood(100, 3) // before tail starts, so not shown
	p := start(t, append(s.MAP(), "-c", "2")...)
	s.Flood(0, 5)
	lines := wantLines(t, p)
	if len(lines) != 10 || !strings.Contains(p.Messages(),
		"ringbuf: 2 records seen, 0 bytes missed, 2 written\n") {
		t.Fatalf("printed %q, and %q", lines, p.Messages())
	}
	if _, rest, _ := strings.Cut(lines[0], " "); rest != "events 64 bytes" {
		t.Errorf("the first line is %q", lines[0])
	}
	for i := range 2 {
		data := kinds.Numbered(i)
		for row := range 4 {
			line := lines[5*i+row+1]
			var hexed string
			for at := 0; at < 16; at += 2 {
				hexed += fmt.Sprintf(" %x", data[16*row+at:][:2])
			}
			if want := fmt.Sprintf("\t0x%04x: %s  ", 16*row, hexed); !strings.HasPrefix(line, want) {
				t.Errorf("a line is %q, want %q", line, want)
			}
		}
	}
	// --oldest also shows the samples from before.
	lines = mustRun(t, append(s.MAP(), "-c", "8", "--oldest", "-o", "json")...)
	for i, want := range []int{100, 101, 102, 0, 1, 2, 3, 4} {
		if o := parse(t, lines[i]); o.Data != hex.EncodeToString(kinds.Numbered(want)) || o.Size != 64 ||
			o.Ring != "events" {
			t.Errorf("record %d is %+v", i, o)
		}
	}
}

// TestAMillionConsumedSamplesAreWhatWasSubmitted compares each byte.
func TestAMillionConsumedSamplesAreWhatWasSubmitted(t *testing.T) {
	const count = 1_000_000
	s := kinds.New(t, 1<<20)
	p := start(t, append(s.MAP(), "--consume", "-c", fmt.Sprint(count), "-o", "json")...)
	go func() {
		for n := 0; n < count; {
			n += s.Flood(n, count-n)
			runtime.Gosched()
		}
	}()
	for i := range count {
		line, err := p.Out.ReadSlice('\n')
		if err != nil {
			t.Fatalf("after %d records: %v, %s", i, err, p.Messages())
		}
		_, rest, _ := bytes.Cut(line, []byte(`"size":64,"data":"`))
		if want := hex.EncodeToString(kinds.Numbered(i)) + "\"}\n"; string(rest) != want {
			t.Fatalf("record %d is %s, want %s", i, line, want)
		}
	}
	if rest := wantLines(t, p); len(rest) > 0 {
		t.Errorf("there are %d lines more", len(rest))
	}
	if want := "ringbuf: 1000000 records seen, 0 bytes missed, 1000000 written\n"; !strings.HasSuffix(
		p.Messages(), want) {
		t.Errorf("the totals are %q", p.Messages())
	}
}

func TestWithoutCgoItWatchesAndSaysWhyItDoesNotRead(t *testing.T) {
	s := kinds.New(t, 1<<16)
	p := startProgram(t, tooltest.WithoutCgo, append(s.MAP(), "-c", "1", "-o", "json")...)
	s.Flood(7, 1)
	if lines := wantLines(t, p); len(lines) != 1 ||
		parse(t, lines[0]).Data != hex.EncodeToString(kinds.Numbered(7)) {
		t.Errorf("printed %q", lines)
	}
	_, stderr, code := startProgram(t, tooltest.WithoutCgo, append(s.MAP(), "--consume")...).End()
	if want := "ringbuf: --consume needs libbpf, and this ringbuf was built without cgo: watch, " +
		"without --consume, or build one with \"make tool\"\n"; stderr != want || code != 1 {
		t.Errorf("ended with %d: %s", code, stderr)
	}
}

// TestItDoesNotConsumeBesideAReader reads the ring in this process.
func TestItDoesNotConsumeBesideAReader(t *testing.T) {
	s := kinds.New(t, 1<<16)
	discard(t, s)
	_, stderr, code := run(t, append(s.MAP(), "--consume", "-c", "1")...)
	want := fmt.Sprintf("(pid %d), which would lose records: end that first, or watch, "+
		"without --consume\n",
		os.Getpid())
	if code != 1 || !strings.HasSuffix(stderr, want) || strings.Count(stderr, "\n") != 1 {
		t.Errorf("it printed %q, and ended with %d", stderr, code)
	}
}

func TestItSaysThatNoProgramUsesTheRing(t *testing.T) {
	kinds.New(t, 1<<16) // skips the test if there is no BPF
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "alone", Type: ebpf.RingBuf, MaxEntries: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_, stderr, code := run(t, "name", "alone", "--for", "1ms")
	if code != 0 || !strings.Contains(stderr, "ringbuf: no program uses alone (id ") {
		t.Errorf("it printed %q, and ended with %d", stderr, code)
	}
}

var typeNames = []string{"struct integers", "struct bits", "struct others", "compound_t",
	"struct items", "struct arguments", "struct outer"}

// TestEachKindIsDecodedAndRecorded runs four processes that watch the same samples.
func TestEachKindIsDecodedAndRecorded(t *testing.T) {
	s := kinds.New(t, 1<<16)
	types := loadKinds(t)
	file := filepath.Join(t.TempDir(), "all.pcapng")
	n := fmt.Sprint(kinds.Count)
	recording := start(t, append(s.MAP(), "-c", n, "-w", file)...)
	var live []*tooltest.Process
	for _, name := range typeNames {
		live = append(live, start(t, append(s.MAP(), "-c", n, "-t", name, "-o", "json")...))
	}
	untyped := start(t, append(s.MAP(), "-c", n)...)
	for which := range kinds.Count {
		s.Submit(which, 0)
	}
	wantLines(t, recording)
	wantLines(t, untyped)
	r, err := ringbuf.NewReader(s.Events)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var raw [][]byte
	for range kinds.Count {
		rec, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, rec.RawSample)
	}
	for i, name := range typeNames {
		typ, err := types.Type(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := wantLines(t, live[i])
		replayed := mustRun(t, "-r", file, "-t", name, "-o", "json")
		text := mustRun(t, "-r", file, "-t", name)
		if len(lines) != kinds.Count || len(replayed) != kinds.Count || len(text) != kinds.Count {
			t.Fatalf("%d, %d and %d lines", len(lines), len(replayed), len(text))
		}
		for which, line := range lines {
			want := typ.Decode(raw[which])
			o := parse(t, line)
			if string(o.Fields) != string(want.AppendJSON(nil)) || o.Type != name ||
				o.Size != len(raw[which]) ||
				!slices.Equal(o.Cut, want.Cut) || o.Extra != hex.EncodeToString(want.Extra) {
				t.Errorf("sample %d as %s is %s, want %s", which, name, line, want.AppendJSON(nil))
			}
			if withoutTime(line) != withoutTime(replayed[which]) {
				t.Errorf("recorded and read again, sample %d is\n%s\nwas\n%s", which, replayed[which], line)
			}
			if !strings.HasSuffix(text[which], fmt.Sprintf(" events %d bytes: %s", len(raw[which]),
				want.AppendText(nil))) {
				t.Errorf("as text, sample %d is %s", which, text[which])
			}
		}
		if offer := "-t '" + name + "'"; i < 3 && !strings.Contains(untyped.Messages(), offer) {
			t.Errorf("%s is not offered in\n%s", offer, untyped.Messages())
		}
	}
	// The BTF of an object file is used instead of that in the recording.
	object := filepath.Join(t.TempDir(), "kinds.o")
	if err := os.WriteFile(object, kinds.Object(), 0o600); err != nil {
		t.Fatal(err)
	}
	got := mustRun(t, "-r", file, "-t", "integers", "-c", "1", "--btf", object)
	if want := mustRun(t, "-r", file, "-t", "integers", "-c", "1"); !slices.Equal(got, want) {
		t.Errorf("with --btf: %q, want %q", got, want)
	}
}

func withoutTime(line string) string {
	_, rest, _ := strings.Cut(line, ",")
	return rest
}

func loadKinds(t *testing.T) *decode.Types {
	t.Helper()
	object := filepath.Join(t.TempDir(), "kinds.o")
	if err := os.WriteFile(object, kinds.Object(), 0o600); err != nil {
		t.Fatal(err)
	}
	types, err := decode.Load(object)
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func TestAFilterChoosesByFields(t *testing.T) {
	s := kinds.New(t, 1<<16)
	file := filepath.Join(t.TempDir(), "some.pcapng")
	condition := `number >= 3 && number < 6 || number == 9`
	printing := start(t, append(s.MAP(), "-c", "4", "-o", "json", "-t", "numbered", "--filter",
		condition)...)
	writing := start(t, append(s.MAP(), "-c", "4", "-w", file, "-t", "numbered", "--filter",
		condition)...)
	s.Flood(0, 20)
	var got []string
	for _, line := range wantLines(t, printing) {
		var fields struct{ Number int }
		if err := json.Unmarshal(parse(t, line).Fields, &fields); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(fields.Number))
	}
	if want := "3 4 5 9"; strings.Join(got, " ") != want {
		t.Errorf("the filter lets through %v, want %s", got, want)
	}
	if want := "ringbuf: 10 records seen, 0 bytes missed, 4 written\n"; !strings.HasSuffix(
		printing.Messages(), want) {
		t.Errorf("the totals are %q", printing.Messages())
	}
	wantLines(t, writing)
	if lines := mustRun(t, "-r", file, "-o", "json"); len(lines) != 4 ||
		parse(t, lines[3]).Data != hex.EncodeToString(kinds.Numbered(9)) {
		t.Errorf("what was written is %q", lines)
	}
	if lines := mustRun(t, "-r", file, "-t", "numbered", "--filter", "number == 4", "-o",
		"json"); len(lines) != 1 {
		t.Errorf("what was written and filtered again is %q", lines)
	}
}

func TestWatchingTakesNothingFromTheReader(t *testing.T) {
	execsnoop := filepath.Join(t.TempDir(), "execsnoop")
	if out, err := exec.Command("go", "build", "-o", execsnoop,
		"github.com/libbpfgo/ringbuf/examples/execsnoop").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	kinds.New(t, 1<<12) // skips the test if there is no BPF
	agent := exec.Command(execsnoop)
	stdout, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer agent.Process.Kill()
	lines := bufio.NewScanner(stdout)
	lines.Scan() // the header, which execsnoop prints when it is attached
	pid := fmt.Sprint(agent.Process.Pid)
	p := start(t, "pid", pid, "-t", "struct event", "-o", "json")
	var pids []int
	for range 50 {
		cmd := exec.Command("true")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	seen := func(next func() (pid int)) {
		t.Helper()
		for _, want := range pids {
			for next() != want { // at the end, next fails the test
			}
		}
	}
	seen(func() int {
		line, err := p.Out.ReadString('\n')
		if err != nil {
			t.Fatalf("tail ends without a process that was started: %v, %s", err, p.Messages())
		}
		var fields struct {
			PID int `json:"pid"`
		}
		if err := json.Unmarshal(parse(t, line).Fields, &fields); err != nil {
			t.Fatal(err)
		}
		return fields.PID
	})
	seen(func() int {
		if !lines.Scan() {
			t.Fatal("execsnoop ends without a process that was started")
		}
		var pid int
		fmt.Sscan(strings.Join(strings.Fields(lines.Text())[1:2], ""), &pid)
		return pid
	})
	p.Interrupt()
	if _, stderr, code := p.End(); code != 0 || !strings.Contains(stderr, " 0 bytes missed, ") {
		t.Errorf("tail ends with %d: %s", code, stderr)
	}
	agent.Process.Signal(os.Interrupt)
	last := ""
	for lines.Scan() {
		last = lines.Text()
	}
	if !strings.HasSuffix(last, " 0 lost") {
		t.Errorf("execsnoop ends with %q", last)
	}
}

// TestWritingAMillionRecordsASecondIsCheap fills most of a ring at once, lets tail -w catch up, and
// repeats this a few times. It limits the processor time of tail: at a million records a second, a
// third of a processor is left.
func TestWritingAMillionRecordsASecondIsCheap(t *testing.T) {
	const size, rounds, most = 1 << 24, 5, 700 * time.Nanosecond
	s := kinds.New(t, size)
	reader := discard(t, s)
	file := filepath.Join(t.TempDir(), "fast.pcapng")
	p := start(t, append(s.MAP(), "-w", file)...)
	const round = size / kinds.RecordSize * 7 / 8
	for i := range rounds {
		for n := 0; n < round; {
			n += s.Flood(i*round+n, round-n)
		}
		const block = 32 + kinds.NumberedSize // size of a record in pcapng
		awaitSize(t, file, (i+1)*round*block)
	}
	reader.Close()
	p.Interrupt()
	_, stderr, code := p.End()
	want := fmt.Sprintf("ringbuf: %d records seen, 0 bytes missed, %[1]d written ", rounds*round)
	if code != 0 || !strings.Contains(stderr, want) {
		t.Errorf("ended with %d, %q, want %q", code, stderr, want)
	}
	took := (p.ProcessState.UserTime() + p.ProcessState.SystemTime()) / (rounds * round)
	t.Logf("%v of processor time for each of %d records", took, rounds*round)
	if took > most {
		t.Errorf("each record took %v of processor time, want at most %v", took, most)
	}
}

// awaitSize waits until the file has this size. tail flushes it every second.
func awaitSize(t *testing.T, file string, size int) {
	t.Helper()
	last := int64(-1)
	for still := 0; still < 1000; still++ {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= int64(size) {
			return
		}
		if info.Size() > last {
			last, still = info.Size(), 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the file stays at %d bytes, want %d: records were missed", last, size)
}

// TestWhatIsMissedIsTold stops tail while more is submitted than the ring has room for.
func TestWhatIsMissedIsTold(t *testing.T) {
	s := kinds.New(t, 1<<12)
	file := filepath.Join(t.TempDir(), "missed.pcapng")
	printing := start(t, append(s.MAP(), "-o", "json")...)
	writing := start(t, append(s.MAP(), "-w", file)...)
	both := []*tooltest.Process{printing, writing}
	for _, p := range both {
		p.Cmd.Process.Signal(syscall.SIGSTOP)
		awaitState(t, p.Cmd.Process.Pid, 'T')
	}
	discard(t, s)
	const count = 10_000
	for n := 0; n < count; {
		n += s.Flood(n, count-n)
		runtime.Gosched()
	}
	for _, p := range both {
		p.Cmd.Process.Signal(syscall.SIGCONT)
	}
	// Wait until the printing process has seen or missed all of these records. The last record then
	// follows without a gap.
	var seen, missed uint64
	for last := false; !last; {
		line, err := printing.Out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		o := parse(t, line)
		if o.Missed > 0 {
			missed += o.Missed
		} else {
			seen++
			last = o.Data == hex.EncodeToString(kinds.Numbered(count-1))
		}
		if missed+seen*kinds.RecordSize == count*kinds.RecordSize {
			break
		}
	}
	if missed == 0 || missed+seen*kinds.RecordSize != count*kinds.RecordSize {
		t.Errorf("%d records were seen and %d bytes missed of %d records", seen, missed, count)
	}
	for s.Flood(count, 1) == 0 {
		runtime.Gosched() // until there is room
	}
	total := count + 1
	awaitPrinted(t, printing, count)
	printing.Interrupt()
	// The writing process may not have looked since it was stopped. Then it misses the last record,
	// too: submit another one.
	for !recorded(t, file, total-1) {
		total += s.Flood(total, 1)
	}
	writing.Interrupt()
	wantLines(t, printing)
	wantLines(t, writing)
	r := openRecording(t, file)
	seen, missed = 0, 0
	for rec, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		missed += rec.Missed
	}
	if missed == 0 || missed+seen*kinds.RecordSize != uint64(total)*kinds.RecordSize {
		t.Errorf("%d records were written and %d bytes missed of %d records", seen, missed, total)
	}
	if want := fmt.Sprintf(" %d bytes missed, %d written", missed,
		seen); !strings.Contains(writing.Messages(), want) {
		t.Errorf("the totals are %q, want %q", writing.Messages(), want)
	}
	replayed := mustRun(t, "-r", file, "-o", "json")
	if o := parse(t, replayed[0]); len(replayed) <= int(seen) || o.Missed == 0 &&
		parse(t, replayed[1]).Missed == 0 {
		t.Errorf("read again, the gap is not told: %s", replayed[0])
	}
}

// awaitPrinted reads the output of p up to a numbered record.
func awaitPrinted(t *testing.T, p *tooltest.Process, number int) {
	t.Helper()
	want := hex.EncodeToString(kinds.Numbered(number))
	for {
		line, err := p.Out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if parse(t, line).Data == want {
			return
		}
	}
}

// recorded reports whether a numbered record is in a file. It waits for a few flushes of tail.
func recorded(t *testing.T, file string, number int) bool {
	t.Helper()
	for range 30 {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, kinds.Numbered(number)) {
			return true
		}
		time.Sleep(100 * time.Millisecond)
	}
	return false
}

// awaitState waits until a process is in a state of proc_pid_stat(5).
func awaitState(t *testing.T, pid int, state byte) {
	t.Helper()
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.LastIndexByte(stat, ')'); stat[i+2] == state {
			return
		}
		runtime.Gosched()
	}
}

// record makes a recording of n numbered samples, one a second.
func record(t *testing.T, n int) (file string, begin time.Time) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "recording.pcapng")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := capture.NewWriter(f, []capture.Ring{{Name: "events", ID: 3, Size: 4096}}, "")
	if err != nil {
		t.Fatal(err)
	}
	begin = time.Date(2026, 1, 2, 3, 4, 0, 0, time.Local)
	for i := range n {
		rec := capture.Record{Time: begin.Add(time.Duration(i) * time.Second)}
		rec.RawSample = kinds.Numbered(i)
		if err := w.Write(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file, begin
}

// openRecording opens a recording. The file stays open until the test ends.
func openRecording(t *testing.T, file string) *capture.Reader {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r, err := capture.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// numbers returns the name of a recording, its first number, and the count of its samples. Their
// numbers must follow each other.
func numbers(t *testing.T, file string) string {
	t.Helper()
	r := openRecording(t, file)
	first, n := -1, 0
	for rec, err := range r.Records() {
		if err != nil {
			t.Fatal(err)
		}
		data := rec.RawSample
		if first < 0 {
			first = int(binary.NativeEndian.Uint64(data))
		}
		if !bytes.Equal(data, kinds.Numbered(first+n)) {
			t.Errorf("%s has %x at %d", file, data, n)
		}
		n++
	}
	return fmt.Sprintf("%s: %d+%d", filepath.Base(file), first, n)
}

func TestRotation(t *testing.T) {
	const count = 1000 // records of 96 bytes in a file
	source, begin := record(t, count)
	for _, tt := range []struct {
		name string
		args []string
		want []string
	}{
		{"size", []string{"-w", "x.pcapng", "-C", "20k"},
			[]string{"x.pcapng: 0+212", "x.pcapng1: 212+212", "x.pcapng2: 424+212", "x.pcapng3: 636+212",
				"x.pcapng4: 848+152"}},
		{"size and count", []string{"-w", "x", "-C", "20k", "-W", "2"},
			[]string{"x0: 848+152", "x1: 636+212"}},
		{"size and count of two digits", []string{"-w", "x", "-C", "20k", "-W", "11"},
			[]string{"x00: 0+212", "x01: 212+212", "x02: 424+212", "x03: 636+212", "x04: 848+152"}},
		{"seconds", []string{"-w", "x-%H%M%S", "-G", "400"},
			[]string{"x-030400: 0+400", "x-031040: 400+400", "x-031720: 800+200"}},
		{"seconds without a time in the name", []string{"-w", "x", "-G", "400"},
			[]string{"x: 0+400", "x1: 400+400", "x2: 800+200"}},
		{"seconds with a time in the name that stays", []string{"-w", "x-%H", "-G", "400"},
			[]string{"x-03: 0+400", "x-031: 400+400", "x-032: 800+200"}},
		{"seconds and count", []string{"-w", "x-%s", "-G", "300", "-W", "2"},
			[]string{fmt.Sprintf("x-%d: 0+300", begin.Unix()), fmt.Sprintf("x-%d: 300+300",
				begin.Unix()+300)}},
		{"seconds and size", []string{"-w", "x-%M-", "-G", "300", "-C", "20k"},
			[]string{"x-04-: 0+212", "x-04-1: 212+88", "x-09-: 300+212", "x-09-1: 512+88", "x-14-: 600+212",
				"x-14-1: 812+88", "x-19-: 900+100"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"-r", source}, tt.args...)
			args[3] = filepath.Join(dir, args[3])
			if lines := mustRun(t, args...); len(lines) > 0 {
				t.Errorf("printed %q", lines)
			}
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range files {
				got = append(got, numbers(t, filepath.Join(dir, f.Name())))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("the files are %q, want %q", got, tt.want)
			}
		})
	}
}

func TestACopyOfARecordingIsTheSame(t *testing.T) {
	source, _ := record(t, 100)
	want, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, "-r", source, "-w", "-")
	stdout, stderr, code := p.End()
	if code != 0 || stdout != string(want) {
		t.Errorf("the copy has %d bytes, want %d; %s", len(stdout), len(want), stderr)
	}
	cut := mustRun(t, "-r", source, "-s", "10", "-c", "1", "-o", "json")
	if o := parse(t, cut[0]); o.Data != hex.EncodeToString(kinds.Numbered(0)[:10]) || o.Size != 64 ||
		*o.Captured != 10 {
		t.Errorf("with a snaplen of 10: %s", cut[0])
	}
}

func TestAFileThatIsCutShowsWhatItHas(t *testing.T) {
	source, _ := record(t, 100)
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, content[:len(content)-1000], 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := run(t, "-r", source, "-o", "json")
	if n := len(splitLines(stdout)); n < 85 || n > 95 || code != 1 ||
		!strings.Contains(stderr, "the file ends in the block at byte") {
		t.Errorf("%d records, code %d: %s", n, code, stderr)
	}
}

// TestAnInterruptEndsWithTotals also checks that the file is complete.
func TestAnInterruptEndsWithTotals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		s := kinds.New(t, 1<<16)
		file := filepath.Join(t.TempDir(), "x.pcapng")
		p := start(t, append(s.MAP(), "--consume", "-w", file)...)
		s.Flood(0, 3)
		for consumed := false; !consumed; runtime.Gosched() {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			consumed = bytes.Contains(content, kinds.Numbered(2))
		}
		p.Cmd.Process.Signal(signal)
		_, stderr, code := p.End()
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("ringbuf: 3 records seen, 0 bytes missed, 3 written (%d bytes)\n",
			info.Size()); code != 0 || !strings.HasSuffix(stderr, want) {
			t.Errorf("after %v it ended with %d: %s, want %s", signal, code, stderr, want)
		}
		if got := numbers(t, file); got != "x.pcapng: 0+3" {
			t.Errorf("the file is %s", got)
		}
	}
	s := kinds.New(t, 1<<16)
	if _, stderr, code := run(t, append(s.MAP(), "--for", "10ms")...); code != 0 ||
		!strings.HasSuffix(stderr, "ringbuf: 0 records seen, 0 bytes missed, 0 written\n") {
		t.Errorf("after --for it ended with %d: %s", code, stderr)
	}
}

func TestErrorsAreOneLineThatSaysWhatToDo(t *testing.T) {
	s := kinds.New(t, 1<<12)
	id := s.MAP()
	source, _ := record(t, 1)
	dir := filepath.Dir(source)
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("text and more"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "which ring buffer? Name a MAP (ringbuf list shows all), or a recording with -r"},
		{[]string{"-r", source, "events"}, 2, `-r reads the rings of a recording: leave out "events"`},
		{[]string{"-r", source, "--consume"}, 2, "leave out --consume"},
		{[]string{"--consume", "--oldest", "id", "1"}, 2, "leave out --oldest"},
		{[]string{"--filter", "pid == 1", "id", "1"}, 2,
			"--filter needs to know the fields: say with -t which type samples have"},
		{[]string{"-s", "-1", "id", "1"}, 2, "no negative numbers"},
		{[]string{"-C", "1", "id", "1"}, 2, "-C, -G and -W are about files: name one with -w"},
		{[]string{"-W", "1", "-w", "x", "id", "1"}, 2, "give one of them"},
		{[]string{"-C", "1x", "-w", "x", "id", "1"}, 2, "it is a number of millions of bytes"},
		{[]string{"-r", source, "-w", source}, 2, "-r and -w name the same file"},
		{[]string{"--for", "x", "id", "1"}, 2, "invalid duration"},
		{[]string{"-z"}, 2, "unknown shorthand flag"},
		{[]string{"name", "no_such_ring"}, 1, `no ring buffer has the name "no_such_ring"`},
		{append(id, "-t", "struct none"), 1,
			`events: type "struct none": not found in the BTF: without -t, tail says which types fit`},
		{append(id, "-t", "numbered", "--filter", "foo == 1"), 2, "the filter: unknown name foo (1:1)"},
		{append(id, "-t", "numbered", "--filter", "number =="), 2,
			"the filter: unexpected token EOF (1:9)"},
		{append(id, "-t", "numbered", "--btf", text), 1, "is neither BTF nor an object file with BTF"},
		{append(id, "-w", dir), 1, "is a directory"},
		{append(id, "-w", dir+"/none/x"), 1, "no such file or directory"},
		{append(id, "-w", dir+"/none/x", "-G", "1"), 1, "no such file or directory"},
		{append(id, "-w", "x%Q", "-G", "1"), 1, "has %Q, which is not known"},
		{append(id, "-w", "-", "-C", "1"), 1, "standard output cannot be rotated: name a file"},
		{[]string{"-r", dir + "/none"}, 1, "no such file or directory"},
		{[]string{"-r", text}, 1, "not a pcapng file"},
		{[]string{"-r", source, "-t", "struct event"}, 1,
			"events: no BTF is known of programs that use it: name a file that has it with --btf"},
		{[]string{"-r", source, "-w", "/dev/full"}, 1, "no space left on device"},
	} {
		stdout, stderr, code := run(t, tt.args...)
		lines := splitLines(stderr)
		if last := len(lines) - 1; last > 0 && strings.Contains(lines[last-1], " records seen, ") {
			lines = lines[last:] // the totals precede an error at the end
		}
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "ringbuf: ") ||
			!strings.Contains(lines[0], tt.want) || code != tt.code || stdout != "" {
			t.Errorf("tail %q ended with %d and %q, %q; want %d and %q", tt.args, code, stdout, stderr,
				tt.code, tt.want)
		}
	}
	if _, err := os.Stat("x"); err == nil {
		t.Error("a file was made in spite of an error")
	}
}

func TestTsharkOpensWhatTailWrote(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		if os.Getenv("RINGBUF_KERNEL_TESTS") == "require" {
			t.Fatal("tshark is not installed, and make test-tool should have done so")
		}
		t.Skip("tshark is not installed: this test is of no use without it")
	}
	s := kinds.New(t, 1<<16)
	id := s.MAP()
	file := filepath.Join(t.TempDir(), "x.pcapng")
	p := start(t, append(id, "-c", "100", "-w", file)...)
	s.Flood(0, 100)
	wantLines(t, p)
	out, err := exec.Command("tshark", "-r", file, "-T", "fields", "-E", "separator=|", "-e",
		"frame.interface_name", "-e", "frame.interface_description", "-e", "data.data").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := splitLines(string(out))
	for i, line := range lines {
		if want := fmt.Sprintf("events|BPF ring buffer, map id %s, 65536 bytes|%x", id[1],
			kinds.Numbered(i)); line != want {
			t.Errorf("tshark says %q, want %q", line, want)
		}
	}
	if len(lines) != 100 {
		t.Errorf("tshark finds %d packets", len(lines))
	}
}
