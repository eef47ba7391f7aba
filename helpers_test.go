package ringbuf

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// opened returns what was opened without an error. It is closed when the test ends.
func opened[T any](t testing.TB, what T, err error, closeIt func(T) error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeIt(what); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return what
}

func mustNewReader(t testing.TB, m Map, opts ...Option) *Reader {
	t.Helper()
	r, err := NewReader(m, opts...)
	return opened(t, r, err, (*Reader).Close)
}

func newRingAndReader(t testing.TB, size int, opts ...Option) (*bpftest.Ring, *Reader) {
	t.Helper()
	ring := bpftest.New(t, size)
	return ring, mustNewReader(t, ring, opts...)
}

func mustRead(t testing.TB, r *Reader) Record {
	t.Helper()
	rec, err := r.Read()
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return rec
}

// wantSample reads a sample and compares it.
func wantSample(t testing.TB, r *Reader, want string) {
	t.Helper()
	if rec := mustRead(t, r); string(rec.RawSample) != want {
		t.Fatalf("Read returned %q, want %q", rec.RawSample, want)
	}
}

func wantReadError(t testing.TB, r *Reader, want error) {
	t.Helper()
	if rec, err := r.Read(); !errors.Is(err, want) {
		t.Fatalf("Read returned %q, %v; want %v", rec.RawSample, err, want)
	}
}

func wantAvailable(t testing.TB, r *Reader, want int) {
	t.Helper()
	if got := r.AvailableBytes(); got != want {
		t.Fatalf("AvailableBytes is %d, want %d", got, want)
	}
}

type readResult struct {
	rec Record
	err error
}

// goRead calls Read in a goroutine and returns when Read waits for samples.
func goRead(t testing.TB, r *Reader) <-chan readResult {
	t.Helper()
	result := make(chan readResult, 1)
	go func() {
		rec, err := r.Read()
		result <- readResult{rec, err}
	}()
	awaitFetching(t, r)
	return result
}

// awaitFetching returns when a goroutine fetches.
func awaitFetching(t testing.TB, r *Reader) {
	t.Helper()
	await(t, "a goroutine that fetches", func() bool {
		r.queue.mu.Lock()
		defer r.queue.mu.Unlock()
		return r.queue.fetching
	})
}

// await returns when cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for p := (patience{left: 10 * time.Second}); !cond(); runtime.Gosched() {
		if p.over() {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// wantResult waits for the result of goRead.
func wantResult(t testing.TB, result <-chan readResult, sample string, want error) {
	t.Helper()
	select {
	case got := <-result:
		if !errors.Is(got.err, want) || string(got.rec.RawSample) != sample {
			t.Fatalf("the waiting Read returned %q, %v; want %q, %v", got.rec.RawSample, got.err, sample,
				want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read still waits")
	}
}

// wantWaiting fails if the Read of goRead returns within 20 ms.
func wantWaiting(t testing.TB, result <-chan readResult) {
	t.Helper()
	select {
	case got := <-result:
		t.Fatalf("Read did not wait: %q, %v", got.rec.RawSample, got.err)
	case <-time.After(20 * time.Millisecond):
	}
}

// eachWait runs a test twice, with an empty ring: once with a Reader that blocks its thread
// while it waits for samples, and once with one that parks the goroutine.
func eachWait(t *testing.T, test func(t *testing.T, ring *bpftest.Ring, r *Reader)) {
	t.Run("blocked", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		r.queue.rings.(*libbpfRings).blockFor = time.Hour
		ring.Emit(text("recent"))
		wantSample(t, r, "recent")
		test(t, ring, r)
	})
	t.Run("parked", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		test(t, ring, r)
	})
}

// eachPace runs a test twice: once with a Reader that reads eagerly, and once with one that may
// drain at ticks even if its ring is small.
func eachPace(t *testing.T, test func(t *testing.T, pace Option)) {
	t.Run("eager", func(t *testing.T) { test(t, WithMaxDelay(0)) })
	t.Run("moderated", func(t *testing.T) { test(t, WithMaxDelay(2*time.Millisecond)) })
}

// A group is a WaitGroup with the method Go, which sync.WaitGroup has since Go 1.25.
type group struct{ sync.WaitGroup }

func (g *group) Go(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}

func text(s string) bpftest.Sample { return bpftest.Sample{Data: []byte(s)} }

func quiet(s string) bpftest.Sample {
	return bpftest.Sample{Data: []byte(s), Flags: bpftest.NoWakeup}
}

func discarded(size int) bpftest.Sample {
	return bpftest.Sample{Data: make([]byte, size), Discard: true}
}

// threadTime returns the processor time that the calling thread has used.
func threadTime() time.Duration {
	const rusageThread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// descriptors returns the open descriptors of this process.
func descriptors(t *testing.T) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := make(map[int]bool)
	for _, entry := range entries {
		var fd int
		fmt.Sscan(entry.Name(), &fd)
		// The descriptor that ReadDir used is closed by now.
		if _, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			fds[fd] = true
		}
	}
	return fds
}

