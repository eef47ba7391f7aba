//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Writes the sequence of records that a test asks for into a ring buffer. Loads on kernel
 * 5.10 and newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_SAMPLES 256
#define MAX_COUNT 256
#define CONTENT_SIZE (1 << 20)

enum kind { SUBMIT, DISCARD, BUSY };

/* type planned of bpftest.go has the same layout. */
struct planned {
	__u32 kind;
	__u32 size;
	__u32 flags;
	__u32 offset; /* of the sample in content */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_SAMPLES);
	__type(key, __u32);
	__type(value, struct planned);
} plan SEC(".maps");

struct content {
	/* Twice the size, so that every offset + size is in bounds. */
	char bytes[2 * CONTENT_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct content);
} content SEC(".maps");

/* The state of a busy record: whether it is reserved, and whether it may be submitted. */
enum { IDLE, RESERVED, RELEASED };
volatile __u32 busy_state;

static __always_inline int submit(struct planned *p)
{
	__u32 zero = 0;
	struct content *c = bpf_map_lookup_elem(&content, &zero);

	if (!c)
		return -1;
	return bpf_ringbuf_output(&events, c->bytes + (p->offset & (CONTENT_SIZE - 1)),
				  p->size & (CONTENT_SIZE - 1), p->flags);
}

/*
 * The size of a reservation must be a constant. The kernel rounds records up to 8, and
 * the size of a discarded one is not visible. So there is a case for each record size up
 * to 128, and one for each power of two.
 */
#define DISCARD_CASE(n)                                                                            \
	case n:                                                                                    \
		record = bpf_ringbuf_reserve(&events, n, 0);                                       \
		break;
#define DISCARD_CASES(n)                                                                           \
	DISCARD_CASE(n) DISCARD_CASE(n + 8) DISCARD_CASE(n + 16) DISCARD_CASE(n + 24)

static __always_inline int discard(struct planned *p)
{
	void *record;

	switch ((p->size + 7) & ~7U) {
		DISCARD_CASES(0)
		DISCARD_CASES(32)
		DISCARD_CASES(64)
		DISCARD_CASES(96)
		DISCARD_CASE(128)
		DISCARD_CASE(256)
		DISCARD_CASE(512)
		DISCARD_CASE(1024)
		DISCARD_CASE(2048)
		DISCARD_CASE(4096)
		DISCARD_CASE(8192)
		DISCARD_CASE(16384)
		DISCARD_CASE(32768)
	default:
		return -2;
	}
	if (!record)
		return -1;
	bpf_ringbuf_discard(record, p->flags);
	return 0;
}

/*
 * Waits until the test releases the busy record, at most 50 ms. Without bpf_loop(), which
 * came in kernel 5.17, copies of a MiB pass the time: each takes about 50 microseconds.
 * As a separate function this is verified once, not once for each call.
 */
__noinline int wait_for_release(void)
{
	__u32 zero = 0;
	struct content *c = bpf_map_lookup_elem(&content, &zero);
	int i, j;

	if (!c)
		return -1;
	for (i = 0; i < 64 && busy_state != RELEASED; i++) {
#pragma unroll
		for (j = 0; j < 16; j++)
			bpf_probe_read_kernel(c->bytes + CONTENT_SIZE, CONTENT_SIZE, c->bytes);
	}
	return 0;
}

/*
 * Reserves a record of 8 bytes. Submits it when the test says so, or some seconds later.
 */
static __always_inline int busy(struct planned *p)
{
	__u32 zero = 0;
	struct content *c = bpf_map_lookup_elem(&content, &zero);
	__u64 *record;
	int i;

	if (!c)
		return -1;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record)
		return -1;
	*record = *(__u64 *)(c->bytes + (p->offset & (CONTENT_SIZE - 1)));
	busy_state = RESERVED;
	for (i = 0; i < 64 && busy_state != RELEASED; i++)
		wait_for_release();
	busy_state = IDLE;
	bpf_ringbuf_submit(record, p->flags);
	return 0;
}

/* Returns 1 if the record could not be written. */
__noinline int emit_one(__u32 index)
{
	struct planned *p = bpf_map_lookup_elem(&plan, &index);

	if (!p)
		return 1;
	switch (p->kind) {
	case SUBMIT:
		return submit(p) != 0;
	case DISCARD:
		return discard(p) != 0;
	case BUSY:
		return busy(p) != 0;
	}
	return 1;
}

/* Context: the number of planned samples. Returns how many were refused. */
SEC("raw_tp/emit")
int emit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 n = ctx->args[0];
	__u32 i, failed = 0;

	/* Not "emit_one(i) != 0": the verifier would follow each possible value of failed. */
	for (i = 0; i < MAX_SAMPLES && i < n; i++)
		failed += emit_one(i);
	return failed;
}

struct numbered {
	__u32 cpu;
	__u32 producer;
	__u64 seq;
};

/*
 * Context: the producer's number, its next sequence number, how many records to add, and
 * the flags. Returns how many records were added before the ring was full.
 */
SEC("raw_tp/count")
int count(struct bpf_raw_tracepoint_args *ctx)
{
	struct numbered *n;
	__u32 i;

	for (i = 0; i < MAX_COUNT && i < ctx->args[2]; i++) {
		n = bpf_ringbuf_reserve(&events, sizeof(*n), 0);
		if (!n)
			break;
		n->cpu = bpf_get_smp_processor_id();
		n->producer = ctx->args[0];
		n->seq = ctx->args[1] + i;
		bpf_ringbuf_submit(n, ctx->args[3]);
	}
	return i;
}

struct stamped {
	__u64 time;
	__u64 producer;
	__u64 seq;
};

/*
 * Context: as for count. The time is read before the record is reserved. So times are not
 * in order, neither in a ring nor between rings.
 */
SEC("raw_tp/stamp")
int stamp(struct bpf_raw_tracepoint_args *ctx)
{
	struct stamped *s;
	__u64 time;
	__u32 i;

	for (i = 0; i < MAX_COUNT && i < ctx->args[2]; i++) {
		time = bpf_ktime_get_ns();
		s = bpf_ringbuf_reserve(&events, sizeof(*s), 0);
		if (!s)
			break;
		s->time = time;
		s->producer = ctx->args[0];
		s->seq = ctx->args[1] + i;
		bpf_ringbuf_submit(s, ctx->args[3]);
	}
	return i;
}

/* Context: how many records to reserve and discard. */
SEC("raw_tp/discard_some")
int discard_some(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 *record;
	__u32 i;

	for (i = 0; i < 1024 && i < ctx->args[0]; i++) {
		record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
		if (!record)
			break;
		bpf_ringbuf_discard(record, 0);
	}
	return i;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
