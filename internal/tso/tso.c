//go:build ignore
// SPDX-License-Identifier: Apache-2.0
/*
 * Runs the code that drains a ring on a simulated machine that controls every step, and
 * tries all orders of the steps of kernel and reader. If memory accesses are in the wrong
 * order, a real machine loses a wakeup only once in millions of rounds.
 *
 * The machine's processor delays stores and keeps their order, while later loads read
 * memory, as x86 processors do (total store order). The reader is the real ringbuf_cgo.c
 * and ringbuf_cgo_wait.c. libbpf's part is replaced by code that accesses memory in the
 * same order, and look() of ring.go is written in C.
 *
 * The kernel looks at the consumer position once, so it does not matter that all stores
 * have the same delay. Ticks and full batches are not modelled, because then the reader
 * does not wait.
 *
 * Prints the number of schedules, and the number of them in which the reader waits for a
 * notification that never comes. With the argument "unfenced" fences do nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

static unsigned long model_load(const void *p, int size);
static void model_fence(int order);

#define __atomic_load_n(p, order) ((__typeof__(*(p)))model_load(p, sizeof(*(p))))
#define __atomic_thread_fence model_fence
#include "../../ringbuf_cgo.h"

static int model_consume(struct ring *ring);
static int model_consume_n(struct ring *ring, size_t n);
static int model_poll(struct ring_buffer *rb, int timeout_ms);

#define ring__consume model_consume
#define ring__consume_n model_consume_n
#define ring_buffer__poll model_poll
#include "../../ringbuf_cgo.c"
#include "../../ringbuf_cgo_wait.c"

#define MAX_OLDER 3
#define RECORD sizeof(struct record)

struct record {
	__u32 header;
	__u32 unused;
	__u64 sample;
};

/* When steps happen: before the reader's nth access to memory. */
struct schedule {
	int reserve; /* the kernel makes room for the new record */
	int commit;  /* the kernel commits it */
	int notify;  /* the kernel looks at the consumer position, and notifies or not */
	int delay;   /* number of accesses for which a store stays in the processor */
};

enum outcome { READ, LOST, STUCK };

static struct {
	/* Memory. */
	__u64 consumer;
	__u64 producer;
	struct record records[MAX_OLDER + 1];

	/* Stores of the consumer position that are not yet visible in memory. */
	struct {
		__u64 value;
		int due;
	} stores[MAX_OLDER + 1];
	int oldest, newest;

	struct schedule schedule;
	bool fenced;
	bool lends; /* libbpf consumes without copying */
	int now;
	int waited_at;
	__u64 last; /* position of the new record */
	bool notified;
	bool waited;
	struct cgo_ringbuf reader;
	struct cgo_ring ring;
} m;

static int wake_fd;

static void become_visible(int until)
{
	for (; m.oldest < m.newest && m.stores[m.oldest].due <= until; m.oldest++)
		m.consumer = m.stores[m.oldest].value;
}

/* Does the steps that happen before an access. */
static void step(void)
{
	become_visible(m.now);
	/* __bpf_ringbuf_reserve() */
	if (m.now == m.schedule.reserve) {
		m.records[m.last / RECORD].header = 8 | BUSY_BIT;
		m.producer = m.last + RECORD;
	}
	/* bpf_ringbuf_commit() */
	if (m.now == m.schedule.commit)
		m.records[m.last / RECORD].header = 8;
	if (m.now == m.schedule.notify && m.consumer == m.last)
		m.notified = true;
	m.now++;
}

/* On x86 the other fences are no instructions. */
static void model_fence(int order)
{
	step();
	if (m.fenced && order == __ATOMIC_SEQ_CST)
		become_visible(INT32_MAX);
}

/* A processor sees its own delayed stores. */
static unsigned long model_load(const void *p, int size)
{
	step();
	if (p == &m.consumer && m.newest > m.oldest)
		return m.stores[m.newest - 1].value;
	return size == sizeof(__u32) ? *(const __u32 *)p : *(const __u64 *)p;
}

static void store_consumer(__u64 value)
{
	step();
	m.stores[m.newest].value = value;
	m.stores[m.newest++].due = m.now + m.schedule.delay;
}

/* The accesses of ringbuf_process_ring() in libbpf's src/ringbuf.c. */
static int model_consume_n(struct ring *ring, size_t n)
{
	__u64 pos = cgo_ringbuf_load(&m.consumer), producer;
	size_t count = 0;
	bool more;

	do {
		more = false;
		for (producer = cgo_ringbuf_load(&m.producer); pos < producer; more = true) {
			__u32 header = cgo_ringbuf_header(&m.ring, pos);
			__u64 *sample = &m.records[pos / RECORD].sample;
			int err = 0;

			if (header & BUSY_BIT)
				return count;
			if (!(header & DISCARD_BIT)) {
				err = cgo_ringbuf_take(&m.ring, sample, sizeof(*sample));
				count++;
			}
			pos += RECORD;
			store_consumer(pos);
			if (err < 0)
				return err;
			if (count >= n)
				return count;
		}
	} while (more);
	return count;
}

