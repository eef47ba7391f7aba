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

// A Record is one record of the ring: a sample and what came with it.
type Record struct {
	// RawSample is the sample as the BPF program submitted it, without header and
	// padding. It may be empty: the kernel accepts samples of size 0.
	RawSample []byte

	// Remaining is the minimum number of bytes, headers and padding included, that
	// are left to read after this record. There may be more: it is not updated by
	// what is produced between the drain that found this record and its Read.
	Remaining int

	// Ring is the index of the record's ring among the maps of NewMultiReader, else 0.
	Ring int

	// Lost is the number of records that the kernel refused, as a rule because the ring
	// was full, after the record before this one and before this one. It is 0 without
	// WithLossCounter, which see.
	Lost uint64
}

// A Reader reads the records of one or more BPF ring buffers. All of its methods may be
// called by any number of goroutines at once. Each record is returned once, in the
// order of its ring, to one of them.
//
// A ring buffer has one consumer position, shared by everybody: at any time only
// one Reader, of all processes, may read it. When a Reader finds that somebody else
// has moved that position, its Read returns an error. See Read.
type Reader struct {
	queue   *queue
	cleanup runtime.Cleanup
	close   func() error
}

// An Option changes how a Reader reads.
type Option func(*options)

type options struct {
	maxDelay     time.Duration // negative: the default
	lossCounters []Map         // one, or none
	ownMapping   bool          // for tests: do not use libbpf's
}

// WithMaxDelay limits the delay by which wakeup moderation may hold a sample back: while
// somebody reads, no sample is held back for longer than twice d. 0 or less turns moderation
// off, so that the Reader reads eagerly. The default is 1 ms, and less or nothing for rings
// that a flood could fill in that time: a flood of records that are as large as those that came
// lately. (Where small ones may be followed by a flood of large ones, a ring of less than some
// MiB is better read eagerly.)
//
// The kernel notifies of a record whenever the consumer had caught up, and the BPF
// program that submits it, thus the traced workload, pays for that: several times what
// the program takes otherwise. So while notifications come faster than four in 3d, the
// Reader drains the ring at ticks of a timer, at most d apart, and leaves the newest
// record until the next tick. Then the kernel never notifies. At lower rates, for the
// first samples after a pause, and where a deadline, Flush or Close ends a wait,
// nothing is held back.
//
// An explicit d is taken as given: the ring must have room for what is produced in
// that time. A d of 10 ms or more does not depend on notifications: whoever waits in Read
// looks at the rings every d, also before the first record. And a wakeup that a BPF program
// forces (BPF_RB_FORCE_WAKEUP), when an eighth of a ring or more was produced since the last
// tick, ends the pause before the next one. So programs may notify of nothing but a ring that
// fills up, for which bpf/ringbuf.bpf.h has ringbuf_quiet. With a shorter delay, and by
// default, such records may wait for ever.
func WithMaxDelay(d time.Duration) Option {
	return func(o *options) { o.maxDelay = max(d, 0) }
}

// WithLossCounter lets the Reader tell of records that the kernel refused, because the ring was
// full or, in an interrupt that cannot be masked, because its lock was taken: Stats counts
// them, and Record.Lost says where they are missing. BPF programs count them in m, a map that
// they declare with RINGBUF_COUNTER and pass to ringbuf_reserve and ringbuf_output of
// bpf/ringbuf.bpf.h, in this module.
//
// A loss comes with the record that follows it, or with an earlier one, but not later: whoever
// adds up Lost always knows of at least as many as are missing so far on each CPU. (It may be
// later by a batch if one drain goes round the whole ring, as in rings of 64 KiB and less, or
// where most records are discarded.) It comes earlier if the ring is full again before the
// Reader gets to where it was full before: then with the record there; and all losses of a
// batch, or of a lease of up to 64 KiB, come with the first of its records that follows one. If
// no record follows, only Stats tells. Of several rings nobody knows which one it was: the loss
// comes with the next record that is drained, of any of them.
//
// A Reader has one counter. Its rings may share it if no CPU writes into more than one of
// them, as with a ring for each CPU; for others take a Reader, and a counter, each.
//
// What was counted before NewReader does not count. Like the map of the ring, m may be
// closed afterwards. Its descriptor must be for reading and writing.
func WithLossCounter(m Map) Option {
	return func(o *options) { o.lossCounters = append(o.lossCounters, m) }
}

