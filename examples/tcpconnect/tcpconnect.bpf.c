//go:build ignore
// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* Submits one event at the start of each outgoing TCP connection. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "ringbuf.bpf.h"

#define AF_INET 2 /* include/linux/socket.h of the kernel */

/*
 * The fields that are needed of two kernel types. The kernel's BTF says where they are.
 */
struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

/* main.go has the same layout. */
struct event {
	__u32 pid;
	__u16 family;
	__be16 port;
	__u8 addr[16]; /* IPv4: the first four bytes */
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

RINGBUF_LOSS_COUNTER(losses);

/*
 * TP_PROTO(const struct sock *sk, const int oldstate, const int newstate). The socket
 * gets its destination before it enters this state, in the process that calls connect.
 */
SEC("raw_tp/inet_sock_set_state")
int inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	int oldstate = ctx->args[1], newstate = ctx->args[2];
	struct event *event;

	if (oldstate != BPF_TCP_CLOSE || newstate != BPF_TCP_SYN_SENT)
		return 0;
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	event = ringbuf_reserve(&events, &losses, sizeof(*event), 0);
	if (!event)
		return 0;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	event->port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	__builtin_memset(event->addr, 0, sizeof(event->addr)); /* clear old bytes of the ring */
	if (event->family == AF_INET)
		bpf_core_read(event->addr, sizeof(__be32), &sk->__sk_common.skc_daddr);
	else
		bpf_core_read(event->addr, sizeof(struct in6_addr), &sk->__sk_common.skc_v6_daddr);
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
