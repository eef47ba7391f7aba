package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	_ "github.com/libbpfgo/ringbuf/bpf" // for go mod vendor to copy ringbuf.bpf.h
)

// ErrClosed is what errors.Is finds in the error of a Read or Flush after Close.
var ErrClosed = os.ErrClosed

// ErrFlushed is returned by Read, once for each call of Flush, when everything that was in
// the ring at that call has been returned.
var ErrFlushed = errors.New("ringbuf: flushed")

// A Reader reads the records of one or more BPF ring buffers. Any number of goroutines may call
// its methods at the same time. Each record is returned once, to one of them, in the order of its
// ring.
//
// A ring buffer has a single consumer position. So only one Reader on the machine may read a ring
// at a time. A Reader that finds the position moved by somebody else returns an error: see
// [Reader.Read]. The documentation of Read holds for the other methods that return records, unless
// theirs says otherwise.
//
// A Reader takes samples in batches, with one call of C for many samples, and only while somebody
// reads. A waiting call holds no thread of the operating system, except in the first tenth of a
// second of a wait that follows a sample, and in the last moment before a deadline.
type Reader struct {
	queue   *queue
	cleanup runtime.Cleanup
	close   func() error
}

// NewReader returns a Reader of the ring buffer m.
//
// It duplicates the descriptor of the map. So m, and the libbpfgo Module that it belongs to, may
// be closed while the Reader goes on.
//
// It needs a descriptor for reading and writing: with BPF_F_RDONLY or BPF_F_WRONLY the kernel
// refuses to map the consumer position. It needs no capability, except on kernels before 6.0 where
// the sysctl kernel.unprivileged_bpf_disabled is set. There all bpf(2) commands need CAP_BPF.
//
// The error names the map and the step that failed, and wraps the errno if there is one. NewReader
// fails if the map is not a ring buffer, if it is in overwrite mode (BPF_F_RB_OVERWRITE, which
// libbpf cannot consume), if its consumer position is corrupt, or if the process is short of a
// resource.
//
// Close releases the Reader's resources. If a Reader is dropped without Close, they are released
// after a garbage collection.
func NewReader(m Map, opts ...Option) (*Reader, error) {
	return NewMultiReader([]Map{m}, opts...)
}

// NewMultiReader returns a Reader of one or more ring buffers. The requirements are those of
// [NewReader], for each map. Record.Ring is the index in maps of the ring that a record is from.
//
// The rings take turns. While several have records, the Reader takes one batch, or one lease of up
// to 64 KiB, from each. So a flooded ring does not delay the others.
//
// Use several rings when BPF programs on several processors write at the same time. The kernel
// locks a ring for each record, so programs that share a ring wait for each other. To avoid that,
// give each processor or NUMA node a ring of its own, in a map of type
// BPF_MAP_TYPE_ARRAY_OF_MAPS. See examples/sharded.
//
// What the documentation says of one ring holds for each. An error of Read names its map, except
// for the errors of a deadline, Flush and Close. Reads in between return the records of the other
// rings. The default delay of wakeup moderation is that of the ring that a flood would fill first.
// If one ring is small for its records, all rings are read eagerly.
func NewMultiReader(maps []Map, opts ...Option) (*Reader, error) {
	o := options{maxDelay: -1}
	for _, opt := range opts {
		opt(&o)
	}
	src, err := openRings(maps, o)
	if err != nil {
		return nil, nameOthers(fmt.Errorf("ringbuf: %w", err))
	}
	return newReader(src), nil
}

func newReader(src rings) *Reader {
	r := &Reader{queue: newQueue(src)}
	r.close = sync.OnceValue(r.queue.close)
	// Of the queue, not of r: a method may be the last to use r, and still be running.
	// Whoever uses src does so in a method of the queue that needs the queue afterwards.
	r.cleanup = runtime.AddCleanup(r.queue, func(src rings) { src.close() }, src)
	return r
}

