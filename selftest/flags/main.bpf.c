//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits or discards one record, as main.go asks for. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

/* Context: the sample and the flags. Returns 0 if the record fit in the ring. */
SEC("raw_tp/submit")
int submit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return 1;
	*event = ctx->args[0];
	bpf_ringbuf_submit(event, ctx->args[1]);
	return 0;
}

/* Context: an ignored number and the flags. Returns 0 if the record fit in the ring. */
SEC("raw_tp/discard")
int discard(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return 1;
	bpf_ringbuf_discard(event, ctx->args[1]);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
