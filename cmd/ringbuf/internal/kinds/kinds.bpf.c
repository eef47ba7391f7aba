//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits the samples of kinds.h, and numbered ones. Loads on kernel 5.10 and newer. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "kinds.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} events SEC(".maps");

enum which { INTEGERS, BITS, OTHERS, COMPOUND, ITEMS, ARGUMENTS, OUTER };

/*
 * Copies a value, and returns its size. In the BTF of a loaded program, only the types of its
 * functions are sure to be there: some loaders leave out the others.
 */
#define FILL(value, type, length)                                                                  \
	static __noinline int fill_##value(type *to)                                               \
	{                                                                                          \
		__builtin_memcpy(to, &value, length);                                              \
		return length;                                                                     \
	}

FILL(integers, struct integers, sizeof(integers))
FILL(bits, struct bits, sizeof(bits))
FILL(others, struct others, sizeof(others))
FILL(compound, compound_t, sizeof(compound))
FILL(items, struct items, offsetof(struct items, items) + 2 * sizeof(struct point))
FILL(arguments, struct arguments, offsetof(struct arguments, text) + sizeof("ls\0-l"))
FILL(outer, struct outer, sizeof(outer))

/* Has room for a sample with bytes added at its end. */
struct buffer {
	__u8 bytes[512];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct buffer);
} scratch SEC(".maps");

/* The arguments: enum which, and how many bytes to add to the sample or, if negative, to cut. */
SEC("raw_tp")
int submit(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 key = 0, size;
	__u8 *copy = bpf_map_lookup_elem(&scratch, &key);

	if (!copy)
		return -1;
	for (int i = 0; i < sizeof(struct buffer); i++)
		copy[i] = 0xee;
	switch (ctx->args[0]) {
	case INTEGERS:
		size = fill_integers((void *)copy);
		break;
	case BITS:
		size = fill_bits((void *)copy);
		break;
	case OTHERS:
		size = fill_others((void *)copy);
		break;
	case COMPOUND:
		size = fill_compound((void *)copy);
		break;
	case ITEMS:
		size = fill_items((void *)copy);
		break;
	case ARGUMENTS:
		size = fill_arguments((void *)copy);
		break;
	case OUTER:
		size = fill_outer((void *)copy);
		break;
	default:
		return -1;
	}
	size += (__s32)ctx->args[1];
	if (size > sizeof(struct buffer))
		return -1;
	return bpf_ringbuf_output(&events, copy, size, 0);
}

/* kinds.go knows this layout. */
struct numbered {
	__u64 number;
	__u64 more[7]; /* the number, times 2 to 8 */
};

static __noinline int fill_numbered(struct numbered *to, __u64 number)
{
	to->number = number;
	for (int i = 0; i < 7; i++)
		to->more[i] = number * (i + 2);
	return 0;
}

#define MAX_FLOOD 4096

/* The arguments: the first number, and how many samples. Returns how many the ring had room for. */
SEC("raw_tp")
int flood(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 first = ctx->args[0], count = ctx->args[1];

	for (__u32 i = 0; i < MAX_FLOOD; i++) {
		struct numbered *n;

		if (i >= count)
			return i;
		n = bpf_ringbuf_reserve(&events, sizeof(*n), 0);
		if (!n)
			return i;
		fill_numbered(n, first + i);
		bpf_ringbuf_submit(n, 0);
	}
	return MAX_FLOOD;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
