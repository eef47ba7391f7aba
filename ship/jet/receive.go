package jet

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/libbpfgo/ringbuf/ship"
)

// ReceiveOptions say what to receive. The zero value means the whole stream.
type ReceiveOptions struct {
	// Subjects are filters, such as "ringbuf.*.events.*". By default Receive yields all
	// subjects.
	Subjects []string

	// FromNow skips the messages that are in the stream already.
	FromNow bool

	// OnError is called with each failure after which Receive tries again.
	OnError func(error)
}

// Receive yields the messages of a stream, present and future, until ctx is done. Each record
// comes once, in the order of its ring. If there is no server or no such stream, Receive waits
// for it. For a message that cannot be decoded, Receive yields an error, and the loop may
// continue. An error that wraps ship.ErrPermanent means that the connection was closed. It is
// the last one.
func Receive(ctx context.Context, nc *nats.Conn, stream string,
	opts ReceiveOptions) iter.Seq2[*ship.Received, error] {
	return func(yield func(*ship.Received, error) bool) {
		r := receiver{stream: stream, opts: opts}
		for ctx.Err() == nil {
			err := r.receive(ctx, nc, yield)
			switch {
			case errors.Is(err, errLeft) || ctx.Err() != nil:
				return
			case nc.IsClosed():
				yield(nil, closed(nc))
				return
			case opts.OnError != nil:
				opts.OnError(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// errLeft means that the caller left the loop.
var errLeft = errors.New("the loop was left")

// A receiver continues after the last message that it has received.
type receiver struct {
	stream  string
	opts    ReceiveOptions
	next    uint64 // sequence number in the stream, or 0 before the first message
	decoder ship.Decoder
}

// Settings of the consumer. The server deletes a consumer that is unused for forgetAfter.
const (
	forgetAfter = time.Minute
	heartbeat   = time.Second
	pullBytes   = 8 << 20
)

// receive receives from a new consumer until something fails. The ordered consumer of nats.go
// is not used: it waits forever for a server that left the cluster, even if its context is
// done.
func (r *receiver) receive(ctx context.Context, nc *nats.Conn,
	yield func(*ship.Received, error) bool) error {
	if !nc.IsConnected() {
		return away(nc)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if r.next == 0 {
		if err := r.begin(ctx, js); err != nil {
			return err
		}
	}
	consumer, err := js.CreateConsumer(ctx, r.stream, jetstream.ConsumerConfig{
		FilterSubjects: r.opts.Subjects, AckPolicy: jetstream.AckNonePolicy,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.next,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: forgetAfter,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(pullBytes),
		jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return err
	}
	defer messages.Stop()
	for n := uint64(1); ; n++ {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Consumer != n {
			return fmt.Errorf("message %d of the consumer comes after %d", meta.Sequence.Consumer, n-1)
		}
		r.next = meta.Sequence.Stream + 1
		received, err := r.decoder.Decode(msg.Headers().Get, msg.Data())
		if err != nil {
			err = fmt.Errorf("message %d of stream %s: %w", meta.Sequence.Stream, r.stream, err)
		}
		if !yield(received, err) {
			return errLeft
		}
	}
}

// begin determines the first sequence number to receive.
func (r *receiver) begin(ctx context.Context, js jetstream.JetStream) error {
	s, err := js.Stream(ctx, r.stream)
	if err != nil {
		return err
	}
	if r.next = 1; r.opts.FromNow {
		r.next = s.CachedInfo().State.LastSeq + 1
	}
	return nil
}
