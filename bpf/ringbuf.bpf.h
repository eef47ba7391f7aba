/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Helpers for BPF programs that write into a ring buffer. They count the records that the
 * kernel refuses, and make the kernel send fewer notifications. They load on kernel 5.10
 * and newer. Include this file after vmlinux.h or linux/bpf.h, and after
 * bpf/bpf_helpers.h.
 *
 *	struct {
 *		__uint(type, BPF_MAP_TYPE_RINGBUF);
 *		__uint(max_entries, 1 << 20);
 *	} events SEC(".maps");
 *
 *	RINGBUF_LOSS_COUNTER(losses); // for WithLossCounter, and for ringbuf_quiet()
 *
 *	SEC("raw_tp/sched_process_exec")
 *	int on_exec(void *ctx)
 *	{
 *		struct event *e = ringbuf_reserve(&events, &losses, sizeof(*e), 0);
 *
 *		if (!e)
 *			return 0;
 *		e->pid = bpf_get_current_pid_tgid() >> 32;
 *		bpf_ringbuf_submit(e, ringbuf_quiet(&events, &losses, 256 << 10));
 *		return 0;
 *	}
 *
 * With flags of 0 in place of ringbuf_quiet(), the kernel itself decides when to notify.
 *
 * A counter stores, for each CPU, positions in the ring that the CPU uses. So several
 * rings may share a counter only if each CPU uses only one of them, as with a ring for
 * each CPU or NUMA node.
 */
#ifndef RINGBUF_BPF_H
#define RINGBUF_BPF_H

/*
 * The number of slots: a power of two. CPUs with higher numbers share the slots of
 * others.
 */
#ifndef RINGBUF_MAX_CPUS
#define RINGBUF_MAX_CPUS 1024
#endif
_Static_assert(RINGBUF_MAX_CPUS > 0 && !(RINGBUF_MAX_CPUS & (RINGBUF_MAX_CPUS - 1)),
	       "RINGBUF_MAX_CPUS must be a power of two");

/* The slot of a CPU: one cache line. losses.go has the same layout. */
struct ringbuf_counter {
	__u64 lost;	/* number of records that were refused so far */
	__u64 position; /* producer position at the first loss that the consumer has not reached */
	__u64 forced;	/* producer position at the last forced wakeup */
	__u64 unused[5];
};

/*
 * Declares a counter. It is not a per-CPU map, because those cannot be mapped: the Reader
 * reads the counter after each drain, and would need a system call for it.
 */
#define RINGBUF_LOSS_COUNTER(name)                                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
		__uint(max_entries, RINGBUF_MAX_CPUS);                                             \
		__type(key, __u32);                                                                \
		__type(value, struct ringbuf_counter);                                             \
	} name SEC(".maps")

static __always_inline struct ringbuf_counter *ringbuf_slot(void *counter)
{
	__u32 cpu = bpf_get_smp_processor_id() & (RINGBUF_MAX_CPUS - 1);

	return bpf_map_lookup_elem(counter, &cpu);
}

/* Counts a record that the kernel refused. */
static __always_inline void ringbuf_lose(void *ring, void *counter)
{
	struct ringbuf_counter *slot = ringbuf_slot(counter);
	__u64 consumer, producer;

	if (!slot)
		return;
	/*
	 * Count before querying the positions. Then the place found below is ahead of
	 * everything that the Reader has looked at without this loss, however long the
	 * program is interrupted here. So the Reader cannot reach the place, and a later loss
	 * cannot overwrite it, before the Reader has reported this loss. Meanwhile the Reader
	 * may find an older place.
	 *
	 * Atomic, because programs interrupt each other. Relaxed, because clang compiles that
	 * to an instruction that kernels before 5.12 have.
	 */
	__atomic_fetch_add(&slot->lost, 1, __ATOMIC_RELAXED);
	asm volatile("" ::: "memory");
	consumer = bpf_ringbuf_query(ring, BPF_RB_CONS_POS);
	producer = bpf_ringbuf_query(ring, BPF_RB_PROD_POS);
	/*
	 * The next record begins at the producer position. An earlier loss keeps its place
	 * until the consumer reaches it: reporting a loss too early does less harm than too
	 * late. A place ahead of the producer position belongs to another ring.
	 */
	if (slot->position - consumer - 1 >= producer - consumer)
		slot->position = producer;
}

/*
 * Like bpf_ringbuf_reserve(), but counts the record in counter if the kernel refuses it
 * and the result is NULL. ring may also be an inner map that was looked up in a map of
 * maps.
 */
static __always_inline void *ringbuf_reserve(void *ring, void *counter, __u64 size, __u64 flags)
{
	void *record = bpf_ringbuf_reserve(ring, size, flags);

	if (!record)
		ringbuf_lose(ring, counter);
	return record;
}

/* Like bpf_ringbuf_output(), but counts the record in counter if the result is not 0. */
static __always_inline long ringbuf_output(void *ring, void *counter, void *data, __u64 size,
					   __u64 flags)
{
	long err = bpf_ringbuf_output(ring, data, size, flags);

	if (err)
		ringbuf_lose(ring, counter);
	return err;
}

/*
 * Returns flags for bpf_ringbuf_submit(), bpf_ringbuf_discard() or ringbuf_output(). With
 * them the kernel notifies only when threshold bytes are in the ring. Call it for each
 * record, right before that function.
 *
 * Use it with a Reader that has an explicit WithMaxDelay of 10 ms or more. Such a Reader
 * looks at the ring at least once in that time, without being notified. It looks sooner
 * if it is notified while an eighth of the ring is filled. With a shorter delay, or the
 * default, records below the threshold wait until something else wakes the Reader.
 *
 * Choose a threshold between an eighth and a half of the ring. Below an eighth the Reader
 * is only woken more often; above a half floods are lost. No record should take more than
 * a quarter of the ring, because a record that is refused notifies nobody.
 *
 * Past the threshold, one wakeup for each half of it is enough. Before a woken Reader
 * sleeps again, it drains everything up to the position of the wakeup, except perhaps a
 * newest record of at most an eighth of the ring. So at the next wakeup the ring holds at
 * most threshold/2 and that record, or threshold. A wakeup for each record would cost far
 * more than the notifications that it replaces, because the kernel sends none while the
 * ring is never empty. There is one exception: the Reader waits for a record that was
 * reserved for long, and the kernel notifies when it is submitted. Therefore the flags
 * past the threshold are 0, not BPF_RB_NO_WAKEUP.
 *
 * A flood that begins at the threshold must not fill the ring before the Reader runs.
 * That takes about 0.2 ms if the Reader has a processor of its own, and otherwise 5 ms,
 * which is 7 MiB of small records at full speed. It takes longer when many threads want
 * to run: of 51 wakeups at a load of 15, on two processors, the slowest took 86 ms.
 *
 * The last wakeup is stored for each CPU. So if several CPUs use the ring, they wake the
 * Reader more often.
 */
static __always_inline __u64 ringbuf_quiet(void *ring, void *counter, __u64 threshold)
{
	struct ringbuf_counter *slot;
	__u64 producer;

	if (bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) < threshold)
		return BPF_RB_NO_WAKEUP;
	slot = ringbuf_slot(counter);
	if (!slot)
		return 0;
	producer = bpf_ringbuf_query(ring, BPF_RB_PROD_POS);
	/* Initially forced is 0, and the producer position is at least the threshold. */
	if (producer - slot->forced < threshold / 2)
		return 0;
	slot->forced = producer;
	return BPF_RB_FORCE_WAKEUP;
}

#endif
