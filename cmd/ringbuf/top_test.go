package main_test

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// A running is a process of top -o json.
type running struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

// startTop starts top for one ring.
func startTop(t *testing.T, id uint32, args ...string) *running {
	t.Helper()
	r := &running{t: t, cmd: exec.Command(tool,
		append([]string{"top", "-o", "json", "id", fmt.Sprint(id)}, args...)...)}
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
	r.lines = bufio.NewScanner(stdout)
	return r
}

// next returns the next object that top prints.
func (r *running) next() object {
	r.t.Helper()
	if !r.lines.Scan() {
		r.t.Fatalf("top ended: %v", r.lines.Err())
	}
	return decode(r.t, r.lines.Text())
}

// wantEnd interrupts top. It must end with exit code 0.
func (r *running) wantEnd() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	for r.lines.Scan() {
	}
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("top ended with %v", err)
	}
}

// of returns the count for an interval from its rate per second, or NaN if the rate is not known.
func of(o object, rate *float64) float64 {
	if rate == nil {
		return math.NaN()
	}
	return *rate * o.IntervalSeconds
}

// wantAbout checks that got is within 5 percent of want.
func wantAbout(t *testing.T, what string, got, want float64) {
	t.Helper()
	if !(math.Abs(got-want) <= 0.05*want) {
		t.Errorf("top told of %.0f %s, want %.0f within 5 percent", got, what, want)
	}
}

// TestTopCountsWhatIsProduced writes records after each line of top. The following lines must count
// them.
func TestTopCountsWhatIsProduced(t *testing.T) {
	r := newRing(t, "rates", 1<<20)
	top := startTop(t, r.id, "-d", "0.2")
	top.next()
	var records, bytes, produced float64
	for i := range 20 {
		for range 1 + 5*i {
			produced += float64(r.write(100))
			r.consume()
		}
		o := top.next()
		records += of(o, o.RecordsPerSecond)
		bytes += of(o, o.BytesPerSecond)
		if o.MeanSizeBytes != nil && *o.MeanSizeBytes != sampleSize {
			t.Errorf("the mean size is %v, want %d", *o.MeanSizeBytes, sampleSize)
		}
		if o.MissedBytes != 0 {
			t.Errorf("top missed %d bytes", o.MissedBytes)
		}
	}
	for range 2 {
		o := top.next()
		records += of(o, o.RecordsPerSecond)
		bytes += of(o, o.BytesPerSecond)
	}
	top.wantEnd()
	wantAbout(t, "records", records, produced)
	wantAbout(t, "bytes", bytes, produced*recordSize)
}

// TestTopEstimatesWhatItCannotFollow fills a ring many times in an interval.
func TestTopEstimatesWhatItCannotFollow(t *testing.T) {
	r := newRing(t, "fast", 1<<16)
	top := startTop(t, r.id, "-d", "0.5")
	before := top.next().ProducerPosition
	done, produced := make(chan struct{}), make(chan float64)
	go func() {
		n := 0
		for {
			select {
			case <-done:
				produced <- float64(n)
				return
			default:
				n += r.write(maxWrites)
				r.consume()
			}
		}
	}()
	var records, bytes float64
	missed := uint64(0)
	known := false
	add := func(o object) {
		bytes += of(o, o.BytesPerSecond)
		missed += o.MissedBytes
		if o.RecordsPerSecond == nil && !known {
			// top has not seen a record yet, because the producer ran on its processor each time.
			records += of(o, o.BytesPerSecond) / recordSize
			return
		}
		known = true
		records += of(o, o.RecordsPerSecond)
	}
	for range 4 {
		add(top.next())
	}
	close(done)
	want := <-produced
	var last object
	for range 2 {
		last = top.next()
		add(last)
	}
	top.wantEnd()
	if missed == 0 {
		t.Error("top says that it missed nothing: the test tests nothing")
	}
	if !known {
		t.Error("top never told of records")
	}
	wantAbout(t, "records", records, want)
	wantAbout(t, "bytes", bytes, want*recordSize)
	if got := last.ProducerPosition - before; float64(got) != want*recordSize {
		t.Errorf("the producer position went on by %d, want %.0f", got, want*recordSize)
	}
}

func TestTopTellsThePeak(t *testing.T) {
	r := newRing(t, "peak", 1<<16)
	top := startTop(t, r.id, "-d", "0.2")
	top.next()
	r.write(500) // 36000 bytes
	for o := top.next(); o.FillBytes == nil || *o.FillBytes != 500*recordSize; o = top.next() {
	}
	r.consume()
	o := top.next()
	for ; *o.FillBytes != 0; o = top.next() {
	}
	if *o.PeakFillBytes != 500*recordSize || *o.PeakFillPercent != 54.932 {
		t.Errorf("the peak is %d bytes, %v percent", *o.PeakFillBytes, *o.PeakFillPercent)
	}
	top.wantEnd()
}

