package ringbuf

import "time"

// An Option changes how a Reader reads.
type Option func(*options)

type options struct {
	maxDelay     time.Duration // negative: the default
	lossCounters []Map         // one, or none
	ownMapping   bool          // for tests: do not use libbpf's
}

// WithMaxDelay sets how long wakeup moderation may hold a sample back while a goroutine reads: at
// most d. (The scheduler of a busy machine may add to it.) A d of 0 or less turns moderation off:
// the Reader then reads eagerly.
//
// The default is 2 ms. It is shorter, or 0, for a ring that a flood could fill in half of that
// time. The Reader estimates that from the size of recent records. If small records may be followed
// by a flood of large ones, read a ring of less than a few MiB eagerly.
//
// Moderation exists because notifications are expensive. The kernel notifies of a record when the
// consumer had caught up. The BPF program that submits the record pays for that, and so does the
// traced workload: several times the cost of the program itself. When more than about 1,300
// notifications a second arrive (by default; in general, more than 8 in the time 3d), the Reader
// instead drains the ring on a timer, every d/2 or more often. Each drain leaves the newest record
// for the next one, and then the kernel sends no notifications. Nothing is held back at lower
// rates, for the first samples after a pause, or when a deadline, Flush or Close ends a wait. One
// thing may take longer: while records of a ring are lent, a waiting call may find the next record
// of that ring only after 10 ms. See [Reader.Lease].
//
// The size of the ring does not limit an explicit d. The ring must have room for everything that is
// produced in that time. A d of 10 ms or more has two more effects:
//
//   - The Reader does not depend on notifications. A waiting Read looks at the rings every d or
//     more often, even before the first record.
//   - A forced wakeup (BPF_RB_FORCE_WAKEUP) ends the current pause, if at least an eighth of a ring
//     was produced since the last drain.
//
// BPF programs can then use ringbuf_quiet of bpf/ringbuf.bpf.h, which notifies only when a ring
// fills up. With a shorter delay, or the default, records that are submitted with
// BPF_RB_NO_WAKEUP may never be read.
func WithMaxDelay(d time.Duration) Option {
	return func(o *options) { o.maxDelay = max(d, 0) }
}

// WithLossCounter makes the Reader report records that the kernel refused. Stats counts them, and
// Record.Lost says where they are missing. The kernel refuses a record when the ring is full, or
// when its lock is taken in an interrupt that cannot be masked.
//
// BPF programs count the losses in m. They declare m with RINGBUF_LOSS_COUNTER and pass it to
// ringbuf_reserve and ringbuf_output, all of which are in bpf/ringbuf.bpf.h of this module.
//
// A loss is reported with the record that follows it or with an earlier one. The sum of Lost is
// therefore never less than the number of records that are missing so far on each CPU. In detail:
//
//   - All losses of a batch, or of a lease of up to 64 KiB, are reported with the first record of
//     it that follows a loss.
//   - If the ring fills up again before the Reader reaches the place of an earlier loss, the
//     second loss is reported with the first.
//   - If no record follows a loss, only Stats reports it.
//   - With several rings it is not known which of them refused a record. The loss is reported with
//     the next record that is drained, of any ring.
//   - If one drain goes around the whole ring, a loss may be reported one batch late. That can
//     happen in rings of 64 KiB or less, or where most records are discarded.
//
// A Reader has one counter. Its rings can share it if each CPU writes into only one of them, as
// with a ring for each CPU. Otherwise use a Reader and a counter for each ring.
//
// Losses before NewReader are not reported. m may be closed after NewReader, like the map of the
// ring. Its descriptor must be for reading and writing.
func WithLossCounter(m Map) Option {
	return func(o *options) { o.lossCounters = append(o.lossCounters, m) }
}
