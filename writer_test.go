package ringbuf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
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

// These tests cover all files of the Writer, writer*.go.

var _ io.WriteCloser = (*Writer)(nil)

func mustNewWriter(t testing.TB, m Map, opts ...WriterOption) *Writer {
	t.Helper()
	w, err := NewWriter(m, opts...)
	return opened(t, w, err, (*Writer).Close)
}

// A wire is a Writer, the program that drains its ring, and a Reader of what the program sends
// back.
type wire struct {
	*bpftest.UserRing
	w *Writer
	r *Reader
}

func newWire(t testing.TB, size int, opts ...WriterOption) wire {
	t.Helper()
	ring := bpftest.NewUser(t, size, 1<<20)
	return wire{ring, mustNewWriter(t, ring, opts...),
		mustNewReader(t, ring.Replies(), WithMaxDelay(0))}
}

func mustWrite(t testing.TB, w *Writer, sample []byte) {
	t.Helper()
	if n, err := w.Write(sample); n != len(sample) || err != nil {
		t.Fatalf("Write of %d bytes returned %d, %v", len(sample), n, err)
	}
}

func mustReserve(t testing.TB, w *Writer, sample string) *Reservation {
	t.Helper()
	r, err := w.Reserve(len(sample))
	if err != nil {
		t.Fatal(err)
	}
	if n := copy(r.Bytes(), sample); n != len(sample) || len(r.Bytes()) != n {
		t.Fatalf("a reservation of %d bytes has %d", len(sample), len(r.Bytes()))
	}
	return r
}

// wantDrain drains once and compares what the drain returns.
func (w wire) wantDrain(t testing.TB, want int) {
	t.Helper()
	if got := w.Drain(); got != want {
		t.Fatalf("the drain returned %d, want %d", got, want)
	}
}

// wantNoReply checks that the ring for replies is empty.
func (w wire) wantNoReply(t testing.TB) {
	t.Helper()
	var rec Record
	if ok, err := w.r.TryReadInto(&rec); ok || err != nil {
		t.Errorf("there is a reply %q, %v", rec.RawSample, err)
	}
}

// fill writes samples of 56 bytes, in records of 64, until there is no room.
func fill(t testing.TB, w *Writer) {
	t.Helper()
	for range w.BufferSize() / 64 {
		mustWrite(t, w, make([]byte, 56))
	}
	if n := w.AvailableBytes(); n != 0 {
		t.Fatalf("%d bytes are free", n)
	}
}

// awaitWaits waits until n calls have begun to wait for room.
func awaitWaits(t testing.TB, w *Writer, n uint64) {
	t.Helper()
	for p := (patience{left: 5 * time.Second}); w.Stats().Waits < n; runtime.Gosched() {
		if p.over() {
			t.Fatalf("%d calls wait for room, want %d", w.Stats().Waits, n)
		}
	}
}

// awaitParked waits until one of these calls is in the netpoller.
func awaitParked(t testing.TB, w *Writer) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for p := (patience{left: 5 * time.Second}); ; runtime.Gosched() {
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "[IO wait") && strings.Contains(stack, "(*Writer).park(") {
				return
			}
		}
		if p.over() {
			t.Fatal("nobody waits in the netpoller")
		}
	}
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + seed)
	}
	return b
}

func TestWriterAndKernelAgreeOnEachSample(t *testing.T) {
	wire := newWire(t, 4096*4)
	sizes := []int{0, 1, 7, 8, 9, 15, 16, 17, 0, 63, 64, 100, 1000, 4095, 4096, 0}
	for round := range 20 { // the ring wraps around
		for i, n := range sizes {
			mustWrite(t, wire.w, pattern(n, round+i))
		}
		wire.wantDrain(t, len(sizes))
		for i, n := range sizes {
			if got := mustRead(t, wire.r).RawSample; !bytes.Equal(got, pattern(n, round+i)) {
				t.Fatalf("round %d: sample %d, of %d bytes, came back as %d others", round, i, n, len(got))
			}
		}
	}
	wire.wantNoReply(t)
	if n := wire.w.AvailableBytes(); n != wire.w.BufferSize() || n != 4096*4 {
		t.Errorf("%d bytes are free of %d", n, wire.w.BufferSize())
	}
}