func TestTopCountsLosses(t *testing.T) {
	ring := bpftest.NewLoss(t, 4096, 0)
	id := fdID(t, ring.FileDescriptor())
	top := startTop(t, id, "-d", "0.2")
	if o := top.next(); o.LostPerSecond == nil || *o.LostPerSecond != 0 || o.LostShared {
		t.Fatalf("at first %v are lost, shared: %v", o.LostPerSecond, o.LostShared)
	}
	var want int
	var got float64
	for range 3 {
		want += 200 - ring.Try(0, 0, 0, 200)
		o := top.next()
		got += of(o, o.LostPerSecond)
	}
	for range 2 {
		o := top.next()
		got += of(o, o.LostPerSecond)
	}
	top.wantEnd()
	if want == 0 {
		t.Error("nothing was lost: the test tests nothing")
	}
	wantAbout(t, "losses", got, float64(want))
}

// TestTopForgetsARingThatIsGone closes a ring, so that only top still uses it.
func TestTopForgetsARingThatIsGone(t *testing.T) {
	first, second := newRing(t, "goes", 4096), newRing(t, "stays", 4096)
	top := exec.Command(tool, "top", "-o", "json", "-d", "0.1", "name", "goes", "name", "stays",
		"name", "comes")
	if got := runCommand(t, top); got.code != 1 {
		t.Fatalf("top of a name that nobody has yet ended with code %d: %q", got.code, got.stderr)
	}
	r := startTop(t, second.id, "-d", "0.1", "name", "goes")
	seen := map[string]bool{}
	for !seen["goes"] || !seen["stays"] {
		seen[r.next().Name] = true
	}
	first.close()
	for n := 0; n < 2; {
		if o := r.next(); o.ID == first.id {
			n = 0
		} else {
			n++
		}
	}
	if got := run(t, "list", "id", fmt.Sprint(first.id)); got.code != 1 {
		t.Errorf("the ring is still there: %s", got.stdout)
	}
	comes := newRing(t, "goes", 8192)
	for r.next().ID != comes.id {
	}
	r.wantEnd()
}

func TestTopEndsAfterNIntervals(t *testing.T) {
	r := newRing(t, "ends", 4096)
	lines := run(t, "top", "-n", "3", "-d", "0.05", "-o", "json", "id", fmt.Sprint(r.id)).wantOK(t)
	if len(lines) != 3 {
		t.Errorf("it printed %d lines, want 3", len(lines))
	}
	for _, line := range lines {
		if o := decode(t, line); o.IntervalSeconds < 0.05 || o.RecordsPerSecond == nil {
			t.Errorf("the interval is %v, the rate %v", o.IntervalSeconds, o.RecordsPerSecond)
		}
	}
	if got := run(t, "top", "-n", "2", "-d", "0.05", "id",
		fmt.Sprint(r.id)).wantOK(t); len(got) != 5 ||
		!strings.HasPrefix(strings.TrimSpace(got[0]), "ID  NAME") {
		t.Errorf("without a terminal it printed %q", got)
	}
}

// TestTopIsCheap measures the processor time of top while records are written into 100 rings.
func TestTopIsCheap(t *testing.T) {
	var rings []*ring
	for range 100 {
		rings = append(rings, newRing(t, "one_of_many", 1<<20))
	}
	cmd := exec.Command(tool, "top", "-n", "30", "-o", "json", "name", "one_of_many")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first, ended := make(chan bool, 1), make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			select {
			case first <- true:
			default:
			}
		}
		ended <- true
	}()
	// The measurement begins after the first line, without the start of top.
	var began time.Time
	var before time.Duration
	n := 0
	for len(ended) == 0 {
		if began.IsZero() && len(first) > 0 {
			began, before = time.Now(), processorTime(t, cmd.Process.Pid)
		}
		for _, r := range rings {
			r.write(50)
			r.consume()
		}
		if !began.IsZero() {
			n++
		}
		time.Sleep(50 * time.Millisecond) // leave processor time to others
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	took := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() - before
	share := took.Seconds() / time.Since(began).Seconds()
	t.Logf("top took %v in %v, %.2f %% of a processor, with %.0f records a second in each of %d rings",
		took, time.Since(began), 100*share, float64(50*n)/time.Since(began).Seconds(), len(rings))
	if share > 0.02 {
		t.Errorf("top took %.2f %% of a processor, want at most 2 %%", 100*share)
	}
}

// processorTime returns the processor time of a process, with a resolution of 10 ms.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ") // the fields behind the name
	var user, system int64
	if _, err := fmt.Sscanf(strings.Join(strings.Fields(fields)[11:13], " "), "%d %d", &user,
		&system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
