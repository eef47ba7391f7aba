package ringbuf

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests run on the kernel of this machine. A BPF program produces the records.
// queue_test.go has tests that need no kernel.

func TestReadReturnsSamplesWithTheirRemainingBytes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		samples   []bpftest.Sample
		available int
		want      []Record
	}{
		{
			name:      "one short sample",
			samples:   []bpftest.Sample{text("12345")},
			available: 16,
			want:      []Record{{RawSample: []byte("12345"), Remaining: 0}},
		},
		{
			name:      "the second of three is discarded",
			samples:   []bpftest.Sample{text("12345"), discarded(10), text("123456789012345")},
			available: 16 + 24 + 24,
			want: []Record{{RawSample: []byte("12345"), Remaining: 24 + 24},
				{RawSample: []byte("123456789012345"), Remaining: 0}},
		},
		{
			name: "every second of five is discarded",
			samples: []bpftest.Sample{
				text("12345"), discarded(10), text("123456789012345"), discarded(20),
				text("1234567890123456789012345"),
			},
			available: 16 + 24 + 24 + 32 + 40,
			want: []Record{
				{RawSample: []byte("12345"), Remaining: 24 + 24 + 32 + 40},
				{RawSample: []byte("123456789012345"), Remaining: 32 + 40},
				{RawSample: []byte("1234567890123456789012345"), Remaining: 0},
			},
		},
		{
			name:      "the first and the last are discarded",
			samples:   []bpftest.Sample{discarded(8), text("x"), discarded(100)},
			available: 16 + 16 + 112,
			want:      []Record{{RawSample: []byte("x"), Remaining: 112}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize())
			wantAvailable(t, r, 0)
			ring.Emit(tt.samples...)
			wantAvailable(t, r, tt.available)
			for i, want := range tt.want {
				got := mustRead(t, r)
				if !bytes.Equal(got.RawSample, want.RawSample) || got.Remaining != want.Remaining {
					t.Errorf("record %d is %q, %d; want %q, %d", i, got.RawSample, got.Remaining, want.RawSample,
						want.Remaining)
				}
				// Also while the rest of the batch is in memory.
				wantAvailable(t, r, want.Remaining)
			}
			r.SetDeadline(time.Unix(0, 1))
			wantReadError(t, r, os.ErrDeadlineExceeded)
			wantAvailable(t, r, 0)
		})
	}
}

func TestBufferSizeIsTheRingsSize(t *testing.T) {
	for _, size := range []int{os.Getpagesize(), 64 << 10, 16 << 20} {
		_, r := newRingAndReader(t, size)
		if got := r.BufferSize(); got != size {
			t.Errorf("BufferSize is %d, want %d", got, size)
		}
	}
}

func TestEverySizeThatTheKernelAcceptsIsRead(t *testing.T) {
	random := rand.New(rand.NewChaCha8([32]byte{}))
	sample := func(size int) bpftest.Sample {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		return bpftest.Sample{Data: data}
	}
	for _, ringSize := range []int{os.Getpagesize(), 64 << 10, 512 << 10} {
		t.Run(fmt.Sprint(ringSize), func(t *testing.T) {
			ring, r := newRingAndReader(t, ringSize)
			r.SetDeadline(time.Now().Add(10 * time.Second)) // if one is lost
			// One byte of the ring stays free, and records are multiples of 8.
			largest := ringSize - 8 - bpftest.HeaderSize
			sizes := []int{0, 1, 7, 8, 9, 15, 16, 17, 255, 256, 1000, ringSize / 2, largest - 1, largest}
			random.Shuffle(len(sizes), func(i, j int) { sizes[i], sizes[j] = sizes[j], sizes[i] })
			sizes = append(sizes, largest) // a second time, from another position
			for _, size := range sizes {
				want := sample(size)
				ring.Emit(want)
				rec := mustRead(t, r)
				if !bytes.Equal(rec.RawSample, want.Data) {
					t.Fatalf("sample of %d bytes came as one of %d bytes with other content", size,
						len(rec.RawSample))
				}
				if rec.RawSample == nil {
					t.Fatalf("RawSample of %d bytes is nil", size)
				}
			}
			if ring.TryEmit(sample(largest+1)) != 1 {
				t.Errorf("the kernel accepts %d bytes: the test does not try the largest sample", largest+1)
			}
			// Several samples of different sizes in one batch, more than it holds at first.
			var want []bpftest.Sample
			for used := 0; ; {
				s := sample(random.IntN(ringSize / 16))
				if used += s.RecordSize(); used >= ringSize {
					break
				}
				want = append(want, s)
			}
			ring.Emit(want...)
			for i, s := range want {
				if rec := mustRead(t, r); !bytes.Equal(rec.RawSample, s.Data) {
					t.Fatalf("sample %d differs", i)
				}
			}
			wantAvailable(t, r, 0)
		})
	}
}

