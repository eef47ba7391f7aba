package ringbuf

import (
	"context"
	"testing"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// benchmarkDrain times only the reading. The clock is stopped while the ring is filled.
func benchmarkDrain(b *testing.B, read func(r *Reader) error) {
	ring, r := newRingAndReader(b, 16<<20)
	const fill = 100_000
	b.SetBytes(bpftest.NumberedSize)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		b.StopTimer()
		got := ring.Count(0, 0, min(fill, b.N-n), 0)
		b.StartTimer()
		for range got {
			if err := read(r); err != nil {
				b.Fatal(err)
			}
		}
		n += got
	}
}

func BenchmarkRead(b *testing.B) {
	benchmarkDrain(b, func(r *Reader) error {
		_, err := r.Read()
		return err
	})
}

func BenchmarkReadInto(b *testing.B) {
	var rec Record
	benchmarkDrain(b, func(r *Reader) error { return r.ReadInto(&rec) })
}

func BenchmarkRecords(b *testing.B) {
	ring, r := newRingAndReader(b, 256<<10)
	fill := numberedCapacity(256 << 10)
	b.SetBytes(bpftest.NumberedSize)
	b.ReportAllocs()
	b.ResetTimer()
	sum := byte(0)
	for n := 0; n < b.N; {
		b.StopTimer()
		left := ring.Count(0, 0, min(fill, b.N-n), 0)
		n += left
		b.StartTimer()
		for rec, err := range r.Records(context.Background()) {
			if err != nil {
				b.Fatal(err)
			}
			sum += rec.RawSample[0]
			if left--; left == 0 {
				break
			}
		}
	}
}
