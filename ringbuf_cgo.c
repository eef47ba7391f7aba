// SPDX-License-Identifier: Apache-2.0
/*
 * From the kernel's ring to a batch in memory: the only code that calls libbpf's
 * ring_buffer API. It knows nothing of Go.
 */
#define _GNU_SOURCE
#include "ringbuf_cgo.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

/* Returned by the callback to end a drain: "stored, stop here". */
#define STOP (-ECANCELED)

/* How many bytes ahead of a sample to fetch those that follow. */
#define AHEAD 8192

static __u64 align8(__u64 n)
{
	return (n + 7) & ~7ULL;
}

/* Room for an entry of any record that the ring can hold. */
static size_t spill_size(const struct cgo_ringbuf *r)
{
	return sizeof(struct cgo_ringbuf_entry) + r->size;
}

/* The length and flags of the record at pos, which is below the producer position. */
static __u32 header_at(const struct cgo_ringbuf *r, __u64 pos)
{
	/* Pairs with the xchg() in bpf_ringbuf_commit(). */
	const __u32 *header = r->data + (pos & (r->size - 1));

	return __atomic_load_n(header, __ATOMIC_ACQUIRE);
}

static __u64 record_end(__u64 pos, __u32 header)
{
	__u64 len = header & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);

	return pos + align8(BPF_RINGBUF_HDR_SZ + len);
}

/*
 * Reports whether the next sample at or after pos can be consumed so that a
 * committed record remains behind it. The kernel notifies of a record if the
 * consumer position is its start when it is committed, so it will not notify of
 * any, while the consumer position is the start of one that already is.
 *
 * A record that takes a large part of the ring is not left in it.
 */
static bool leaves_one(const struct cgo_ringbuf *r, __u64 pos)
{
	while (pos < r->producer) {
		__u32 header = header_at(r, pos);
		__u64 end = record_end(pos, header);

		if (header & BPF_RINGBUF_BUSY_BIT)
			return false;
		if (end - pos > r->size / 8)
			return true;
		if (end >= r->producer)
			return false;
		/* libbpf consumes discarded records by itself. */
		if (!(header & BPF_RINGBUF_DISCARD_BIT))
			return !(header_at(r, end) & BPF_RINGBUF_BUSY_BIT);
		pos = end;
	}
	return false;
}

/*
 * Fetches what comes a while after the sample, so that the copying of later ones
 * does not wait for memory, nor for the translation of its address: two pages were
 * measured best. What is not yet produced is left to the producer's cache.
 */
static void prefetch(const struct cgo_ringbuf *r, const void *data, size_t len, __u64 end)
{
	size_t i;

	if (end + AHEAD + len >= r->producer)
		return;
	for (i = 0; i < len; i += 64)
		__builtin_prefetch(data + AHEAD + i);
}

/*
 * Reports whether there were only discarded records from one position up to another,
 * which libbpf has consumed since the first was the consumer position. When the ring is
 * full the kernel may have put others in their place: then it cannot be known.
 */
static bool discarded(const struct cgo_ringbuf *r, __u64 from, __u64 to)
{
	__u64 pos = from;
	int i;

	while (pos < to && pos - from < r->size) {
		__u32 header = header_at(r, pos);

		if (!(header & BPF_RINGBUF_DISCARD_BIT))
			break;
		pos = record_end(pos, header);
	}
	if (pos == to || from > to)
		return pos == to;
	/*
	 * Not >: the kernel writes a header before it moves the producer position. And
	 * what a program writes then may be seen a while earlier, on arm64.
	 */
	for (i = 0; i < 1000; i++)
		if (ring__producer_pos(r->ring) >= from + r->size)
			return true;
	return false;
}

/*
 * Reports whether libbpf's callback is for the record that is next. Whoever holds the map
 * can write the consumer position, and libbpf, which has loaded it before, takes any
 * bytes there for a header.
 */
static bool is_next(struct cgo_ringbuf *r, __u64 start, size_t len)
{
	__u64 end = start + align8(BPF_RINGBUF_HDR_SZ + len);

	if (start != r->consumer && (start % 8 || !discarded(r, r->consumer, start)))
		return false;
	if (header_at(r, start) != len)
		return false;
	/* The kernel may have added records since the drain began. */
	if (end > r->producer)
		r->producer = ring__producer_pos(r->ring);
	return end <= r->producer && r->producer - start <= r->size;
}

