//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits a numbered event whenever a thread of one process changes its name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_CPUS 256 /* workload.go uses no others */

/* workload.go has the same layout and variables. */
struct event {
	__u32 cpu;
	__u32 tid; /* of the thread */
	__u64 seq; /* counted for each CPU, without a gap */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/*
 * The process that counts, and the PID namespace, as device and inode, in which it has
 * that number.
 */
const volatile __u32 traced_pid;
const volatile __u64 namespace_dev;
const volatile __u64 namespace_ino;

struct {
	__u64 submitted;
	__u64 refused; /* because the ring was full */
} counters[MAX_CPUS];

/*
 * TP_PROTO(struct task_struct *task, const char *comm). The process has one thread for
 * each CPU. So nobody else counts there, even if this program can be preempted.
 *
 * Nothing else uses this tracepoint while the program is being attached, that is, while
 * the kernel patches its code. With a tracepoint that everything uses, such as sys_enter,
 * an emulated processor (QEMU 7.2) may hang: it continues to execute the old code.
 */
SEC("raw_tp/task_rename")
int task_rename(struct bpf_raw_tracepoint_args *ctx)
{
	/* Tells the verifier of 5.10 that cpu is in bounds. */
	__u32 cpu = bpf_get_smp_processor_id() & (MAX_CPUS - 1);
	struct bpf_pidns_info process;
	struct event *event;

	if (bpf_get_ns_current_pid_tgid(namespace_dev, namespace_ino, &process, sizeof(process)))
		return 0;
	if (process.tgid != traced_pid)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		counters[cpu].refused++;
		return 0;
	}
	event->cpu = cpu;
	event->tid = process.pid;
	event->seq = counters[cpu].submitted;
	bpf_ringbuf_submit(event, 0);
	counters[cpu].submitted++;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
