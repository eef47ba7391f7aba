package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
	"github.com/libbpfgo/ringbuf/ship/natsd"
)

const defaultStore = "/var/lib/ringbuf"

// shipFlags has the flags of ship.
type shipFlags struct {
	broker
	to, store, listen, host string
	single                  bool
	maxSize                 fileSize
	say                     func(format string, args ...any)
}

// newShipCommand returns the command ship, which reads rings and sends their records to a stream.
func newShipCommand() *cobra.Command {
	var f shipFlags
	cmd := &cobra.Command{
		Use:   "ship MAP...",
		Short: "Ship records to a stream on another machine, and lose none",
		Long: `Ship reads ring buffers and passes all records on to a stream of NATS JetStream.

A record stays in the ring buffer until the server has it on disk. So ship may be killed, and the
server may be away. Ship then continues where it was, and each record is in the stream once and in
order. The kernel refuses records only when a ring buffer is full. If its programs have a
RINGBUF_LOSS_COUNTER for that ring alone, the stream says how many are missing and where.

Without --to, ship runs a server of its own, with its streams in the directory --store. "ringbuf
subscribe" and the nats command line on this machine find that server.

No other program may read the ring buffers at the same time. An interrupt ends ship, with totals on
standard error and exit code 0.
` + mapHelp,
		Example: `  ringbuf ship name events
  ringbuf ship --to nats://broker:4222 --stream EVENTS name events
  ringbuf ship --to tls://broker --creds agent.creds id 5
  ringbuf ship --to file:events.jsonl name events`,
		ValidArgsFunction: completeMap,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.to, "to", "",
		"`URL` of a nats-server, or several with commas; file:PATH or - for lines of JSON")
	f.addFlags(cmd)
	flags.StringVar(&f.host, "host", "", "`name` of this machine (default: its host name)")
	flags.BoolVar(&f.single, "single", false,
		"make one message of each record, not of all that are there (needs nats-server 2.12)")
	flags.Var(&f.maxSize, "max-size",
		"if ship makes the stream: the `size` above which it drops the oldest records, as for tail -C")
	flags.StringVar(&f.store, "store", "",
		"without --to: `directory` of the server's streams (default "+defaultStore+")")
	flags.StringVar(&f.listen, "listen", "",
		"without --to: `address` at which the server listens (default "+defaultListen+")")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.say = func(format string, args ...any) {
			fmt.Fprintf(cmd.ErrOrStderr(), "ringbuf: "+format+"\n", args...)
		}
		if len(args) == 0 {
			return usageErrorf("which ring buffer? Name a MAP: ringbuf list shows all")
		}
		if err := f.check(); err != nil {
			return err
		}
		q, err := rings.ParseQuery(args)
		if err != nil {
			return usageError{err}
		}
		return f.run(cmd, q)
	}
	return cmd
}

// check returns a usageError if flags contradict each other.
func (f *shipFlags) check() error {
	lines := f.to == "-" || strings.HasPrefix(f.to, "file:")
	switch {
	case f.to != "" && (f.store != "" || f.listen != ""):
		return usageErrorf("--store and --listen are about ship's own server: leave them out, or --to")
	case f.authenticates() && (f.to == "" || lines):
		return usageErrorf("--creds and --tls... are about a nats-server: leave them out, or name it " +
			"with --to")
	case lines && (f.stream != defaultStream || f.single || f.maxSize != 0):
		return usageErrorf("--stream, --single and --max-size are about a stream: leave them out, or " +
			"name a nats-server with --to")
	}
	if f.to != "" && !lines {
		if _, err := withoutSecrets(f.to); err != nil {
			return err
		}
	}
	return f.broker.check()
}

func (f *shipFlags) run(cmd *cobra.Command, q rings.Query) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second interrupt ends the process
	}()
	readers, err := f.openReaders(q)
	if err != nil {
		return err
	}
	defer func() {
		for _, r := range readers {
			r.Close()
		}
	}()
	sink, closeSink, err := f.openSink(cmd)
	if err != nil {
		return err
	}
	defer closeSink()
	return f.shipAll(ctx, readers, sink)
}

