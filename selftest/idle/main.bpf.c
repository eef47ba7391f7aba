//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits a sample to one of many ring buffers. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RINGS 100 /* known to main.go */

struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} first SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, RINGS);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* Context: the number of the ring, which is also the sample. Returns 0 on success. */
SEC("raw_tp/submit")
int submit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 sample = ctx->args[0];
	__u32 index = sample;
	void *ring = bpf_map_lookup_elem(&rings, &index);

	return ring ? bpf_ringbuf_output(ring, &sample, sizeof(sample), 0) : -1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