/* Copies n bytes, a multiple of 8: faster than a call of memcpy() for small samples. */
static void copy8(void *to, const void *from, __u64 n)
{
	__u64 i;

	if (n > 256) {
		memcpy(to, from, n);
		return;
	}
	for (i = 0; i + 16 <= n; i += 16)
		memcpy(to + i, from + i, 16);
	if (i < n)
		memcpy(to + i, from + i, 8);
}

/*
 * libbpf's callback. libbpf publishes the consumer position when this returns,
 * also when it returns an error: the sample must have been copied by then.
 * Until then ring__consumer_pos() is the start of this record.
 */
static int take_sample(void *ctx, void *data, size_t len)
{
	struct cgo_ringbuf *r = ctx;
	size_t need = sizeof(struct cgo_ringbuf_entry) + align8(len);
	__u64 start = ring__consumer_pos(r->ring);
	__u64 end = start + align8(BPF_RINGBUF_HDR_SZ + len);
	struct cgo_ringbuf_entry *entry;
	const void *sample;

	if (!is_next(r, start, len)) {
		r->bad_consumer = start;
		return -EUCLEAN;
	}

	if (r->filled + need <= r->cap) {
		entry = r->buf + r->filled;
		r->filled += need;
	} else {
		entry = r->spill;
		r->spilled = need;
	}
	/*
	 * Not from data: libbpf may be elsewhere, at a record of the same length. Then it
	 * sets the consumer position accordingly, which does not remain unnoticed.
	 */
	sample = r->data + (start & (r->size - 1)) + BPF_RINGBUF_HDR_SZ;
	prefetch(r, sample, len, end);
	entry->end = end;
	entry->len = len;
	entry->gap = end - r->last > UINT32_MAX ? UINT32_MAX : end - r->last;
	copy8(entry + 1, sample, align8(len));
	r->last = end;
	r->consumer = end;
	r->samples++;

	/* Stop before a sample of the same size would pass the limit. */
	r->full = r->spilled || r->filled + need > r->limit;
	return r->full || (r->leave && !leaves_one(r, end)) ? STOP : 0;
}

/*
 * Reports whether the ring is as the last drain left it, apart from what was
 * produced since. It is not if another process reads the same ring or writes its
 * consumer position, which libbpf would follow anywhere.
 */
static bool sound(struct cgo_ringbuf *r)
{
	__u64 consumer = ring__consumer_pos(r->ring);

	r->producer = ring__producer_pos(r->ring);
	if ((r->begun && consumer != r->consumer) || consumer % 8 ||
	    r->producer - consumer > r->size) {
		r->bad_consumer = consumer;
		return false;
	}
	if (!r->begun)
		r->last = consumer;
	r->begun = true;
	r->consumer = consumer;
	return true;
}

static bool drained_none(const struct cgo_ringbuf *r)
{
	return !r->filled && !r->spilled;
}

static int drain(struct cgo_ringbuf *r)
{
	__u64 start, consumer;
	int err;

	do {
		/*
		 * The kernel notifies of a record if, at its commit, the consumer
		 * position is the record's start (bpf_ringbuf_commit() in
		 * kernel/bpf/ringbuf.c). libbpf stores that position and then
		 * loads the record's header with no StoreLoad barrier between:
		 * the load may come first, miss the commit, and the commit then
		 * misses the store. This fence pairs with the xchg() in the
		 * commit. A drain that begins behind it and does not move the
		 * consumer position may be followed by a wait.
		 */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (!sound(r))
			return -EUCLEAN;
		start = r->consumer;
		if (r->leave && !leaves_one(r, start))
			return 0;
		err = ring_buffer__consume(r->rb);
		if (err == -EUCLEAN)
			break;
		/* Discarded records move it further than the last sample did. */
		consumer = ring__consumer_pos(r->ring);
		r->producer = ring__producer_pos(r->ring);
		if (consumer <= r->producer && discarded(r, r->consumer, consumer))
			r->consumer = consumer;
		r->moved += r->consumer - start;
	} while (drained_none(r) && r->consumer != start && r->moved <= r->size);
	/* Nothing but discarded records, and no end of them: look at r->wake_fd now and then. */
	if (drained_none(r) && r->consumer != start)
		r->full = true;
	if (drained_none(r))
		r->last = r->consumer;
	r->drained = true;
	r->busy = drained_none(r) && r->consumer != r->producer;
	/* What came before the unsound record is delivered; the next drain fails. */
	return err == -EUCLEAN && !r->filled ? err : 0;
}

