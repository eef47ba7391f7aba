/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C side of the package: ringbuf_cgo.c consumes, ringbuf_cgo_wait.c waits,
 * ringbuf_cgo_open.c opens, ringbuf_cgo_write.c writes. Only this code calls libbpf's
 * ring_buffer and user_ring_buffer APIs. It knows nothing of Go.
 */
#ifndef RINGBUF_CGO_H
#define RINGBUF_CGO_H

#if __SIZEOF_LONG__ < 8
#error "ringbuf needs a 64-bit processor: positions in a ring have 64 bits (see README.md)"
#elif !__has_include(<bpf/libbpf.h>)
#error "libbpf's headers are missing: set CGO_CFLAGS and CGO_LDFLAGS, see README.md of ringbuf"
#else

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/types.h>

enum bpf_link_type; /* libbpf.h wants it, and linux/bpf.h has it only from 5.8 on */
#include <bpf/libbpf.h>

#if LIBBPF_MAJOR_VERSION < 1 || (LIBBPF_MAJOR_VERSION == 1 && LIBBPF_MINOR_VERSION < 3)
#error "libbpf is too old: ringbuf needs 1.3 or newer"
#endif
#endif

/* Headers of records. linux/bpf.h has these as BPF_RINGBUF_*, but only from 5.8 on. */
#define HEADER_SIZE 8
#define BUSY_BIT (1U << 31)
#define DISCARD_BIT (1U << 30)

/* The most bytes of a bpf_dynptr: DYNPTR_MAX_SIZE in kernel/bpf/helpers.c. */
#define MAX_DYNPTR ((1U << 24) - 1)

/* Returned by the callback to end a call of libbpf: "this sample was the last". */
#define STOP (-ECANCELED)

/* One of the rings of a Reader. */
struct cgo_ring {
	struct cgo_ringbuf *reader;
	struct ring *lib; /* libbpf's */
	__u64 size;	  /* in bytes */
	void *own;	  /* our mapping, or NULL where libbpf's is used */

	/* In memory that can only be read: the positions, and the data twice in a row. */
	const __u64 *consumer_pos;
	const __u64 *producer_pos;
	const void *data;

	__u64 consumer; /* the position up to which records were consumed */
	__u64 producer; /* the producer position when somebody looked last */
	__u64 bad;	/* the consumer position that was found, after -EUCLEAN */

	__u64 left;	/* samples that libbpf is to consume */
	bool copying;	/* and to copy into reader->batch */
	__u64 samples;	/* that were consumed, ever */
	__u64 bytes;	/* of these */
	__u64 discards; /* that were found when a sample was copied, ever */
};

/* Where samples are copied to; valid during one call. */
struct cgo_batch {
	void *buf;
	size_t cap;
	size_t filled;	   /* bytes of entries in buf */
	void *large;	   /* the only entry, if buf had no room for it: for cgo_ringbuf_drop() */
	size_t large_size; /* of large, in bytes */
	__u64 too_large;   /* length of a sample for which there was no memory */
};

/*
 * The rings of a Reader, opened by cgo_ringbuf_open(). One thread at a time may wait,
 * and one at a time consume; see there. Any thread may call cgo_ringbuf_wake() until
 * cgo_ringbuf_free().
 *
 * Functions return 0 or a negative errno. -EUCLEAN: somebody else wrote the consumer
 * position. -EBADF: somebody closed a descriptor or put another file in its place.
 */
struct cgo_ringbuf {
	struct ring_buffer *rb;
	struct cgo_ring *rings;
	int count;   /* of rings */
	int ring_fd; /* duplicate of libbpf's epoll instance, with the maps and wake_fd */
	int wake_fd; /* eventfd that ends a wait */
	int park_fd; /* epoll instance for Go's netpoller, which has a duplicate */

	struct cgo_batch batch;

	/* What the last wait found. */
	struct cgo_ring *at; /* the ring whose sample is in the batch */
	bool woken;	     /* cgo_ringbuf_wake() ended it */
	bool notified;	     /* the kernel ended it */
	bool busy;	     /* a record that is not committed is the oldest of a ring */

	__u64 wakeups; /* waits that the kernel ended */
};

/* An entry of a batch: this header, then len bytes, then padding to 8. */
struct cgo_ringbuf_entry {
	__u64 end; /* position in the ring of the record's end */
	__u32 len;
	__u32 gap; /* from what was consumed before to this end */
};

/*
 * Opens the rings of these maps, of which sizes are the sizes. It needs map_fds no longer
 * than that. With own it does not look for libbpf's mappings. A failure sets *step to what
 * was being done, and *failed to the index of the map with which, or -1.
 */
int cgo_ringbuf_open(const int *map_fds, const __u64 *sizes, int rings, bool own,
		     struct cgo_ringbuf **out, int *failed, const char **step);
void cgo_ringbuf_free(struct cgo_ringbuf *r);

/*
 * Lets libbpf consume the next n samples of a ring, the last of which ends at end, and
 * the discarded records between them. Copies the samples into buf, which has room for
 * them, unless that is NULL. A failure consumes nothing that is not in the batch.
 */
int cgo_ringbuf_consume(struct cgo_ringbuf *r, int ring, __u64 n, __u64 end, __u8 *buf, size_t cap);

/*
 * Lets libbpf consume the next n records of a ring, all discarded, which end at end. With a
 * libbpf before 1.5 a sample that is committed meanwhile is copied into the batch.
 */