func TestAnEmptySampleIsDrained(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	mustWrite(t, wire.w, nil)
	mustWrite(t, wire.w, []byte{})
	if err := mustReserve(t, wire.w, "").Submit(); err != nil {
		t.Fatal(err)
	}
	if got := wire.w.Stats().Fill; got != 3*recordHeaderSize {
		t.Errorf("three empty samples take %d bytes", got)
	}
	wire.wantDrain(t, 3)
	for range 3 {
		wantSample(t, wire.r, "")
	}
}

func TestReservationsAreSubmittedInAnyOrder(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	a, b, c := mustReserve(t, wire.w, "a"), mustReserve(t, wire.w, "b"), mustReserve(t, wire.w, "c")
	mustWrite(t, wire.w, []byte("d"))
	if got := wire.w.Stats(); got.Reserved != 3 || got.Samples != 1 {
		t.Errorf("Stats are %+v", got)
	}
	wire.wantDrain(t, 0) // a holds it up
	if err := c.Submit(); err != nil {
		t.Fatal(err)
	}
	b.Discard()
	wire.wantDrain(t, 0)
	if err := a.Submit(); err != nil {
		t.Fatal(err)
	}
	wire.wantDrain(t, 3)
	for _, want := range []string{"a", "c", "d"} {
		wantSample(t, wire.r, want)
	}
	wire.wantNoReply(t)
	for _, r := range []*Reservation{a, b, c} {
		if err := r.Submit(); err != errFinished {
			t.Errorf("Submit of a finished reservation returned %v", err)
		}
		r.Discard()
		if r.Bytes() != nil {
			t.Error("a finished reservation has bytes")
		}
	}
	want := WriterStats{Name: "commands", Size: os.Getpagesize(), Samples: 3, Bytes: 3, Discarded: 1}
	if got := wire.w.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
}

func TestAReservationThatIsGarbageIsDiscarded(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	mustReserve(t, wire.w, "nobody submits this")
	mustWrite(t, wire.w, []byte("behind"))
	for p := (patience{left: 5 * time.Second}); wire.w.Stats().Reserved > 0; {
		if p.over() {
			t.Fatal("it is still there")
		}
		runtime.GC()
	}
	wire.wantDrain(t, 1)
	wantSample(t, wire.r, "behind")
}

func TestTheLargestSampleIsDrainedAndALargerOneIsRefused(t *testing.T) {
	for _, tt := range []struct {
		size, largest int
		text          string
	}{
		{4 * 4096, 4*4096 - 8, `a sample of 16377 bytes is too large: map "commands", of 16384 bytes, ` +
			`has room for 16376, beside a header of 8: argument list too long`},
		{32 << 20, 1<<24 - 1, "a sample of 16777216 bytes is too large: the kernel hands at most " +
			"16777215 to a program: argument list too long"},
	} {
		wire := newWire(t, tt.size)
		wire.Control().Quiet = 1
		for range 3 {
			mustWrite(t, wire.w, make([]byte, tt.largest))
			wire.wantDrain(t, 1)
		}
		if got := wire.Control().Bytes; got != uint64(3*tt.largest) {
			t.Errorf("the program has got %d bytes, want three times %d", got, tt.largest)
		}
		n, err := wire.w.Write(make([]byte, tt.largest+1))
		if n != 0 || !errors.Is(err, syscall.E2BIG) || err.Error() != "ringbuf: writer: "+tt.text {
			t.Errorf("Write returned %d, %v, want %s", n, err, tt.text)
		}
		if _, err := wire.w.Reserve(tt.largest + 1); !errors.Is(err, syscall.E2BIG) {
			t.Errorf("Reserve returned %v", err)
		}
		if _, err := wire.w.Reserve(-1); !errors.Is(err, syscall.EINVAL) ||
			err.Error() != "ringbuf: writer: a sample of -1 bytes: invalid argument" {
			t.Errorf("Reserve of -1 returned %v", err)
		}
		wire.wantDrain(t, 0) // nothing was reserved
	}
}

func TestWriteWaitsForRoom(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags uint64
	}{
		{"drain that notifies", 0},
		{"drain that does not", bpftest.NoWakeup},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wire := newWire(t, os.Getpagesize())
			wire.Control().Flags, wire.Control().Quiet, wire.Control().Limit = tt.flags, 1, 1
			for i := range uint64(20) {
				fill(t, wire.w)
				var g group
				g.Go(func() { mustWrite(t, wire.w, make([]byte, 100)) }) // 112 bytes of the ring
				awaitWaits(t, wire.w, i+1)
				if i%2 == 0 {
					awaitParked(t, wire.w)
				}
				wire.wantDrain(t, 1) // room, but too little
				wire.wantDrain(t, 1)
				g.Wait()
				wire.Control().Limit = 0
				wire.wantDrain(t, os.Getpagesize()/64-1)
				wire.Control().Limit = 1
			}
		})
	}
}

