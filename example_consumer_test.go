package ringbuf_test

import (
	"context"
	"fmt"
	"iter"
	"log"

	"github.com/libbpfgo/ringbuf"
)

// sumUp is a consumer of records, whatever their source.
func sumUp(records iter.Seq2[ringbuf.Record, error]) (n, bytes int, err error) {
	for record, failed := range records {
		if failed != nil {
			return n, bytes, failed
		}
		n++
		bytes += len(record.RawSample)
	}
	return n, bytes, nil
}

// recorded returns records with these samples, in place of a Reader.
func recorded(samples ...string) iter.Seq2[ringbuf.Record, error] {
	return func(yield func(ringbuf.Record, error) bool) {
		for _, sample := range samples {
			if !yield(ringbuf.Record{RawSample: []byte(sample)}, nil) {
				return
			}
		}
	}
}

// A consumer that takes an iter.Seq2 can loop over the records of Reader.Records or
// Reader.Merged.
func Example_consumer() {
	var reader *ringbuf.Reader

	n, bytes, err := sumUp(reader.Records(context.Background()))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "records,", bytes, "bytes")
}

// A test can give the same consumer records of its own, without a kernel.
func Example_consumerTest() {
	n, bytes, err := sumUp(recorded("exec", "exit", "a longer one"))
	fmt.Println(n, "records,", bytes, "bytes,", err)
	// Output: 3 records, 20 bytes, <nil>
}
