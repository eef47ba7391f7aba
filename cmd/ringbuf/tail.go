package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/libbpfgo/ringbuf/capture"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/savefile"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/tail"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// tailFlags has the flags of tail.
type tailFlags struct {
	typ, btfFile, filter   string
	count                  uint64
	duration               time.Duration
	snaplen                int
	write, read            string
	fileSize               fileSize
	fileSeconds, fileCount int
	consume, oldest        bool
	out                    *output
}

// newTailCommand returns the command tail, which prints the records of rings or writes them to
// files.
func newTailCommand() *cobra.Command {
	var f tailFlags
	cmd := &cobra.Command{
		Use:   "tail MAP... | -r FILE",
		Short: "Print or record samples as they are submitted",
		Long: `Tail prints the samples that are submitted to ring buffers from now on, or writes them to
a file. It only watches: the reader of a ring buffer notices nothing and loses nothing. If the
kernel overwrites samples before tail has copied them, tail says how many bytes it missed. With
--consume, tail itself is the reader.

Tail shows a sample as bytes. With -t it shows a C type, from the BTF of the programs that use the
ring buffer. Without -t, it says which structs the samples may be.

A filter is an expression over the fields of the type: see https://expr-lang.org. In addition,
~ and !~ compare with a pattern, in which *, ? and [a-z] have their usual meaning.

A file is in pcapng, which Wireshark and tshark open. It contains the BTF, so that -r can decode it
on another machine. Files rotate as with tcpdump. With -C alone the files are FILE, FILE1, FILE2.
With -C and -W the oldest file is overwritten. With -G the name may contain %H and other sequences
of strftime, and -W is the number of files after which tail ends.

An interrupt ends tail, with totals on standard error and exit code 0.
` + mapHelp,
		Example: `  ringbuf tail name events
  ringbuf tail -c 5 -t 'struct event' -o json name events
  ringbuf tail -t event --filter 'pid == 42 && comm ~ "ssh*"' pid 4242
  ringbuf tail -w events.pcapng --for 10s name events
  ringbuf tail -r events.pcapng -t event`,
		ValidArgsFunction: completeMap,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVarP(&f.typ, "type", "t", "",
		"decode samples as this C `type`, such as 'struct event'")
	flags.StringVar(&f.btfFile, "btf", "",
		"take types from this `file`: BTF, or an object file that has it")
	flags.StringVar(&f.filter, "filter", "",
		"print or write only samples for which this `expression` is true (needs -t)")
	flags.Uint64VarP(&f.count, "count", "c", 0, "end after this `number` of samples")
	flags.DurationVar(&f.duration, "for", 0, "end after this `time`, such as 10s")
	flags.IntVarP(&f.snaplen, "snaplen", "s", 0, "keep at most this many `bytes` of a sample")
	flags.BoolVar(&f.oldest, "oldest", false,
		"begin with the oldest sample that is still in the ring buffer")
	flags.BoolVar(&f.consume, "consume", false,
		"be the reader: nobody else may read meanwhile, or gets the samples that tail read")
	flags.StringVarP(&f.write, "write", "w", "",
		"write to this pcapng `file` (- is standard output) and print nothing")
	flags.StringVarP(&f.read, "read", "r", "", "read from this pcapng `file` (- is standard input)")
	flags.VarP(&f.fileSize, "file-size", "C",
		"begin a new file when one exceeds this `size`, in millions of bytes, or with k, m or g in "+
			"KiB, MiB or GiB")
	flags.IntVarP(&f.fileSeconds, "file-seconds", "G", 0, "begin a new file after this many `seconds`")
	flags.IntVarP(&f.fileCount, "file-count", "W", 0,
		"with -C, the `number` of files to keep; with -G, the number after which to end")
	f.out = outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(args); err != nil {
			return usageError{err}
		}
		if f.write != "" && cmd.Flags().Changed("output") {
			return usageErrorf("-w prints nothing: leave out -o")
		}
		q, err := rings.ParseQuery(args)
		if err != nil {
			return usageError{err}
		}
		return f.run(cmd, q)
	}
	return cmd
}

