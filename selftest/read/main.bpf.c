//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits an event for each program that a child of one process executes. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct upid {
	int nr;
} __attribute__((preserve_access_index));

struct pid {
	unsigned int level;
	struct upid numbers[1];
} __attribute__((preserve_access_index));

struct task_struct {
	struct pid *thread_pid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
} __attribute__((preserve_access_index));

struct linux_binprm {
	const char *filename;
} __attribute__((preserve_access_index));

/* main.go has the same layout. */
struct event {
	__u32 pid;
	__u32 ppid;
	char filename[248];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

/*
 * The process whose children count, and the PID namespace of all of them, as device and
 * inode.
 */
const volatile __u32 parent;
const volatile __u64 namespace_dev;
const volatile __u64 namespace_ino;

/* Returns the number of a process in its own PID namespace. */
static __u32 getpid_of(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, group_leader, thread_pid);
	__u64 number = BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);
	int nr = 0;

	bpf_probe_read_kernel(&nr, sizeof(nr), (void *)&pid->numbers[0].nr + number);
	return nr;
}

/* TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm) */
SEC("raw_tp/sched_process_exec")
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct linux_binprm *bprm = (struct linux_binprm *)ctx->args[2];
	struct bpf_pidns_info process;
	struct event *event;
	__u32 ppid;

	if (bpf_get_ns_current_pid_tgid(namespace_dev, namespace_ino, &process, sizeof(process)))
		return 0;
	ppid = getpid_of(BPF_CORE_READ(task, real_parent));
	if (ppid != parent)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return 0;
	event->pid = process.tgid;
	event->ppid = ppid;
	if (bpf_probe_read_kernel_str(event->filename, sizeof(event->filename),
				      BPF_CORE_READ(bprm, filename)) < 0)
		event->filename[0] = '\0';
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
