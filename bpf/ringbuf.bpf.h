/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * For BPF programs that write into a ring buffer: counts the records that the kernel
 * refuses, and notifies of few of the others. Loads on kernel 5.10 and newer. Include it
 * after vmlinux.h or linux/bpf.h, and bpf/bpf_helpers.h.
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
 * With 0 in place of ringbuf_quiet() the kernel decides when to notify, as always.
 *
 * Several rings may share a counter only if no CPU uses more than one of them, as with
 * a ring for each CPU or NUMA node: positions are those of the ring that a CPU uses.
 */
#ifndef RINGBUF_BPF_H
#define RINGBUF_BPF_H

/* A power of two. CPUs whose numbers are beyond share the slots of others. */
#ifndef RINGBUF_MAX_CPUS
#define RINGBUF_MAX_CPUS 1024
#endif
_Static_assert(RINGBUF_MAX_CPUS > 0 && !(RINGBUF_MAX_CPUS & (RINGBUF_MAX_CPUS - 1)),
	       "RINGBUF_MAX_CPUS must be a power of two");

/* The slot of a CPU, a cache line of its own. Known to losses.go. */
struct ringbuf_counter {
	__u64 lost;	/* records that were refused, ever */
	__u64 position; /* producer position at the first of them that is not yet reached */
	__u64 forced;	/* producer position at the last forced wakeup */
	__u64 unused[5];
};

/*
 * Declares a counter. The Reader looks at it after each drain, which a per-CPU map would
 * make a system call: those cannot be mapped.
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

/* Counts a record that was refused. */
static __always_inline void ringbuf_lose(void *ring, void *counter)
{
	struct ringbuf_counter *slot = ringbuf_slot(counter);
	__u64 consumer, producer;

	if (!slot)
		return;
	/*
	 * First, so that a place which is found below is ahead of all that the Reader has looked at
	 * without this loss, however long the program is interrupted here: it cannot get there, and
	 * the place be lost to that of a later loss, before it has told of this one. What it may
	 * find meanwhile is an older place. Atomic, since programs interrupt each other; relaxed is
	 * what clang compiles to an instruction that kernels before 5.12 have.
	 */
	__atomic_fetch_add(&slot->lost, 1, __ATOMIC_RELAXED);
	asm volatile("" ::: "memory");
	consumer = bpf_ringbuf_query(ring, BPF_RB_CONS_POS);
	producer = bpf_ringbuf_query(ring, BPF_RB_PROD_POS);
	/*
	 * The next record begins where the producer position is. An earlier loss keeps its
	 * place until the consumer gets there: to tell of a loss too early does less harm
	 * than too late. A place ahead of the producer is one of another ring.
	 */
	if (slot->position - consumer - 1 >= producer - consumer)
		slot->position = producer;
}

/*
 * bpf_ringbuf_reserve() that counts. ring may also be the inner map of a map of maps, after
 * the lookup.
 */
static __always_inline void *ringbuf_reserve(void *ring, void *counter, __u64 size, __u64 flags)
{
	void *record = bpf_ringbuf_reserve(ring, size, flags);

	if (!record)
		ringbuf_lose(ring, counter);
	return record;
}

/* bpf_ringbuf_output() that counts. */
static __always_inline long ringbuf_output(void *ring, void *counter, void *data, __u64 size,
					   __u64 flags)
{
	long err = bpf_ringbuf_output(ring, data, size, flags);

	if (err)
		ringbuf_lose(ring, counter);
	return err;
}

/*
 * Returns flags for bpf_ringbuf_submit(), bpf_ringbuf_discard() or ringbuf_output() with
 * which the kernel notifies only when threshold bytes are in the ring. To be called for each
 * record, right before that.
 *
 * It is for a Reader with an explicit WithMaxDelay of 10 ms or more. That looks at the ring
 * at least once in that time, notified or not, and sooner if it is notified while an eighth
 * of the ring is filled. With less, and by default, what is below the threshold waits
 * until something else wakes the Reader. So choose a threshold between an eighth of the
 * ring, below which it is only woken more often, and a half, beyond which floods are lost.
 * No record should take more than a quarter of the ring: one that is refused notifies nobody.
 *
 * Past the threshold one wakeup for each half of it is enough. Who was woken drains all up
 * to there, but for a newest record of at most an eighth of the ring, before it sleeps again;
 * so it is woken again with at most threshold/2 and that in the ring, or threshold. A wakeup
 * for each record would cost far more than what it replaces: of a ring that is never empty the
 * kernel notifies nobody by itself. Only if a record was reserved so long that the Reader
 * waits for just that one, it does: hence 0, not BPF_RB_NO_WAKEUP, past the threshold.
 *
 * A flood must not fill the ring from the threshold on before the Reader runs: some 0.2 ms
 * where it has a processor of its own, else 5 ms, which is 7 MiB of small records flat out. It
 * is longer where many threads want to run: of 51 wakeups at a load of 15, on two processors,
 * the slowest took 86 ms.
 *
 * The last wakeup is known for each CPU only: several of them wake the Reader more often.
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
	/* At first forced is 0, and the producer position at least the threshold. */
	if (producer - slot->forced < threshold / 2)
		return 0;
	slot->forced = producer;
	return BPF_RB_FORCE_WAKEUP;
}

#endif
