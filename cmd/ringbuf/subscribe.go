package main

import (
	"context"
	"fmt"
	"iter"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/capture"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/tail"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
)

// subscribeFlags has the flags of subscribe.
type subscribeFlags struct {
	broker
	from, host, typ, btfFile, filter string
	count                            uint64
	duration                         time.Duration
	fromNow                          bool
	out                              *output
	say                              func(format string, args ...any)
}

// newSubscribeCommand returns the command subscribe, which prints the records of a stream.
func newSubscribeCommand() *cobra.Command {
	var f subscribeFlags
	cmd := &cobra.Command{
		Use:   "subscribe [RING...]",
		Short: "Print what ringbuf ship has shipped to a stream",
		Long: `Subscribe prints the records of a stream as tail does: from its beginning, then new ones.

It says where records are missing. It counts records that the kernel refused. If messages were
deleted from the stream, it says how many bytes their records took in the ring buffer.

RING is the name of a ring buffer. By default subscribe prints the records of all hosts and all
rings. With -t it decodes samples as a C type of the BTF in the file that --btf names.

An interrupt ends subscribe, with totals on standard error and exit code 0.`,
		Example: `  ringbuf subscribe
  ringbuf subscribe --from nats://broker:4222 --stream EVENTS --host web1 events
  ringbuf subscribe --btf prog.bpf.o -t 'struct event' -o json --new events`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&f.from, "from", "nats://"+defaultListen, "`URL` of a nats-server")
	f.addFlags(cmd)
	flags.StringVar(&f.host, "host", "", "print only records that this `host` has shipped")
	flags.BoolVar(&f.fromNow, "new", false, "leave out records that are already in the stream")
	flags.StringVarP(&f.typ, "type", "t", "", "decode samples as this C `type` (needs --btf)")
	flags.StringVar(&f.btfFile, "btf", "",
		"take types from this `file`: BTF, or an object file that has it")
	flags.StringVar(&f.filter, "filter", "",
		"print only samples for which this `expression` is true (needs -t)")
	flags.Uint64VarP(&f.count, "count", "c", 0, "end after this `number` of samples")
	flags.DurationVar(&f.duration, "for", 0, "end after this `time`, such as 10s")
	f.out = outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.say = func(format string, args ...any) {
			fmt.Fprintf(cmd.ErrOrStderr(), "ringbuf: "+format+"\n", args...)
		}
		if err := f.check(); err != nil {
			return err
		}
		return f.run(cmd, args)
	}
	return cmd
}

// check returns a usageError if flags contradict each other.
func (f *subscribeFlags) check() error {
	switch {
	case f.filter != "" && f.typ == "":
		return usageErrorf("--filter needs to know the fields: say with -t which type samples have")
	case (f.typ == "") != (f.btfFile == ""):
		return usageErrorf("-t and --btf belong together: name a type, and a file that has it")
	case f.duration < 0:
		return usageErrorf("--for takes no negative numbers")
	}
	return f.broker.check()
}

func (f *subscribeFlags) run(cmd *cobra.Command, names []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second interrupt ends the process
	}()
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	var types []*decode.Types
	if f.btfFile != "" {
		loaded, err := decode.Load(f.btfFile)
		if err != nil {
			return fmt.Errorf("--btf: %w", err)
		}
		types = append(types, loaded)
		trial := tail.Ring{Types: types, Label: f.btfFile}
		if err := trial.Use(f.typ, f.filter); err != nil {
			return err
		}
	}
	nc, shown, err := f.connect(f.from, f.say)
	if err != nil {
		return err
	}
	defer nc.Close()
	t := &tail.Tail{Count: f.count, Live: true,
		Printer: tail.NewPrinter(cmd.OutOrStdout(), *f.out == outputJSON)}
	f.say("subscribing to stream %s of %s", f.stream, shown)
	received := jet.Receive(ctx, nc, f.stream, jet.ReceiveOptions{
		FromNow:  f.fromNow,
		Subjects: subjects(f.host, names),
		OnError:  f.tellOnce(),
	})
	totals, err := t.Run(ctx, f.source(t, received, types))
	f.say("%v", totals)
	return err
}

// tellOnce returns a function that says why no records arrive, whenever the reason changes.
func (f *subscribeFlags) tellOnce() func(error) {
	last := ""
	return func(err error) {
		if reason := oneLine(err); reason != last {
			last = reason
			f.say("waiting: %s", reason)
		}
	}
}

// subjects returns the subject filters for rings with these names on a host. No names, or an empty
// host, mean all.
func subjects(host string, names []string) (all []string) {
	if len(names) == 0 {
		names = []string{""}
	}
	for _, name := range names {
		all = append(all, jet.SubjectFilter(jet.DefaultPrefix, host, name))
	}
	return all
}

// source returns a tail.Source of the received records. It adds a ring to t when its first message
// arrives.
func (f *subscribeFlags) source(t *tail.Tail, received iter.Seq2[*ship.Received, error],
	types []*decode.Types) tail.Source {
	known := map[ship.Ring]int{}
	return func(_ context.Context, yield func(*capture.Record) error) error {
		for r, err := range received {
			if err != nil {
				return err
			}
			i, ok := known[r.Ring]
			if !ok {
				i = len(t.Rings)
				known[r.Ring] = i
				ring, err := f.newRing(r.Ring, types)
				if err != nil {
					return err
				}
				t.Rings = append(t.Rings, ring)
			}
			if err := pass(r, i, yield); err != nil {
				return err
			}
		}
		return nil
	}
}

func (f *subscribeFlags) newRing(r ship.Ring, types []*decode.Types) (*tail.Ring, error) {
	ring := &tail.Ring{Ring: capture.Ring{Name: r.Name, ID: r.ID}, Host: r.Host, Types: types,
		Label: text.Printable(r.Host) + " " + strings.TrimSpace(text.Printable(r.Name))}
	if f.typ == "" {
		return ring, nil
	}
	return ring, ring.Use(f.typ, f.filter)
}

// pass yields the gap before a message, if there is one, and the records of the message.
func pass(r *ship.Received, ring int, yield func(*capture.Record) error) error {
	if r.Missed > 0 {
		gap := capture.Record{Missed: r.Missed}
		gap.Ring = ring
		if err := yield(&gap); err != nil {
			return err
		}
	}
	for i, rec := range r.Records {
		out := capture.Record{Time: r.Time, Length: len(rec.Sample)}
		out.Record = ringbuf.Record{RawSample: rec.Sample, Ring: ring, Lost: rec.Lost,
			Remaining: len(r.Records) - 1 - i} // 0 for the last one, after which tail flushes
		if err := yield(&out); err != nil {
			return err
		}
	}
	return nil
}