// check returns an error if flags or arguments contradict each other.
func (f *tailFlags) check(args []string) error {
	rotates := f.fileSize > 0 || f.fileSeconds != 0
	switch {
	case f.read == "" && len(args) == 0:
		return errors.New("which ring buffer? Name a MAP (ringbuf list shows all), or a recording " +
			"with -r")
	case f.read != "" && len(args) > 0:
		return fmt.Errorf("-r reads the rings of a recording: leave out %q", strings.Join(args, " "))
	case f.read != "" && (f.consume || f.oldest):
		return errors.New("-r reads a recording: leave out --consume and --oldest")
	case f.consume && f.oldest:
		return errors.New("--consume begins with the oldest sample: leave out --oldest")
	case f.filter != "" && f.typ == "":
		return errors.New("--filter needs to know the fields: say with -t which type samples have")
	case f.btfFile != "" && f.typ == "" && f.write != "":
		return errors.New("--btf is of no use here without -t")
	case f.snaplen < 0 || f.fileSeconds < 0 || f.fileCount < 0 || f.duration < 0:
		return errors.New("-s, -G, -W and --for take no negative numbers")
	case f.write == "" && (rotates || f.fileCount > 0):
		return errors.New("-C, -G and -W are about files: name one with -w")
	case f.fileCount > 0 && !rotates:
		return errors.New("-W says how many files -C or -G make: give one of them")
	case f.write != "" && f.write == f.read && f.read != "-":
		return errors.New("-r and -w name the same file: write to another one")
	}
	return nil
}

func (f *tailFlags) run(cmd *cobra.Command, q rings.Query) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second interrupt ends the process
	}()
	t := &tail.Tail{Count: f.count, Snaplen: f.snaplen}
	say := func(format string, args ...any) {
		fmt.Fprintf(cmd.ErrOrStderr(), "ringbuf: "+format+"\n", args...)
	}

	var source tail.Source
	var closeAll func()
	if f.read != "" {
		source, closeAll, err = f.openRecording(cmd, t)
	} else {
		source, closeAll, err = f.openRings(t, q, say)
	}
	if err != nil {
		return err
	}
	defer closeAll()
	if err := f.useType(t, say); err != nil {
		return err
	}
	if f.write != "" {
		t.Saver, err = savefile.New(f.saveOptions(cmd, t))
		if err != nil {
			return fmt.Errorf("-w: %w", err)
		}
	} else {
		t.Printer = tail.NewPrinter(cmd.OutOrStdout(), *f.out == outputJSON)
		t.Offer = func(s string) { say("%s", text.Printable(s)) }
	}
	if t.Live {
		verb := map[bool]string{true: "reading", false: "watching"}[f.consume]
		for _, r := range t.Rings {
			say("%s %s (id %d, %s)", verb, text.Printable(r.Name), r.ID, text.Bytes(float64(r.Size)))
		}
	}
	clear := f.progress(cmd, t)
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	totals, err := t.Run(ctx, source)
	clear()
	say("%v", totals)
	return err
}

// progress makes tail show the totals of a recording in a line on standard error, if that is a
// terminal. clear removes the line.
func (f *tailFlags) progress(cmd *cobra.Command, t *tail.Tail) (clear func()) {
	stderr, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || t.Saver == nil || !term.IsTerminal(stderr.Fd()) {
		return func() {}
	}
	const clearLine = "\r\x1b[K"
	t.Tick = func(totals tail.Totals) { fmt.Fprintf(stderr, clearLine+"%v", totals) }
	return func() { fmt.Fprint(stderr, clearLine) }
}

func (f *tailFlags) saveOptions(cmd *cobra.Command, t *tail.Tail) savefile.Options {
	o := savefile.Options{
		Path: f.write, Stdout: cmd.OutOrStdout(), Size: int64(f.fileSize),
		Every: time.Duration(f.fileSeconds) * time.Second, Count: f.fileCount,
	}
	for _, r := range t.Rings {
		ring := r.Ring
		if f.snaplen > 0 && (ring.Snaplen == 0 || ring.Snaplen > f.snaplen) {
			ring.Snaplen = f.snaplen
		}
		o.Rings = append(o.Rings, ring)
	}
	return o
}

// openRecording opens the file of -r, and adds its rings to t.
func (f *tailFlags) openRecording(cmd *cobra.Command, t *tail.Tail) (tail.Source, func(), error) {
	file, isFile := os.Stdin, false
	if f.read != "-" {
		var err error
		if file, err = os.Open(f.read); err != nil {
			return nil, nil, err
		}
		isFile = true
	}
	closeAll := func() {
		if isFile {
			file.Close()
		}
	}
	r, err := capture.NewReader(file)
	if err != nil {
		closeAll()
		return nil, nil, fmt.Errorf("%s: %w", f.read, err)
	}
	for _, ring := range r.Rings() {
		tr := &tail.Ring{Ring: ring}
		if len(ring.BTF) > 0 && f.btfFile == "" {
			types, err := decode.Parse(ring.BTF)
			if err != nil {
				closeAll()
				return nil, nil, fmt.Errorf("%s: the BTF of ring %s: %w", f.read, ring.Name, err)
			}
			tr.Types = append(tr.Types, types)
		}
		t.Rings = append(t.Rings, tr)
	}
	label(t.Rings)
	source := tail.Replay(r)
	return func(ctx context.Context, yield func(*capture.Record) error) error {
		if err := source(ctx, yield); err != nil {
			return fmt.Errorf("%s: %w", f.read, err)
		}
		return nil
	}, closeAll, nil
}

