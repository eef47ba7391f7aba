// Package jet ships to a stream of NATS JetStream, and receives from it.
//
// Each ring has a subject of its own, and the stream itself keeps the order. Each message says
// which sequence number the previous message has on that subject
// (Nats-Expected-Last-Subject-Sequence). If that is wrong, the server refuses the message. So
// the stream never stores a message that is late, repeated, or that follows a lost one, even if
// it is from a shipper that was killed. After a failure the Sink asks the stream for the last
// message of the ring, and continues after it.
//
// Therefore each ring has only one message, or one atomic batch of messages, in flight. It
// holds all records that came since the previous one, up to the limits. So throughput does not
// depend on round trips.
package jet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/libbpfgo/ringbuf/ship"
)

// DefaultPrefix is the first token of all subjects. A stream has the subjects DefaultPrefix.>.
const DefaultPrefix = "ringbuf"

// Options change how a Sink works. The zero value means the defaults.
type Options struct {
	// Prefix is the first part of all subjects. The default is DefaultPrefix.
	Prefix string

	// Single makes a message of each record. Its data is the sample. By default a message has
	// as many records as are available: see Batch.Pack. Single needs nats-server 2.12 and a
	// stream that allows atomic batches.
	Single bool

	// MaxBytes is the largest amount of data in a message. The default is 512 KiB. Lower limits
	// of the server and the stream apply too.
	MaxBytes int

	// Timeout is how long the server may take to acknowledge. The default is 5 s.
	Timeout time.Duration

	// Create is the configuration for the stream if there is none. See NewStream. If Create is
	// nil, a missing stream is a permanent error.
	Create *jetstream.StreamConfig
}

const (
	defaultMaxBytes = 512 << 10
	headerRoom      = 2 << 10 // reserved for the header in the largest payload
	maxAtomic       = 1000    // messages of an atomic batch: the server's default limit
	maxAtomicBytes  = 4 << 20
)

// NewStream returns a configuration for Options.Create: a stream on disk with this name, for
// all subjects that begin with prefix.
func NewStream(name, prefix string) *jetstream.StreamConfig {
	return &jetstream.StreamConfig{
		Name:               name,
		Description:        "records of BPF ring buffers",
		Subjects:           []string{prefix + ".>"},
		Storage:            jetstream.FileStorage,
		AllowAtomicPublish: true,
	}
}

// A Sink is a ship.Sink that appends to a stream.
type Sink struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	stream string
	opts   Options

	mu    sync.Mutex
	rings map[ship.Ring]*end
}

// An end is the end of a ring in the stream. Only one goroutine uses it.
type end struct {
	subject   string
	seq       uint64 // of the ring's last message
	maxBytes  int
	buf       []byte
	withoutID bool // the server took a message that it does not have for a duplicate
	divisor   int  // of the limit of an attempt: a stream that is nearly full accepts less
}

// New returns a Sink for a stream. It does not wait for the server: Run does.
func New(nc *nats.Conn, stream string, opts Options) (*Sink, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	if opts.Prefix == "" {
		opts.Prefix = DefaultPrefix
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 5 * time.Second
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = defaultMaxBytes
	}
	return &Sink{nc: nc, js: js, stream: stream, opts: opts, rings: map[ship.Ring]*end{}}, nil
}

// Subject returns the subject of a ring: the prefix, the host, the name of the map, and the
// first part of the boot id with the id of the map.
func Subject(prefix string, r ship.Ring) string {
	boot, _, _ := strings.Cut(r.Boot, "-")
	return strings.Join([]string{prefix, token(r.Host), token(r.Name),
		token(boot) + "-" + strconv.FormatUint(uint64(r.ID), 10)}, ".")
}

// token makes a subject token of a name. Host names may contain dots.
func token(name string) string {
	if name == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(".*>", r) {
			return '_'
		}
		return r
	}, name)
}

