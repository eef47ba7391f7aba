//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The traced workload: writes numbered samples into a ring buffer. Loads on kernel 5.17
 * and newer, which have bpf_loop().
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "ringbuf.bpf.h"

#define MAX_SIZE 4096

/* program.go has the same layout. */
struct order {
	__u64 seq;    /* of the next sample; the upper 8 bits are the producer's number; updated */
	__u64 unread; /* out: bytes in the ring that no reader has consumed */
	__u64 quiet;  /* threshold of ringbuf_quiet(), or 0: the kernel decides when to notify */
	__u32 count;
	__u32 size;
	__u32 timed;   /* stamp each sample with the time of its submission */
	__u32 refused; /* out: how many of count did not fit in the ring */
};

/* consumer.go has the same layout. */
struct sample {
	__u64 seq;
	__u64 time;
	char rest[MAX_SIZE - 16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

/* For ringbuf_quiet(). The struct order has the number of refused samples. */
RINGBUF_LOSS_COUNTER(losses);

/*
 * One for each producer. Not one for each CPU, because programs of this type may be
 * preempted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct sample);
} scratch SEC(".maps");

struct work {
	struct sample *sample;
	__u64 seq;
	__u64 quiet;
	__u32 size;
	__u32 timed;
	__u32 refused;
};

static int produce_one(__u32 index, struct work *w)
{
	struct sample *sample = w->sample;
	__u64 flags = 0;
	__u32 size;

	sample->seq = w->seq;
	if (w->timed)
		sample->time = bpf_ktime_get_ns();
	/* Check here, because the verifier does not know the bounds of a value in memory. */
	size = w->size;
	if (size > MAX_SIZE)
		return 1;
	if (w->quiet)
		flags = ringbuf_quiet(&events, &losses, w->quiet);
	/* A refused sample does not use up a number, so readers see no gap. */
	if (bpf_ringbuf_output(&events, sample, size, flags))
		w->refused++;
	else
		w->seq++;
	return 0;
}

SEC("syscall")
int produce(struct order *order)
{
	__u32 producer = order->seq >> 56;
	struct work w = {};

	w.sample = bpf_map_lookup_elem(&scratch, &producer);
	if (!w.sample)
		return -1;
	w.seq = order->seq;
	w.quiet = order->quiet;
	w.size = order->size;
	w.timed = order->timed;
	bpf_loop(order->count, produce_one, &w, 0);
	order->seq = w.seq;
	order->refused = w.refused;
	order->unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
