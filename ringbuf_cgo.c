//go:build linux

// SPDX-License-Identifier: Apache-2.0
/*
 * Lets libbpf consume records that were looked at before. The callback counts the samples, or
 * copies them into a batch.
 */
#define _GNU_SOURCE
#include "ringbuf_cgo.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* libbpf has ring__consume_n() from 1.5 on. */
#ifndef HAS_CONSUME_N
#define HAS_CONSUME_N (LIBBPF_MAJOR_VERSION > 1 || LIBBPF_MINOR_VERSION >= 5)
#endif

/* How many bytes ahead of a sample to prefetch. */
#define AHEAD 8192

static __u64 align8(__u64 n)
{
	return (n + 7) & ~7ULL;
}

static __u64 record_end(__u64 pos, __u32 header)
{
	return pos + cgo_record_size(header & ~(BUSY_BIT | DISCARD_BIT));
}

/*
 * Reports whether there were only discarded records between the positions from and to, and counts
 * them. from was the consumer position, and libbpf has consumed up to to. When the ring is full,
 * the kernel may have overwritten these records. Then nobody can know, and it returns true.
 */
static bool discarded(struct cgo_ring *ring, __u64 from, __u64 to)
{
	__u64 pos = from, records;
	int i;

	for (records = 0; pos < to && pos - from < ring->size; records++) {
		__u32 header = cgo_ringbuf_header(ring, pos);

		if (!(header & DISCARD_BIT))
			break;
		pos = record_end(pos, header);
	}
	if (pos == to)
		ring->discards += records;
	if (pos == to || from > to)
		return pos == to;
	/*
	 * Not >: the kernel writes a header before it moves the producer position. On arm64, what
	 * a program writes afterwards may also be visible for a while before the position is.
	 */
	for (i = 0; i < 1000; i++)
		if (cgo_ringbuf_load(ring->producer_pos) >= from + ring->size)
			return true;
	return false;
}

/*
 * The position of the record whose sample libbpf found. In libbpf's own mapping the address of the
 * sample tells, even if somebody else writes to the consumer position. Otherwise the position is
 * the consumer position, because libbpf moves that after the callback.
 */
static __u64 start_of(struct cgo_ring *ring, const void *sample)
{
	__u64 offset, start;

	if (ring->own)
		return cgo_ringbuf_load(ring->consumer_pos);
	offset = sample - HEADER_SIZE - ring->data;
	start = ring->consumer + ((offset - ring->consumer) & (ring->size - 1));
	if (start < ring->producer)
		return start;
	/*
	 * libbpf may be further than the last look, by more discarded records than the ring has
	 * room for. Take the last place before the producer position that has this address.
	 */
	ring->producer = cgo_ringbuf_load(ring->producer_pos);
	return ring->producer - 1 - ((ring->producer - 1 - offset) & (ring->size - 1));
}

/*
 * Reports whether the record at start is the next one. Everybody who holds the map can write to
 * the consumer position. libbpf has loaded it before, and takes any bytes there for a header.
 */
static bool is_next(struct cgo_ring *ring, __u64 start, size_t len)
{
	__u64 end = record_end(start, len);

	if (start != ring->consumer && (start % 8 || !discarded(ring, ring->consumer, start)))
		return false;
	if (cgo_ringbuf_header(ring, start) != len)
		return false;
	/* The kernel may have added records since the last look. */
	if (end > ring->producer)
		ring->producer = cgo_ringbuf_load(ring->producer_pos);
	return end <= ring->producer && ring->producer - start <= ring->size;
}

/*
 * Prefetches what comes some way behind the sample. So copying later samples waits neither for
 * memory nor for address translation. Two pages ahead was measured to be best. It does not touch
 * what is not produced yet, which is in the producer's cache.
 */
static void prefetch(const struct cgo_ring *ring, const void *sample, size_t len, __u64 end)
{
	size_t i;

	if (end + AHEAD + len >= ring->producer)
		return;
	for (i = 0; i < len; i += 64)
		__builtin_prefetch(sample + AHEAD + i);
}

/* Copies n bytes, a multiple of 8. For small samples this is faster than calling memcpy(). */
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
 * Makes an entry of size bytes in a batch, or, if the batch has no room, in memory of its own. That
 * happens only for the first sample after a wait. For other samples the caller has made room.
 */
static struct cgo_ringbuf_entry *make_entry(struct cgo_batch *b, size_t size)
{
	void *entry = b->buf + b->filled;

	if (b->filled + size > b->cap) {
		b->large = entry = malloc(size);
		b->large_size = size;
	} else {
		b->filled += size;
	}
	return entry;
}

