//go:build linux

// SPDX-License-Identifier: Apache-2.0
/*
 * Writes into a user ring buffer. libbpf's user_ring_buffer reserves, submits and discards. This
 * file adds what libbpf does not do: it opens with a cause for each failure, wakes a Writer that
 * waits for room, and finds and repairs what a dead Writer has left.
 */
#define _GNU_SOURCE
#include "ringbuf_cgo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

static void *map_shared(int map_fd, size_t size, int prot, off_t offset)
{
	void *p = mmap(NULL, size, prot, MAP_SHARED, map_fd, offset);

	return p == MAP_FAILED ? NULL : p;
}

int cgo_writer_view(struct cgo_writer *w)
{
	if (!w->view)
		w->view =
		    map_shared(w->map_fd, 2 * w->size, PROT_READ | PROT_WRITE, 2 * cgo_page_size());
	return w->view ? 0 : -errno;
}

static void unmap_view(struct cgo_writer *w)
{
	if (w->view)
		munmap(w->view, 2 * w->size);
	w->view = NULL;
}

/*
 * Counts the records that are reserved and not submitted. With repair it discards them. Nobody may
 * be writing. The kernel may be draining. It returns -EUCLEAN for a header that the kernel refuses
 * (__bpf_user_ringbuf_peek() in kernel/bpf/ringbuf.c).
 */
static int find_busy(struct cgo_writer *w, bool repair)
{
	__u64 pos = cgo_ringbuf_load(w->consumer_pos);

	if (w->producer % 8 || w->producer - pos > w->size)
		return -EUCLEAN;
	while (pos != w->producer) {
		__u32 *header = w->view + (pos & (w->size - 1));
		__u32 value = __atomic_load_n(header, __ATOMIC_ACQUIRE);
		__u32 len = value & ~(BUSY_BIT | DISCARD_BIT);

		if (cgo_record_size(len) > w->producer - pos || len > MAX_DYNPTR)
			return -EUCLEAN;
		if ((value & BUSY_BIT) && !(value & DISCARD_BIT)) {
			w->busy++;
			/* Pairs with the smp_load_acquire() of __bpf_user_ringbuf_peek(). */
			if (repair)
				__atomic_exchange_n(header, len | DISCARD_BIT, __ATOMIC_ACQ_REL);
		}
		pos += cgo_record_size(len);
	}
	return 0;
}

/* Opens the epoll instance that Go's netpoller watches: see cgo_writer_arm(). */
static int open_park_fd(struct cgo_writer *w)
{
	struct epoll_event disarmed = {0};

	w->park_fd = epoll_create1(EPOLL_CLOEXEC);
	if (w->park_fd < 0)
		return -errno;
	/* os.NewFile adds only non-blocking descriptors to the netpoller. */
	if (fcntl(w->park_fd, F_SETFL, O_NONBLOCK) ||
	    epoll_ctl(w->park_fd, EPOLL_CTL_ADD, w->map_fd, &disarmed))
		return -errno;
	return 0;
}

static int open_writer(struct cgo_writer *w, bool repair, const char **step)
{
	size_t page = cgo_page_size();
	int err;

	*step = "mmap positions";
	w->positions = map_shared(w->map_fd, 2 * page, PROT_READ, 0);
	if (!w->positions)
		return -errno;
	w->consumer_pos = w->positions;
	w->producer_pos = w->positions + page;
	w->producer = cgo_ringbuf_load(w->producer_pos);

	/* libbpf will do this too. When it fails, it prints a warning and returns only an errno. */
	*step = "mmap data pages";
	err = cgo_writer_view(w);
	if (err)
		return err;

	*step = "check records";
	err = find_busy(w, repair);
	/* If somebody was writing meanwhile, the result means nothing. */
	if (cgo_ringbuf_load(w->producer_pos) != w->producer)
		return -EBUSY;
	if (err)
		return err;
	/* Only reservations need it, and it counts as resident memory once more. */
	unmap_view(w);

	*step = "epoll";
	err = open_park_fd(w);
	if (err)
		return err;

	*step = "user_ring_buffer__new";
	w->rb = user_ring_buffer__new(w->map_fd, NULL);
	return w->rb ? 0 : -errno;
}

int cgo_writer_open(int map_fd, __u64 size, bool repair, struct cgo_writer **out, const char **step)
{
	struct cgo_writer *w;
	int err;

	*step = "allocate";
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->size = size;
	w->map_fd = map_fd;
	w->park_fd = -1;
	err = open_writer(w, repair, step);
	if (err) {
		close(w->park_fd);
		w->map_fd = -1; /* stays with the caller */
		cgo_writer_close(w);
		cgo_writer_free(w);
		return err;
	}
	*out = w;
	return 0;
}

void cgo_writer_close(struct cgo_writer *w)
{
	user_ring_buffer__free(w->rb);
	w->rb = NULL;
	if (w->positions)
		munmap(w->positions, 2 * cgo_page_size());
	close(w->map_fd);
}

void cgo_writer_free(struct cgo_writer *w)
{
	unmap_view(w);
	free(w);
}

static void *reserve(struct cgo_writer *w, __u32 len)
{
	void *sample;

	/* libbpf would write wherever the producer position is. */
	if (cgo_ringbuf_load(w->producer_pos) != w->producer) {
		errno = EUCLEAN;
		return NULL;
	}
	sample = user_ring_buffer__reserve(w->rb, len);
	if (sample)
		w->producer += cgo_record_size(len);
	return sample;
}

int cgo_writer_write(uintptr_t writer, const __u8 *from, size_t len)
{
	struct cgo_writer *w = (struct cgo_writer *)writer;
	void *sample = reserve(w, len);

	if (!sample)
		return -errno;
	if (len)
		memcpy(sample, from, len);
	user_ring_buffer__submit(w->rb, sample);
	return 0;
}

int cgo_writer_reserve(struct cgo_writer *w, size_t len, uintptr_t *sample, __u64 *offset)
{
	__u64 start = w->producer;
	int err = cgo_writer_view(w);

	if (err)
		return err;
	*sample = (uintptr_t)reserve(w, len);
	if (!*sample)
		return -errno;
	*offset = (start + HEADER_SIZE) & (w->size - 1);
	return 0;
}

void cgo_writer_submit(struct cgo_writer *w, uintptr_t sample)
{
	user_ring_buffer__submit(w->rb, (void *)sample);
}

void cgo_writer_discard(struct cgo_writer *w, uintptr_t sample)
{
	user_ring_buffer__discard(w->rb, (void *)sample);
}

int cgo_writer_detach(struct cgo_writer *w)
{
	/* The whole mapping. Pieces would be mappings each, whose number is limited. */
	void *p = mmap(w->view, 2 * w->size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

int cgo_writer_arm(struct cgo_writer *w, bool armed)
{
	/*
	 * The kernel reports EPOLLOUT while any byte is free (ringbuf_map_poll_user() in
	 * kernel/bpf/ringbuf.c). But the netpoller is edge-triggered, and hears of each drain once.
	 */
	struct epoll_event event = {.events = armed ? EPOLLOUT : 0};

	/* If a descriptor is another file, the error is EBADF, EINVAL, ENOENT or EPERM. */
	return epoll_ctl(w->park_fd, EPOLL_CTL_MOD, w->map_fd, &event) ? -EBADF : 0;
}
