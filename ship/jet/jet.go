// Package jet ships to a stream of NATS JetStream, and receives from it.
//
// Each ring has a subject of its own, and the stream itself holds the order. Every message says
// which sequence number the one before has on that subject (Nats-Expected-Last-Subject-Sequence),
// and the server refuses it otherwise. So one that comes late, or twice, or after one that was
// lost, from this shipper or one that was killed, is not stored. After a failure the Sink asks the
// stream for the last message of the ring, and goes on behind it. Therefore one message, or one
// atomic batch of messages, of a ring is under way at a time: it has all the records that came
// since the one before, up to the limits, so that throughput does not depend on round trips.
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

// DefaultPrefix begins the subjects: those of a stream are DefaultPrefix.>.
const DefaultPrefix = "ringbuf"

// Options change how a Sink works. The zero value is good.
type Options struct {
	// Prefix begins all subjects. The default is DefaultPrefix.
	Prefix string

	// Single makes a message of each record, whose data is the sample. By default a message has as
	// many as are there, as Batch.Pack makes them. Single needs nats-server 2.12 and a stream that
	// allows atomic batches.
	Single bool

	// MaxBytes is how much data a message has at most. The default is 512 KiB, or what the server and
	// the stream allow, if that is less.
	MaxBytes int

	// Timeout is how long the server may take for an acknowledgement. The default is 5 s.
	Timeout time.Duration

	// Create is what the stream is made like if there is none; nil makes that an error. NewStream
	// returns a good one.
	Create *jetstream.StreamConfig
}

const (
	defaultMaxBytes = 512 << 10
	headerRoom      = 2 << 10 // of the largest payload
	maxAtomic       = 1000    // messages of an atomic batch: the server's default
	maxAtomicBytes  = 4 << 20
)

// NewStream returns what Options.Create wants: a stream of this name on disk, for all subjects with
// a prefix.
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

// An end is where a ring ends in the stream. It is used by one goroutine.
type end struct {
	subject   string
	seq       uint64 // of its last message
	maxBytes  int
	buf       []byte
	withoutID bool // the server takes what it does not have for a duplicate
	divisor   int  // of what an attempt may have at most: a stream that is nearly full takes less
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
// beginning of the boot id with the map's id.
func Subject(prefix string, r ship.Ring) string {
	boot, _, _ := strings.Cut(r.Boot, "-")
	return strings.Join([]string{prefix, token(r.Host), token(r.Name),
		token(boot) + "-" + strconv.FormatUint(uint64(r.ID), 10)}, ".")
}

// token makes a part of a subject of a name. A host may have dots in its name.
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

// Resume implements ship.Sink: it asks the stream.
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

// overlaps reports whether a stream cannot be made because another has its subjects.
func overlaps(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && refused.ErrorCode == codeOverlap
}

// The server's error: subjects overlap with an existing stream.
const codeOverlap = 10065

// covers reports whether a subject is one of those of a pattern.
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
		// Whose message that was, and whether it is still there, only Resume tells.
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
	// One record has room in any case, if it has in a message.
	first := len(b.Records[0].Sample) + ship.FrameOverhead
	m, err := b.Pack(e.buf[:0], min(e.maxBytes, max(e.maxBytes/e.divisor, first)))
	if err != nil {
		return 0, nil, err
	}
	e.buf = m.Data
	ack, err := s.js.PublishMsg(ctx, s.message(e, m, true))
	return m.Records, ack, err
}

// The server's error: a message of an atomic batch has the id of one that it has seen.
const codeDuplicateInBatch = 10201

// Header fields of atomic batches.
const (
	headerBatch    = "Nats-Batch-Id"
	headerSequence = "Nats-Batch-Sequence"
	headerCommit   = "Nats-Batch-Commit"
)

// appendSingle appends messages of one record each. The server stores all of them, after the last,
// or none.
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
				n = i // the ones before it are shipped first
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

// message makes a message for the server. The first of an attempt says what must be before it.
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

// errAway says that there is no use in waiting for an answer.
var errAway = errors.New("not connected to the server")

// attempt returns a context for one attempt, which ends when the connection does.
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

// away says why there is no connection now.
func away(nc *nats.Conn) error {
	if err := nc.LastError(); err != nil {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	return errAway
}

// closed says why a connection is of no use any more.
func closed(nc *nats.Conn) error {
	err := nc.LastError()
	if err == nil {
		err = nats.ErrConnectionClosed
	}
	return fmt.Errorf("%w: the connection to the server was closed: %w", ship.ErrPermanent, err)
}

// failed makes an error say what was tried, and why it ended.
func (s *Sink) failed(ctx context.Context, step string, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errAway) {
		err = cause
	}
	return fmt.Errorf("%s stream %s: %w", step, s.stream, err)
}

// SubjectFilter returns the subject of all rings with a name, on a host. An empty name or host is
// any.
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
