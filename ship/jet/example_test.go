package jet_test

import (
	"context"
	"fmt"
	"log"

	"github.com/nats-io/nats.go"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
)

// Ship a pinned ring to the stream EVENTS, until ctx is done. The stream is created if there is
// none.
func Example() {
	ctx := context.Background()
	events, err := ringbuf.OpenMap("/sys/fs/bpf/events")
	if err != nil {
		log.Fatal(err)
	}
	losses, err := ringbuf.OpenMap("/sys/fs/bpf/losses") // a RINGBUF_LOSS_COUNTER
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events, ringbuf.WithLossCounter(losses))
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	nc, err := nats.Connect("nats://broker:4222", nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	sink, err := jet.New(nc, "EVENTS", jet.Options{Create: jet.NewStream("EVENTS", jet.DefaultPrefix)})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(ship.Run(ctx, reader, sink, ship.Options{}))
}

// The receiver prints all records, and where records are missing.
func ExampleReceive() {
	nc, err := nats.Connect("nats://broker:4222", nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	for received, err := range jet.Receive(context.Background(), nc, "EVENTS", jet.ReceiveOptions{}) {
		if err != nil {
			log.Fatal(err)
		}
		for _, record := range received.Records {
			if record.Lost > 0 {
				fmt.Println(record.Lost, "records were lost")
			}
			fmt.Printf("%s: %x\n", received.Ring.Host, record.Sample)
		}
	}
}