int cgo_ringbuf_skip(struct cgo_ringbuf *r, int ring, __u64 n, __u64 end, __u8 *buf, size_t cap);

/*
 * Waits for at most timeout_ns until the kernel notifies or cgo_ringbuf_wake() is called,
 * but only if no ring has a record and none has a busy one. All that was looked at must
 * have been consumed. With buf a wait of a millisecond or more is one in ring_buffer__poll(),
 * which then consumes one sample into the batch, if there is one.
 */
int cgo_ringbuf_wait(struct cgo_ringbuf *r, __s64 timeout_ns, __u8 *buf, size_t cap);

/* Report, behind a fence, whether any ring, or one, has a record that can be consumed. */
bool cgo_ringbuf_ready(struct cgo_ringbuf *r);
bool cgo_ringbuf_ready_ring(struct cgo_ringbuf *r, int ring);

/* How much is to be produced for a pause to end early. */
enum cgo_listen { CGO_DEAF, CGO_EIGHTH, CGO_ANY };

/*
 * Waits for pause_ns or until cgo_ringbuf_wake(), or until cgo_ringbuf_produced() when the
 * kernel notifies. What is in the rings does not matter.
 */
int cgo_ringbuf_pause(struct cgo_ringbuf *r, __s64 pause_ns, enum cgo_listen listen);

/*
 * Reports whether an eighth of a ring, or anything, was reserved since somebody looked. Not
 * whether so much is in it, which may be held back by a busy record.
 */
bool cgo_ringbuf_produced(const struct cgo_ringbuf *r, enum cgo_listen listen);

/* Ends the current or next wait. */
int cgo_ringbuf_wake(struct cgo_ringbuf *r);

/* Makes park_fd readable on notifications (or no longer). */
int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed);

/* Frees batch.large. */
void cgo_ringbuf_drop(struct cgo_ringbuf *r);

__u64 cgo_ringbuf_wakeups(const struct cgo_ringbuf *r);

/*
 * The user ring buffer of a Writer. Any thread may be in cgo_writer_arm(); of the other functions
 * one at a time may run. They return 0 or a negative errno. -EUCLEAN: somebody else wrote the
 * producer position, or a record has a header that the kernel refuses. -EBADF: somebody closed a
 * descriptor or put another file in its place.
 */
struct cgo_writer {
	struct user_ring_buffer *rb;
	__u64 size; /* in bytes */
	int map_fd;
	int park_fd; /* epoll instance for Go's netpoller, which closes it */

	/* In memory that can only be read. */
	void *positions;
	const __u64 *consumer_pos;
	const __u64 *producer_pos;

	__u64 producer; /* where this Writer left the producer position */
	__u64 busy;	/* records that were found reserved and not submitted */

	/* Our own mapping of the data, twice in a row, in which reservations are lent; or NULL. */
	void *view;
};

/*
 * Opens the user ring buffer of map_fd, which it owns unless it fails. With repair it discards
 * records that are reserved and not submitted. -EBUSY: somebody is writing to the ring. A failure
 * sets *step to what was being done.
 */
int cgo_writer_open(int map_fd, __u64 size, bool repair, struct cgo_writer **out,
		    const char **step);

/* Gives back all but park_fd, what is lent, and w, which cgo_writer_free() frees then. */
void cgo_writer_close(struct cgo_writer *w);
void cgo_writer_free(struct cgo_writer *w);

/*
 * Reserves, copies and submits. -ENOSPC: there is no room. The writer is a number, since of a
 * pointer to pointers cgo finds out at each call whether it is one of Go's.
 */
int cgo_writer_write(uintptr_t writer, const __u8 *from, size_t len);

/*
 * Reserves. *sample is for submit and discard, and *offset where the owner finds its memory in
 * view, which cgo_writer_view() maps.
 */
int cgo_writer_view(struct cgo_writer *w);
int cgo_writer_reserve(struct cgo_writer *w, size_t len, uintptr_t *sample, __u64 *offset);
void cgo_writer_submit(struct cgo_writer *w, uintptr_t sample);
void cgo_writer_discard(struct cgo_writer *w, uintptr_t sample);

/*
 * Puts other memory in the place of view: what owners of reservations still write gets into no
 * ring.
 */
int cgo_writer_detach(struct cgo_writer *w);

/* Makes park_fd readable when the kernel has drained something (or no longer). */
int cgo_writer_arm(struct cgo_writer *w, bool armed);

/* For the files. */

int cgo_ringbuf_take(void *ring, void *sample, size_t len); /* libbpf's callback */
void cgo_ringbuf_begin(struct cgo_ringbuf *r, __u8 *buf, size_t cap);
void cgo_ringbuf_pass(struct cgo_ring *ring); /* what libbpf consumed without a callback */

static inline __u64 cgo_ringbuf_load(const __u64 *position)
{
	/* Pairs with the smp_store_release() of the kernel and of libbpf. */
	return __atomic_load_n(position, __ATOMIC_ACQUIRE);
}

/* The length and flags of the record at pos, which is below the producer position. */
static inline __u32 cgo_ringbuf_header(const struct cgo_ring *ring, __u64 pos)
{
	/* Pairs with the xchg() in bpf_ringbuf_commit(). */
	const __u32 *header = ring->data + (pos & (ring->size - 1));

	return __atomic_load_n(header, __ATOMIC_ACQUIRE);
}

#endif
