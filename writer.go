package ringbuf

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// A Writer writes samples into a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF, Linux 6.1), which a
// BPF program drains by bpf_user_ringbuf_drain: the other direction of a Reader. All of its methods
// may be called by any number of goroutines at once. Each sample is in the ring once, in the order
// of the calls, as a record: a header of 8 bytes, the sample, and padding to a multiple of 8.
//
// The kernel is not told of what is written. Some program has to run that drains: one that runs
// often anyway, or one that the Writer makes run; see WithDrain and WithDrainProgram.
//
// A user ring buffer has one producer position: at any time only one Writer, of all processes, may
// write to it. When a Writer finds that somebody else has moved that position, it returns an error
// that wraps syscall.EUCLEAN. What both wrote at the same time is not found.
type Writer struct {
	ring    *userRing
	drainer *drainer // or nil
	close   func() error
	cleanup runtime.Cleanup
	done    chan struct{} // closed when Close begins
	kicks   sync.WaitGroup

	mu       sync.Mutex // held for calls of C, all of which are short
	closed   bool
	late     bool // something was submitted or discarded since
	released bool // the ring is closed, and freed when nothing is lent
	waiting  int  // calls that wait for room
	lent     lentList
	stats    WriterStats

	// Of those that wait one has the turn, and waits for the kernel; the others wait for turn.
	turn     chan struct{}
	waker    *waker
	minPause time.Duration // minRoomPause, but for tests

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

// WithRepair lets NewWriter discard the records that another Writer reserved and did not submit
// before its process died. Use it only if no other process writes to the ring: another Writer that
// submits such a record later may overwrite what was put in its place.
func WithRepair() WriterOption { return func(o *writerOptions) { o.repair = true } }

// NewWriter returns a Writer to the user ring buffer m.
//
// It duplicates the map's descriptor, so that m may be closed, with the libbpfgo Module that it
// belongs to, while the Writer goes on. It needs no capability, only a descriptor for reading and
// writing; see NewReader for kernels before 6.0 and their sysctl.
//
// The error names the map and what was being done, and wraps the errno where there is one. A map
// that is no user ring buffer is an error. On kernels before 6.1, which have none, the error says
// that, and wraps errors.ErrUnsupported, as it does where there is no Linux or no cgo. A record
// that is reserved and not submitted, left by a process that died or held by another Writer, is an
// error that wraps syscall.EBUSY: the kernel's drain stops at it for ever. See WithRepair. So is
// another Writer that is seen to be writing.
//
// Close releases the Writer's resources. If it is dropped without a Close, they are released after
// the garbage collector has found out.
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
		go func() { // for other cleanups do not wait for a drain
			drainer.wait()
			ring.close()
			ring.free()
			drainer.free()
		}()
	}, ring)
	return w, nil
}

var errWriterClosed = fmt.Errorf("ringbuf: writer: %w", ErrClosed)

// Write writes one record that has a copy of sample, which may be empty. It implements io.Writer.
// If there is no room it waits until the kernel has drained enough, in the order of the calls that
// wait, and holds no thread meanwhile, until
//
//   - the deadline of SetDeadline has passed: an error that wraps os.ErrDeadlineExceeded,
//   - Close is called: an error that wraps ErrClosed.
//
// A sample has at most 16 MiB less a byte, the most that the kernel hands to a program
// (DYNPTR_MAX_SIZE in kernel/bpf/helpers.c), and 8 bytes less than the ring. For a larger one the
// error wraps syscall.E2BIG, and names the limit.
//
// The sample is in the ring if and only if the number returned is len(sample): also with an error
// then, which is that of the drain function. See WithDrain.
//
// An error that wraps syscall.EUCLEAN says that the producer position is not where this Writer left
// it: somebody else writes to the ring. It is returned by every call until the position is back. To
// go on from where the ring is now, open a new Writer.
func (w *Writer) Write(sample []byte) (int, error) { return w.write(context.Background(), sample) }

// WriteContext is like Write, but also returns when ctx is done, with the error of ctx. With a ctx
// that is done already it writes nothing.
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

// lockForRoom returns with mu locked when it is this call's turn to try to write n bytes. If it
// fails mu is not locked.
func (w *Writer) lockForRoom(ctx context.Context, n int) error {
	if n < 0 || n > w.ring.maxSample {
		return w.ring.tooLarge(n)
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return errWriterClosed
	}
	if w.waiting > 0 { // for more, as a rule: a stream of small ones would starve a large one
		return w.waitForRoom(ctx, n)
	}
	return nil
}

// unlockAndDrain unlocks mu, and has the kernel drain what was submitted before.
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

// SetDeadline sets the time after which Write and Reserve do not wait for room. It applies to calls
// that are already waiting too, and never waits for them. The zero Time means no deadline, which is
// the default. With a time in the past they do not wait at all: they succeed if there is room and
// no other call waits for it.
func (w *Writer) SetDeadline(t time.Time) {
	w.timing.Lock()
	w.deadline = t
	close(w.changed)
	w.changed = make(chan struct{})
	w.timing.Unlock()
	w.waker.wake()
}

// AvailableBytes returns the number of bytes of the ring that are free: as many as records take,
// their headers and padding included. What is submitted takes room until the kernel has drained it.
// It is 0 after Close.
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

// Close interrupts all waiting calls and discards the reservations that are out, so that the
// kernel's drain does not stop at them. It waits for a call of the drain function, calls it once
// more if it has discarded something, and releases the Writer's descriptors, mappings and memory:
// that of reservations when they are finished. What is in the ring remains there, to be drained.
//
// Further calls do nothing and return the same as the first: nil, an error of the drain function,
// or one that wraps syscall.ENOMEM when there is no memory to put in the place of what reservations
// had. They are discarded then too, but who still writes to their Bytes writes into the ring.
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
	<-w.turn // for ever: nobody waits for the kernel
	w.kicks.Wait()
	defer w.release() // also if the drain function panics

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
