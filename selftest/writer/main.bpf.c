//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Drains a user ring buffer, and sends each sample back through a ring buffer. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_SAMPLE 256

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 1 << 16);
} commands SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} replies SEC(".maps");

/* main.go has the same layout. */
struct message {
	__u64 seq;
	__u32 size;    /* of the sample */
	__u32 refused; /* replies that did not fit in the ring so far */
	char rest[MAX_SAMPLE - 16];
};

static struct message message;
static __u32 refused;

static long take(struct bpf_dynptr *sample, void *ctx)
{
	struct message *m = &message;
	__u32 size;

	if (bpf_dynptr_read(m, 16, sample, 0, 0))
		return 1;
	size = m->size;
	if (size > MAX_SAMPLE || bpf_dynptr_read(m, size, sample, 0, 0))
		return 1;
	m->refused = refused;
	if (bpf_ringbuf_output(&replies, m, size, 0))
		refused++;
	return 0;
}

/* The Writer runs this program, so no notification is needed. */
SEC("syscall")
int drain(void *ctx)
{
	return bpf_user_ringbuf_drain(&commands, take, NULL, BPF_RB_NO_WAKEUP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
