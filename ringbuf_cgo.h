/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RINGBUF_CGO_H
#define RINGBUF_CGO_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>

#if !__has_include(<bpf/libbpf.h>)
#error "libbpf's headers are missing: set CGO_CFLAGS and CGO_LDFLAGS, see README.md of ringbuf"
#else
#include <bpf/libbpf.h>
#if LIBBPF_MAJOR_VERSION < 1 || (LIBBPF_MAJOR_VERSION == 1 && LIBBPF_MINOR_VERSION < 3)
#error "libbpf is too old: ringbuf needs 1.3 or newer"
#endif
#endif

/*
 * One ring, opened by cgo_ringbuf_open(). Calls on it must not overlap, except
 * that any thread may call cgo_ringbuf_wake(), cgo_ringbuf_consumer() and
 * cgo_ringbuf_producer() until cgo_ringbuf_free().
 *
 * Functions return 0 or a negative errno.
 */
struct cgo_ringbuf {
	struct ring_buffer *rb;
	struct ring *ring;
	__u64 size;  /* of the ring, in bytes */
	int ring_fd; /* duplicate of libbpf's epoll instance, which contains the map */
	int wake_fd; /* eventfd that ends a wait here */
	int park_fd; /* epoll instance for Go's netpoller, which has a duplicate */
	bool begun;  /* consumer is valid: a drain has found a sound position */
	void *pages; /* our own mapping of the producer position and the data, read-only */
	void *data;  /* in pages */

	/* Where the drained samples go; valid during one call. */
	void *buf;
	size_t cap;
	size_t limit;
	bool leave; /* leave the newest record in the ring: see leaves_one() */

	/* What the last call found. */
	size_t filled;	/* bytes of entries in buf */
	size_t spilled; /* bytes of the one entry, the last, that did not fit and is in spill */
	void *spill;
	bool woken;	    /* the wait was ended by cgo_ringbuf_wake() */
	bool notified;	    /* the wait was ended by what ring_fd reported */
	bool full;	    /* there is more: stopped at the limit, or has seen only discards */
	bool busy;	    /* no sample, and a wait would end at once: as with a busy record */
	bool idle;	    /* a tick before which nothing was produced */
	bool drained;	    /* not woken before that */
	__u32 samples;	    /* in the batch */
	__u64 moved;	    /* bytes that the consumer position moved */
	__u64 consumer;	    /* position up to which all was drained */
	__u64 producer;	    /* position up to which records were reserved */
	__u64 last;	    /* end of the last entry, or consumer if the last call had none */
	__u64 bad_consumer; /* the consumer position that was found, after -EUCLEAN */
};

/* An entry of a batch: this header, then len bytes, then padding to 8. */
struct cgo_ringbuf_entry {
	__u64 end; /* position in the ring of the record's end */
	__u32 len;
	__u32 gap; /* from the end of the entry before to this end */
};

int cgo_ringbuf_dup(int fd);
int cgo_ringbuf_map_info(int map_fd, struct bpf_map_info *info);

/*
 * Opens the ring of map_fd, which it owns from then on, also on failure. A
 * failure sets *step to what was being done.
 */
int cgo_ringbuf_open(int map_fd, __u64 size, struct cgo_ringbuf **out, const char **step);
void cgo_ringbuf_free(struct cgo_ringbuf *r);

/*
 * Drains samples into buf, which has room for cap bytes, until the ring is empty, a
 * record is not committed yet, or about limit bytes are filled. If there was no
 * sample, waits for at most timeout_ns for a notification from the kernel or
 * cgo_ringbuf_wake(), and drains again. It does not wait while r->busy or r->full.
 * -EUCLEAN: somebody else wrote the consumer position. -EBADF: somebody closed a
 * descriptor or put another file in its place.
 */
int cgo_ringbuf_poll(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 timeout_ns);

/*
 * Waits for pause_ns (0: not at all), or until cgo_ringbuf_wake(), which ends the
 * call. Then drains like cgo_ringbuf_poll(), but leaves the newest record in the
 * ring, so that the kernel does not notify of the next one. If there is no other
 * sample, drains that too.
 */
int cgo_ringbuf_tick(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 pause_ns);

/* Ends the current or next wait of the two above. */
int cgo_ringbuf_wake(struct cgo_ringbuf *r);

/* Makes park_fd readable on notifications (or no longer). -EBADF as above. */
int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed);

__u64 cgo_ringbuf_consumer(struct cgo_ringbuf *r);
__u64 cgo_ringbuf_producer(struct cgo_ringbuf *r);

#endif