static int model_consume(struct ring *ring)
{
	return model_consume_n(ring, INT32_MAX);
}

/* The wait: all remaining steps happen, and may end it. */
static int model_poll(struct ring_buffer *rb, int timeout_ms)
{
	m.waited = true;
	m.waited_at = m.now;
	while (m.now <= m.schedule.notify)
		step();
	become_visible(INT32_MAX);
	if (!m.notified)
		return 0;
	return model_consume(NULL);
}

/* The Go part: look() of ring.go, and then consume or wait. */
static int look_and_act(void *buf, size_t size)
{
	__u64 producer = cgo_ringbuf_load(&m.producer);
	__u64 pos = m.ring.consumer, end = pos;
	__u32 header;
	int samples = 0, discards = 0;

	for (; pos < producer; pos += RECORD) {
		header = cgo_ringbuf_header(&m.ring, pos);
		if (header & BUSY_BIT)
			break;
		if (header & DISCARD_BIT) {
			discards++;
			continue;
		}
		samples++;
		end = pos + RECORD;
	}
	m.ring.producer = producer;
	if (samples)
		return cgo_ringbuf_consume(&m.reader, 0, samples, end, m.lends ? NULL : buf, size);
	if (discards)
		return cgo_ringbuf_skip(&m.reader, 0, discards, pos, buf, size);
	return cgo_ringbuf_wait(&m.reader, NS_PER_MS, buf, size);
}

/*
 * Reads a new record after older ones. The nth of these was discarded if the nth bit of
 * discarded is set.
 */
static enum outcome run(int older, unsigned int discarded, struct schedule schedule)
{
	static char buf[4096];
	bool fenced = m.fenced, lends = m.lends;
	int i;

	memset(&m, 0, sizeof(m));
	for (i = 0; i < older; i++)
		m.records[i].header = 8 | (discarded >> i & 1 ? DISCARD_BIT : 0);
	m.last = m.producer = older * RECORD;
	m.schedule = schedule;
	m.fenced = fenced;
	m.lends = lends;
	m.reader.rings = &m.ring;
	m.reader.count = 1;
	m.reader.wake_fd = wake_fd;
	m.ring.reader = &m.reader;
	m.ring.size = 4096;
	m.ring.data = m.records;
	m.ring.consumer_pos = &m.consumer;
	m.ring.producer_pos = &m.producer;

	for (i = 0; i < 100; i++) {
		m.waited = false;
		if (look_and_act(buf, sizeof(buf)))
			return STUCK;
		if (m.ring.consumer > m.last)
			return READ;
		if (m.waited && !m.notified)
			return LOST;
		m.notified = m.notified && !m.waited;
		/* With a busy record the reader does not wait in poll: it parks. */
		if (!m.waited && m.reader.busy) {
			m.waited_at = m.now;
			while (m.now <= schedule.notify)
				step();
			become_visible(INT32_MAX);
			if (!m.notified)
				return LOST;
		}
	}
	return STUCK;
}

static unsigned long schedules, lost;

static int run_all(int older, unsigned int discarded)
{
	struct schedule s = {-1, -1, -1, 0};
	int end;

	/* Measure how long the reader is busy with the older records. Try twice that time. */
	run(older, discarded, s);
	end = 2 * m.waited_at;
	for (s.reserve = 0; s.reserve < end; s.reserve++)
		for (s.commit = s.reserve; s.commit < end; s.commit++)
			for (s.notify = s.commit; s.notify < end; s.notify++)
				for (s.delay = 0; s.delay < end; s.delay++) {
					enum outcome outcome = run(older, discarded, s);

					schedules++;
					lost += outcome == LOST;
					if (outcome == STUCK) {
						fprintf(
						    stderr,
						    "stuck: %d older, discarded %#x, "
						    "reserve %d, commit %d, notify %d, delay %d\n",
						    older, discarded, s.reserve, s.commit, s.notify,
						    s.delay);
						return 1;
					}
				}
	return 0;
}

int main(int argc, char **argv)
{
	unsigned int discarded;
	int older;

	m.fenced = argc < 2 || strcmp(argv[1], "unfenced");
	wake_fd = eventfd(0, EFD_NONBLOCK);
	for (m.lends = false;; m.lends = true) {
		for (older = 0; older <= MAX_OLDER; older++)
			for (discarded = 0; discarded < 1u << older; discarded++)
				if (run_all(older, discarded))
					return 1;
		if (m.lends)
			break;
	}
	printf("%lu schedules, %lu lose a wakeup\n", schedules, lost);
	return 0;
}