/*
 * Undoes what cgo_ringbuf_wake() did, when ppoll reports the eventfd. If that has not 8
 * bytes, not all 0, somebody closed it or put another file in its place, and ppoll would
 * return at once each time.
 */
static int reset_wake(struct cgo_ringbuf *r)
{
	__u64 count = 0;

	if (read(r->wake_fd, &count, sizeof(count)) != sizeof(count) || !count)
		return -EBADF;
	r->woken = true;
	return 0;
}

/* Waits for cgo_ringbuf_wake() and, with for_samples, for notifications. */
static int wait_events(struct cgo_ringbuf *r, __s64 timeout_ns, bool for_samples)
{
	struct pollfd fds[] = {
	    {.fd = r->wake_fd, .events = POLLIN},
	    {.fd = r->ring_fd, .events = POLLIN},
	};
	struct timespec timeout = {
	    .tv_sec = timeout_ns / 1000000000,
	    .tv_nsec = timeout_ns % 1000000000,
	};

	if (ppoll(fds, for_samples ? 2 : 1, &timeout, NULL) < 0)
		return errno == EINTR ? 0 : -errno;
	r->notified = fds[1].revents;
	return fds[0].revents ? reset_wake(r) : 0;
}

static void begin(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit)
{
	if (r->spilled)
		madvise(r->spill, spill_size(r), MADV_DONTNEED);
	r->buf = buf;
	r->cap = cap;
	r->limit = limit;
	r->filled = 0;
	r->spilled = 0;
	r->samples = 0;
	r->moved = 0;
	r->full = false;
	r->busy = false;
	r->idle = false;
	r->drained = false;
	r->woken = false;
	r->notified = false;
}

int cgo_ringbuf_poll(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 timeout_ns)
{
	int err;

	begin(r, buf, cap, limit);
	err = drain(r);
	/*
	 * ppoll is level-triggered, and to the kernel a busy record is data: it
	 * would return at once until the commit.
	 */
	if (!err && drained_none(r) && !r->busy && !r->full && timeout_ns > 0) {
		err = wait_events(r, timeout_ns, true);
		if (!err)
			err = drain(r);
		/*
		 * Reported without any record: somebody closed the epoll instance
		 * or put another file in its place. cgo_ringbuf_arm() will tell.
		 */
		if (!err && r->notified && drained_none(r) && !r->moved)
			r->busy = true;
	}
	r->buf = NULL;
	return err;
}

int cgo_ringbuf_tick(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 pause_ns)
{
	__u64 producer;
	int err = 0;

	begin(r, buf, cap, limit);
	if (pause_ns > 0)
		err = wait_events(r, pause_ns, false);
	if (!err && !r->woken) {
		producer = r->producer;
		r->leave = true;
		err = drain(r);
		r->leave = false;
		if (!err && drained_none(r)) {
			r->idle = r->producer == producer;
			err = drain(r);
		}
	}
	r->buf = NULL;
	return err;
}

