package ringbuf_test

import (
	"context"
	"fmt"
	"log"

	"github.com/libbpfgo/ringbuf"
)

// An event is this struct of the BPF program, without its last member:
//
//	struct event {
//		__u64 time_ns;
//		__u32 pid;
//		char comm[16];
//		__u32 args_size;
//		char args[];
//	};
type event struct {
	TimeNs   uint64
	PID      uint32
	Comm     [16]byte
	ArgsSize uint32
}

func ExampleAs() {
	var reader *ringbuf.Reader

	var record ringbuf.Record
	for {
		if err := reader.ReadInto(&record); err != nil {
			log.Fatal(err)
		}
		e, err := ringbuf.As[event](record)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s\n", e.PID, e.Comm)
	}
}

// The last member of struct event, args, has args_size bytes.
func ExampleAsFlex() {
	var reader *ringbuf.Reader

	for record, err := range reader.Records(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		e, args, err := ringbuf.AsFlex[event, byte](record)
		if err != nil {
			log.Fatal(err)
		}
		if int(e.ArgsSize) > len(args) {
			log.Fatalf("%d bytes of arguments, of %d", len(args), e.ArgsSize)
		}
		fmt.Printf("%d %s %q\n", e.PID, e.Comm, args[:e.ArgsSize])
	}
}

// Samples yields values of a type instead of Records. Use it if you need no other field of
// Record.
func ExampleSamples() {
	var reader *ringbuf.Reader

	for e, err := range ringbuf.Samples[event](context.Background(), reader) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s\n", e.PID, e.Comm)
	}
}