// NewReader returns a Reader of the ring buffer m.
//
// It duplicates the map's descriptor, so that m may be closed, with the libbpfgo
// Module that it belongs to, while the Reader goes on. It needs no capability,
// only a descriptor for reading and writing: with BPF_F_RDONLY or BPF_F_WRONLY the
// kernel refuses to map the consumer position. On kernels before 6.0 with the sysctl
// kernel.unprivileged_bpf_disabled set it also needs CAP_BPF, without which all
// bpf(2) commands are refused there.
//
// The error names the map and what was being done, and wraps the errno where there
// is one: the map may not be a ring buffer, be one in overwrite mode
// (BPF_F_RB_OVERWRITE, which libbpf cannot consume) or have a corrupt consumer
// position, or a resource may be short.
//
// Close releases the Reader's resources. If it is dropped without a Close, they
// are released after the garbage collector has found out.
func NewReader(m Map, opts ...Option) (*Reader, error) {
	return NewMultiReader([]Map{m}, opts...)
}

// NewMultiReader returns a Reader of one or more ring buffers, each as NewReader wants it.
// Record.Ring tells from which of maps a record is. The rings take turns: while there are
// records in several, as many batches, or leases of up to 64 KiB, come from each, so that a
// ring that is flooded does not hold up the others.
//
// BPF programs on several processors that write into one ring wait for each other: the
// kernel locks the ring for each record. One ring for each processor, or NUMA node, in a
// map of type BPF_MAP_TYPE_ARRAY_OF_MAPS, is how they do not. See examples/sharded.
//
// What is said of one ring elsewhere is true of each. An error of Read, but for those of
// deadline, Flush and Close, names the map; the records of the others are returned by
// the Reads between. The default delay of wakeup moderation is that of the ring which a flood
// would fill first: one that is small, for the size of its records, has all read eagerly.
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

// Read returns the next record. Its RawSample belongs to the caller, who may keep
// and change it. Samples of up to 2 KiB share larger allocations: keeping one of them
// retains 32 KiB of memory.
//
// It waits for a record until
//
//   - the deadline of SetDeadline has passed: os.ErrDeadlineExceeded,
//   - Flush is called: ErrFlushed,
//   - Close is called: an error that wraps ErrClosed.
//
// Before the first two of these errors it returns all records that were in the rings when
// the deadline passed or Flush was called, and perhaps later ones. So both come also with a
// producer that is always ahead of the caller. While a deadline has passed, each
// os.ErrDeadlineExceeded begins the next such drain: the calls after it return what is in
// the rings then.
//
// A record that is in the ring is returned whether or not the kernel notified of it
// (BPF_RB_NO_WAKEUP). Records that were discarded are skipped. One that is reserved and not
// yet submitted holds back those behind it: the ring counts as empty there.
//
// libbpf consumes samples in batches of up to 16 KiB, one sample, or a lease that was released. A
// process that is killed, and a Close, lose what was consumed and not yet returned. Records and
// Lease lose nothing of what no Read has drained.
//
// While a lease is out, Read returns the records behind those that are lent.
//
// An error that wraps syscall.EUCLEAN says that the consumer position is not where
// this Reader left it: there is another Reader of this ring, in this process or
// another, or somebody who writes that position. It is returned by every Read until
// the position is back. To go on from where the ring is now, open a new Reader. The text names
// processes that have the map open, as far as /proc showed them when there was such an error
// for the first time. One that has only mapped the ring is not found, and one that is named may
// have the map for other reasons.
//
// An error that wraps syscall.EBADF says that somebody in this process closed a
// descriptor of the Reader, or put another file in its place. No record is lost by that,
// but they can be read to the end with another Reader only.
func (r *Reader) Read() (rec Record, err error) {
	if q := r.queue; !q.take(&rec, true) {
		err = q.read(context.Background(), &rec, true)
	}
	return rec, err
}

