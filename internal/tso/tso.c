//go:build ignore
// SPDX-License-Identifier: Apache-2.0
/*
 * Runs the code that drains a ring on a machine whose every step is decided here, and
 * tries all ways in which the steps of kernel and reader can follow each other. Real
 * machines lose a wakeup once in millions of rounds, if anything is wrong with the
 * order in which memory is accessed.
 *
 * The machine's processor keeps stores back, in order, while later loads read memory,
 * as x86 processors do (total store order). The reader is the real ringbuf_cgo.c, with
 * libbpf's part replaced by one that accesses memory in the same order.
 *
 * The kernel looks at the consumer position once, so it does not matter that all stores
 * are delayed alike. Ticks and batches that fill up are not modelled: nobody waits then.
 *
 * Prints the number of schedules, and in how many the reader waits for a notification
 * that never comes. With the argument "unfenced" fences do nothing.
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "../../ringbuf_cgo.h"

static int model_consume(struct ring *ring);
static unsigned long model_consumer_pos(const struct ring *ring);
static unsigned long model_producer_pos(const struct ring *ring);
static void model_fence(int order);

#define ring__consume model_consume
#define ring__consumer_pos model_consumer_pos
#define ring__producer_pos model_producer_pos
#define __atomic_thread_fence model_fence
#include "../../ringbuf_cgo.c"

#define MAX_OLDER 3
#define RECORD sizeof(struct record)

struct record {
	__u32 header;
	__u32 unused;
	__u64 sample;
};

/* When things happen: before the reader's nth access to memory. */
struct schedule {
	int reserve; /* the kernel makes room for the new record */
	int commit;  /* the kernel commits it */
	int notify;  /* the kernel looks at the consumer position, and notifies or not */
	int delay;   /* for how many accesses a store stays in the processor */
};

enum outcome { READ, LOST, STUCK };

static struct {
	/* Memory. */
	__u64 consumer;
	__u64 producer;
	struct record records[MAX_OLDER + 1];

	/* Stores of the consumer position that are still in the processor. */
	struct {
		__u64 value;
		int due;
	} stores[MAX_OLDER + 1];
	int oldest, newest;

	struct schedule schedule;
	bool fenced;
	int now;
	int waited_at;
	__u64 last; /* the new record's position */
	bool notified;
	struct cgo_ringbuf reader;
	struct cgo_ring ring;
} m;

static void become_visible(int until)
{
	for (; m.oldest < m.newest && m.stores[m.oldest].due <= until; m.oldest++)
		m.consumer = m.stores[m.oldest].value;
}

/* Lets happen what happens before an access. */
static void step(void)
{
	become_visible(m.now);
	/* __bpf_ringbuf_reserve() */
	if (m.now == m.schedule.reserve) {
		m.records[m.last / RECORD].header = 8 | BPF_RINGBUF_BUSY_BIT;
		m.producer = m.last + RECORD;
	}
	/* bpf_ringbuf_commit() */
	if (m.now == m.schedule.commit)
		m.records[m.last / RECORD].header = 8;
	if (m.now == m.schedule.notify && m.consumer == m.last)
		m.notified = true;
	m.now++;
}

/* On x86 the others are no instruction. */
static void model_fence(int order)
{
	step();
	if (m.fenced && order == __ATOMIC_SEQ_CST)
		become_visible(INT32_MAX);
}

/* A processor sees its own stores. */
static __u64 load_consumer(void)
{
	step();
	return m.newest > m.oldest ? m.stores[m.newest - 1].value : m.consumer;
}

static void store_consumer(__u64 value)
{
	step();
	m.stores[m.newest].value = value;
	m.stores[m.newest++].due = m.now + m.schedule.delay;
}

static __u64 load_producer(void)
{
	step();
	return m.producer;
}

static __u32 load_header(__u64 pos)
{
	step();
	return m.records[pos / RECORD].header;
}

static unsigned long model_consumer_pos(const struct ring *ring)
{
	return load_consumer();
}

static unsigned long model_producer_pos(const struct ring *ring)
{
	return load_producer();
}

/* The accesses of ringbuf_process_ring() in libbpf's src/ringbuf.c. */
static int model_consume(struct ring *ring)
{
	__u64 pos = load_consumer(), producer;
	bool more;

	do {
		more = false;
		for (producer = load_producer(); pos < producer; more = true) {
			__u32 header = load_header(pos);
			__u64 *sample = &m.records[pos / RECORD].sample;
			int err = 0;

			if (header & BPF_RINGBUF_BUSY_BIT)
				return 0;
			if (!(header & BPF_RINGBUF_DISCARD_BIT))
				err = take_sample(&m.ring, sample, sizeof(*sample));
			pos += RECORD;
			store_consumer(pos);
			if (err < 0)
				return err;
		}
	} while (more);
	return 0;
}

/*
 * Reads a new record behind older ones, the nth of which was discarded if the nth bit
 * of discarded is set.
 */
static enum outcome run(int older, unsigned int discarded, struct schedule schedule)
{
	static char buf[4096];
	bool fenced = m.fenced;
	int i;

	memset(&m, 0, sizeof(m));
	for (i = 0; i < older; i++)
		m.records[i].header = 8 | (discarded >> i & 1 ? BPF_RINGBUF_DISCARD_BIT : 0);
	m.last = m.producer = older * RECORD;
	m.schedule = schedule;
	m.fenced = fenced;
	m.reader.rings = &m.ring;
	m.reader.count = 1;
	m.ring.reader = &m.reader;
	m.ring.size = 4096;
	m.ring.data = m.records;

	for (i = 0; i < 100; i++) {
		if (cgo_ringbuf_poll(&m.reader, buf, sizeof(buf), sizeof(buf), 0))
			return STUCK;
		if (m.ring.consumer > m.last)
			return READ;
		if (m.reader.filled || m.reader.full)
			continue;
		/* It waits. Everything happens, and ends the wait or not. */
		m.waited_at = m.now;
		while (m.now <= schedule.notify)
			step();
		become_visible(INT32_MAX);
		if (!m.notified)
			return LOST;
		m.notified = false;
	}
	return STUCK;
}

static unsigned long schedules, lost;

static int run_all(int older, unsigned int discarded)
{
	struct schedule s = {-1, -1, -1, 0};
	int end;

	/* How long the reader is busy with the older ones, and as long again. */
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
	for (older = 0; older <= MAX_OLDER; older++)
		for (discarded = 0; discarded < 1u << older; discarded++)
			if (run_all(older, discarded))
				return 1;
	printf("%lu schedules, %lu lose a wakeup\n", schedules, lost);
	return 0;
}
