/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The C side of the package. ringbuf_cgo.c consumes, ringbuf_cgo_wait.c waits,
 * ringbuf_cgo_open.c opens, and ringbuf_cgo_write.c writes. No other code calls libbpf's
 * ring_buffer and user_ring_buffer APIs. This code knows nothing of Go.
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
#include <unistd.h>
#include <linux/types.h>

enum bpf_link_type; /* for libbpf.h; linux/bpf.h has it only from 5.8 on */
#include <bpf/libbpf.h>

#if LIBBPF_MAJOR_VERSION < 1 || (LIBBPF_MAJOR_VERSION == 1 && LIBBPF_MINOR_VERSION < 3)
#error "libbpf is too old: ringbuf needs 1.3 or newer"
#endif
#endif

/* Headers of records. linux/bpf.h has these as BPF_RINGBUF_*, from 5.8 on. */
#define HEADER_SIZE 8
#define BUSY_BIT (1U << 31)
#define DISCARD_BIT (1U << 30)

/* The largest bpf_dynptr in bytes: DYNPTR_MAX_SIZE in kernel/bpf/helpers.c. */
#define MAX_DYNPTR ((1U << 24) - 1)

/* The callback returns this to end a call of libbpf. The sample was consumed. */
#define STOP (-ECANCELED)

/* One of the rings of a Reader. */
struct cgo_ring {
	struct cgo_ringbuf *reader;
	struct ring *lib; /* libbpf's part */
	__u64 size;	  /* in bytes */
	void *own;	  /* our mapping, or NULL if libbpf's is used */

	/* Read-only: the positions, and the data, mapped twice in a row. */
	const __u64 *consumer_pos;
	const __u64 *producer_pos;
	const void *data;

	__u64 consumer; /* all records before this position were consumed */
	__u64 producer; /* producer position at the last look */
	__u64 bad;	/* the consumer position that was found, after -EUCLEAN */

	__u64 left;	/* number of samples that libbpf is to consume */
	bool copying;	/* copy these samples into reader->batch */
	__u64 samples;	/* samples consumed so far */
	__u64 bytes;	/* size of these samples */
	__u64 discards; /* discarded records that copying has passed so far */
};

/* The buffer that samples are copied to. Valid during one call. */
struct cgo_batch {
	void *buf;
	size_t cap;
	size_t filled;	   /* bytes of entries in buf */
	void *large;	   /* the only entry, if buf is too small for it; see cgo_ringbuf_drop() */
	size_t large_size; /* of large, in bytes */
	__u64 too_large;   /* length of a sample for which there was no memory */
};

/*
 * The rings of a Reader, opened by cgo_ringbuf_open(). At any time one thread may wait and one
 * may consume; the functions say which ones do. Any thread may call cgo_ringbuf_wake() until
 * cgo_ringbuf_free().
 *
 * Functions return 0 or a negative errno. -EUCLEAN means that somebody else wrote to the consumer
 * position. -EBADF means that somebody closed a descriptor or put another file in its place.
 */
struct cgo_ringbuf {
	struct ring_buffer *rb;
	struct cgo_ring *rings;
	int count;   /* number of rings */
	int ring_fd; /* duplicate of libbpf's epoll instance, which has the maps and wake_fd */
	int wake_fd; /* eventfd that ends a wait */
	int park_fd; /* epoll instance for Go's netpoller, which has a duplicate */

	struct cgo_batch batch;

	/* What the last wait found. */
	struct cgo_ring *at; /* the ring of the sample in the batch, or NULL */
	bool woken;	     /* cgo_ringbuf_wake() ended the wait */
	bool notified;	     /* the kernel ended the wait */
	bool busy;	     /* in some ring the oldest record is not committed */

	__u64 wakeups; /* number of waits that the kernel ended */
};

/* The header of an entry of a batch. len bytes follow, and padding to 8. */
struct cgo_ringbuf_entry {
	__u64 end; /* position where the record ends in the ring */
	__u32 len;
	__u32 gap; /* bytes consumed with it: from the position before this drain to end */
};

/*
 * Opens the rings of the maps map_fds, whose sizes are sizes. It does not need map_fds afterwards.
 * With own it maps the rings instead of using libbpf's mappings. On failure *step is what it was
 * doing, and *failed is the index of the map, or -1.
 */
int cgo_ringbuf_open(const int *map_fds, const __u64 *sizes, int rings, bool own,
		     struct cgo_ringbuf **out, int *failed, const char **step);
void cgo_ringbuf_free(struct cgo_ringbuf *r);

/*
 * Lets libbpf consume the next n samples of a ring, and the discarded records between them. The
 * last sample must end at end. Copies the samples into buf, which must have room for them, unless
 * buf is NULL. After a failure, all samples that were consumed are in the batch.
 */
int cgo_ringbuf_consume(struct cgo_ringbuf *r, int ring, __u64 n, __u64 end, __u8 *buf, size_t cap);

/*
 * Lets libbpf consume the next n records of a ring, which must all be discarded and end at end.
 * With a libbpf before 1.5, a sample that is committed meanwhile is copied into the batch.
 */
int cgo_ringbuf_skip(struct cgo_ringbuf *r, int ring, __u64 n, __u64 end, __u8 *buf, size_t cap);

/*
 * Waits until the kernel notifies or cgo_ringbuf_wake() is called, for at most timeout_ns. It does
 * not wait if a ring has a record, committed or busy. All records that were looked at must be
 * consumed. With buf, it waits in ring_buffer__poll() if timeout_ns is a millisecond or more. That
 * then consumes one sample, if there is one, into the batch.
 */
