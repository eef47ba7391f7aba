//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Producers that write numbered records of all sizes at full speed. The content of a
 * record follows from its number, so a reader can check it. Loads on kernel 5.10 and
 * newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* stress.go has the same values, variables and next(). */
#define MAX_PRODUCERS 64
#define MAX_RECORDS 64
#define OFFSETS 1024

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

/* max_sample + OFFSETS bytes for each producer, from which samples are taken. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PRODUCERS);
	__uint(key_size, 4);
	__uint(value_size, 4096 + OFFSETS);
} content SEC(".maps");

const volatile __u64 seed;
const volatile __u32 max_sample; /* the largest sample that the ring accepts */

struct {
	__u64 accepted; /* also the number of the next record */
	__u64 refused;
} counters[MAX_PRODUCERS];

/* The random number that determines a record: the finalizer of splitmix64. */
static __always_inline __u64 random_of(__u64 id)
{
	__u64 x = seed + id * 0x9e3779b97f4a7c15;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static __always_inline __u32 flags_of(__u64 random)
{
	switch (random >> 60) {
	case 0 ... 3:
		return BPF_RB_NO_WAKEUP;
	case 4:
		return BPF_RB_FORCE_WAKEUP;
	}
	return 0;
}

/* The size of a reservation must be a constant. */
static __always_inline int discard(__u64 random)
{
	void *record;

	if (random >> 3 & 1)
		record = bpf_ringbuf_reserve(&events, 8, 0);
	else if (random >> 3 & 2)
		record = bpf_ringbuf_reserve(&events, 200, 0);
	else
		record = bpf_ringbuf_reserve(&events, 2000, 0);
	if (!record)
		return -1;
	bpf_ringbuf_discard(record, flags_of(random));
	return 0;
}

static __always_inline int submit(__u32 producer, __u64 id, __u64 random)
{
	char *bytes = bpf_map_lookup_elem(&content, &producer);
	__u64 size, saved, *start;
	int err;

	if (!bytes)
		return -1;
	bytes += random >> 16 & (OFFSETS - 8);
	start = (__u64 *)bytes;
	if (random >> 4 & 63) /* most samples */
		size = random >> 32 & 127;
	else if (random >> 10 & 3)
		size = random >> 32 & 2047;
	else /* all magnitudes */
		size = (random >> 32) % (max_sample + 1ULL) >> (random >> 12 & 15);
	if (size > max_sample)
		return -1;
	if (size < sizeof(id))
		return bpf_ringbuf_output(&events, bytes, size, flags_of(random));
	saved = *start;
	*start = id;
	err = bpf_ringbuf_output(&events, bytes, size, flags_of(random));
	*start = saved;
	return err;
}

__noinline int produce_one(__u32 producer)
{
	__u64 id, random;
	int err;

	producer &= MAX_PRODUCERS - 1;
	id = (__u64)producer << 48 | counters[producer].accepted;
	random = random_of(id);
	if (!(random & 7))
		err = discard(random);
	else
		err = submit(producer, id, random);
	if (err)
		counters[producer].refused++;
	else
		counters[producer].accepted++;
	return err;
}

/*
 * Context: the producer's number, which no other thread uses, and how many records to
 * write. It stops when a record is refused.
 */
SEC("raw_tp/produce")
int produce(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 i;

	for (i = 0; i < MAX_RECORDS && i < ctx->args[1]; i++)
		if (produce_one(ctx->args[0]))
			break;
	return i;
}

/* Takes at most about 10 microseconds. */
__noinline int pause(__u32 ns)
{
	__u64 end = bpf_ktime_get_ns() + ns;
	__u32 i;

	for (i = 0; i < 400 && bpf_ktime_get_ns() < end; i++)
		;
	return 0;
}

/* Returns 1 if the ring was not read in time. */
__noinline int wait_until_read(void)
{
	__u32 i;

	for (i = 0; i < 2000; i++)
		if (!bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA))
			return 0;
	return 1;
}

/*
 * Discards some records at random intervals, and writes one that has only its number. So
 * a reader that is about to wait may find something at any moment. Returns 1 if nothing
 * was written because the ring was not empty.
 */
__noinline int serve_one(void)
{
	__u64 seq = counters[0].accepted, random = random_of(seq);
	__u32 discards, i, mask;
	__u64 *record;

	if (wait_until_read())
		return 1;
	/* Intervals of all magnitudes. */
	mask = (1 << (random >> 32 & 15)) - 1;
	discards = random & 1 ? 0 : random & 14 ? random >> 8 & 7 : random >> 8 & 63;
	for (i = 0; i < 63 && i < discards; i++) {
		record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
		if (!record)
			return 1;
		bpf_ringbuf_discard(record, 0);
		pause(random_of(seq + i) & mask & 2047);
	}
	pause(random >> 40 & mask);
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record)
		return 1;
	*record = seq;
	counters[0].accepted++;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* Context: how many records to write, each after the previous one was read. */
SEC("raw_tp/serve")
int serve(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 i;

	for (i = 0; i < MAX_RECORDS && i < ctx->args[0]; i++)
		if (serve_one())
			break;
	return i;
}

/*
 * Context: how often to try to write a record that fills the ring. Each has its number
 * and the same bytes. Returns how often the record fit.
 */
SEC("raw_tp/fill")
int fill(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 i, zero = 0, size = max_sample, written = 0;
	char *bytes = bpf_map_lookup_elem(&content, &zero);

	if (!bytes)
		return 0;
	for (i = 0; i < MAX_RECORDS && i < ctx->args[0]; i++) {
		*(__u64 *)bytes = counters[0].accepted;
		if (bpf_ringbuf_output(&events, bytes, size, 0))
			continue;
		counters[0].accepted++;
		written++;
	}
	return written;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
