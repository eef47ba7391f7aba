package capture_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/capture"
)

// count sums up the first four bytes of each record. It stands for the work of a program, and does
// not know where the records come from.
func count(records iter.Seq2[ringbuf.Record, error]) (sum uint64, err error) {
	for record, err := range records {
		if err != nil {
			return sum, err
		}
		sum += uint64(binary.LittleEndian.Uint32(record.RawSample))
	}
	return sum, nil
}

// In production, the program reads a ring.
func production(reader *ringbuf.Reader) (uint64, error) {
	return count(reader.Records(context.Background()))
}

// A test of the program reads a recording of that ring.
func Example() {
	_ = production
	path := record()
	defer os.RemoveAll(filepath.Dir(path))
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	reader, err := capture.NewReader(file)
	if err != nil {
		log.Fatal(err)
	}
	for _, ring := range reader.Rings() {
		fmt.Printf("ring %s, map id %d, %d bytes\n", ring.Name, ring.ID, ring.Size)
	}
	fmt.Println(count(reader.Records()))
	// Output:
	// ring events, map id 17, 262144 bytes
	// 42 <nil>
}

// record makes a recording, as "ringbuf tail -w FILE name events" does.
func record() (path string) {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "events.pcapng"))
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	rings := []capture.Ring{{Name: "events", ID: 17, Size: 256 << 10}}
	writer, err := capture.NewWriter(file, rings, "")
	if err != nil {
		log.Fatal(err)
	}
	for _, n := range []uint32{11, 31} {
		rec := capture.Record{Time: time.Now()}
		rec.RawSample = binary.LittleEndian.AppendUint32(nil, n)
		if err := writer.Write(rec); err != nil {
			log.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		log.Fatal(err)
	}
	return file.Name()
}
