//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Submits an event for each program that is executed and passes a filter. Commands in a
 * user ring buffer change the filter. An event tells from where on the new filter
 * applies.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define COMM_SIZE 16

enum kind { EXECUTED, FILTER_CHANGED };

/* main.go has the same layout. */
struct event {
	__u32 kind;
	__u32 id; /* of the process or the command */
	char comm[COMM_SIZE];
};

/* main.go has the same layout. */
struct command {
	__u32 id;
	__u32 length; /* of the prefix */
	char prefix[COMM_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 1 << 14);
} commands SEC(".maps");

/* One is in use while the other one is written. */
static struct command filters[2];
static volatile __u32 current;

static int passes(const char *comm)
{
	const struct command *filter = &filters[current & 1];
	__u32 i;

	for (i = 0; i < COMM_SIZE && i < filter->length; i++)
		if (comm[i] != filter->prefix[i])
			return 0;
	return 1;
}

/* TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm) */
SEC("raw_tp/sched_process_exec")
int sched_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	char comm[COMM_SIZE];
	struct event *event;

	bpf_get_current_comm(comm, sizeof(comm));
	if (!passes(comm))
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return 0;
	event->kind = EXECUTED;
	event->id = bpf_get_current_pid_tgid() >> 32;
	__builtin_memcpy(event->comm, comm, sizeof(comm));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static long obey(struct bpf_dynptr *sample, void *ctx)
{
	struct command *next = &filters[(current + 1) & 1];
	struct event *event;

	if (bpf_dynptr_read(next, sizeof(*next), sample, 0, 0))
		return 0; /* too short for a command */
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	current++;
	if (!event)
		return 0;
	event->kind = FILTER_CHANGED;
	event->id = next->id;
	__builtin_memcpy(event->comm, next->prefix, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* The Writer runs this program when it has written, so no notification is needed. */
SEC("syscall")
int drain(void *ctx)
{
	return bpf_user_ringbuf_drain(&commands, obey, NULL, BPF_RB_NO_WAKEUP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
