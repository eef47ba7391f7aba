//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits one event for each system call, into the ring of the CPU that runs it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "ringbuf.bpf.h"

/*
 * What the kernel must know about all rings. Since 5.10 their sizes may differ from this
 * one.
 */
struct ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
};

/* main.go sets the size to the number of CPUs, and creates the rings. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring);
} rings SEC(".maps");

/* main.go only counts the events. */
struct event {
	__u32 pid;
	__u32 syscall;
};

/* One for all rings, because each CPU uses only one of them. */
RINGBUF_LOSS_COUNTER(losses);

/* TP_PROTO(struct pt_regs *regs, long id) */
SEC("raw_tp/sys_enter")
int sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(&rings, &cpu);
	struct event *event;

	if (!ring)
		return 0;
	event = ringbuf_reserve(ring, &losses, sizeof(*event), 0);
	if (!event)
		return 0;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->syscall = ctx->args[1];
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