// TestANotificationEndsAWait parks until a time that does not come, so only the notification
// ends the wait.
func TestANotificationEndsAWait(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.Control().Quiet = 1
	fill(t, wire.w)
	parked := make(chan error)
	go func() { parked <- wire.w.park(time.Now().Add(forever), 64) }()
	awaitParked(t, wire.w)
	wire.wantDrain(t, os.Getpagesize()/64)
	if err := <-parked; err != nil {
		t.Error(err)
	}
}

// TestADrainOfItsOwnEndsAWait has a drain of the Writer, of which neither the timer nor the
// kernel tells.
func TestADrainOfItsOwnEndsAWait(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.w.Close()
	wire.Control().Quiet, wire.Control().Flags = 1, bpftest.NoWakeup
	var full atomic.Bool
	w := mustNewWriter(t, wire, WithDrain(func() error {
		if full.Load() {
			wire.Drain()
		}
		return nil
	}))
	fill(t, w)
	parked := make(chan error)
	w.waker.parked.Store(true)
	go func() { parked <- w.park(time.Now().Add(forever), 64) }()
	awaitParked(t, w)
	full.Store(true)
	if err := w.drainer.kick(); err != nil {
		t.Error(err)
	}
	if err := <-parked; err != nil {
		t.Error(err)
	}
	w.waker.parked.Store(false)
	mustWrite(t, w, nil)
}

// TestWaitingWithTooLittleRoomDoesNotSpin waits while the kernel says EPOLLOUT all the time.
func TestWaitingWithTooLittleRoomDoesNotSpin(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.Control().Quiet, wire.Control().Limit = 1, 1
	fill(t, wire.w)
	wire.wantDrain(t, 1)
	looks := 0
	armed := wire.w.ring.parked
	wire.w.ring.parked = countedConn{armed, &looks}
	wire.w.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := wire.w.Write(make([]byte, 1000))
	wire.w.ring.parked = armed
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	// There are pauses of 1, 2, 4 … 64 ms, with three looks each: the wait, its first look, and
	// one when armed.
	if looks > 50 {
		t.Errorf("it looked %d times in 300 ms", looks)
	}
}

// A countedConn counts waits, and how often the netpoller asks.
type countedConn struct {
	syscall.RawConn
	looks *int
}

func (c countedConn) Read(f func(uintptr) bool) error {
	*c.looks++
	return c.RawConn.Read(func(fd uintptr) bool {
		*c.looks++
		return f(fd)
	})
}

func TestWhatWaitsIsInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name      string
		interrupt func(w *Writer, cancel func())
		want      error
		text      string
	}{
		{"by a deadline", func(w *Writer, _ func()) { w.SetDeadline(time.Now().Add(time.Millisecond)) },
			os.ErrDeadlineExceeded, `ringbuf: writer: the deadline passed before map "commands", of ` +
				fmt.Sprint(os.Getpagesize()) + " bytes, had room for a sample of 1: does a program drain " +
				"it? i/o timeout"},
		{"by a past deadline", func(w *Writer, _ func()) { w.SetDeadline(time.Unix(0, 1)) },
			os.ErrDeadlineExceeded, ""},
		{"by its context", func(_ *Writer, cancel func()) { cancel() }, context.Canceled,
			"context canceled"},
		{"by Close", func(w *Writer, _ func()) { w.Close() }, ErrClosed,
			"ringbuf: writer: file already closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wire := newWire(t, os.Getpagesize())
			wire.w.minPause = forever
			fill(t, wire.w)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			before := resources()
			errs := make(chan error)
			const n = 4 // one waits for the kernel, the others for that one
			for range n {
				go func() { errs <- wire.w.WriteContext(ctx, []byte("x")) }()
			}
			awaitWaits(t, wire.w, n)
			awaitParked(t, wire.w)
			tt.interrupt(wire.w, cancel)
			for range n {
				if err := <-errs; !errors.Is(err, tt.want) || tt.text != "" && err.Error() != tt.text {
					t.Errorf("Write returned %v, want %v", err, tt.want)
				}
			}
			if err := awaitResources(before); err != nil {
				t.Error(err)
			}
			if tt.want == ErrClosed {
				return
			}
			wire.w.SetDeadline(time.Time{})
			wire.Control().Quiet = 1
			wire.wantDrain(t, os.Getpagesize()/64)
			mustWrite(t, wire.w, []byte("x"))
			wire.wantDrain(t, 1)
		})
	}
}

