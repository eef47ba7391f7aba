package ringbuf

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// A Writer writes samples into a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF, Linux 6.1). A BPF
// program drains the ring with bpf_user_ringbuf_drain. So a Writer is the other direction of a
// Reader. Any number of goroutines may call its methods at the same time. Each sample is in the
// ring once, in the order of the calls, as a record: a header of 8 bytes, the sample, and padding
// to a multiple of 8.
//
// The kernel is not notified of a write. A program has to run and drain the ring. That may be a
// program that runs often anyway, or one that the Writer runs: see [WithDrain] and
// [WithDrainProgram].
//
// A user ring buffer has one producer position. So only one Writer on the machine may write to it
// at a time. When a Writer finds that somebody else has moved the position, it returns an error
// that wraps syscall.EUCLEAN. It does not find what both have written at the same time.
type Writer struct {
	ring    *userRing
	drainer *drainer // or nil
	close   func() error
	cleanup runtime.Cleanup
	done    chan struct{}  // closed when Close begins
	kicks   sync.WaitGroup // calls of drainer.kick

	mu       sync.Mutex // held for calls of C, all of which are short
	closed   bool
	late     bool // a reservation was submitted or discarded after closed was set
	released bool // the ring is closed; it is freed when no reservation is out
	waiting  int  // number of calls that wait for room
	lent     lentList
	stats    WriterStats

	// One of the waiting calls has the turn, and waits for the kernel. The others wait for turn.
	turn     chan struct{}
	waker    *waker
	minPause time.Duration // minRoomPause, except in tests

	timing   sync.Mutex
	deadline time.Time
	changed  chan struct{} // closed when the deadline changes
}

// A WriterOption changes how a Writer writes.
type WriterOption func(*writerOptions)

type writerOptions struct {
	drains []func() error
	progs  []Program
	repair bool
}

// WithRepair makes NewWriter discard records that another Writer has reserved and not submitted
// before its process died. Use it only if no other process writes to the ring. Another Writer that
// still submits such a record may overwrite a record of this Writer.
func WithRepair() WriterOption { return func(o *writerOptions) { o.repair = true } }