// openRings opens the rings to watch or, with --consume, to read. It adds them to t, with the BTF
// of their programs.
func (f *tailFlags) openRings(t *tail.Tail, q rings.Query, say func(string, ...any)) (
	source tail.Source, closeAll func(), err error) {
	found, survey, err := findRings(q)
	if err != nil {
		return nil, nil, err
	}
	defer rings.CloseAll(found)
	for _, r := range found {
		usage := survey.Of(r)
		if readers := usage.Readers(); f.consume && len(readers) > 0 {
			return nil, nil, fmt.Errorf("%s is read by %s, which would lose records: end that first, "+
				"or watch, without --consume", r, readers[0])
		}
		if usage.Programs != nil && len(usage.Programs) == 0 {
			say("no program uses %s: nothing is submitted to it", r)
		}
		tr := &tail.Ring{Ring: capture.Ring{Name: r.Name, ID: r.ID, Size: r.Size}}
		if f.btfFile == "" {
			if err := f.programTypes(tr, usage); err != nil {
				return nil, nil, err
			}
		}
		t.Rings = append(t.Rings, tr)
	}
	label(t.Rings)
	t.Live = true
	if f.consume {
		source, closeAll, err = consume(found, survey)
	} else {
		source, closeAll, err = watch(found, f.oldest)
	}
	if err != nil {
		return nil, nil, err
	}
	return source, closeAll, nil
}

// programTypes adds the types of the programs that use a ring. Programs that were loaded separately
// have several BTFs. A recording has room for one of them: the largest of those that have the type
// of -t, or of all if none has it.
func (f *tailFlags) programTypes(r *tail.Ring, usage rings.Usage) error {
	var all [][]byte
	found := false // r.BTF has the type of -t
	for _, p := range usage.Programs {
		raw, err := tail.ProgramBTF(p.ID)
		if errors.Is(err, fs.ErrPermission) {
			break // go on as if there were no programs: useType says what to do
		}
		if err != nil {
			return err
		}
		if len(raw) == 0 || slices.ContainsFunc(all,
			func(have []byte) bool { return string(have) == string(raw) }) {
			continue
		}
		all = append(all, raw)
		types, err := decode.Parse(raw)
		if err != nil {
			return fmt.Errorf("the BTF of program %s (id %d): %w", p.Name, p.ID, err)
		}
		r.Types = append(r.Types, types)
		_, err = types.Type(f.typ)
		if has := err == nil; has && !found || has == found && len(raw) > len(r.BTF) {
			r.BTF, found = raw, has
		}
	}
	return nil
}

// useType makes the rings decode their samples as the type of -t. It fails if no ring has that
// type. If some rings do not have it, it says that their samples are shown as bytes or, with a
// filter, left out.
func (f *tailFlags) useType(t *tail.Tail, say func(string, ...any)) error {
	var fromFile []*decode.Types
	if f.btfFile != "" {
		types, err := decode.Load(f.btfFile)
		if err != nil {
			return fmt.Errorf("--btf: %w", err)
		}
		fromFile = []*decode.Types{types}
	}
	var failed []error
	for _, r := range t.Rings {
		if fromFile != nil {
			r.Types = fromFile
		}
		if f.typ == "" {
			continue
		}
		err := r.Use(f.typ, f.filter)
		switch {
		case err == nil:
		case len(r.Types) == 0:
			failed = append(failed,
				fmt.Errorf("%s: no BTF is known of programs that use it: name a file that has it with --btf",
					r.Label))
		case errors.Is(err, decode.ErrNotFound):
			failed = append(failed, fmt.Errorf("%w in the BTF: without -t, tail says which types fit", err))
		default:
			return usageError{err}
		}
	}
	if len(failed) > 0 && len(failed) == len(t.Rings) {
		return failed[0]
	}
	for _, err := range failed {
		what := "its samples are shown as bytes"
		if f.filter != "" {
			what = "its samples are left out"
		}
		say("%v; %s", err, what)
	}
	return nil
}
