package ringbuf

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// These tests open and close Readers.

var cycles = flag.Int("cycles", 2000, "how often TestOpenAndCloseLeaveNothing opens a Reader")

// footprint is all that a process has of the system.
type footprint struct {
	resourceCount
	threads, lines int // lines of /proc/self/maps
	virtual, rss   int // KiB
}

func measureFootprint(t *testing.T) footprint {
	t.Helper()
	debug.FreeOSMemory()
	f := footprint{resourceCount: resources(), threads: threads(t)}
	for name, value := range map[string]*int{"VmSize": &f.virtual, "VmRSS": &f.rss} {
		*value = procStatus(t, name)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	f.lines = strings.Count(string(maps), "\n")
	return f
}

// procStatus returns a number of /proc/self/status.
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
	// Else each thread that calls malloc reserves 64 MiB, and AddressSanitizer keeps what is
	// freed for a while.
	inOwnProcess(t, testOpenAndClose, "MALLOC_ARENA_MAX=1", "ASAN_OPTIONS=quarantine_size_mb=0:thread_local_quarantine_size_kb=0")
}

func testOpenAndClose(t *testing.T) {
	ring := bpftest.New(t, 4*os.Getpagesize())
	open := func() *Reader {
		r, err := NewReader(ring, WithMaxDelay(time.Millisecond))
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
			// Most of them are of the first kind, which is quickest.
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
	memory := 4 << 10 // to see what leaks 50 bytes each takes 100,000 cycles
	if raceEnabled {
		memory = 32 << 10 // the race detector remembers
	}
	for _, tt := range []struct {
		what                string
		before, after, more int
	}{
		// The runtime has a thread more now and then, and some memory.
		{"threads", before.threads, after.threads, 2},
		{"mappings", before.lines, after.lines, 10},
		{"KiB of address space", before.virtual, after.virtual, 4<<10 + 2*8<<10}, // with two stacks
		{"KiB of memory", before.rss, after.rss, memory},
	} {
		if tt.after > tt.before+tt.more {
			t.Errorf("%d %s before, %d after %d cycles, want at most %d more", tt.before, tt.what, tt.after, *cycles, tt.more)
		}
	}
}

// startTicking makes r drain at ticks, as it does when samples flow.
func startTicking(r *Reader) {
	pace := &r.queue.rings.(*libbpfRings).pace
	pace.ticking, pace.interval, pace.caughtUp = true, pace.delay(), time.Now()
}

// TestReaderWaitsAfterItsModuleIsClosed lets a program that outlives the module as well
// write into the ring.
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
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(20*time.Millisecond))
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