// Resume implements ship.Sink: it reads the last message of the ring from the stream.
func (s *Sink) Resume(ctx context.Context, ring ship.Ring) (ship.Mark, error) {
	ctx, cancel, err := s.attempt(ctx)
	if err != nil {
		return ship.Mark{}, err
	}
	defer cancel()
	stream, err := s.js.Stream(ctx, s.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if s.opts.Create == nil {
			return ship.Mark{}, fmt.Errorf("%w: there is no stream %s", ship.ErrPermanent, s.stream)
		}
		if stream, err = s.js.CreateStream(ctx, *s.opts.Create); overlaps(err) {
			return ship.Mark{}, fmt.Errorf("%w: there is no stream %s, and it cannot be made as "+
				"another has its subjects, %s: ship to that one", ship.ErrPermanent, s.stream,
				strings.Join(s.opts.Create.Subjects, ", "))
		}
	}
	if err != nil {
		return ship.Mark{}, s.failed(ctx, "look up", err)
	}
	e := s.end(ring)
	config := stream.CachedInfo().Config
	if !slices.ContainsFunc(config.Subjects, func(of string) bool { return covers(of, e.subject) }) {
		return ship.Mark{}, fmt.Errorf("%w: stream %s does not have the subject %s: let its "+
			"subjects have %s.>", ship.ErrPermanent, s.stream, e.subject, s.opts.Prefix)
	}
	if s.opts.Single && !config.AllowAtomicPublish {
		return ship.Mark{}, fmt.Errorf(
			"%w: stream %s does not allow atomic batches, which keep single messages in "+
				"order: set allow_atomic, or ship several records in a message", ship.ErrPermanent, s.stream)
	}
	e.maxBytes = s.opts.MaxBytes
	for _, limit := range []int{int(s.nc.MaxPayload()), int(config.MaxMsgSize)} {
		if limit > 0 {
			e.maxBytes = min(e.maxBytes, limit-headerRoom)
		}
	}
	last, err := stream.GetLastMsgForSubject(ctx, e.subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		e.seq = 0
		return ship.Mark{}, nil
	}
	if err != nil {
		return ship.Mark{}, s.failed(ctx, "read", err)
	}
	of, mark, err := ship.MarkOf(last.Header.Get)
	if err == nil && of != ring {
		err = fmt.Errorf("it is of %+v, want %+v", of, ring)
	}
	if err != nil {
		return ship.Mark{}, fmt.Errorf("%w: message %d in stream %s: %w", ship.ErrPermanent,
			last.Sequence, s.stream, err)
	}
	e.seq = last.Sequence
	return mark, nil
}

// overlaps reports whether a stream cannot be created because another one has its subjects.
func overlaps(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && refused.ErrorCode == codeOverlap
}

// Error code of the server: the subjects overlap with those of an existing stream.
const codeOverlap = 10065

// covers reports whether subject matches pattern.
func covers(pattern, subject string) bool {
	of, parts := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, part := range of {
		if i == len(parts) {
			return false
		}
		if part == ">" {
			return true
		}
		if part != "*" && part != parts[i] {
			return false
		}
	}
	return len(of) == len(parts)
}

// Append implements ship.Sink.
func (s *Sink) Append(ctx context.Context, b *ship.Batch) (int, error) {
	ctx, cancel, err := s.attempt(ctx)
	if err != nil {
		return 0, err
	}
	defer cancel()
	e := s.end(b.Ring)
	var ack *jetstream.PubAck
	n := 0
	if s.opts.Single {
		n, ack, err = s.appendSingle(ctx, e, b)
	} else {
		n, ack, err = s.appendPacked(ctx, e, b)
	}
	if err == nil && ack.Duplicate {
		// Only Resume can tell whose message that was, and whether it is still there.
		e.withoutID = true
		return 0, fmt.Errorf("append to stream %s: a message with this id was there before", s.stream)
	}
	if err != nil {
		var refused *jetstream.APIError
		if e.withoutID = false; errors.As(err, &refused) {
			e.withoutID = refused.ErrorCode == codeDuplicateInBatch
			e.divisor = min(2*e.divisor, maxAtomicBytes)
		}
		return 0, s.failed(ctx, "append to", err)
	}
	e.seq, e.withoutID, e.divisor = ack.Sequence, false, max(e.divisor/2, 1)
	return n, nil
}

func (s *Sink) appendPacked(ctx context.Context, e *end, b *ship.Batch) (
	int, *jetstream.PubAck, error) {
	// The divisor must not exclude a single record that fits in a message.
	first := len(b.Records[0].Sample) + ship.FrameOverhead
	m, err := b.Pack(e.buf[:0], min(e.maxBytes, max(e.maxBytes/e.divisor, first)))
	if err != nil {
		return 0, nil, err
	}
	e.buf = m.Data
	ack, err := s.js.PublishMsg(ctx, s.message(e, m, true))
	return m.Records, ack, err
}

