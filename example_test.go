package ringbuf_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
)

func Example() {
	module, err := bpf.NewModuleFromFile("program.bpf.o")
	if err != nil {
		log.Fatal(err)
	}
	defer module.Close()
	if err := module.BPFLoadObject(); err != nil {
		log.Fatal(err)
	}

	events, err := module.GetMap("events") // BPF_MAP_TYPE_RINGBUF
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()

	var record ringbuf.Record
	for {
		if err := reader.ReadInto(&record); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
}

func ExampleReader_SetDeadline() {
	var reader *ringbuf.Reader

	reader.SetDeadline(time.Now().Add(time.Second))
	for {
		record, err := reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break // a second is over, and the ring is empty
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
}

// Everything that is in the ring is read before the Reader is closed, and what
// comes later is left to the next one.
func ExampleReader_Flush() {
	var reader *ringbuf.Reader

	if err := reader.Flush(); err != nil {
		log.Fatal(err)
	}
	for {
		record, err := reader.Read()
		if errors.Is(err, ringbuf.ErrFlushed) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%x\n", record.RawSample)
	}
	if err := reader.Close(); err != nil {
		log.Fatal(err)
	}
}

// A descriptor is all that is needed of a map, for example one that a privileged
// process sent over a Unix socket.
func ExampleFD() {
	received := 7

	reader, err := ringbuf.NewReader(ringbuf.FD(received))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
}