func TestWithAPastDeadlineWriteDoesNotWait(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.w.SetDeadline(time.Unix(0, 1))
	fill(t, wire.w)
	for range 2 {
		if n, err := wire.w.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if _, err := wire.w.Reserve(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Reserve returned %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wire.wantDrain(t, os.Getpagesize()/64)
	if err := wire.w.WriteContext(ctx, []byte("x")); err != context.Canceled {
		t.Errorf("WriteContext returned %v", err)
	}
	wire.wantDrain(t, 0)
	mustWrite(t, wire.w, []byte("x"))
}

// TestALargeSampleIsNotStarved has small samples wait behind a large one. There would be room
// for them earlier.
func TestALargeSampleIsNotStarved(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	wire.Control().Quiet, wire.Control().Limit = 1, 1
	fill(t, wire.w)
	var g group
	var order []int
	var mu sync.Mutex
	for i, n := range []int{os.Getpagesize() / 2, 8, 8, 8} {
		g.Go(func() {
			if _, err := wire.w.Write(make([]byte, n)); err != nil {
				t.Error(err)
			}
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
		})
		awaitWaits(t, wire.w, uint64(i+1))
	}
	for i := range os.Getpagesize()/64/2 + 1 {
		mu.Lock()
		early := slices.Clone(order)
		mu.Unlock()
		if len(early) > 0 {
			t.Fatalf("%d came first", early[0])
		}
		wire.wantDrain(t, 1)
		if i == 0 { // a Write that finds room does not come first either
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if err := wire.w.WriteContext(ctx, nil); err != context.DeadlineExceeded {
				t.Errorf("a later Write returned %v", err)
			}
			cancel()
		}
	}
	// The next drains make room for the large one, and then for the others.
	for p := (patience{left: 5 * time.Second}); ; {
		mu.Lock()
		done := len(order)
		mu.Unlock()
		if done == 4 {
			break
		}
		if p.over() {
			t.Fatalf("%d of 4 have written", done)
		}
		wire.Drain()
	}
	g.Wait()
	if got := wire.w.Stats().Samples; got != uint64(os.Getpagesize()/64+4) {
		t.Errorf("%d samples were written", got)
	}
}

func TestNewWriterRefusesWhatItCannotWrite(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	hash, err := bpf.CreateMap(bpf.MapTypeHash, "my_hash", 4, 4, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(hash.FileDescriptor())
	prog, err := ring.Module().GetProgram("emit")
	if err != nil {
		t.Fatal(err)
	}
	old := ""
	if release, isOld := olderThan61(); isOld {
		old = ": user ring buffers need Linux 6.1, and this is " + release + ": unsupported operation"
	}
	before := resources()
	for _, tt := range []struct {
		m    Map
		opts []WriterOption
		want string
	}{
		{nil, nil, "ringbuf: writer: no map given"},
		{hash, nil, `map "my_hash" has type hash, not user_ringbuf` + old},
		{ring, nil, `map "events" has type ringbuf, not user_ringbuf: a ringbuf is read, by a Reader` +
			old},
		{FD(prog.FileDescriptor()), nil, "anon_inode:bpf-prog is not a BPF map"},
		{FD(-1), nil, "ringbuf: writer: descriptor -1: bad file descriptor"},
		{hash, []WriterOption{WithDrain(nil)}, "ringbuf: writer: WithDrain without a function"},
		{hash, []WriterOption{WithDrainProgram(nil)},
			"ringbuf: writer: WithDrainProgram without a program"},
		{hash, []WriterOption{WithDrainProgram(prog), WithDrainProgram(prog)},
			"ringbuf: writer: more than one of WithDrain and WithDrainProgram"},
		{hash, []WriterOption{WithDrainProgram(hash)}, "ringbuf: writer: drain program: descriptor " +
			fmt.Sprint(hash.FileDescriptor()) + ": anon_inode:bpf-map is not a BPF program"},
		{hash, []WriterOption{WithDrainProgram(FD(-1))},
			"ringbuf: writer: drain program: descriptor -1: bad file descriptor"},
		{hash, []WriterOption{WithDrainProgram(prog)},
			`map "my_hash" has type hash, not user_ringbuf` + old},
	} {
		w, err := NewWriter(tt.m, tt.opts...)
		if err == nil {
			w.Close()
			t.Errorf("NewWriter succeeded, want %q", tt.want)
		} else if !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("NewWriter returned %q, want %q", err, tt.want)
		} else if strings.HasSuffix(tt.want, "operation") != errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("is %q errors.ErrUnsupported?", err)
		}
	}
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
}

func TestNewWriterNeedsADescriptorForReadingAndWriting(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	before := resources()
	for _, flag := range []uint32{1 << 3, 1 << 4} { // BPF_F_RDONLY, BPF_F_WRONLY
		attr := struct{ id, next, flags uint32 }{id: mapID(t, ring), flags: flag}
		fd, err := bpfCommand(bpfMapGetFDByID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewWriter(FD(fd))
		syscall.Close(fd)
		if err == nil || !strings.HasPrefix(err.Error(), `ringbuf: writer: map "commands" of type `+
			`user_ringbuf: mmap positions, through a descriptor that must be for reading and writing: `) {
			t.Errorf("NewWriter returned %v", err)
		}
	}
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
}

func TestKernelsWithoutUserRingBuffersAreKnownByNumber(t *testing.T) {
	for release, want := range map[string]bool{
		"5.10.0-33-amd64": true, "6.0.19": true, "6.1.0-30-amd64": false, "6.12": false, "7.0-rc1": false,
		"4.19": true, "10.0.1": false, "": false, "what": false,
	} {
		if got := releaseOlderThan61(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

func TestCloseDiscardsReservations(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	r1 := mustReserve(t, wire.w, "first")
	mustWrite(t, wire.w, []byte("between"))
	r2 := mustReserve(t, wire.w, strings.Repeat("x", 2000)) // of two pages
	r3 := mustReserve(t, wire.w, "")
	mustWrite(t, wire.w, []byte("last"))
	b1, b2 := r1.Bytes(), r2.Bytes()
	wire.wantDrain(t, 0)
	if err := wire.w.Close(); err != nil {
		t.Fatal(err)
	}
	wire.wantDrain(t, 2)
	wantSample(t, wire.r, "between")
	wantSample(t, wire.r, "last")

	// Another Writer has the ring now. The owners of the reservations must not be able to
	// change it.
	next := mustNewWriter(t, wire)
	for range next.BufferSize() / 64 {
		mustWrite(t, next, bytes.Repeat([]byte("n"), 56))
	}
	for _, b := range [][]byte{b1, b2} {
		for i := range b {
			b[i] = 0xff
		}
	}
	wire.wantDrain(t, next.BufferSize()/64)
	for range next.BufferSize() / 64 {
		wantSample(t, wire.r, strings.Repeat("n", 56))
	}
	want := WriterStats{Name: "commands", Size: os.Getpagesize(), Samples: 2, Bytes: 11, Discarded: 3,
		Reserved: 3, Fill: 5*8 + 8 + 8 + 2000 + 8}
	if got := wire.w.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
	for range 2 {
		if err := r1.Submit(); !errors.Is(err, ErrClosed) && err != errFinished {
			t.Errorf("Submit after Close returned %v", err)
		}
	}
	r2.Discard()
	r3.Discard()
}

func TestAfterCloseThereAreErrorsOnly(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	w := wire.w
	mustWrite(t, w, []byte("x"))
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := w.Write(nil); n != 0 || !errors.Is(err, ErrClosed) {
		t.Errorf("Write returned %d, %v", n, err)
	}
	if err := w.WriteContext(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("WriteContext returned %v", err)
	}
	if _, err := w.Reserve(1); !errors.Is(err, ErrClosed) {
		t.Errorf("Reserve returned %v", err)
	}
	w.SetDeadline(time.Now())
	if a, b := w.AvailableBytes(), w.BufferSize(); a != 0 || b != os.Getpagesize() {
		t.Errorf("AvailableBytes is %d, BufferSize %d", a, b)
	}
	if got := w.Stats(); got.Samples != 1 || got.Fill != 16 {
		t.Errorf("Stats are %+v", got)
	}
	wire.wantDrain(t, 1) // what is in the ring remains
}

func TestASecondWriterIsFound(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	mustWrite(t, wire.w, []byte("a"))
	other := mustNewWriter(t, wire)
	mustWrite(t, other, []byte("b"))
	_, err := wire.w.Write([]byte("c"))
	if !errors.Is(err, syscall.EUCLEAN) || !strings.HasPrefix(err.Error(), `ringbuf: writer: map `+
		`"commands": the producer position is not where this Writer left it: somebody else writes`) {
		t.Errorf("Write returned %v", err)
	}
	if _, err := wire.w.Reserve(1); !errors.Is(err, syscall.EUCLEAN) {
		t.Errorf("Reserve returned %v", err)
	}
	wire.wantDrain(t, 2)

	// A Write that waits also finds it.
	fill(t, other)
	errs := make(chan error)
	go func() {
		_, err := other.Write(make([]byte, 100))
		errs <- err
	}()
	awaitWaits(t, other, 1)
	wire.Control().Quiet, wire.Control().Limit = 1, 1
	wire.wantDrain(t, 1) // room for 64 bytes
	mustWrite(t, mustNewWriter(t, wire), make([]byte, 56))
	if err := <-errs; !errors.Is(err, syscall.EUCLEAN) {
		t.Errorf("the Write that waited returned %v", err)
	}
}

func TestAGarbageWriterIsClosed(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	before := resources()
	func() {
		w, err := NewWriter(ring, WithDrainProgram(ring.Program()))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, w, []byte("x"))
		if _, err := w.Reserve(10); err != nil {
			t.Fatal(err)
		}
	}()
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
	mustNewWriter(t, ring) // finds no record that is reserved
}

func TestOpenAndCloseWritersLeaveNothing(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	before := resources()
	for range 200 {
		w, err := NewWriter(ring, WithDrainProgram(ring.Program()))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, w, []byte("x"))
		r, err := w.Reserve(10)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r.Discard()
	}
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
	if got := ring.Control().Samples; got != 200 {
		t.Errorf("%d samples were drained", got)
	}
}

func TestAWatcherSeesWhatAWriterHasWritten(t *testing.T) {
	wire := newWire(t, 2*os.Getpagesize())
	watcher := mustWatch(t, wire)
	mustWrite(t, wire.w, make([]byte, 100))
	mustReserve(t, wire.w, "12345678").Discard()
	want := WatchStats{Name: "commands", ID: mapID(t, wire), Size: 2 * os.Getpagesize(),
		Producer: 128, Fill: 128}
	if got := watcher.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
	if got := wire.w.Stats().Fill; got != want.Fill {
		t.Errorf("Fill is %d", got)
	}
	wire.wantDrain(t, 1)
	want.Consumer, want.Fill = 128, 0
	if got := watcher.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
}

// A fakeDrain is a drain function. The test sees each call and says when it ends.
type fakeDrain struct {
	running atomic.Int32
	begun   chan struct{}
	end     chan error
}

func newFakeDrain() *fakeDrain {
	return &fakeDrain{begun: make(chan struct{}), end: make(chan error)}
}

func (d *fakeDrain) drain() error {
	if d.running.Add(1) != 1 {
		panic("two calls at once")
	}
	defer d.running.Add(-1)
	d.begun <- struct{}{}
	return <-d.end
}

func TestASubmitDuringADrainLeadsToOneMore(t *testing.T) {
	d := newFakeDrain()
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	w := mustNewWriter(t, ring, WithDrain(d.drain))
	errs := make(chan error, 1)
	go func() { errs <- w.WriteContext(context.Background(), []byte("a")) }()
	<-d.begun
	mustWrite(t, w, []byte("b")) // these do not wait
	mustWrite(t, w, []byte("c"))
	mustReserve(t, w, "d").Discard()
	d.end <- nil
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	<-d.begun // one call for b, c and d
	mustWrite(t, w, []byte("e"))
	failed := errors.New("failed in the background")
	d.end <- failed
	<-d.begun
	d.end <- nil
	w.drainer.rests.Wait()
	if got := w.Stats().Drains; got != 3 {
		t.Errorf("there were %d calls", got)
	}

	go func() { errs <- w.WriteContext(context.Background(), []byte("f")) }()
	<-d.begun
	d.end <- nil
	if err := <-errs; err != failed {
		t.Errorf("the call after one that failed in the background returned %v", err)
	}

	own := errors.New("failed")
	go func() {
		n, err := w.Write([]byte("g"))
		if n != 1 {
			t.Errorf("Write returned %d", n)
		}
		errs <- err
	}()
	<-d.begun
	d.end <- own
	if err := <-errs; err != own {
		t.Errorf("Write returned %v", err)
	}
	if got := ring.Drain(); got != 6 {
		t.Errorf("%d samples are in the ring", got)
	}
}

func TestCloseWaitsForTheDrainAndDrains(t *testing.T) {
	d := newFakeDrain()
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	w, err := NewWriter(ring, WithDrain(d.drain))
	if err != nil {
		t.Fatal(err)
	}
	r := mustReserve(t, w, "r")
	wrote, closed := make(chan error, 1), make(chan error, 1)
	go func() { wrote <- w.WriteContext(context.Background(), []byte("a")) }()
	<-d.begun
	go func() { closed <- w.Close() }()
	for !isClosed(w) {
		runtime.Gosched()
	}
	if len(closed) > 0 {
		t.Error("Close returned during a call")
	}
	d.end <- nil
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	<-d.begun // because r is discarded
	last := errors.New("the last one")
	d.end <- last
	if err := <-closed; err != last {
		t.Errorf("Close returned %v", err)
	}
	if got := ring.Drain(); got != 1 {
		t.Errorf("%d samples are in the ring", got)
	}
	if err := r.Submit(); !errors.Is(err, ErrClosed) {
		t.Errorf("Submit returned %v", err)
	}
}

func isClosed(w *Writer) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

func TestTheDrainProgramDrainsAllThatIsSubmitted(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), 1<<20)
	w := mustNewWriter(t, ring, WithDrainProgram(ring.Program()))
	r := mustNewReader(t, ring.Replies(), WithMaxDelay(0))
	for i := range 1000 { // many times the ring; no call waits: each sample is drained at once
		mustWrite(t, w, fmt.Append(nil, i))
		wantSample(t, r, fmt.Sprint(i))
	}
	held := mustReserve(t, w, "held")
	mustWrite(t, w, []byte("behind"))
	if err := held.Submit(); err != nil {
		t.Fatal(err)
	}
	wantSample(t, r, "held")
	wantSample(t, r, "behind")
	held = mustReserve(t, w, "held")
	mustWrite(t, w, []byte("behind"))
	held.Discard()
	wantSample(t, r, "behind")
	if got := w.Stats(); got.Waits != 0 || got.Drains != 1004 {
		t.Errorf("Stats are %+v", got)
	}
}

// TestADrainThatLeavesSamplesIsRepeated has a program that takes one sample at a time.
func TestADrainThatLeavesSamplesIsRepeated(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	ring.Control().Quiet, ring.Control().Limit, ring.Control().Flags = 1, 1, bpftest.NoWakeup
	calls := 0
	w := mustNewWriter(t, ring, WithDrain(func() error {
		if calls++; calls > os.Getpagesize()/64 {
			ring.Drain()
		}
		return nil
	}))
	fill(t, w)
	mustWrite(t, w, make([]byte, 500))
	if got := ring.Control().Samples; got < 8 {
		t.Errorf("%d samples were drained, and 8 had to be", got)
	}
}

func TestTheDrainProgramsErrorsAreReturned(t *testing.T) {
	wire := newWire(t, os.Getpagesize())
	w := wire.w
	w.Close()
	w = mustNewWriter(t, wire, WithDrainProgram(wire.Program()))
	wire.Control().Flags = 1 << 20 // which the kernel refuses
	n, err := w.Write([]byte("a"))
	if n != 1 || !errors.Is(err, syscall.EINVAL) ||
		err.Error() != "ringbuf: writer: the drain program returned -22: invalid argument" {
		t.Errorf("Write returned %d, %v", n, err)
	}
	wire.Control().Flags = 0
	mustWrite(t, w, []byte("b"))
	wantSample(t, wire.r, "a")
	wantSample(t, wire.r, "b")

	// A program of another type cannot be run.
	ring := bpftest.New(t, os.Getpagesize())
	prog, err := ring.Module().GetProgram("count")
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	w = mustNewWriter(t, wire, WithDrainProgram(prog))
	if n, err = w.Write([]byte("c")); n != 1 || !errors.Is(err, syscall.EINVAL) ||
		err.Error() != "ringbuf: writer: run drain program: BPF_PROG_TEST_RUN: invalid argument" {
		t.Errorf("Write returned %d, %v", n, err)
	}
}

const writerPin = "RINGBUF_TEST_WRITER_PIN"

// TestWhatAKilledWriterReservedIsRepaired kills a process that has reserved records.
func TestWhatAKilledWriterReservedIsRepaired(t *testing.T) {
	if pin := os.Getenv(writerPin); pin != "" {
		writeUntilKilled(t, pin)
		return
	}
	wire := newWire(t, 2*os.Getpagesize())
	wire.w.Close()
	pin := filepath.Join(mountBPF(t), "commands")
	if err := wire.BPFMap().Pin(pin); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.LockOSThread() // the kernel kills the process when this thread ends
		cmd := testCommand("^"+t.Name()+"$", writerPin+"="+pin)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said []byte
		for buf := make([]byte, 1000); !bytes.Contains(said, []byte("reserved\n")); {
			n, err := out.Read(buf)
			if said = append(said, buf[:n]...); err != nil {
				t.Fatalf("%v\n%s", err, said)
			}
		}
		// While the process lives, the error names it.
		_, err = NewWriter(wire)
		pid := fmt.Sprintf("pid %d", cmd.Process.Pid)
		if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), pid) {
			t.Errorf("NewWriter beside a Writer returned %v", err)
		}
		cmd.Process.Kill()
		if err := cmd.Wait(); !killed(err) {
			t.Fatalf("the process ended with %v", err)
		}
		runtime.UnlockOSThread()

		wire.wantDrain(t, 1)
		wantSample(t, wire.r, "before")
		before := resources()
		_, err = NewWriter(wire)
		const want = `ringbuf: writer: map "commands" has 2 records that another Writer has reserved ` +
			`and not submitted, at which the kernel's drain stops: if that Writer's process is dead, ` +
			`WithRepair discards them: device or resource busy`
		if !errors.Is(err, syscall.EBUSY) || err.Error() != want {
			t.Errorf("NewWriter returned %v, want %s", err, want)
		}
		if err := awaitResources(before); err != nil {
			t.Error(err)
		}
		wire.wantDrain(t, 0)
		w, err := NewWriter(wire, WithRepair())
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Stats().Repaired; got != 2 {
			t.Errorf("%d records were repaired", got)
		}
		wire.wantDrain(t, 1)
		wantSample(t, wire.r, "between")
		mustWrite(t, w, []byte("after"))
		wire.wantDrain(t, 1)
		wantSample(t, wire.r, "after")
		w.Close()
		mustNewWriter(t, wire, WithRepair()).Close() // with nothing to repair
	}
	wire.wantNoReply(t)
}