// NewWriter returns a Writer to the user ring buffer m.
//
// It duplicates the descriptor of the map. So m, and the libbpfgo Module that it belongs to, may be
// closed while the Writer goes on. It needs a descriptor for reading and writing. It needs no
// capability, except on kernels where [NewReader] needs one.
//
// The error names the map and the step that failed, and wraps the errno if there is one. NewWriter
// fails if
//
//   - the map is not a user ring buffer. Kernels before 6.1 have none. There, on other systems than
//     Linux, and without cgo, the error wraps errors.ErrUnsupported.
//   - a record is reserved and not submitted, by another Writer or by a process that has died. The
//     kernel's drain would stop at it for ever. The error wraps syscall.EBUSY. See [WithRepair].
//   - another Writer is writing at this moment. The error wraps syscall.EBUSY.
//
// Close releases the Writer's resources. If a Writer is dropped without Close, they are released
// after a garbage collection.
func NewWriter(m Map, opts ...WriterOption) (*Writer, error) {
	var o writerOptions
	for _, opt := range opts {
		opt(&o)
	}
	drainer, err := newDrainer(o)
	if err != nil {
		return nil, fmt.Errorf("ringbuf: writer: %w", err)
	}
	ring, err := openUserRing(m, o.repair)
	if err != nil {
		drainer.free()
		return nil, fmt.Errorf("ringbuf: writer: %w", err)
	}
	waker := &waker{file: ring.file}
	if drainer != nil {
		drainer.waker, drainer.ring = waker, ring
	}
	w := &Writer{
		ring:    ring,
		drainer: drainer,
		waker:   waker,

		minPause: minRoomPause,

		done:    make(chan struct{}),
		turn:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	w.turn <- struct{}{}
	w.stats = WriterStats{Name: ring.name, Size: int(ring.size), Repaired: ring.repaired}
	w.close = sync.OnceValue(w.doClose)
	w.cleanup = runtime.AddCleanup(w, func(ring *userRing) {
		go func() { // a goroutine, because a drain must not hold up other cleanups
			drainer.wait()
			ring.close()
			ring.free()
			drainer.free()
		}()
	}, ring)
	return w, nil
}

var errWriterClosed = fmt.Errorf("ringbuf: writer: %w", ErrClosed)

// Write writes a record with a copy of sample, which may be empty. It implements io.Writer. If
// there is no room, Write waits until the kernel has drained enough. Waiting calls get room in the
// order of the calls, and hold no thread. Write waits until
//
//   - the deadline of SetDeadline passes: an error that wraps os.ErrDeadlineExceeded,
//   - Close is called: an error that wraps ErrClosed.
//
// The largest sample has 8 bytes less than the ring, and at most 16 MiB less a byte, which is the
// most that the kernel passes to a program (DYNPTR_MAX_SIZE in kernel/bpf/helpers.c). For a larger
// sample the error wraps syscall.E2BIG and names the limit.
//
// The sample is in the ring if and only if the returned number is len(sample). An error that comes
// with that number is one of the drain function: see [WithDrain].
//
// An error that wraps syscall.EUCLEAN means that the producer position is not where this Writer
// left it, because somebody else writes to the ring. Every call returns this error until the
// position is back. To continue from the ring's present state, open a new Writer.
func (w *Writer) Write(sample []byte) (int, error) { return w.write(context.Background(), sample) }

// WriteContext is like Write, but also returns when ctx is done, with the error of ctx. If ctx is
// already done, it writes nothing.
func (w *Writer) WriteContext(ctx context.Context, sample []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := w.write(ctx, sample)
	return err
}

func (w *Writer) write(ctx context.Context, sample []byte) (int, error) {
	if err := w.lockForRoom(ctx, len(sample)); err != nil {
		return 0, err
	}
	err := w.ring.write(sample)
	if err == errFull {
		if err = w.waitForRoom(ctx, len(sample)); err != nil {
			return 0, err
		}
		err = w.ring.write(sample)
	}
	if err != nil {
		w.mu.Unlock()
		return 0, w.failed(err)
	}
	w.stats.Samples++
	w.stats.Bytes += uint64(len(sample))
	return len(sample), w.unlockAndDrain()
}

// lockForRoom locks mu and returns when this call may try to write n bytes. On failure mu is not
// locked.
func (w *Writer) lockForRoom(ctx context.Context, n int) error {
	if n < 0 || n > w.ring.maxSample {
		return w.ring.tooLarge(n)
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errWriterClosed
	}
	if w.waiting > 0 { // usually for more; small samples must not starve a large one
		return w.waitForRoom(ctx, n)
	}
	return nil
}

// unlockAndDrain unlocks mu and makes the kernel drain what was submitted.
func (w *Writer) unlockAndDrain() error {
	if w.drainer == nil {
		w.mu.Unlock()
		return nil
	}
	w.kicks.Add(1)
	w.mu.Unlock()
	defer w.kicks.Done()
	return w.drainer.kick()
}

func (w *Writer) failed(err error) error {
	return fmt.Errorf("ringbuf: writer: %w", w.ring.explain(err))
}

// SetDeadline sets the time until which Write and Reserve wait for room. It also applies to calls
// that are already waiting, and does not wait for them. The zero Time, the default, means no
// deadline. If the time is in the past, calls do not wait: they succeed only if there is room and
// no other call is waiting.
func (w *Writer) SetDeadline(t time.Time) {
	w.timing.Lock()
	w.deadline = t
	close(w.changed)
	w.changed = make(chan struct{})
	w.timing.Unlock()
	w.waker.wake()
}

// AvailableBytes returns the number of free bytes of the ring. A record takes its sample, 8 bytes
// of header, and padding, until the kernel has drained it. After Close it returns 0.
func (w *Writer) AvailableBytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0
	}
	return int(w.ring.room())
}

// BufferSize returns the size of the ring in bytes.
func (w *Writer) BufferSize() int { return int(w.ring.size) }

// Close interrupts waiting calls. It discards the reservations that are out, so that the kernel's
// drain does not stop at them. It waits for a running call of the drain function, and calls the
// function once more if it has discarded something. Records in the ring stay there, to be drained.
//
// Close releases the Writer's descriptors, mappings and memory. The memory of a reservation is
// released when the reservation is submitted or discarded.
//
// Further calls do nothing and return the same as the first: nil, an error of the drain function,
// or an error that wraps syscall.ENOMEM. The last means that Close could not replace the memory of
// the reservations. They are discarded, but whoever still writes to their Bytes writes into the
// ring.
func (w *Writer) Close() error {
	w.cleanup.Stop()
	return w.close()
}

func (w *Writer) doClose() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	close(w.done)
	w.waker.wake()
	<-w.turn // kept, so that no call waits for the kernel any more
	w.kicks.Wait()
	defer w.release() // deferred, because the drain function may panic

	w.mu.Lock()
	n, err := w.discardLent()
	drain := n > 0 || w.late
	w.mu.Unlock()
	if err != nil {
		err = w.failed(fmt.Errorf("take the ring away from reservations, to whose Bytes nobody may "+
			"write any more: %w", err))
	}
	if failed := w.drainer.end(drain); err == nil {
		err = failed
	}
	return err
}

func (w *Writer) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Fill = w.ring.fill()
	w.ring.close()
	w.released = true
	if w.lent.count == 0 {
		w.ring.free()
	}
	w.drainer.free()
}