// ReadContext is like Read, but also returns when ctx is done, with the error of ctx: at
// once, whoever else is waiting, and without the records that are in the ring, which
// remain there.
func (r *Reader) ReadContext(ctx context.Context) (rec Record, err error) {
	q := r.queue
	if err := ctx.Err(); err != nil || q.take(&rec, true) {
		return rec, err
	}
	defer context.AfterFunc(ctx, q.interrupt)()
	err = q.read(ctx, &rec, true)
	return rec, err
}

// ReadInto is like Read, but reuses the capacity of rec.RawSample, so that a loop
// with one Record allocates nothing. On error rec is unchanged, but for the bytes in
// that capacity. A process that is killed loses at most a batch, as with Read.
func (r *Reader) ReadInto(rec *Record) error {
	if q := r.queue; !q.take(rec, false) {
		return q.read(context.Background(), rec, false)
	}
	return nil
}

// TryReadInto is like ReadInto, but returns at once: for a loop that has other things to do than
// to wait. It reports whether there was a record. A record that is in a ring is returned, whatever
// WithMaxDelay says, but for those behind one that is reserved and not yet submitted. The errors
// are those of Read, without os.ErrDeadlineExceeded: a deadline does not matter to it, nor does it
// change what one means to others. When Flush was called and all that was in the rings then has
// been returned, TryReadInto returns ErrFlushed, if no other read has.
//
// It reports false also while another goroutine waits in Read, Lease or a loop, which then gets the
// next record.
func (r *Reader) TryReadInto(rec *Record) (ok bool, err error) {
	if q := r.queue; !q.take(rec, false) {
		return q.tryRead(rec)
	}
	return true, nil
}

// take copies the oldest unread sample to rec, into memory of its own or into what RawSample
// has. It reports false if there is none.
func (q *queue) take(rec *Record, own bool) bool {
	buf := rec.RawSample
	for {
		sample, remaining, at, ok := q.unread.peek()
		if !ok {
			return false
		}
		if own {
			buf = q.slab.copy(sample)
		} else {
			buf = append(buf[:0], sample...)
		}
		ring, lost := q.unread.origin(at)
		if q.unread.take(at, sample) {
			// One by one: a copy of a whole Record takes 5 ns.
			rec.RawSample, rec.Remaining = buf, remaining
			rec.Ring, rec.Lost = ring, lost
			return true
		}
	}
}

// SetDeadline sets the time after which Read does not wait for records.
// It applies to calls that are already waiting too, and never waits for them. The
// zero Time means no deadline, which is the default. With a time in the past, Read and Lease
// do not wait at all.
func (r *Reader) SetDeadline(t time.Time) { r.queue.setDeadline(t) }

// Flush makes Read return what is in the ring now, also records submitted with
// BPF_RB_NO_WAKEUP, and then ErrFlushed once. If nobody is reading, the next calls do so.
//
// To hand a pinned ring over to another process without losing a record, call
// Flush, Read until ErrFlushed, then Close. The error wraps ErrClosed after Close.
func (r *Reader) Flush() error { return r.queue.flush() }

// AvailableBytes returns the number of bytes, headers and padding included, that
// were produced and not yet returned: from the end of the record returned last to the
// producer position, in all rings. What a lease or a loop over Records has been lent counts as
// returned until it is released. It is 0 after Close.
func (r *Reader) AvailableBytes() int { return r.queue.available() }

// BufferSize returns the size of the ring in bytes; of several, the sum.
func (r *Reader) BufferSize() (sum int) {
	for _, size := range r.queue.sizes {
		sum += size
	}
	return sum
}

// Close interrupts all waiting calls and releases the Reader's descriptors, mappings and
// memory, the last lease being given back. When it returns, no code of libbpf touches the ring
// any more. Further calls do nothing and return the same as the first.
//
// What Read has drained and not yet returned is lost: see there. What is lent stays in the
// ring, and mapped until the last lease is given back. See Flush for how to leave nothing.
func (r *Reader) Close() error {
	r.cleanup.Stop()
	return r.close()
}