func writeUntilKilled(t *testing.T, pin string) {
	fd, err := openAnyPinned(pin)
	if err != nil {
		t.Fatal(err)
	}
	w := mustNewWriter(t, FD(fd))
	mustWrite(t, w, []byte("before"))
	defer runtime.KeepAlive(mustReserve(t, w, strings.Repeat("x", 1000)))
	mustWrite(t, w, []byte("between"))
	defer runtime.KeepAlive(mustReserve(t, w, "y"))
	fmt.Println("reserved")
	select {}
}

// openAnyPinned returns a descriptor of the ring that is pinned at path.
func openAnyPinned(path string) (int, error) {
	m, err := OpenMap(path)
	if err != nil {
		return -1, err
	}
	return dup(m.FileDescriptor())
}

// TestNewWriterRefusesACorruptRing writes wrong values to the ring.
func TestNewWriterRefusesACorruptRing(t *testing.T) {
	page := os.Getpagesize()
	for _, tt := range []struct {
		name             string
		producer         uint64
		header           uint32
		refused, repairs bool
	}{
		{"producer position that is no multiple of 8", 12, 0, true, false},
		{"producer position ahead of the ring", uint64(page) + 8, 0, true, false},
		{"record beyond the producer position", 64, 57, true, false},
		{"whole record", 64, 56, false, false},
		{"reserved one", 64, 56 | busyBit, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring := bpftest.NewUser(t, page, page)
			mem, err := syscall.Mmap(ring.FileDescriptor(), int64(page), 2*page,
				syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer syscall.Munmap(mem)
			binary.NativeEndian.PutUint64(mem, tt.producer)
			binary.NativeEndian.PutUint32(mem[page:], tt.header)
			for _, repair := range []bool{false, true} {
				var opts []WriterOption
				if repair {
					opts = append(opts, WithRepair())
				}
				w, err := NewWriter(ring, opts...)
				if refused := tt.refused && !(repair && tt.repairs); refused != (err != nil) {
					t.Errorf("NewWriter returned %v", err)
				} else if err != nil && !tt.repairs && !errors.Is(err, syscall.EUCLEAN) {
					t.Errorf("NewWriter returned %v, which is not EUCLEAN", err)
				}
				if err == nil {
					w.Close()
				}
			}
		})
	}
}
