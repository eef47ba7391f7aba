package ringbuf

import (
	"os"
	"testing"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests disturb a Writer, or take away what it needs.

// TestTheDrainProgramIsRunAgainBehindDiscardedRecords has as many of these as one drain takes, which
// does not count them.
func TestTheDrainProgramIsRunAgainBehindDiscardedRecords(t *testing.T) {
	const most = 128 << 10
	ring := bpftest.NewUser(t, 2*most*recordHeaderSize, os.Getpagesize())
	w := mustNewWriter(t, ring)
	for range most {
		mustReserve(t, w, "").Discard()
	}
	w.Close()
	w = mustNewWriter(t, ring, WithDrainProgram(ring.Program()))
	mustWrite(t, w, []byte("behind"))
	if got := ring.Control().Samples; got != 1 {
		t.Errorf("%d samples were drained, want 1", got)
	}
	if got := w.Stats().Drains; got != 1 {
		t.Errorf("there were %d calls, want 1", got)
	}
}
