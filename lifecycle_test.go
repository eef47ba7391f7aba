package ringbuf

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/internal/malloc"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// These tests open and close Readers.

var cycles = flag.Int("cycles", 2000, "how often TestOpenAndCloseLeaveNothing opens a Reader")

// A footprint is what a Reader may leave behind. It does not count address space: Go takes 64
// MiB at a time for its heap, and how much of that is resident is also up to Go.
type footprint struct {
	resourceCount
	threads   int
	cHeap     int // bytes that C has allocated
	liveBytes int // of Go
}

func measureFootprint(t *testing.T) footprint {
	t.Helper()
	f := footprint{resourceCount: resources(), threads: threads(t)}
	var ok bool
	if f.cHeap, ok = malloc.InUse(); !ok {
		t.Log("the C library does not tell how much it has allocated")
	}
	runtime.GC() // collects what finalizers released
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	f.liveBytes = int(stats.HeapAlloc)
	return f
}

// procStatus returns a number from /proc/self/status.
func procStatus(t *testing.T, name string) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(status), "\n"+name+":")
	var value int
	if _, err := fmt.Sscan(after, &value); err != nil || !found {
		t.Fatalf("%s: %v in %q", name, err, status)
	}
	return value
}

func TestOpenAndCloseLeaveNothing(t *testing.T) {
	inOwnProcess(t, testOpenAndClose, malloc.Environment...)
}

func testOpenAndClose(t *testing.T) {
	ring := bpftest.New(t, 4*os.Getpagesize())
	open := func() *Reader {
		r, err := NewReader(ring, WithMaxDelay(2*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	readOne := func(r *Reader) {
		if ring.Count(0, 0, 1, 0) != 1 {
			t.Fatal("the ring is full")
		}
		mustRead(t, r)
	}
	closeIt := func(r *Reader) {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	closeReading := func(r *Reader) {
		result := goRead(t, r)
		closeIt(r)
		wantResult(t, result, "", ErrClosed)
	}
	kinds := []func(){
		func() { closeIt(open()) },
		func() { r := open(); readOne(r); closeIt(r) },
		func() { closeReading(open()) },                          // parked
		func() { r := open(); readOne(r); closeReading(r) },      // blocked
		func() { r := open(); startTicking(r); closeReading(r) }, // in the pause before a tick
	}
	run := func(n int) {
		for i := range n {
			// Most cycles are of the first kind, which is the quickest.
			kinds[max(0, i%16-11)]()
		}
	}

	spareThreads(16)
	run(max(500, *cycles/20))
	before := measureFootprint(t)
	start := time.Now()
	run(*cycles)
	each := time.Since(start) / time.Duration(*cycles)
	if err := awaitResources(before.resourceCount); err != nil {
		t.Error(err)
	}
	after := measureFootprint(t)
	t.Logf("%d cycles, %v each, before %+v, after %+v", *cycles, each, before, after)
	for _, tt := range []struct {
		what                string
		before, after, more int
	}{
		{"threads", before.threads, after.threads, 2},      // the runtime starts one now and then
		{"bytes of C", before.cHeap, after.cHeap, 1 << 10}, // for two threads
		{"bytes of Go", before.liveBytes, after.liveBytes, 64 << 10},
	} {
		if tt.after > tt.before+tt.more {
			t.Errorf("%d %s before, %d after %d cycles, want at most %d more", tt.before, tt.what, tt.after,
				*cycles, tt.more)
		}
	}
}

// startTicking makes r drain at ticks, as it does when samples flow.
func startTicking(r *Reader) {
	m := &r.queue.rings.(*libbpfRings).moderator
	m.ticking, m.interval, m.lastDrain = true, m.longestInterval(), time.Now()
}

// TestReaderWaitsAfterItsModuleIsClosed has a BPF program, which outlives the module too, write
// to the ring.
func TestReaderWaitsAfterItsModuleIsClosed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(r *Reader)
	}{
		{"blocked", func(r *Reader) { r.queue.rings.(*libbpfRings).blockFor = time.Hour }},
		{"parked", func(r *Reader) { r.queue.rings.(*libbpfRings).blockFor = 0 }},
		{"ticking", startTicking},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(40*time.Millisecond))
			count := dupProgram(t, ring, "count")
			defer count.Close()
			ring.Count(0, 0, 1, 0)
			mustRead(t, r)
			ring.Close()
			for seq := range uint64(3) {
				tt.prepare(r)
				result := goRead(t, r)
				if n, err := testrun.Run(int(count.Fd()), 0, seq, 1, 0); n != 1 || err != nil {
					t.Fatalf("the program wrote %d samples: %v", n, err)
				}
				select {
				case got := <-result:
					if got.err != nil || bpftest.DecodeNumbered(got.rec.RawSample).Seq != seq {
						t.Fatalf("Read returned %q, %v; want sample %d", got.rec.RawSample, got.err, seq)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("Read still waits")
				}
			}
		})
	}
}

