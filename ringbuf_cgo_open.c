//go:build linux

// SPDX-License-Identifier: Apache-2.0
/* Opens rings and frees them. */
#define _GNU_SOURCE
#include "ringbuf_cgo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

static int map_shared(int map_fd, size_t size, int prot, off_t offset, void **out)
{
	void *p = mmap(NULL, size, prot, MAP_SHARED, map_fd, offset);

	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

static int add_to_epoll(int epoll_fd, int fd)
{
	/* libbpf takes data.fd for the index of a ring: see ring_buffer__poll(). */
	struct epoll_event event = {.events = EPOLLIN, .data.fd = 0};

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) ? -errno : 0;
}

static int try_epoll(int fd)
{
	int epoll_fd, err;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		return -errno;
	err = add_to_epoll(epoll_fd, fd);
	close(epoll_fd);
	return err;
}

/*
 * Does what ring_buffer__add() will do, and undoes it. When that fails, libbpf returns only an
 * errno, and prints a warning through a hook that belongs to libbpfgo.
 */
static int try_to_add(const struct cgo_ring *ring, int map_fd, const char **step)
{
	void *consumer = NULL, *pages = NULL;
	void *volatile heap; /* volatile, or the compiler would leave the allocation out */
	size_t page = cgo_page_size(), size = page + 2 * ring->size;
	int err;

	*step = "mmap consumer page";
	err = map_shared(map_fd, page, PROT_READ | PROT_WRITE, 0, &consumer);
	if (err)
		return err;

	*step = "mmap data pages";
	err = map_shared(map_fd, size, PROT_READ, page, &pages);
	if (err)
		goto out;

	/* More than libbpf's structures take. The C library keeps the memory after free(). */
	*step = "allocate for libbpf";
	heap = malloc(page);
	if (!heap)
		err = -ENOMEM;
	free(heap);
	if (err)
		goto out;

	*step = "add map to epoll";
	err = try_epoll(map_fd);
out:
	if (pages)
		munmap(pages, size);
	munmap(consumer, page);
	return err;
}

/*
 * struct ring of libbpf's src/ringbuf.c, which has not changed since 1.3. libbpf has no function
 * that tells where it maps a ring.
 */
struct libbpf_ring {
	ring_buffer_sample_fn sample_cb;
	void *ctx;
	void *data;
	unsigned long *consumer_pos;
	unsigned long *producer_pos;
	unsigned long mask;
	int map_fd;
};

/*
 * Uses libbpf's mapping, if everything that is known of its struct ring is as expected. A second
 * mapping would count twice as resident memory, because the kernel maps all pages of a ring at
 * once.
 */
static bool borrow_mapping(struct cgo_ring *ring)
{
	const struct libbpf_ring *lib = (const void *)ring->lib;

	if (lib->sample_cb != cgo_ringbuf_take || lib->ctx != ring ||
	    lib->data != (void *)lib->producer_pos + cgo_page_size() ||
	    lib->mask != ring->size - 1 || ring__size(ring->lib) != ring->size ||
	    lib->map_fd != ring__map_fd(ring->lib))
		return false;
	ring->consumer_pos = (const __u64 *)lib->consumer_pos;
	ring->producer_pos = (const __u64 *)lib->producer_pos;
	ring->data = lib->data;
	return true;
}

static size_t own_size(const struct cgo_ring *ring)
{
	return 2 * cgo_page_size() + 2 * ring->size;
}

static int map_own(struct cgo_ring *ring, int map_fd)
{
	int err = map_shared(map_fd, own_size(ring), PROT_READ, 0, &ring->own);

	if (err)
		return err;
	ring->consumer_pos = ring->own;
	ring->producer_pos = ring->own + cgo_page_size();
	ring->data = ring->own + 2 * cgo_page_size();
	return 0;
}

/* Adds the ring of map_fd to libbpf's rings. */
static int add_ring(struct cgo_ringbuf *r, int map_fd, __u64 size, bool own, const char **step)
{
	struct cgo_ring *ring = &r->rings[r->count];
	int err;

	ring->reader = r;
	ring->size = size;
	/* From now on cgo_ringbuf_free() releases it. */
	r->count++;
	err = try_to_add(ring, map_fd, step);
	if (err)
		return err;

	*step = "ring_buffer__add";
	if (!r->rb) {
		*step = "ring_buffer__new";
		r->rb = ring_buffer__new(map_fd, cgo_ringbuf_take, ring, NULL);
		if (!r->rb)
			return -errno;
	} else {
		err = ring_buffer__add(r->rb, map_fd, cgo_ringbuf_take, ring);
		if (err)
			return err;
	}
	ring->lib = ring_buffer__ring(r->rb, r->count - 1);

	*step = "mmap";
	if (own || !borrow_mapping(ring))
		return map_own(ring, map_fd);
	return 0;
}

/* Opens the epoll instance that Go's netpoller watches: see cgo_ringbuf_arm(). */
static int open_park_fd(struct cgo_ringbuf *r)
{
	struct epoll_event disarmed = {0};

	r->park_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->park_fd < 0)
		return -errno;
	/* os.NewFile adds only non-blocking descriptors to the netpoller. */
	if (fcntl(r->park_fd, F_SETFL, O_NONBLOCK) ||
	    epoll_ctl(r->park_fd, EPOLL_CTL_ADD, r->ring_fd, &disarmed))
		return -errno;
	return 0;
}

static int open_waits(struct cgo_ringbuf *r, const char **step)
{
	int err;

	*step = "duplicate epoll instance";
	r->ring_fd = fcntl(ring_buffer__epoll_fd(r->rb), F_DUPFD_CLOEXEC, 0);
	if (r->ring_fd < 0)
		return -errno;

	*step = "eventfd";
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0)
		return -errno;

	*step = "add eventfd to libbpf's epoll instance";
	err = add_to_epoll(r->ring_fd, r->wake_fd);
	if (err)
		return err;

	*step = "epoll";
	return open_park_fd(r);
}

static struct cgo_ringbuf *allocate(int rings)
{
	struct cgo_ringbuf *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->ring_fd = -1;
	r->wake_fd = -1;
	r->park_fd = -1;
	r->rings = calloc(rings, sizeof(*r->rings));
	if (!r->rings) {
		free(r);
		return NULL;
	}
	return r;
}

int cgo_ringbuf_open(const int *map_fds, const __u64 *sizes, int rings, bool own,
		     struct cgo_ringbuf **out, int *failed, const char **step)
{
	struct cgo_ringbuf *r;
	int i, err;

	*failed = -1;
	*step = "allocate";
	r = allocate(rings);
	if (!r)
		return -ENOMEM;

	for (i = 0; i < rings; i++) {
		err = add_ring(r, map_fds[i], sizes[i], own, step);
		if (err) {
			*failed = i;
			goto err_out;
		}
	}

	err = open_waits(r, step);
	if (err)
		goto err_out;

	*out = r;
	return 0;

err_out:
	cgo_ringbuf_free(r);
	return err;
}

void cgo_ringbuf_free(struct cgo_ringbuf *r)
{
	int i;

	ring_buffer__free(r->rb);
	for (i = 0; i < r->count; i++)
		if (r->rings[i].own)
			munmap(r->rings[i].own, own_size(&r->rings[i]));
	/* A descriptor that was not opened is -1, for which close() does nothing. */
	close(r->park_fd);
	close(r->wake_fd);
	close(r->ring_fd);
	free(r->rings);
	free(r);
}
