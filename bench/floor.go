// The floor: libbpf in C, with a callback that does almost nothing.

package main

/*
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <bpf/libbpf.h>

struct floor_reader {
	struct ring_buffer *ring;
	__u64 seen;
	size_t end_size;
	bool ended;
};

static int count_sample(void *ctx, void *data, size_t size)
{
	struct floor_reader *floor = ctx;

	if (size == floor->end_size)
		floor->ended = true;
	else
		floor->seen++;
	return 0;
}

static struct floor_reader *floor_open(int map_fd, size_t end_size)
{
	struct floor_reader *floor = calloc(1, sizeof(*floor));

	if (!floor)
		return NULL;
	floor->end_size = end_size;
	floor->ring = ring_buffer__new(map_fd, count_sample, floor, NULL);
	if (!floor->ring) {
		free(floor);
		return NULL;
	}
	return floor;
}

// Reads until it has seen want samples since floor_open(), or the end.
static int floor_read(struct floor_reader *floor, __u64 want)
{
	int err;

	while (!floor->ended && floor->seen != want) {
		err = ring_buffer__poll(floor->ring, -1);
		if (err < 0 && err != -EINTR)
			return err;
	}
	return 0;
}

static void floor_close(struct floor_reader *floor)
{
	ring_buffer__free(floor->ring);
	free(floor);
}
*/
import "C"

import (
	"fmt"
	"syscall"
)

// openFloor opens a reader that stays in one C call until it has all samples. It counts the
// samples without reading them.
func openFloor(ring int) (reader, error) {
	c, err := C.floor_open(C.int(ring), endSize)
	if c == nil {
		return reader{}, fmt.Errorf("libbpf: %w", err)
	}
	// SAFETY: c is valid until close, which is not called during read.
	return reader{func(t *tally) error {
		if err := C.floor_read(c, C.__u64(t.want)); err < 0 {
			return fmt.Errorf("libbpf: %w", syscall.Errno(-err))
		}
		t.seen = uint64(c.seen)
		return nil
	}, func() error {
		C.floor_close(c)
		return nil
	}}, nil
}

func libbpfVersion() string { return C.GoString(C.libbpf_version_string()) }
