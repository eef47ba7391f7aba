// SPDX-License-Identifier: Apache-2.0
/*
 * From the kernel's rings to a batch in memory: the only code that calls libbpf's
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

/* Room for an entry of any record that a ring can hold. */
static size_t spill_size(const struct cgo_ringbuf *r)
{
	return sizeof(struct cgo_ringbuf_entry) + r->largest;
}

/* Only here are counters written, one thread at a time; any may read them. */
static void set(__u64 *counter, __u64 value)
{
	__atomic_store_n(counter, value, __ATOMIC_RELAXED);
}

static void count(__u64 *counter, __u64 n)
{
	set(counter, *counter + n);
}

/* The length and flags of the record at pos, which is below the producer position. */
static __u32 header_at(const struct cgo_ring *ring, __u64 pos)
{
	/* Pairs with the xchg() in bpf_ringbuf_commit(). */
	const __u32 *header = ring->data + (pos & (ring->size - 1));

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
static bool leaves_one(const struct cgo_ring *ring, __u64 pos)
{
	while (pos < ring->producer) {
		__u32 header = header_at(ring, pos);
		__u64 end = record_end(pos, header);

		if (header & BPF_RINGBUF_BUSY_BIT)
			return false;
		if (end - pos > ring->size / 8)
			return true;
		if (end >= ring->producer)
			return false;
		/* libbpf consumes discarded records by itself. */
		if (!(header & BPF_RINGBUF_DISCARD_BIT))
			return !(header_at(ring, end) & BPF_RINGBUF_BUSY_BIT);
		pos = end;
	}
	return false;
}

/*
 * Fetches what comes a while after the sample, so that the copying of later ones
 * does not wait for memory, nor for the translation of its address: two pages were
 * measured best. What is not yet produced is left to the producer's cache.
 */
static void prefetch(const struct cgo_ring *ring, const void *sample, size_t len, __u64 end)
{
	size_t i;

	if (end + AHEAD + len >= ring->producer)
		return;
	for (i = 0; i < len; i += 64)
		__builtin_prefetch(sample + AHEAD + i);
}

/*
 * Reports whether there were only discarded records from one position up to another,
 * which libbpf has consumed since the first was the consumer position, and counts them.
 * When the ring is full the kernel may have put others in their place: then it cannot be
 * known.
 */
static bool discarded(struct cgo_ring *ring, __u64 from, __u64 to)
{
	__u64 pos = from, records;
	int i;

	for (records = 0; pos < to && pos - from < ring->size; records++) {
		__u32 header = header_at(ring, pos);

		if (!(header & BPF_RINGBUF_DISCARD_BIT))
			break;
		pos = record_end(pos, header);
	}
	if (pos == to && records)
		count(&ring->counters.discarded, records);
	if (pos == to || from > to)
		return pos == to;
	/*
	 * Not >: the kernel writes a header before it moves the producer position. And
	 * what a program writes then may be seen a while earlier, on arm64.
	 */
	for (i = 0; i < 1000; i++)
		if (ring__producer_pos(ring->lib) >= from + ring->size)
			return true;
	return false;
}

/*
 * Reports whether libbpf's callback is for the record that is next. Whoever holds the map
 * can write the consumer position, and libbpf, which has loaded it before, takes any
 * bytes there for a header.
 */
static bool is_next(struct cgo_ring *ring, __u64 start, size_t len)
{
	__u64 end = start + align8(BPF_RINGBUF_HDR_SZ + len);

	if (start != ring->consumer && (start % 8 || !discarded(ring, ring->consumer, start)))
		return false;
	if (header_at(ring, start) != len)
		return false;
	/* The kernel may have added records since the drain began. */
	if (end > ring->producer)
		ring->producer = ring__producer_pos(ring->lib);
	return end <= ring->producer && ring->producer - start <= ring->size;
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
	struct cgo_ring *ring = ctx;
	struct cgo_ringbuf *r = ring->reader;
	size_t need = sizeof(struct cgo_ringbuf_entry) + align8(len);
	__u64 start = ring__consumer_pos(ring->lib);
	__u64 end = start + align8(BPF_RINGBUF_HDR_SZ + len);
	struct cgo_ringbuf_entry *entry;
	const void *sample;

	if (!is_next(ring, start, len)) {
		ring->bad_consumer = start;
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
	sample = ring->data + (start & (ring->size - 1)) + BPF_RINGBUF_HDR_SZ;
	prefetch(ring, sample, len, end);
	entry->end = end;
	entry->len = len;
	entry->gap = end - ring->last > UINT32_MAX ? UINT32_MAX : end - ring->last;
	copy8(entry + 1, sample, align8(len));
	ring->last = end;
	ring->consumer = end;
	r->samples++;
	r->bytes += len;

	/* Stop before a sample of the same size would pass the limit. */
	r->full = r->spilled || r->filled + need > r->limit;
	return r->full || (r->leave && !leaves_one(ring, end)) ? STOP : 0;
}

/*
 * Reports whether the ring is as the last drain left it, apart from what was
 * produced since. It is not if another process reads the same ring or writes its
 * consumer position, which libbpf would follow anywhere.
 */
static bool sound(struct cgo_ring *ring)
{
	__u64 consumer = ring__consumer_pos(ring->lib);

	ring->producer = ring__producer_pos(ring->lib);
	if ((ring->begun && consumer != ring->consumer) || consumer % 8 ||
	    ring->producer - consumer > ring->size) {
		ring->bad_consumer = consumer;
		return false;
	}
	if (!ring->begun)
		ring->last = consumer;
	ring->begun = true;
	ring->consumer = consumer;
	return true;
}

static bool drained_none(const struct cgo_ringbuf *r)
{
	return !r->filled && !r->spilled;
}

/* Counts what a drain from the given position did. */
static void count_drain(struct cgo_ringbuf *r, struct cgo_ring *ring, __u64 start)
{
	struct cgo_ring_counters *c = &ring->counters;

	r->moved += ring->consumer - start;
	if (ring->consumer == start)
		return;
	count(&r->drains, 1);
	if (drained_none(r))
		return;
	count(&c->samples, r->samples);
	count(&c->bytes, r->bytes);
}

/* Drains a ring, after others that had no samples. */
static int drain(struct cgo_ringbuf *r, struct cgo_ring *ring)
{
	__u64 start, consumer, begin = r->moved;
	int err;

	r->at = ring;
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
		if (!sound(ring))
			return -EUCLEAN;
		start = ring->consumer;
		if (ring->producer - start > ring->counters.highest)
			set(&ring->counters.highest, ring->producer - start);
		if (r->leave && !leaves_one(ring, start))
			return 0;
		err = ring__consume(ring->lib);
		/* Discarded records move it further than the last sample did. */
		consumer = ring__consumer_pos(ring->lib);
		ring->producer = ring__producer_pos(ring->lib);
		if (err != -EUCLEAN && consumer <= ring->producer &&
		    discarded(ring, ring->consumer, consumer))
			ring->consumer = consumer;
		count_drain(r, ring, start);
	} while (err != -EUCLEAN && drained_none(r) && ring->consumer != start &&
		 r->moved - begin <= ring->size);
	/* Nothing but discarded records, and no end of them: look at r->wake_fd now and then. */
	if (drained_none(r) && ring->consumer != start)
		r->full = true;
	if (drained_none(r))
		ring->last = ring->consumer;
	r->drained = true;
	if (drained_none(r) && ring->consumer != ring->producer)
		r->busy = true;
	/* What came before the unsound record is delivered; the next drain fails. */
	return err == -EUCLEAN && !r->filled ? err : 0;
}

/* The ring whose turn it is. */
static struct cgo_ring *next_ring(struct cgo_ringbuf *r)
{
	struct cgo_ring *ring = &r->rings[r->next];

	r->next = (r->next + 1) % r->count;
	return ring;
}

/*
 * Drains the rings in turn, until one has samples, so that each gets as many batches as
 * the others however much is in it.
 */
static int drain_next(struct cgo_ringbuf *r)
{
	int i, err = 0;

	for (i = 0; i < r->count && !err && drained_none(r); i++)
		err = drain(r, next_ring(r));
	return err;
}

/*
 * Drains a ring but for its newest record, so that the kernel does not notify of the next
 * one. If there is no other sample, drains that too.
 */
static int tick(struct cgo_ringbuf *r, struct cgo_ring *ring)
{
	__u64 producer = ring->producer;
	int err;

	r->leave = true;
	err = drain(r, ring);
	r->leave = false;
	if (err || !drained_none(r)) {
		r->quiet = false;
		return err;
	}
	if (ring->producer != producer)
		r->quiet = false;
	return drain(r, ring);
}

/* Goes on with a tick of all rings, until one has samples. */
static int tick_next(struct cgo_ringbuf *r)
{
	int err;

	if (!r->unticked) {
		r->unticked = r->count;
		r->quiet = true;
		count(&r->ticks, 1);
	}
	do {
		r->unticked--;
		err = tick(r, next_ring(r));
	} while (r->unticked && !err && drained_none(r));
	/* Another lap for a ring that has more. */
	if (r->full)
		r->unticked = r->count;
	r->idle = r->quiet && !r->unticked;
	return err;
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

/* Waits for cgo_ringbuf_wake() and for events of fd, unless that is -1. */
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

	if (ppoll(fds, 2, &timeout, NULL) < 0)
		return errno == EINTR ? 0 : -errno;
	r->notified = fds[1].revents;
	return fds[0].revents ? reset_wake(r) : 0;
}

static int arm(struct cgo_ringbuf *r, __u32 events)
{
	struct epoll_event event = {.events = events};

	/* It fails only if one of the two is closed, or another file: with one of four errors. */
	if (epoll_ctl(r->park_fd, EPOLL_CTL_MOD, r->ring_fd, &event))
		return -EBADF;
	return 0;
}

static __s64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/*
 * Waits for pause_ns, or until cgo_ringbuf_wake(), or until the kernel has notified and a
 * ring fills up. There are records in the rings, for which libbpf's epoll instance may
 * be ready all the time: so it is watched for changes.
 */
static int wait_filled(struct cgo_ringbuf *r, __s64 pause_ns)
{
	__s64 end = now_ns() + pause_ns, left = pause_ns;
	struct epoll_event event;
	int err, disarmed;

	err = arm(r, EPOLLIN | EPOLLET);
	while (!err && !r->woken && left > 0) {
		/* Takes the event, also the one that arming makes of what is there. */
		epoll_wait(r->park_fd, &event, 1, 0);
		if (cgo_ringbuf_filled(r)) {
			count(&r->wakeups, r->notified);
			break;
		}
		err = wait_events(r, left, r->park_fd);
		left = end - now_ns();
	}
	disarmed = arm(r, 0);
	return err ? err : disarmed;
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
	r->bytes = 0;
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
	r->unticked = 0;
	err = drain_next(r);
	/*
	 * ppoll is level-triggered, and to the kernel a busy record is data: it
	 * would return at once until the commit.
	 */
	if (!err && drained_none(r) && !r->busy && !r->full && timeout_ns > 0) {
		err = wait_events(r, timeout_ns, r->ring_fd);
		if (r->notified)
			count(&r->wakeups, 1);
		if (!err)
			err = drain_next(r);
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

int cgo_ringbuf_tick(struct cgo_ringbuf *r, void *buf, size_t cap, size_t limit, __s64 pause_ns,
		     bool listen)
{
	int err = 0;

	begin(r, buf, cap, limit);
	if (pause_ns > 0)
		err = listen ? wait_filled(r, pause_ns) : wait_events(r, pause_ns, -1);
	if (!err && !r->woken)
		err = tick_next(r);
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
	return arm(r, armed ? EPOLLIN : 0);
}

bool cgo_ringbuf_filled(struct cgo_ringbuf *r)
{
	int i;

	for (i = 0; i < r->count; i++) {
		struct cgo_ring *ring = &r->rings[i];

		if (ring__producer_pos(ring->lib) - ring->producer >= ring->size / 8)
			return true;
	}
	return false;
}

__u64 cgo_ringbuf_consumer(struct cgo_ringbuf *r, int ring)
{
	return ring__consumer_pos(r->rings[ring].lib);
}

__u64 cgo_ringbuf_producer(struct cgo_ringbuf *r, int ring)
{
	return ring__producer_pos(r->rings[ring].lib);
}

static __u64 counted(const __u64 *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

void cgo_ringbuf_counters(struct cgo_ringbuf *r, __u64 *drains, __u64 *wakeups, __u64 *ticks)
{
	*drains = counted(&r->drains);
	*wakeups = counted(&r->wakeups);
	*ticks = counted(&r->ticks);
}

void cgo_ringbuf_ring_counters(struct cgo_ringbuf *r, int ring, struct cgo_ring_counters *out)
{
	const struct cgo_ring_counters *c = &r->rings[ring].counters;

	out->samples = counted(&c->samples);
	out->bytes = counted(&c->bytes);
	out->discarded = counted(&c->discarded);
	out->highest = counted(&c->highest);
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
static size_t pages_size(const struct cgo_ring *ring)
{
	return sysconf(_SC_PAGESIZE) + 2 * ring->size;
}

static int map_shared(int map_fd, size_t size, int prot, off_t offset, void **out)
{
	void *p = mmap(NULL, size, prot, MAP_SHARED, map_fd, offset);

	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

static int map_pages(const struct cgo_ring *ring, int map_fd, void **out)
{
	return map_shared(map_fd, pages_size(ring), PROT_READ, sysconf(_SC_PAGESIZE), out);
}

/*
 * Maps what is ours, and does what ring_buffer__add() is about to do. Where that fails
 * libbpf prints a warning, through a hook that belongs to libbpfgo, and tells only an
 * errno. All is there at once, so that what is given back in the end suffices for libbpf.
 */
static int map_and_try(struct cgo_ring *ring, int map_fd, const char **step)
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
	err = map_pages(ring, map_fd, &ring->pages);
	if (err)
		goto out;
	ring->data = ring->pages + page;

	*step = "mmap data pages for libbpf";
	err = map_pages(ring, map_fd, &pages);
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
		munmap(pages, pages_size(ring));
	munmap(consumer, page);
	return err;
}

/* Adds the ring of map_fd to those of libbpf. */
static int add_ring(struct cgo_ringbuf *r, int map_fd, __u64 size, const char **step)
{
	struct cgo_ring *ring = &r->rings[r->count];
	int err;

	ring->reader = r;
	ring->size = size;
	/* From here on cgo_ringbuf_free() looks after it. */
	r->count++;
	err = map_and_try(ring, map_fd, step);
	if (err)
		return err;

	*step = "ring_buffer__add";
	if (!r->rb) {
		*step = "ring_buffer__new";
		r->rb = ring_buffer__new(map_fd, take_sample, ring, NULL);
		if (!r->rb)
			return -errno;
	} else {
		err = ring_buffer__add(r->rb, map_fd, take_sample, ring);
		if (err)
			return err;
	}
	ring->lib = ring_buffer__ring(r->rb, r->count - 1);

	*step = "check positions";
	if (!sound(ring))
		return -EUCLEAN;
	/* Another reader may go on until the first drain. */
	ring->begun = false;
	return 0;
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

static int open_waits(struct cgo_ringbuf *r, const char **step)
{
	*step = "duplicate epoll instance";
	r->ring_fd = cgo_ringbuf_dup(ring_buffer__epoll_fd(r->rb));
	if (r->ring_fd < 0)
		return r->ring_fd;

	*step = "eventfd";
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->wake_fd < 0)
		return -errno;

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

static int open_spill(struct cgo_ringbuf *r, const __u64 *sizes, int rings)
{
	int i;

	for (i = 0; i < rings; i++)
		if (sizes[i] > r->largest)
			r->largest = sizes[i];
	/* Only what is touched of it takes memory. */
	r->spill = mmap(NULL, spill_size(r), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (r->spill == MAP_FAILED) {
		r->spill = NULL;
		return -errno;
	}
	return 0;
}

int cgo_ringbuf_open(const int *map_fds, const __u64 *sizes, int rings, struct cgo_ringbuf **out,
		     int *failed, const char **step)
{
	struct cgo_ringbuf *r;
	int i, err;

	*failed = -1;
	*step = "allocate";
	r = allocate(rings);
	if (!r)
		return -ENOMEM;

	*step = "reserve memory for large samples";
	err = open_spill(r, sizes, rings);
	if (err)
		goto err_out;

	for (i = 0; i < rings; i++) {
		err = add_ring(r, map_fds[i], sizes[i], step);
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
		if (r->rings[i].pages)
			munmap(r->rings[i].pages, pages_size(&r->rings[i]));
	if (r->spill)
		munmap(r->spill, spill_size(r));
	/* Of those that were not opened, close() does nothing. */
	close(r->park_fd);
	close(r->wake_fd);
	close(r->ring_fd);
	free(r->rings);
	free(r);
}

int cgo_ringbuf_open_pinned(const char *path)
{
	int fd = bpf_obj_get(path);

	return fd < 0 ? -errno : fd;
}

int cgo_ringbuf_open_id(__u32 id)
{
	int fd = bpf_map_get_fd_by_id(id);

	return fd < 0 ? -errno : fd;
}