// Error code of the server: a message of an atomic batch has an id that the server has seen
// before.
const codeDuplicateInBatch = 10201

// Header fields of atomic batches.
const (
	headerBatch    = "Nats-Batch-Id"
	headerSequence = "Nats-Batch-Sequence"
	headerCommit   = "Nats-Batch-Commit"
)

// appendSingle appends messages of one record each. The server stores all of them when it gets
// the last one, or none.
func (s *Sink) appendSingle(ctx context.Context, e *end, b *ship.Batch) (
	int, *jetstream.PubAck, error) {
	n, bytes := 0, 0
	for n < min(len(b.Records), maxAtomic) && (n == 0 || bytes < maxAtomicBytes/e.divisor) {
		bytes += len(b.Records[n].Sample) + headerRoom/4
		n++
	}
	batch := nuid.Next()
	for i := range n {
		m, err := b.Single(i, e.maxBytes)
		if err != nil {
			if i > 0 {
				n = i // ship the records before it first
				return s.appendSingle(ctx, e, &ship.Batch{Ring: b.Ring, After: b.After, Records: b.Records[:n],
					Time: b.Time})
			}
			return 0, nil, err
		}
		msg := s.message(e, m, i == 0)
		if n == 1 {
			ack, err := s.js.PublishMsg(ctx, msg)
			return 1, ack, err
		}
		msg.Header.Set(headerBatch, batch)
		msg.Header.Set(headerSequence, strconv.Itoa(i+1))
		if i < n-1 {
			if err := s.nc.PublishMsg(msg); err != nil {
				return 0, nil, err
			}
			continue
		}
		msg.Header.Set(headerCommit, "1")
		ack, err := s.js.PublishMsg(ctx, msg)
		return n, ack, err
	}
	panic("unreachable: there is a record")
}

// message makes a message for the server. The first message of an attempt says which message
// must precede it.
func (s *Sink) message(e *end, m *ship.Message, first bool) *nats.Msg {
	msg := &nats.Msg{Subject: e.subject, Data: m.Data, Header: make(nats.Header, len(m.Header)+6)}
	for field, value := range m.Header {
		msg.Header[field] = []string{value}
	}
	if !e.withoutID {
		msg.Header[jetstream.MsgIDHeader] = []string{m.ID}
	}
	if first {
		msg.Header[jetstream.ExpectedStreamHeader] = []string{s.stream}
		msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(e.seq, 10)}
	}
	return msg
}

func (s *Sink) end(ring ship.Ring) *end {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.rings[ring]
	if e == nil {
		e = &end{subject: Subject(s.opts.Prefix, ring), divisor: 1}
		s.rings[ring] = e
	}
	return e
}

// errAway means that it is useless to wait for an answer.
var errAway = errors.New("not connected to the server")

// attempt returns a context for one attempt. It is canceled when the connection is lost.
func (s *Sink) attempt(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if s.nc.IsClosed() {
		return nil, nil, closed(s.nc)
	}
	if !s.nc.IsConnected() {
		return nil, nil, away(s.nc)
	}
	ctx, stop := context.WithTimeout(ctx, s.opts.Timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	lost := s.nc.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	go func() {
		if _, ok := <-lost; ok {
			cancel(errAway)
		}
	}()
	return ctx, func() {
		s.nc.RemoveStatusListener(lost)
		stop()
		cancel(nil)
	}, nil
}

// away says why there is no connection at present.
func away(nc *nats.Conn) error {
	if err := nc.LastError(); err != nil {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	return errAway
}

// closed says why a connection is closed for good.
func closed(nc *nats.Conn) error {
	err := nc.LastError()
	if err == nil {
		err = nats.ErrConnectionClosed
	}
	return fmt.Errorf("%w: the connection to the server was closed: %w", ship.ErrPermanent, err)
}

// failed adds the step that failed to err, and replaces err if the connection was lost.
func (s *Sink) failed(ctx context.Context, step string, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errAway) {
		err = cause
	}
	return fmt.Errorf("%s stream %s: %w", step, s.stream, err)
}

// SubjectFilter returns the subject of all rings with this name on this host. An empty name or
// host matches any.
func SubjectFilter(prefix, host, name string) string {
	parts := []string{prefix, "*", "*", "*"}
	if host != "" {
		parts[1] = token(host)
	}
	if name != "" {
		parts[2] = token(name)
	}
	return strings.Join(parts, ".")
}
