package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests disturb a Writer, or take away something that it needs.

// TestTheDrainProgramIsRunAgainBehindDiscardedRecords has as many discarded records as one
// drain takes. The drain does not count them.
func TestTheDrainProgramIsRunAgainBehindDiscardedRecords(t *testing.T) {
	const most = 128 << 10
	ring := bpftest.NewUser(t, 2*most*recordHeaderSize, os.Getpagesize())
	w := mustNewWriter(t, ring)
	for range most {
		mustReserve(t, w, "").Discard()
	}
	w.Close()
	w = mustNewWriter(t, ring, WithDrainProgram(ring.Program()))
	mustWrite(t, w, []byte("behind"))
	if got := ring.Control().Samples; got != 1 {
		t.Errorf("%d samples were drained, want 1", got)
	}
	if got := w.Stats().Drains; got != 1 {
		t.Errorf("there were %d calls, want 1", got)
	}
}

// TestAGarbageWriterOutlivesItsDrain drops a Writer while a goroutine of the Writer drains.
func TestAGarbageWriterOutlivesItsDrain(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	before := resources()
	d := newFakeDrain()
	var released, collected atomic.Bool
	func() {
		w, err := NewWriter(ring, WithDrain(d.drain))
		if err != nil {
			t.Fatal(err)
		}
		w.drainer.release = func() { released.Store(true) }
		runtime.AddCleanup(w, func(b *atomic.Bool) { b.Store(true) }, &collected)
		wrote := make(chan error)
		go func() { wrote <- w.WriteContext(context.Background(), nil) }()
		<-d.begun
		mustWrite(t, w, nil) // leads to one more call, in the background
		d.end <- nil
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		<-d.begun
	}()
	for p := (patience{left: 5 * time.Second}); !collected.Load(); runtime.GC() {
		if p.over() {
			t.Fatal("the Writer is not collected")
		}
	}
	for range 10 {
		runtime.GC()
	}
	if released.Load() {
		t.Error("what the drain needs was released during a call")
	}
	d.end <- nil
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
	for p := (patience{left: 5 * time.Second}); !released.Load(); runtime.Gosched() {
		if p.over() {
			t.Fatal("what the drain needs is not released")
		}
	}
}

// TestADrainForGarbageHoldsUpNoFinalizer drops a reservation. The drain that follows does not
// end.
func TestADrainForGarbageHoldsUpNoFinalizer(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	d := newFakeDrain()
	w := mustNewWriter(t, ring, WithDrain(d.drain))
	mustReserve(t, w, "nobody submits this")
	for begun := false; !begun; runtime.GC() {
		select {
		case <-d.begun:
			begun = true
		default:
		}
	}
	var finalized atomic.Bool
	runtime.SetFinalizer(new([64]byte), func(*[64]byte) { finalized.Store(true) })
	for p := (patience{left: 5 * time.Second}); !finalized.Load(); runtime.GC() {
		if p.over() {
			t.Error("finalizers wait for the drain")
			break
		}
	}
	d.end <- nil
}

// mappingOf returns the line of /proc/self/maps for an address.
func mappingOf(t *testing.T, p *byte) string {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		fmt.Sscanf(line, "%x-%x", &from, &to)
		if at := uintptr(unsafe.Pointer(p)); from <= at && at < to {
			return line
		}
	}
	return ""
}

// TestCloseTakesTheWholeRingAwayAtOnce has reservations on many pages. Close must not split the
// mapping of the ring, because a process may have only so many mappings.
func TestCloseTakesTheWholeRingAwayAtOnce(t *testing.T) {
	const pages = 16
	ring := bpftest.NewUser(t, pages*os.Getpagesize(), os.Getpagesize())
	before := resources()
	w := mustNewWriter(t, ring)
	var reservations []*Reservation
	for range pages / 2 {
		reservations = append(reservations, mustReserve(t, w, "x"))
		mustWrite(t, w, make([]byte, 2*os.Getpagesize()-3*recordHeaderSize))
	}
	first := &reservations[0].Bytes()[0]
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if after := resources(); after.mappings != before.mappings {
		t.Errorf("%d mappings of the ring are left", after.mappings-before.mappings)
	}
	for _, r := range reservations {
		if mappingOf(t, first) == "" {
			t.Fatal("a reservation has no memory")
		}
		r.Discard()
	}
	if line := mappingOf(t, first); line != "" {
		t.Errorf("when all reservations are finished, there is still %s", line)
	}
}

// TestCloseSaysIfItCannotTakeTheRingAway has Close ask for more memory than there can be.
func TestCloseSaysIfItCannotTakeTheRingAway(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	w, err := NewWriter(wire)
	if err != nil {
		t.Fatal(err)
	}
	r := mustReserve(t, w, "x")
	mustWrite(t, w, []byte("behind"))
	size := w.ring.door.c.size
	w.ring.door.c.size = 1 << 61
	err = w.Close()
	w.ring.door.c.size = size
	const want = `ringbuf: writer: map "commands": take the ring away from reservations, to whose ` +
		`Bytes nobody may write any more: cannot allocate memory`
	if !errors.Is(err, syscall.ENOMEM) || err.Error() != want {
		t.Errorf("Close returned %v, want %s", err, want)
	}
	r.Discard()
	wire.wantDrain(t, 1) // it is discarded nevertheless
	wantSample(t, wire.r, "behind")
}