func TestLargeSamplesDoNotMakeBatchesLarge(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	const large = 8 << 10
	var rec Record
	for range 20 {
		var samples []bpftest.Sample
		for i := range 2000 {
			size := 100
			if i%100 == 99 {
				size = large
			}
			samples = append(samples, bpftest.Sample{Data: make([]byte, size)})
		}
		ring.Emit(samples...)
		for i, s := range samples {
			if err := r.ReadInto(&rec); err != nil || len(rec.RawSample) != len(s.Data) {
				t.Fatalf("sample %d: %v, %d bytes, want %d", i, err, len(rec.RawSample), len(s.Data))
			}
		}
	}
	b := <-r.queue.turn
	r.queue.turn <- b
	if got, limit := len(*b.memory), keptMemory; got > limit {
		t.Errorf("a batch has %d bytes, want at most %d", got, limit)
	}
}

// TestLargeSampleLeavesNoMemory has a large sample among small ones.
func TestLargeSampleLeavesNoMemory(t *testing.T) {
	ring, r := newRingAndReader(t, 4<<20)
	for range 3 {
		ring.Emit(text("small"), bpftest.Sample{Data: make([]byte, 512<<10)}, text("small"))
		for i, want := range []int{5, 512 << 10, 5} {
			sample := mustRead(t, r).RawSample
			if len(sample) != want || cap(sample) > want+want/8+16 {
				t.Fatalf("sample %d has %d bytes and capacity %d, want %d", i, len(sample), cap(sample), want)
			}
		}
		ring.Emit(text("small"))
		mustRead(t, r)
		b := <-r.queue.turn
		r.queue.turn <- b
		if got := len(*b.memory); got > keptMemory {
			t.Errorf("a batch of a small sample has %d bytes of memory, want at most %d", got, keptMemory)
		}
	}
}

func TestReadGivesItsSampleAway(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	var kept [][]byte
	for i := range 1000 {
		ring.Emit(text(fmt.Sprint("sample ", i)))
		rec := mustRead(t, r)
		kept = append(kept, rec.RawSample)
		// An append must not reach the next sample.
		_ = append(rec.RawSample, "overwritten"...)
	}
	for i, sample := range kept {
		if want := fmt.Sprint("sample ", i); string(sample) != want {
			t.Fatalf("a kept sample is now %q, was %q", sample, want)
		}
	}
}

func TestReadIntoReusesMemory(t *testing.T) {
	ring, r := newRingAndReader(t, 64<<10)
	rec := Record{RawSample: make([]byte, 0, 100)}
	memory := &rec.RawSample[:1][0]
	ring.Emit(text("first"), text("the second"), text(""))
	for _, want := range []string{"first", "the second", ""} {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		if string(rec.RawSample) != want {
			t.Errorf("ReadInto stored %q, want %q", rec.RawSample, want)
		}
		if &rec.RawSample[:1][0] != memory {
			t.Error("ReadInto did not reuse RawSample")
		}
	}
	rec.RawSample = append(rec.RawSample, "kept"...)
	r.SetDeadline(time.Unix(0, 1))
	if err := r.ReadInto(&rec); !errors.Is(err, os.ErrDeadlineExceeded) ||
		string(rec.RawSample) != "kept" {
		t.Errorf("a failed ReadInto returned %v and left %q in RawSample", err, rec.RawSample)
	}
}

func TestAllocationsPerSample(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	var rec Record
	fill := func() {
		if got := ring.Count(0, 0, 10000, 0); got != 10000 {
			t.Fatalf("the ring had room for %d samples only", got)
		}
	}
	measure := func(read func() error) float64 {
		// The second time, batches have reached their size.
		var perSample float64
		for range 2 {
			fill()
			perSample = testing.AllocsPerRun(9999, func() {
				if err := read(); err != nil {
					t.Fatal(err)
				}
			})
		}
		return perSample
	}
	if got := measure(func() error { return r.ReadInto(&rec) }); got != 0 {
		t.Errorf("ReadInto allocates %v times per sample, want 0", got)
	}
	// AllocsPerRun rounds down, so count the allocations for all samples.
	var before, after runtime.MemStats
	fill()
	runtime.ReadMemStats(&before)
	for range 10000 {
		mustRead(t, r)
	}
	runtime.ReadMemStats(&after)
	if perSample := float64(after.Mallocs-before.Mallocs) / 10000; perSample > 0.05 {
		t.Errorf("Read allocates %v times per sample, want at most 0.05", perSample)
	}
}

func TestDiscardedRecordsAreSkipped(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		for range 100 { // several times around the ring
			ring.Emit(discarded(100))
			await(t, "the discarded record to be skipped",
				func() bool { return r.queue.rings.consumerPos(0) == r.queue.rings.producerPos(0) })
		}
		ring.Emit(discarded(8), text("sample"))
		wantResult(t, result, "sample", nil)
		wantAvailable(t, r, 0)
	})
}

func TestNothingIsDrainedWhileNobodyReads(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	other := mustNewReader(t, ring)
	ring.Emit(text("first"), text("second"))
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	wantSample(t, r, "first")
	wantSample(t, r, "second")
	wantReadError(t, r, ErrFlushed)
	ring.Emit(text("third"))
	wantAvailable(t, r, 16)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantAvailable(t, other, 16)
	wantSample(t, other, "third")
}