// Read returns the next record. Its RawSample belongs to the caller, who may keep it and write to
// it. Samples of up to 2 KiB share larger allocations, so that one kept sample may retain 32 KiB
// of memory.
//
// Read waits for a record until
//
//   - the deadline of SetDeadline passes: os.ErrDeadlineExceeded,
//   - Flush is called: ErrFlushed,
//   - Close is called: an error that wraps ErrClosed.
//
// Before it returns one of the first two errors, Read returns all records that were in the rings
// when the deadline passed or Flush was called. It may also return some later records, but the
// error comes even if a producer is always ahead of the caller. After os.ErrDeadlineExceeded the
// next drain begins: while the deadline remains in the past, the following calls return what is in
// the rings by then.
//
// Read returns a record whether or not the kernel notified of it (BPF_RB_NO_WAKEUP). It skips
// records that were discarded. A record that is reserved and not yet submitted holds back all
// records behind it.
//
// libbpf consumes samples in batches. A batch is up to 16 KiB, or a single larger sample, or a
// released lease. Close, and the death of the process, lose the samples that were consumed and not
// yet returned. Records and Lease lose nothing, unless a Read has drained it before.
//
// While a lease is out, Read returns the records behind the lent ones.
//
// An error that wraps syscall.EUCLEAN means that the consumer position is not where this Reader
// left it. Another Reader reads this ring, in this process or another one, or somebody writes to
// the position. Every Read returns this error until the position is back. To continue from the
// ring's present state, open a new Reader. The text names processes that had the map open when the
// Reader first found such an error, as far as /proc shows them. A process that has only mapped the
// ring is not found. A process that is named may have the map open for other reasons.
//
// An error that wraps syscall.EBADF means that this process closed a descriptor of the Reader, or
// replaced it by another file. No record is lost, but only a new Reader can read the rest.
func (r *Reader) Read() (rec Record, err error) {
	if q := r.queue; !q.take(&rec, true) {
		err = q.read(context.Background(), &rec, true)
	}
	return rec, err
}

// ReadContext is like Read, but also returns when ctx is done, with the error of ctx. It returns
// at once, even while other goroutines wait, and leaves the records that are in the ring.
func (r *Reader) ReadContext(ctx context.Context) (rec Record, err error) {
	q := r.queue
	if err := ctx.Err(); err != nil || q.take(&rec, true) {
		return rec, err
	}
	defer context.AfterFunc(ctx, q.interrupt)()
	err = q.read(ctx, &rec, true)
	return rec, err
}

// ReadInto is like Read, but reuses the capacity of rec.RawSample. A loop that uses one Record
// allocates nothing. On error rec is unchanged, except for the bytes in that capacity. A process
// that is killed loses at most a batch, as with Read.
func (r *Reader) ReadInto(rec *Record) error {
	if q := r.queue; !q.take(rec, false) {
		return q.read(context.Background(), rec, false)
	}
	return nil
}

// TryReadInto is like ReadInto, but never waits. Use it in a loop that has other work to do. It
// reports whether there was a record. It returns any record that is in a ring, regardless of
// WithMaxDelay, except those behind a record that is reserved and not yet submitted.
//
// It ignores the deadline, and so never returns os.ErrDeadlineExceeded. The other errors are those
// of Read. After Flush it returns ErrFlushed when everything that was in the rings has been
// returned, unless another read has returned it already.
//
// TryReadInto also reports false while another goroutine waits in Read, in Lease or in a loop.
// That goroutine gets the next record.
func (r *Reader) TryReadInto(rec *Record) (ok bool, err error) {
	if q := r.queue; !q.take(rec, false) {
		return q.tryRead(rec)
	}
	return true, nil
}

// SetDeadline sets the time after which Read does not wait for records. It also applies to calls
// that are already waiting. The zero Time, which is the default, means no deadline. With a time in
// the past, Read and Lease do not wait at all. SetDeadline itself never waits.
func (r *Reader) SetDeadline(t time.Time) { r.queue.setDeadline(t) }

// Flush makes Read return all records that are in the ring now, including those that were
// submitted with BPF_RB_NO_WAKEUP, and then ErrFlushed once. If no goroutine is reading, the next
// calls of Read do that. After Close, Flush returns an error that wraps ErrClosed.
//
// To stop without losing a record, for example to hand a pinned ring over to another process, call
// Flush, call Read until it returns ErrFlushed, then call Close.
func (r *Reader) Flush() error { return r.queue.flush() }

// AvailableBytes returns the number of bytes, headers and padding included, that were produced and
// not yet returned, in all rings. Records that are lent to a lease or a loop count as returned,
// until they are released. AvailableBytes is 0 after Close.
func (r *Reader) AvailableBytes() int { return r.queue.available() }

// BufferSize returns the size of the ring in bytes; of several, the sum.
func (r *Reader) BufferSize() (sum int) {
	for _, size := range r.queue.sizes {
		sum += size
	}
	return sum
}

// Close interrupts all waiting calls and releases the Reader's descriptors, mappings and memory.
// Lent records stay in the ring, and stay mapped until the last lease is committed or released.
// When Close returns, libbpf no longer touches the ring. Further calls do nothing and return the
// same result.
//
// Samples that Read has drained and not yet returned are lost. See [Reader.Flush] for a way to
// stop that loses none.
func (r *Reader) Close() error {
	r.cleanup.Stop()
	return r.close()
}
