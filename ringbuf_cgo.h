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

/* Written by one thread at a time, read by any: see cgo_ringbuf_ring_counters(). */
struct cgo_ring_counters {
	__u64 samples;
	__u64 bytes;	 /* of these, without headers and padding */
	__u64 discarded; /* records */
	__u64 highest;	 /* most bytes in the ring that a drain began with */
};

/* One of the rings of a Reader. */
struct cgo_ring {
	struct cgo_ringbuf *reader;
	struct ring *lib; /* libbpf's */
	__u64 size;	  /* in bytes */
	bool begun;	  /* consumer is valid: a drain has found a sound position */
	void *pages;	  /* our own mapping of the producer position and the data, read-only */
	void *data;	  /* in pages */

	__u64 consumer;	    /* position up to which all was drained */
	__u64 producer;	    /* position up to which records were reserved */
	__u64 last;	    /* end of the last entry, or consumer if the last drain had none */
	__u64 bad_consumer; /* the consumer position that was found, after -EUCLEAN */
	struct cgo_ring_counters counters;
};

/*
 * The rings of a Reader, opened by cgo_ringbuf_open(). Calls on it must not overlap,
 * except that any thread may call cgo_ringbuf_wake(), and those that return positions
 * and counters, until cgo_ringbuf_free().
 *
 * Functions return 0 or a negative errno.
 */
struct cgo_ringbuf {
	struct ring_buffer *rb;
	struct cgo_ring *rings;
	int count;     /* of rings */
	int next;      /* index of the ring to drain next */
	__u64 largest; /* size of a ring */
	int ring_fd;   /* duplicate of libbpf's epoll instance, which contains the maps */
	int wake_fd;   /* eventfd that ends a wait here */
	int park_fd;   /* epoll instance for Go's netpoller, which has a duplicate */

	/* Where the drained samples go; valid during one call. */
	void *buf;
	size_t cap;
	size_t limit;
	bool leave; /* leave the newest record in the ring: see leaves_one() */

	/* What the last call found. */
	struct cgo_ring *at; /* the ring that was drained last: all samples are its */
	size_t filled;	     /* bytes of entries in buf */
	size_t spilled; /* bytes of the one entry, the last, that did not fit and is in spill */
	void *spill;
	bool woken;    /* the wait was ended by cgo_ringbuf_wake() */
	bool notified; /* the wait was ended by what the kernel reported */
	bool full;     /* there is more: stopped at the limit, or has seen only discards */
	bool busy;     /* no sample, and a wait would end at once: as with a busy record */
	bool drained;  /* not woken before that */
	__u32 samples; /* in the batch */
	__u64 bytes;   /* of these */
	__u64 moved;   /* bytes that the consumer positions moved */

	/* Of the current tick, which may take more than one call. */
	int unticked; /* rings that are still to be drained */
	bool quiet;   /* nothing was produced in the others since the tick before */
	bool idle;    /* it is over, and was quiet to the end */

	__u64 drains, wakeups, ticks; /* counters */
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
 * Opens the rings of these maps, of which sizes are the sizes. It needs map_fds no longer
 * than that. A failure sets *step to what was being done, and *failed to the index of the
 * map with which, or -1.
 */
int cgo_ringbuf_open(const int *map_fds, const __u64 *sizes, int rings, struct cgo_ringbuf **out,
		     int *failed, const char **step);
void cgo_ringbuf_free(struct cgo_ringbuf *r);

/*
 * Drains the samples of one ring into buf, which has room for cap bytes, until it is empty,
 * a record is not committed yet, or about limit bytes are filled. The rings take turns. If
 * no ring had a sample, waits for at most timeout_ns for a notification from the kernel or
 * cgo_ringbuf_wake(), and drains again. It does not wait while r->busy or r->full.
 * -EUCLEAN: somebody else wrote the consumer position of r->at. -EBADF: somebody closed a
 * descriptor or put another file in its place.
 */
int cgo_ringbuf_poll(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 timeout_ns);

/*
 * Waits for pause_ns (0: not at all), or until cgo_ringbuf_wake(), which ends the
 * call, or with listen until a ring is filled as cgo_ringbuf_filled() has it, if the kernel
 * notifies then. After that drains like cgo_ringbuf_poll(), but leaves the newest record in
 * the ring, so that the kernel does not notify of the next one. If there is no other
 * sample, drains that too. While r->unticked there are rings which this tick has not
 * drained: then call it again, without a pause.
 */
int cgo_ringbuf_tick(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 pause_ns,
		     bool listen);

/* Ends the current or next wait of the two above. */
int cgo_ringbuf_wake(struct cgo_ringbuf *r);

/* Makes park_fd readable on notifications (or no longer). -EBADF as above. */
int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed);

/*
 * Reports whether an eighth of a ring or more was produced since it was last drained. Not
 * whether so much is in it, which may be held back by a busy record.
 */
bool cgo_ringbuf_filled(struct cgo_ringbuf *r);

__u64 cgo_ringbuf_consumer(struct cgo_ringbuf *r, int ring);
__u64 cgo_ringbuf_producer(struct cgo_ringbuf *r, int ring);
void cgo_ringbuf_ring_counters(struct cgo_ringbuf *r, int ring, struct cgo_ring_counters *out);
void cgo_ringbuf_counters(struct cgo_ringbuf *r, __u64 *drains, __u64 *wakeups, __u64 *ticks);

/* A new descriptor of what is pinned at path, or of the map with this id. */
int cgo_ringbuf_open_pinned(const char *path);
int cgo_ringbuf_open_id(__u32 id);

#endif
