//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Writes numbered records with the functions of bpf/ringbuf.bpf.h. Loads on kernel 5.10
 * and newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "ringbuf.bpf.h"

/* losses.go has the same value. */
#define MAX_TRIES 256

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

RINGBUF_LOSS_COUNTER(losses);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, typeof(events));
} rings SEC(".maps") = {.values = {&events}};

/* As in bpftest.bpf.c. */
struct numbered {
	__u32 cpu;
	__u32 producer;
	__u64 seq;
};

const volatile __u64 threshold; /* of ringbuf_quiet(), or 0: the kernel decides when to notify */

static __always_inline __u64 flags(void)
{
	return threshold ? ringbuf_quiet(&events, &losses, threshold) : 0;
}

/* Writes odd numbers with ringbuf_output(), and even ones with ringbuf_reserve(). */
__noinline int try_one(__u32 producer, __u64 seq)
{
	struct numbered n = {.cpu = bpf_get_smp_processor_id(), .producer = producer, .seq = seq};
	struct numbered *record;

	if (seq & 1)
		return ringbuf_output(&events, &losses, &n, sizeof(n), flags()) == 0;
	record = ringbuf_reserve(&events, &losses, sizeof(*record), 0);
	if (!record)
		return 0;
	*record = n;
	bpf_ringbuf_submit(record, flags());
	return 1;
}

/*
 * Context: the producer's number, its next sequence number, and how many records to try.
 * Returns how many were accepted and, in the upper 16 bits, how many were tried. That is
 * none if the kernel does not let the program interrupt itself.
 */
SEC("raw_tp/try_some")
int try_some(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 i, accepted = 0;

	for (i = 0; i < MAX_TRIES && i < ctx->args[2]; i++)
		accepted += try_one(ctx->args[0], ctx->args[1] + i);
	return i << 16 | accepted;
}

/*
 * Context: as for try_some. Reserves a record, writes the others, and then submits the
 * first one. Returns the flags with which it was submitted.
 */
SEC("raw_tp/hold_one")
int hold_one(struct bpf_raw_tracepoint_args *ctx)
{
	struct numbered *record = ringbuf_reserve(&events, &losses, sizeof(*record), 0);
	__u64 chosen;
	__u32 i;

	if (!record)
		return -1;
	*record = (struct numbered){.producer = ctx->args[0]};
	for (i = 0; i < MAX_TRIES && i < ctx->args[2]; i++)
		try_one(ctx->args[0], ctx->args[1] + i);
	chosen = flags();
	bpf_ringbuf_submit(record, chosen);
	return chosen;
}

/*
 * Context: as for try_some, but for one record. Writes it into the ring that it finds in
 * a map of maps.
 */
SEC("raw_tp/try_inner")
int try_inner(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 zero = 0;
	void *ring = bpf_map_lookup_elem(&rings, &zero);
	struct numbered *record;

	if (!ring)
		return -1;
	record = ringbuf_reserve(ring, &losses, sizeof(*record), 0);
	if (!record)
		return 0;
	*record = (struct numbered){.producer = ctx->args[0], .seq = ctx->args[1]};
	bpf_ringbuf_submit(record, ringbuf_quiet(ring, &losses, ctx->args[2]));
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