int cgo_ringbuf_wake(struct cgo_ringbuf *r)
{
	__u64 one = 1;

	/* EAGAIN: the counter is at its maximum, so the wait ends anyway. */
	if (write(r->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

int cgo_ringbuf_arm(struct cgo_ringbuf *r, bool armed)
{
	struct epoll_event event = {.events = armed ? EPOLLIN : 0};

	/* It fails only if one of the two is closed, or another file: with one of four errors. */
	if (epoll_ctl(r->park_fd, EPOLL_CTL_MOD, r->ring_fd, &event))
		return -EBADF;
	return 0;
}

__u64 cgo_ringbuf_consumer(struct cgo_ringbuf *r)
{
	return ring__consumer_pos(r->ring);
}

__u64 cgo_ringbuf_producer(struct cgo_ringbuf *r)
{
	return ring__producer_pos(r->ring);
}

int cgo_ringbuf_dup(int fd)
{
	int dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	return dup < 0 ? -errno : dup;
}

int cgo_ringbuf_map_info(int map_fd, struct bpf_map_info *info)
{
	__u32 len = sizeof(*info);

	return bpf_map_get_info_by_fd(map_fd, info, &len) ? -errno : 0;
}

static int try_epoll(int fd)
{
	struct epoll_event event = {.events = EPOLLIN};
	int epoll_fd, err = 0;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		return -errno;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		err = -errno;
	close(epoll_fd);
	return err;
}

/* Bytes that libbpf maps read-only: the producer position's page and the data, twice. */
static size_t pages_size(const struct cgo_ringbuf *r)
{
	return sysconf(_SC_PAGESIZE) + 2 * r->size;
}

static int map_shared(int map_fd, size_t size, int prot, off_t offset, void **out)
{
	void *p = mmap(NULL, size, prot, MAP_SHARED, map_fd, offset);

	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

static int map_pages(const struct cgo_ringbuf *r, int map_fd, void **out)
{
	return map_shared(map_fd, pages_size(r), PROT_READ, sysconf(_SC_PAGESIZE), out);
}

/*
 * Maps what is ours, and does what ring_buffer__new() is about to do. Where that fails
 * libbpf prints a warning, through a hook that belongs to libbpfgo, and tells only an
 * errno. All is there at once, so that what is given back in the end suffices for libbpf.
 */
static int map_and_try(struct cgo_ringbuf *r, int map_fd, const char **step)
{
	void *consumer = NULL, *pages = NULL;
	void *volatile heap; /* the compiler may leave out what is allocated to no use */
	size_t page = sysconf(_SC_PAGESIZE);
	int err;

	*step = "mmap consumer page";
	err = map_shared(map_fd, page, PROT_READ | PROT_WRITE, 0, &consumer);
	if (err)
		return err;

	/* libbpf does not tell where it maps the same, for header_at(). */
	*step = "mmap data pages";
	err = map_pages(r, map_fd, &r->pages);
	if (err)
		goto out;
	r->data = r->pages + page;

	/* Only what is touched of it takes memory. */
	*step = "reserve memory for large samples";
	r->spill = mmap(NULL, spill_size(r), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r->spill == MAP_FAILED) {
		r->spill = NULL;
		err = -errno;
		goto out;
	}

	*step = "mmap data pages for libbpf";
	err = map_pages(r, map_fd, &pages);
	if (err)
		goto out;

	/* More than its structures take. The C library keeps that much when it is freed. */
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
		munmap(pages, pages_size(r));
	munmap(consumer, page);
	return err;
}

/* The epoll instance that Go's netpoller watches: see cgo_ringbuf_arm(). */
static int open_park_fd(struct cgo_ringbuf *r)
{
	struct epoll_event disarmed = {0};

	r->park_fd = epoll_create1(EPOLL_CLOEXEC);
	if (r->park_fd < 0)
		return -errno;
	/* os.NewFile hands only non-blocking descriptors to the netpoller. */
	if (fcntl(r->park_fd, F_SETFL, O_NONBLOCK) ||
	    epoll_ctl(r->park_fd, EPOLL_CTL_ADD, r->ring_fd, &disarmed))
		return -errno;
	return 0;
}

int cgo_ringbuf_open(int map_fd, __u64 size, struct cgo_ringbuf **out, const char **step)
{
	struct cgo_ringbuf *r;
	int err;

	*step = "allocate";
	r = calloc(1, sizeof(*r));
	if (!r) {
		close(map_fd);
		return -ENOMEM;
	}
	r->size = size;
	r->ring_fd = -1;
	r->wake_fd = -1;
	r->park_fd = -1;

	err = map_and_try(r, map_fd, step);
	if (err)
		goto err_out;

	*step = "ring_buffer__new";
	r->rb = ring_buffer__new(map_fd, take_sample, r, NULL);
	if (!r->rb) {
		err = -errno;
		goto err_out;
	}
	r->ring = ring_buffer__ring(r->rb, 0);
	/* The mappings hold the map. */
	close(map_fd);
	map_fd = -1;

	*step = "check positions";
	if (!sound(r)) {
		err = -EUCLEAN;
		goto err_out;
	}
	/* Another reader may go on until the first drain. */
	r->begun = false;

	*step = "duplicate epoll instance";
	r->ring_fd = cgo_ringbuf_dup(ring_buffer__epoll_fd(r->rb));
	if (r->ring_fd < 0) {
		err = r->ring_fd;
		goto err_out;
	}

	*step = "eventfd";
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0) {
		err = -errno;
		goto err_out;
	}

	*step = "epoll";
	err = open_park_fd(r);
	if (err)
		goto err_out;

	*out = r;
	return 0;

err_out:
	close(map_fd);
	cgo_ringbuf_free(r);
	return err;
}

void cgo_ringbuf_free(struct cgo_ringbuf *r)
{
	ring_buffer__free(r->rb);
	if (r->pages)
		munmap(r->pages, pages_size(r));
	if (r->spill)
		munmap(r->spill, spill_size(r));
	/* Of those that were not opened, close() does nothing. */
	close(r->park_fd);
	close(r->wake_fd);
	close(r->ring_fd);
	free(r);
}
