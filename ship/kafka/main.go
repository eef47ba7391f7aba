// Kafka is an example of a ship.Sink for Kafka: it ships a pinned ring to a topic. It is
// compiled, but was never run against a broker.
//
//	kafka -brokers host:9092 -topic events /sys/fs/bpf/events
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/ship"
)

// A sink is a ship.Sink that produces to a topic. All messages of a ring have the same key, and
// so go to one partition. There the client's idempotent producer keeps their order.
//
// Kafka cannot refuse a late message from a process that was killed. So a message may be stored
// twice. Consumers that use a ship.Decoder leave out the second one.
type sink struct {
	client *kgo.Client
	topic  string
}

// By default Kafka accepts a million bytes with the header (max.message.bytes).
const maxBytes = 900_000

// Append implements ship.Sink.
func (s *sink) Append(ctx context.Context, b *ship.Batch) (int, error) {
	m, err := b.Pack(nil, maxBytes)
	if err != nil {
		return 0, err
	}
	record := &kgo.Record{
		Topic: s.topic,
		Key:   fmt.Appendf(nil, "%s/%d", b.Ring.Boot, b.Ring.ID),
		Value: m.Data,
	}
	for field, value := range m.Header {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: field, Value: []byte(value)})
	}
	if err := s.client.ProduceSync(ctx, record).FirstErr(); err != nil {
		return 0, err
	}
	return m.Records, nil
}

// Resume implements ship.Sink. It does not ask Kafka: records that are still in the ring are
// sent again.
func (s *sink) Resume(context.Context, ship.Ring) (ship.Mark, error) { return ship.Mark{}, nil }

func main() {
	brokers := flag.String("brokers", "127.0.0.1:9092", "addresses, with commas")
	topic := flag.String("topic", "events", "where to produce")
	flag.Parse()
	if err := run(strings.Split(*brokers, ","), *topic, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "kafka:", err)
		os.Exit(1)
	}
}

func run(brokers []string, topic, pin string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	m, err := ringbuf.OpenMap(pin)
	if err != nil {
		return err
	}
	defer m.Close()
	reader, err := ringbuf.NewReader(m)
	if err != nil {
		return err
	}
	defer reader.Close()
	// RequiredAcks is all in-sync replicas by default.
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ProducerBatchMaxBytes(1_000_000))
	if err != nil {
		return err
	}
	defer client.Close()
	err = ship.Run(ctx, reader, &sink{client, topic}, ship.Options{})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
