//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Writes each system call of one process into a ring in overwrite mode, which nobody
 * reads: new records replace the oldest ones.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RB_OVERWRITE (1U << 19) /* BPF_F_RB_OVERWRITE of <linux/bpf.h> since Linux 6.19 */

/* main.go has the same layout. */
struct event {
	__u64 time; /* in ns since boot */
	__u32 thread;
	__u32 syscall;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, RB_OVERWRITE);
} events SEC(".maps");

const volatile __u32 process;

/* TP_PROTO(struct pt_regs *regs, long id) */
SEC("raw_tp/sys_enter")
int sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct event *event;

	if (id >> 32 != process)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return 0; /* an older record is not submitted yet, and is in the way */
	event->time = bpf_ktime_get_ns();
	event->thread = id;
	event->syscall = ctx->args[1];
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
