//go:build linux

// SPDX-License-Identifier: Apache-2.0
/*
 * Waits until the kernel notifies, until a time has passed or until cgo_ringbuf_wake() is called.
 */
#define _GNU_SOURCE
#include "ringbuf_cgo.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000

/* One thread at a time may count. Any thread may read the counter. */
static void count(__u64 *counter, __u64 n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

__u64 cgo_ringbuf_wakeups(const struct cgo_ringbuf *r)
{
	return __atomic_load_n(&r->wakeups, __ATOMIC_RELAXED);
}

enum state { EMPTY, BUSY, READY };

static enum state state_of(const struct cgo_ring *ring)
{
	if (cgo_ringbuf_load(ring->producer_pos) == ring->consumer)
		return EMPTY;
	if (cgo_ringbuf_header(ring, ring->consumer) & BUSY_BIT)
		return BUSY;
	return READY;
}

/*
 * The kernel notifies of a record if, at its commit, the consumer position is the start of the
 * record (bpf_ringbuf_commit() in kernel/bpf/ringbuf.c). libbpf has stored that position. Without
 * a StoreLoad barrier the loads behind this may come before that store and miss the commit, and the
 * commit may miss the store. This fence pairs with the xchg() in the commit. So if there is no
 * record behind it, or a busy one, the commit of that record will notify.
 */
static void fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static enum state state_of_all(const struct cgo_ringbuf *r)
{
	enum state most = EMPTY;
	int i;

	fence();
	for (i = 0; i < r->count; i++) {
		enum state state = state_of(&r->rings[i]);

		if (state > most)
			most = state;
	}
	return most;
}

bool cgo_ringbuf_ready(struct cgo_ringbuf *r)
{
	return state_of_all(r) == READY;
}

bool cgo_ringbuf_ready_ring(struct cgo_ringbuf *r, int i)
{
	fence();
	return state_of(&r->rings[i]) == READY;
}

/*
 * Undoes cgo_ringbuf_wake(), if it was called. If ppoll reports the eventfd, but there are no 8
 * bytes to read or all of them are 0, somebody closed it or put another file in its place. Then
 * ppoll would return at once each time.
 */
static int reset_wake(struct cgo_ringbuf *r)
{
	__u64 n = 0;
	ssize_t size = read(r->wake_fd, &n, sizeof(n));

	if (size < 0 && errno == EAGAIN)
		return 0;
	if (size != sizeof(n) || !n)
		return -EBADF;
	r->woken = true;
	return 0;
}

/* Waits for cgo_ringbuf_wake(), and for events of fd unless that is -1. */
static int wait_events(struct cgo_ringbuf *r, __s64 timeout_ns, int fd)
{
	struct pollfd fds[] = {
	    {.fd = r->wake_fd, .events = POLLIN},
	    {.fd = fd, .events = POLLIN},
	};
	struct timespec timeout = {
	    .tv_sec = timeout_ns / 1000000000,
	    .tv_nsec = timeout_ns % 1000000000,
	};
	int err = 0;

	if (ppoll(fds, 2, &timeout, NULL) < 0)
		return errno == EINTR ? 0 : -errno;
	if (fds[0].revents) {
		err = reset_wake(r);
		if (!err && !r->woken)
			err = -EBADF;
	}
	r->notified = fds[1].revents && !r->woken;
	return err;
}

/*
 * Waits in libbpf. cgo_ringbuf_open() has added the eventfd to libbpf's epoll instance. libbpf
 * takes an event of it for one of the first ring, and looks there once more.
 */
static int wait_in_libbpf(struct cgo_ringbuf *r, __s64 timeout_ms)
{
	int i, err;

	for (i = 0; i < r->count; i++) {
		r->rings[i].left = 1;
		r->rings[i].copying = true;
	}
	err = ring_buffer__poll(r->rb, timeout_ms);
	for (i = 0; i < r->count; i++)
		cgo_ringbuf_pass(&r->rings[i]);
	r->notified = r->at;
	if (r->at)
		return err == STOP ? 0 : err;
	if (err == -EBADF || err == -EINVAL) /* somebody closed libbpf's, but not the duplicate */
		return wait_events(r, timeout_ms * NS_PER_MS, r->ring_fd);
	if (err < 0 && err != -EINTR)
		return err;
	return reset_wake(r);
}

int cgo_ringbuf_wait(struct cgo_ringbuf *r, __s64 timeout_ns, __u8 *buf, size_t cap)
{
	enum state state;
	int err;

	cgo_ringbuf_begin(r, buf, cap);
	r->woken = false;
	r->notified = false;
	state = state_of_all(r);
	r->busy = state == BUSY;
	if (state != EMPTY || timeout_ns <= 0)
		return 0;
	if (buf && timeout_ns >= NS_PER_MS)
		err = wait_in_libbpf(r, timeout_ns / NS_PER_MS);
	else
		err = wait_events(r, timeout_ns, r->ring_fd);
	if (r->notified)
		count(&r->wakeups, 1);
	/*
	 * Notified, but there is no record. Perhaps somebody closed the epoll instance or put
	 * another file in its place; cgo_ringbuf_arm() will tell. Or the record is busy. ppoll is
	 * level-triggered, so it would return at once until the commit.
	 */
	if (!err && r->notified && !r->at)
		r->busy = state_of_all(r) != READY;
	return err;
}

static int arm(struct cgo_ringbuf *r, __u32 events)
{
	struct epoll_event event = {.events = events};

	/* It fails, with one of four errors, only if one of the two is closed or another file. */
	if (epoll_ctl(r->park_fd, EPOLL_CTL_MOD, r->ring_fd, &event))
		return -EBADF;
	return 0;
}

int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed)
{
	return arm(r, armed ? EPOLLIN : 0);
}

bool cgo_ringbuf_produced(const struct cgo_ringbuf *r, enum cgo_listen listen)
{
	int i;

	for (i = 0; i < r->count; i++) {
		const struct cgo_ring *ring = &r->rings[i];
		__u64 enough = listen == CGO_ANY ? 1 : ring->size / 8;

		if (cgo_ringbuf_load(ring->producer_pos) - ring->producer >= enough)
			return true;
	}
	return false;
}

static __s64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/*
 * While there are records in the rings, libbpf's epoll instance may be ready all the time. So this
 * watches it for changes.
 */
static int pause_listening(struct cgo_ringbuf *r, __s64 pause_ns, enum cgo_listen listen)
{
	__s64 end = now_ns() + pause_ns, left = pause_ns;
	struct epoll_event event;
	int err, disarmed;

	err = arm(r, EPOLLIN | EPOLLET);
	while (!err && !r->woken && left > 0) {
		/* Takes the event, and also the one that arming makes if there are records. */
		epoll_wait(r->park_fd, &event, 1, 0);
		if (cgo_ringbuf_produced(r, listen)) {
			count(&r->wakeups, r->notified);
			break;
		}
		err = wait_events(r, left, r->park_fd);
		left = end - now_ns();
	}
	disarmed = arm(r, 0);
	return err ? err : disarmed;
}

int cgo_ringbuf_pause(struct cgo_ringbuf *r, __s64 pause_ns, enum cgo_listen listen)
{
	r->woken = false;
	r->notified = false;
	if (listen == CGO_DEAF)
		return wait_events(r, pause_ns, -1);
	return pause_listening(r, pause_ns, listen);
}

int cgo_ringbuf_wake(struct cgo_ringbuf *r)
{
	__u64 one = 1;

	/* EAGAIN means that the counter is at its maximum. So the wait ends anyway. */
	if (write(r->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}