// TestCloseAfterAPanicOfTheDrain recovers from a panic in each place that calls the drain.
func TestCloseAfterAPanicOfTheDrain(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	var panics atomic.Bool
	w, err := NewWriter(ring, WithDrain(func() error {
		if panics.Load() {
			panic("drain")
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	recovered := func(call func()) {
		t.Helper()
		panics.Store(true)
		defer func() {
			t.Helper()
			panics.Store(false)
			if got := recover(); got != "drain" {
				t.Errorf("recovered %v", got)
			}
		}()
		call()
	}
	recovered(func() { w.Write(nil) })
	mustWrite(t, w, nil)
	if got := w.Stats().Drains; got != 2 {
		t.Errorf("after a panic there were %d calls, want 2", got)
	}
	for w.AvailableBytes() > 0 {
		mustWrite(t, w, nil)
	}
	recovered(func() { w.Write(nil) }) // which waits for room
	ring.Drain()
	w.SetDeadline(time.Now().Add(forever))
	mustWrite(t, w, nil)
	closed := make(chan error)
	go func() { closed <- w.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Close hangs")
	}

	before := resources()
	if w, err = NewWriter(ring, WithDrain(func() error { panic("drain") })); err != nil {
		t.Fatal(err)
	}
	mustReserve(t, w, "x")
	panics.Store(true)
	recovered(func() { w.Close() })
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
}

// TestDeadlinesLeaveNoTimers sets many deadlines while two calls wait: one for the kernel, and
// one for the first call.
func TestDeadlinesLeaveNoTimers(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	fill(t, wire.w)
	errs := make(chan error)
	for range 2 {
		go func() { errs <- wire.w.WriteContext(context.Background(), nil) }()
	}
	awaitWaits(t, wire.w, 2)
	awaitParked(t, wire.w)
	objects := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapObjects)
	}
	before := objects()
	for range 10_000 {
		wire.w.SetDeadline(time.Now().Add(forever))
		runtime.Gosched() // lets the calls that wait run
	}
	if grown := objects() - before; grown > 2000 {
		t.Errorf("10000 deadlines have left %d objects", grown)
	}
	wire.w.SetDeadline(time.Unix(0, 1))
	for range 2 {
		if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	}
}

// TestAWaitFindsThatADescriptorIsAnother puts other files in the place of a Writer's descriptors.
func TestAWaitFindsThatADescriptorIsAnother(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	event, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer syscall.Close(int(event))
	for _, tt := range []struct {
		name string
		fd   func(w *Writer) int
		by   int
	}{
		{"the map", func(w *Writer) int { return int(w.ring.door.c.map_fd) }, int(event)},
		{"the map, by what cannot be polled", func(w *Writer) int { return int(w.ring.door.c.map_fd) },
			int(null.Fd())},
		{"the epoll instance", func(w *Writer) int { return w.ring.door.parkFD() }, int(event)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wire := newWire(t, os.Getpagesize())
			fill(t, wire.w)
			if err := syscall.Dup3(tt.by, tt.fd(wire.w), syscall.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			_, err := wire.w.Write(nil)
			if !errors.Is(err, syscall.EBADF) ||
				!strings.Contains(err.Error(), "another file in its place") {
				t.Errorf("Write returned %v", err)
			}
		})
	}
}

// TestDiscardKeepsEachErrorOfTheDrain has a drain whose error Discard could take for its own.
func TestDiscardKeepsEachErrorOfTheDrain(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	var err error
	w := mustNewWriter(t, ring, WithDrain(func() error { return err }))
	r := mustReserve(t, w, "x")
	err = fmt.Errorf("the drain's file: %w", os.ErrClosed)
	r.Discard()
	want := err
	err = nil
	if n, got := w.Write(nil); n != 0 || got != want {
		t.Errorf("Write after Discard returned %d, %v, want %v", n, got, want)
	}
}

// TestNewWriterBesideOneThatWritesDoesNotSayCorrupt opens Writers while the positions move.
func TestNewWriterBesideOneThatWritesDoesNotSayCorrupt(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.Control().Quiet = 1
	var stop atomic.Bool
	var g group
	g.Go(func() {
		for !stop.Load() {
			mustWrite(t, wire.w, make([]byte, 100))
			wire.Drain()
		}
	})
	refused := 0
	for range 200 {
		w, err := NewWriter(wire)
		if err == nil {
			w.Close()
			continue
		}
		refused++
		if !errors.Is(err, syscall.EBUSY) {
			t.Errorf("NewWriter returned %v", err)
			break
		}
	}
	stop.Store(true)
	g.Wait()
	t.Logf("%d of 200 were refused", refused)
}