int cgo_ringbuf_wait(struct cgo_ringbuf *r, __s64 timeout_ns, __u8 *buf, size_t cap);

/* Report, behind a fence, whether any ring, or one ring, has a record that can be consumed. */
bool cgo_ringbuf_ready(struct cgo_ringbuf *r);
bool cgo_ringbuf_ready_ring(struct cgo_ringbuf *r, int ring);

/* What ends a pause early: nothing, an eighth of a ring produced, or anything produced. */
enum cgo_listen { CGO_DEAF, CGO_EIGHTH, CGO_ANY };

/*
 * Waits for pause_ns, whatever is in the rings. cgo_ringbuf_wake() ends the wait. So does a
 * notification of the kernel if cgo_ringbuf_produced() then returns true.
 */
int cgo_ringbuf_pause(struct cgo_ringbuf *r, __s64 pause_ns, enum cgo_listen listen);

/*
 * Reports whether an eighth of a ring, or anything, was reserved since the last look. It may be
 * behind a busy record, so that it cannot be consumed.
 */
bool cgo_ringbuf_produced(const struct cgo_ringbuf *r, enum cgo_listen listen);

/* Ends the current wait, or the next one. */
int cgo_ringbuf_wake(struct cgo_ringbuf *r);

/* Sets whether park_fd becomes readable when the kernel notifies. */
int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed);

/* Frees batch.large. */
void cgo_ringbuf_drop(struct cgo_ringbuf *r);

__u64 cgo_ringbuf_wakeups(const struct cgo_ringbuf *r);

/*
 * The user ring buffer of a Writer. Any thread may call cgo_writer_arm(). Only one at a time may
 * call the other functions. They return 0 or a negative errno. -EUCLEAN means that somebody else
 * wrote to the producer position, or that a record has a header that the kernel refuses. -EBADF
 * means that somebody closed a descriptor or put another file in its place.
 */
struct cgo_writer {
	struct user_ring_buffer *rb;
	__u64 size; /* in bytes */
	int map_fd;
	int park_fd; /* epoll instance for Go's netpoller, which closes it */

	/* Read-only. */
	void *positions;
	const __u64 *consumer_pos;
	const __u64 *producer_pos;

	__u64 producer; /* where this Writer left the producer position */
	__u64 busy;	/* number of records that were found reserved and not submitted */

	/* Our mapping of the data, twice in a row, which reservations point into; or NULL. */
	void *view;
};

/*
 * Opens the user ring buffer map_fd. On success it owns map_fd. With repair it discards records
 * that are reserved and not submitted. -EBUSY means that somebody is writing to the ring. On
 * failure *step is what it was doing.
 */
int cgo_writer_open(int map_fd, __u64 size, bool repair, struct cgo_writer **out,
		    const char **step);

/* Releases everything except park_fd, view, and w itself. cgo_writer_free() frees the last two. */
void cgo_writer_close(struct cgo_writer *w);
void cgo_writer_free(struct cgo_writer *w);

/*
 * Reserves, copies and submits a sample. -ENOSPC means that there is no room. writer is a number,
 * because for a pointer to pointers cgo checks at each call whether it is one of Go's.
 */
int cgo_writer_write(uintptr_t writer, const __u8 *from, size_t len);

/*
 * cgo_writer_view() maps view. cgo_writer_reserve() reserves a record. It sets *sample, for submit
 * and discard, and *offset, which is where the memory of the sample is in view.
 */
int cgo_writer_view(struct cgo_writer *w);
int cgo_writer_reserve(struct cgo_writer *w, size_t len, uintptr_t *sample, __u64 *offset);
void cgo_writer_submit(struct cgo_writer *w, uintptr_t sample);
void cgo_writer_discard(struct cgo_writer *w, uintptr_t sample);

/*
 * Replaces view by other memory. Owners of reservations who still write to it then write into no
 * ring.
 */
int cgo_writer_detach(struct cgo_writer *w);

/* Sets whether park_fd becomes readable when the kernel has drained something. */
int cgo_writer_arm(struct cgo_writer *w, bool armed);

/* Shared by the files. */

int cgo_ringbuf_take(void *ring, void *sample, size_t len); /* libbpf's callback */
void cgo_ringbuf_begin(struct cgo_ringbuf *r, __u8 *buf, size_t cap);
void cgo_ringbuf_pass(struct cgo_ring *ring); /* notes what libbpf consumed without a callback */

static inline size_t cgo_page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* How many bytes of a ring a record takes whose sample has len bytes. */
static inline __u64 cgo_record_size(__u64 len)
{
	return (HEADER_SIZE + len + 7) & ~7ULL;
}

static inline __u64 cgo_ringbuf_load(const __u64 *position)
{
	/* Pairs with the smp_store_release() of the kernel and of libbpf. */
	return __atomic_load_n(position, __ATOMIC_ACQUIRE);
}

/* The length and the flags of the record at pos, which must be below the producer position. */
static inline __u32 cgo_ringbuf_header(const struct cgo_ring *ring, __u64 pos)
{
	/* Pairs with the xchg() in bpf_ringbuf_commit(). */
	const __u32 *header = ring->data + (pos & (ring->size - 1));

	return __atomic_load_n(header, __ATOMIC_ACQUIRE);
}

#endif