// dupProgram returns another descriptor of a program of ring.
func dupProgram(t *testing.T, ring *bpftest.Ring, name string) *os.File {
	t.Helper()
	prog, err := ring.Module().GetProgram(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(prog.FileDescriptor())
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

func TestCloseInterruptsRead(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		results := []<-chan readResult{goRead(t, r), goRead(t, r), goRead(t, r)}
		for _, result := range results {
			wantWaiting(t, result)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for _, result := range results {
			wantResult(t, result, "", os.ErrClosed)
		}
	})
}

func TestAfterClose(t *testing.T) {
	before := resources()
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("first"), text("drained, never read"))
	wantSample(t, r, "first")
	ring.Emit(text("never drained"))
	for range 2 {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	wantReadError(t, r, os.ErrClosed)
	wantReadError(t, r, ErrClosed)
	if err := r.ReadInto(new(Record)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadInto after Close returned %v", err)
	}
	if err := r.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Flush after Close returned %v", err)
	}
	r.SetDeadline(time.Now())
	wantReadError(t, r, os.ErrClosed)
	wantAvailable(t, r, 0)
	if got := r.BufferSize(); got != os.Getpagesize() {
		t.Errorf("BufferSize after Close is %d", got)
	}

	next := mustNewReader(t, ring)
	wantSample(t, next, "never drained")
	next.Close()
	ring.Close()
	if err := awaitResources(before); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestReaderOutlivesItsModule(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("first"), text("second"))
	wantSample(t, r, "first")
	ring.Close()
	wantSample(t, r, "second")
	wantAvailable(t, r, 0)
	r.SetDeadline(time.Now().Add(time.Millisecond))
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestDroppedReaderIsCleanedUp(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	ring.Emit(text("sample"))
	func() {
		r, err := NewReader(ring)
		if err != nil {
			t.Fatal(err)
		}
		wantSample(t, r, "sample")
		r.SetDeadline(time.Now().Add(time.Millisecond)) // has been parked
		wantReadError(t, r, os.ErrDeadlineExceeded)
		if got := resources(); got.descriptors <= before.descriptors || got.mappings <= before.mappings {
			t.Fatalf("with a Reader there is %+v, without %+v: the test sees nothing", got, before)
		}
		runtime.KeepAlive(r)
	}()
	if err := awaitResources(before); err != nil { // collects garbage
		t.Error(err)
	}
}

func TestChildrenInheritNothing(t *testing.T) {
	before := descriptors(t)
	ring := bpftest.New(t, os.Getpagesize())
	loaded := descriptors(t)
	mustNewReader(t, ring)
	opened := 0
	for fd := range descriptors(t) {
		if before[fd] || loaded[fd] {
			continue
		}
		opened++
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d of the Reader is not close-on-exec (%v)", fd, errno)
		}
	}
	if opened == 0 {
		t.Error("the Reader seems to have no descriptors: the test sees nothing")
	}
}
