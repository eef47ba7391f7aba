package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// newListCommand returns the command list, which shows rings and their users once.
func newListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [MAP...]",
		Short: "List ring buffers and the processes that use them",
		Long: `List shows the ring buffers and user ring buffers of this machine, or only those that
are named: their size, how full they are, their positions, and which processes use them.

A process uses a ring buffer if it has a descriptor of it, a mapping of it, or a descriptor of
a program that uses it or of a link to such a program. The fill includes headers and padding.
Positions count bytes since the ring buffer was created.

If the terminal is too narrow for a table, each ring buffer gets a block of lines.
` + mapHelp,
		Example: `  ringbuf list
  ringbuf list name events
  ringbuf list pid 4242 pinned /sys/fs/bpf/events
  ringbuf list -o json | jq 'select(.fill_percent > 50)'`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeMap,
	}
	out := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q, err := rings.ParseQuery(args)
		if err != nil {
			return usageError{err}
		}
		return list(cmd.OutOrStdout(), cmd.ErrOrStderr(), q, *out)
	}
	return cmd
}

// A listedJSON is the JSON object that list prints for a ring buffer.
type listedJSON struct {
	ringJSON
	usageJSON
}

func list(stdout, stderr io.Writer, q rings.Query, out output) error {
	found, err := q.Find()
	if err != nil {
		return err
	}
	defer rings.CloseAll(found)
	survey, err := new(rings.Surveyor).Survey()
	if err != nil {
		return err
	}
	var all []listedJSON
	for _, r := range found {
		l, err := look(r, survey.Of(r))
		if err != nil {
			return err
		}
		all = append(all, l)
	}
	if out == outputJSON {
		encoder := json.NewEncoder(stdout)
		for _, l := range all {
			if err := encoder.Encode(l); err != nil {
				return err
			}
		}
	} else if err := writeList(stdout, all); err != nil {
		return err
	}
	if len(found) == 0 {
		fmt.Fprintln(stderr, "ringbuf: there is no ring buffer on this machine")
	}
	for _, missing := range survey.Missing {
		fmt.Fprintln(stderr, "ringbuf:", missing)
	}
	if len(survey.Mounts) == 0 && len(found) > 0 {
		fmt.Fprintln(stderr, "ringbuf: pins are not known: no BPF file system is mounted here")
	}
	return nil
}

// look returns the present state of one ring.
func look(r *rings.Ring, usage rings.Usage) (listedJSON, error) {
	w, err := ringbuf.NewWatcher(r.FD())
	if err != nil {
		return listedJSON{}, err
	}
	defer w.Close()
	s := w.Stats()
	return listedJSON{newRingJSON(r, s.Fill, s.Consumer, s.Producer), newUsageJSON(usage)}, nil
}

// writeList writes a table, or blocks if the terminal is too narrow for one.
func writeList(w io.Writer, all []listedJSON) error {
	if len(all) == 0 {
		return nil
	}
	t := text.Table{
		Header: []string{"ID", "NAME", "TYPE", "SIZE", "FILL", "%", "CONSUMER", "PRODUCER", "FLAGS",
			"PROGRAMS", "PROCESSES", "PINS"},
		Numeric: []bool{true, false, false, true, true, true, true, true, false, false, false, false},
	}
	for _, l := range all {
		fill, percent := "?", ""
		if l.FillBytes != nil {
			fill, percent = text.Bytes(float64(*l.FillBytes)), fmt.Sprintf("%.1f", *l.FillPercent)
		}
		var programs, processes, pins []string
		for _, p := range l.Programs {
			programs = append(programs, fmt.Sprintf("%s (%s, id %d)", text.Printable(p.Name), p.Type, p.ID))
		}
		for _, p := range l.Processes {
			processes = append(processes, fmt.Sprintf("%s (%d)", text.Printable(p.Comm), p.PID))
		}
		for _, p := range l.Pins {
			pins = append(pins, text.Printable(p))
		}
		t.Rows = append(t.Rows, text.Row{
			{fmt.Sprint(l.ID)}, {text.Printable(l.Name)}, {l.Type}, {text.Bytes(
				float64(l.SizeBytes))}, {fill}, {percent},
			{fmt.Sprint(l.ConsumerPosition)}, {fmt.Sprint(l.ProducerPosition)}, {strings.Join(l.Flags, ",")},
			programs, processes, pins,
		})
	}
	if f, ok := w.(*os.File); ok && term.IsTerminal(f.Fd()) {
		if width, _, err := term.GetSize(f.Fd()); err == nil && t.Width() > width {
			return t.WriteBlocks(w)
		}
	}
	return t.Write(w)
}