static int copy_sample(struct cgo_ring *ring, const void *sample, size_t len)
{
	struct cgo_batch *b = &ring->reader->batch;
	__u64 start = start_of(ring, sample);
	__u64 end = record_end(start, len);
	struct cgo_ringbuf_entry *entry;

	if (!is_next(ring, start, len)) {
		ring->bad = start;
		return -EUCLEAN;
	}
	entry = make_entry(b, sizeof(*entry) + align8(len));
	if (!entry) {
		b->too_large = len;
		ring->consumer = end;
		return -ENOMEM;
	}
	/* With a mapping of our own, libbpf may be at another record. Copy the one at start. */
	sample = ring->data + (start & (ring->size - 1)) + HEADER_SIZE;
	prefetch(ring, sample, len, end);
	entry->end = end;
	entry->len = len;
	entry->gap = end - ring->consumer > UINT32_MAX ? UINT32_MAX : end - ring->consumer;
	copy8(entry + 1, sample, align8(len));
	ring->consumer = end;
	return 0;
}

/*
 * libbpf publishes the consumer position when this returns, even if it returns an error. So a
 * sample must have been copied by then.
 */
int cgo_ringbuf_take(void *ctx, void *sample, size_t len)
{
	struct cgo_ring *ring = ctx;
	int err;

	if (ring->copying) {
		ring->reader->at = ring;
		err = copy_sample(ring, sample, len);
		if (err)
			return err;
	}
	ring->samples++;
	ring->bytes += len;
	return --ring->left ? 0 : STOP;
}

void cgo_ringbuf_begin(struct cgo_ringbuf *r, __u8 *buf, size_t cap)
{
	memset(&r->batch, 0, sizeof(r->batch));
	r->batch.buf = buf;
	r->batch.cap = cap;
	r->at = NULL;
}

void cgo_ringbuf_drop(struct cgo_ringbuf *r)
{
	free(r->batch.large);
	r->batch.large = NULL;
}

void cgo_ringbuf_pass(struct cgo_ring *ring)
{
	__u64 consumer = cgo_ringbuf_load(ring->consumer_pos);

	ring->left = 0;
	/* If it is anywhere else, the next look will find that. */
	if (consumer != ring->consumer && discarded(ring, ring->consumer, consumer))
		ring->consumer = consumer;
}

/* Reports whether the consumer position is where the last call has left it. */
static bool sound(struct cgo_ring *ring)
{
	__u64 consumer = cgo_ringbuf_load(ring->consumer_pos);

	if (consumer == ring->consumer &&
	    cgo_ringbuf_load(ring->producer_pos) - consumer <= ring->size)
		return true;
	ring->bad = consumer;
	return false;
}

/* Checks that the consumer position is at end after a call of libbpf that returned err. */
static int consumed(struct cgo_ring *ring, int err, __u64 end)
{
	__u64 consumer = cgo_ringbuf_load(ring->consumer_pos);

	ring->left = 0;
	if (err < 0 && err != STOP)
		return err;
	if (consumer != end) {
		ring->bad = consumer;
		return -EUCLEAN;
	}
	ring->consumer = end;
	return 0;
}

int cgo_ringbuf_consume(struct cgo_ringbuf *r, int i, __u64 n, __u64 end, __u8 *buf, size_t cap)
{
	struct cgo_ring *ring = &r->rings[i];

	if (buf)
		cgo_ringbuf_begin(r, buf, cap);
	if (!sound(ring))
		return -EUCLEAN;
	ring->left = n;
	ring->copying = buf;
	return consumed(ring, ring__consume(ring->lib), end);
}

int cgo_ringbuf_skip(struct cgo_ringbuf *r, int i, __u64 n, __u64 end, __u8 *buf, size_t cap)
{
	struct cgo_ring *ring = &r->rings[i];
	int err = 0;

	cgo_ringbuf_begin(r, buf, cap);
	if (!sound(ring))
		return -EUCLEAN;
#if HAS_CONSUME_N
	/* With n = 0, libbpf consumes one record: it compares with n only after each record. */
	for (; n && !err; n--)
		err = ring__consume_n(ring->lib, 0);
	return consumed(ring, err, end);
#else
	ring->left = 1;
	ring->copying = true;
	err = ring__consume(ring->lib);
	ring->left = 0;
	if (err == -EUCLEAN || err == -ENOMEM)
		return err;
	if (!r->batch.filled && !r->batch.large) {
		/* There may have been more than n discarded records. */
		end = cgo_ringbuf_load(ring->consumer_pos);
		if (!discarded(ring, ring->consumer, end))
			end = ring->consumer;
		return consumed(ring, 0, end);
	}
	return consumed(ring, 0, ring->consumer);
#endif
}
