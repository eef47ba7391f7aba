//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Drains a user ring buffer, and checks that no message is missing. Loads on kernel 6.1
 * and newer.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 1 << 20);
} commands SEC(".maps");

/* writer.go has the same layout. */
struct tally {
	__u64 messages;
	__u64 next; /* number of the next message */
	__u64 gaps; /* messages that are missing, judged by their numbers */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tally SEC(".maps");

static long take(struct bpf_dynptr *sample, struct tally **tally)
{
	struct tally *t = *tally;
	__u64 seq;

	if (!t || bpf_dynptr_read(&seq, sizeof(seq), sample, 0, 0))
		return 1;
	t->messages++;
	t->gaps += seq - t->next;
	t->next = seq + 1;
	return 0;
}

SEC("syscall")
int drain(void *ctx)
{
	__u32 zero = 0;
	struct tally *t = bpf_map_lookup_elem(&tally, &zero);

	return bpf_user_ringbuf_drain(&commands, take, &t, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
