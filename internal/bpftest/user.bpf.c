//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Drains a user ring buffer, counts the samples, and sends each back through a ring
 * buffer. Loads on kernel 6.1 and newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define SCRATCH_SIZE (1 << 20)
#define MAX_SAMPLE (1 << 24)

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 1 << 12);
} commands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} replies SEC(".maps");

/* user.go has the same layout, and sets the first three. */
struct control {
	__u64 flags; /* of the drain */
	__u64 limit; /* the most samples in one drain, or 0 */
	__u64 quiet; /* do not send samples back */
	__u64 samples;
	__u64 bytes;
	__u64 refused; /* replies that did not fit */
	__u64 size;    /* of the sample */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct scratch {
	/* Twice the size, so that every size is in bounds. */
	char bytes[2 * SCRATCH_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/* The state of one drain. */
struct progress {
	__u64 left;
};

/*
 * Returns the size of a sample. There is no helper for it before kernel 6.5. The search
 * keeps its state in memory of a map; otherwise the verifier would follow each possible
 * size.
 */
static __always_inline __u32 size_of(struct bpf_dynptr *sample, volatile __u64 *size)
{
	__u64 step;
	char byte;

	*size = 0;
	for (step = MAX_SAMPLE / 2; step; step /= 2)
		if (!bpf_dynptr_read(&byte, 1, sample, *size + step - 1, 0))
			*size += step;
	return *size;
}

static long take(struct bpf_dynptr *sample, void *ctx)
{
	struct progress *p = ctx;
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	__u32 size;

	if (!c || !s)
		return 1;
	size = size_of(sample, &c->size);
	c->samples++;
	c->bytes += size;
	if (!c->quiet && size < SCRATCH_SIZE) {
		/* Read it again. Otherwise the compiler knows more than the verifier. */
		size = *(volatile __u64 *)&c->size & (SCRATCH_SIZE - 1);
		bpf_dynptr_read(s->bytes, size, sample, 0, 0);
		if (bpf_ringbuf_output(&replies, s->bytes, size, 0))
			c->refused++;
	}
	return --p->left == 0;
}

/* Returns the result of bpf_user_ringbuf_drain(). */
SEC("syscall")
int drain(void *ctx)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct progress p;

	if (!c)
		return -1;
	p.left = c->limit;
	return bpf_user_ringbuf_drain(&commands, take, &p, c->flags);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
