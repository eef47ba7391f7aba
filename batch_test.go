package ringbuf

import (
	"testing"
)

// These tests cover batch.go and unread.go.

// newBatch returns a batch of the samples in memory of its own. Each record has 100 bytes.
func newBatch(samples ...string) *batch {
	var buf []byte
	for i, s := range samples {
		buf = appendEntry(buf, uint64(i+1)*100, 100, []byte(s))
	}
	b := &batch{producer: 1000, last: uint64(len(samples)) * 100}
	b.set(buf)
	return b
}

func TestBatchKeepsLittleMemory(t *testing.T) {
	var b batch
	first := b.room(100)
	b.reset()
	if second := b.room(90); &first[0] != &second[0] {
		t.Error("memory was not used again")
	}
	b.room(keptMemory + 1)
	b.reset()
	if got := len(b.room(1)); got != 1 {
		t.Errorf("%d bytes were kept after a large sample", got)
	}
}
