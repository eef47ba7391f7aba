package ringbuf_test

import (
	"context"
	"fmt"
	"log"
	"unsafe"

	"github.com/libbpfgo/ringbuf"
)

// An event is, in the BPF program,
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
		args := record.RawSample[unsafe.Sizeof(*e):]
		fmt.Printf("%d %s %q\n", e.PID, e.Comm, args[:e.ArgsSize])
	}
}

// Who needs no other field of Record may loop over values of a type.
func ExampleSamples() {
	var reader *ringbuf.Reader

	for e, err := range ringbuf.Samples[event](context.Background(), reader) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d %s\n", e.PID, e.Comm)
	}
}