// openReaders opens a Reader for each ring. The Reader counts losses if the ring has a loss counter
// that no other ring shares.
func (f *shipFlags) openReaders(q rings.Query) (readers []*ringbuf.Reader, err error) {
	found, survey, err := findRings(q)
	if err != nil {
		return nil, err
	}
	defer rings.CloseAll(found)
	defer func() {
		if err != nil {
			for _, r := range readers {
				r.Close()
			}
		}
	}()
	for _, r := range found {
		usage := survey.Of(r)
		if others := usage.Readers(); len(others) > 0 {
			return nil, fmt.Errorf("%s is read by %s, which would lose records: end that first", r,
				others[0])
		}
		if usage.Programs != nil && len(usage.Programs) == 0 {
			f.say("no program uses %s: nothing is submitted to it", r)
		}
		counter, sole := lossCounter(r, survey)
		if !sole {
			counter = 0
			f.say("%s: what is lost is not counted: its programs have no RINGBUF_LOSS_COUNTER for it alone",
				text.Printable(r.Name))
		}
		reader, err := openReader([]*rings.Ring{r}, counter)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, errors.New(
				"ship needs libbpf, and this ringbuf was built without cgo: build one with " +
					"\"make tool\"")
		}
		if err != nil {
			return nil, err
		}
		readers = append(readers, reader)
	}
	return readers, nil
}

// openSink opens the sink that --to names. Without --to it starts a server, and connects to it. The
// caller must call the function that it returns.
func (f *shipFlags) openSink(cmd *cobra.Command) (ship.Sink, func(), error) {
	if f.to == "-" {
		return ship.NewWriter(cmd.OutOrStdout()), func() {}, nil
	}
	if path, ok := strings.CutPrefix(f.to, "file:"); ok {
		file, err := ship.NewFile(path)
		if err != nil {
			return nil, nil, err
		}
		f.say("shipping to %s", text.Printable(path))
		return file, func() { file.Close() }, nil
	}
	closeServer := func() {}
	var options []nats.Option
	to := f.to
	if to == "" {
		server, err := natsd.Start(orDefault(f.store, defaultStore), orDefault(f.listen, defaultListen))
		if err != nil {
			return nil, nil, err
		}
		closeServer, to = server.Stop, server.URL()
		options = append(options, server.Option())
	}
	nc, shown, err := f.connect(to, f.say, options...)
	if err != nil {
		closeServer()
		return nil, nil, err
	}
	closeAll := func() { nc.Close(); closeServer() }
	config := jet.NewStream(f.stream, jet.DefaultPrefix)
	config.MaxBytes = int64(f.maxSize)
	sink, err := jet.New(nc, f.stream, jet.Options{Single: f.single, Create: config})
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	f.say("shipping to stream %s of %s", f.stream, shown)
	return sink, closeAll, nil
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// shipAll ships until ctx is done or a shipper fails. Then it prints the totals.
func (f *shipFlags) shipAll(ctx context.Context, readers []*ringbuf.Reader, sink ship.Sink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var shippers []*ship.Shipper
	outages := &outages{say: f.say, failing: map[ship.Ring]bool{}}
	for _, r := range readers {
		s, err := ship.New(r, sink, ship.Options{Host: f.host, OnError: outages.tell})
		if err != nil {
			return err
		}
		shippers = append(shippers, s)
	}
	var all sync.WaitGroup
	for _, s := range shippers {
		all.Go(func() {
			ring := s.Stats().Rings[0].Ring
			f.say("shipping %s (id %d) as host %s", text.Printable(ring.Name), ring.ID,
				text.Printable(ring.Host))
			if err := s.Run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	var shipped, again, lost uint64
	left := 0
	for _, s := range shippers {
		r := s.Stats().Rings[0]
		shipped, again = shipped+r.Acknowledged, again+r.Redelivered
		lost, left = lost+r.Lost, left+r.LagBytes
	}
	f.say("%d records shipped, %d sent again, %d lost, %d bytes left in the ring",
		shipped, again, lost, left)
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// outages says, for each ring, when the sink begins to fail and when it works again.
type outages struct {
	say     func(format string, args ...any)
	mu      sync.Mutex
	failing map[ship.Ring]bool
}

func (o *outages) tell(ring ship.Ring, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.say("%s: shipping again", text.Printable(ring.Name))
	case !o.failing[ring]:
		o.say("%s: records wait in the ring: %s", text.Printable(ring.Name), oneLine(err))
	}
	o.failing[ring] = err != nil
}
