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

// ReceiveOptions say what to receive.
type ReceiveOptions struct {
	// Subjects filters, such as "ringbuf.*.events.*". By default all comes.
	Subjects []string

	// FromNow leaves out what is in the stream already.
	FromNow bool

	// OnError is told of failures after which Receive goes on, when the server is there again.
	OnError func(error)
}

// Receive yields what is in a stream, and what comes, until ctx is done. Each record comes once
// and in the order of its ring. If there is no server or no such stream, it waits for them. An
// error is yielded for a message that cannot be understood, after which the loop may go on; one
// that wraps ship.ErrPermanent, because the connection was closed, is the last.
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

// errLeft says that the loop was left.
var errLeft = errors.New("the loop was left")

// A receiver goes on behind what it has received.
type receiver struct {
	stream  string
	opts    ReceiveOptions
	next    uint64 // in the stream, or 0 if it has not begun
	decoder ship.Decoder
}

// Of the consumer, which the server forgets when nobody asks it for so long.
const (
	forgetAfter = time.Minute
	heartbeat   = time.Second
	pullBytes   = 8 << 20
)

// receive receives from a new consumer until something fails. The ordered consumer of nats.go would
// do, but that waits for ever for a server of a cluster that is gone, whatever its context says.
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

// begin finds out where to begin.
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