// threads returns how many threads this process has.
func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// spareThreads makes the runtime start n threads, which it keeps. The runtime starts a thread
// now and then for purposes of its own, but seldom if it has threads to spare.
func spareThreads(n int) {
	var locked, done group
	release := make(chan struct{})
	locked.Add(n)
	for range n {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			locked.Done()
			<-release
		})
	}
	locked.Wait()
	close(release)
	done.Wait()
}

// inOwnProcess runs a test in a process of its own, because the test changes state of the whole
// process, or measures state that other tests change. env is added to the environment of that
// process.
func inOwnProcess(t *testing.T, test func(t *testing.T), env ...string) {
	t.Helper()
	const inside = "RINGBUF_TEST_ALONE"
	if os.Getenv(inside) == t.Name() {
		test(t)
		return
	}
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	out, err := runTests("^"+t.Name()+"$", append(env, inside+"="+t.Name())...)
	if err != nil || !strings.Contains(out, "--- PASS: "+t.Name()+" ") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "_test.go:") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// runTests runs tests of this binary in another process and returns its output.
func runTests(pattern string, env ...string) (string, error) {
	// The kernel kills the process when the thread that started it ends (see Pdeathsig). So
	// that thread must not end earlier, unless this process times out.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := testCommand(pattern, env...)
	if dir := flag.Lookup("test.gocoverdir").Value.String(); dir != "" {
		cmd.Args = append(cmd.Args, "-test.gocoverdir="+dir)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testCommand(pattern string, env ...string) *exec.Cmd {
	args := []string{"-test.run=" + pattern, "-test.v", fmt.Sprint("-cycles=", *cycles)}
	if timeout, ok := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); ok {
		// Earlier than in this process, so that the output of a timeout there is seen.
		args = append(args, fmt.Sprint("-test.timeout=", timeout*3/4))
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// On a busy machine, a limit in wall-clock time says nothing about the tested code. So patience
// and turnClock count time only while this process gets turns on a processor.

// A patience is the time limit of a loop that polls. The time between two calls of over counts
// as 10 ms at most.
type patience struct {
	left time.Duration
	last time.Time
}

func (p *patience) over() bool {
	now := time.Now()
	if !p.last.IsZero() {
		p.left -= min(now.Sub(p.last), 10*time.Millisecond)
	}
	p.last = now
	return p.left < 0
}

// A turnClock is a clock for a goroutine that waits. The time between two of its ticks counts
// as 2 ms at most.
type turnClock struct{ ns atomic.Int64 }

func newTurnClock(t *testing.T) *turnClock {
	c := new(turnClock)
	stop := make(chan struct{})
	var ticking group
	ticking.Go(func() {
		const turn = time.Millisecond
		ticker := time.NewTicker(turn)
		defer ticker.Stop()
		last := time.Now()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				now := time.Now()
				c.ns.Add(int64(min(now.Sub(last), 2*turn)))
				last = now
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		ticking.Wait()
	})
	return c
}

// now returns the time since the clock was made.
func (c *turnClock) now() time.Duration { return time.Duration(c.ns.Load()) }

// wantNumbered reads n samples that Count wrote, from seq on, with no others in between.
func wantNumbered(t *testing.T, r *Reader, seq, n uint64) {
	t.Helper()
	for want := seq; want < seq+n; want++ {
		if got := bpftest.DecodeNumbered(mustRead(t, r).RawSample).Seq; got != want {
			t.Fatalf("sample %d came, want %d", got, want)
		}
	}
}

// processTime returns the processor time that this process has used.
func processTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// monotonic returns the time since boot in ns, which is the same in all processes.
func monotonic() int64 {
	const clockMonotonic = 1
	var now syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic,
		uintptr(unsafe.Pointer(&now)), 0); errno != 0 {
		panic(errno)
	}
	return now.Nano()
}

// newRings returns rings of these sizes and one Reader of all of them.
func newRings(t testing.TB, sizes []int, opts ...Option) ([]*bpftest.Ring, *Reader) {
	t.Helper()
	var rings []*bpftest.Ring
	var maps []Map
	for _, size := range sizes {
		ring := bpftest.New(t, size)
		rings, maps = append(rings, ring), append(maps, ring)
	}
	r, err := NewMultiReader(maps, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return rings, r
}

// moveConsumer adds to the consumer position. Any process that has the map can do this.
func moveConsumer(t *testing.T, m Map, by int) {
	t.Helper()
	page, err := syscall.Mmap(m.FileDescriptor(), 0, os.Getpagesize(),
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(page)
	// SAFETY: the mapping begins with the position.
	atomic.AddUint64((*uint64)(unsafe.Pointer(&page[0])), uint64(by))
}

func mapID(t *testing.T, m Map) uint32 {
	t.Helper()
	info, err := bpf.GetMapInfoByFD(m.FileDescriptor())
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// mapByID returns another descriptor of the map, opened with flags. libbpfgo has no such
// function.
func mapByID(t *testing.T, m Map, flags uint32) int {
	t.Helper()
	attr := struct{ id, nextID, flags uint32 }{id: mapID(t, m), flags: flags}
	fd, err := bpfCommand(bpfMapGetFDByID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// raceEnabled reports whether these tests were built with -race.
func raceEnabled() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
