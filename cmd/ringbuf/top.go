package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/term"
	"github.com/spf13/cobra"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/meter"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/rings"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/screen"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// newTopCommand returns the command top, which shows the fill and the rates of rings repeatedly.
func newTopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top [MAP...]",
		Short: "Show how full ring buffers are, and how fast they fill",
		Long: `Top shows all ring buffers of this machine, or only those that are named, and updates the
figures each interval: how full they are, how full they were at most, bytes and records a second,
the mean size of records, and which processes use them. It also shows how many records are lost, if
the BPF programs count that with a RINGBUF_LOSS_COUNTER of bpf/ringbuf.bpf.h.

On a terminal, press ? to see the keys and the meaning of the columns. Otherwise top prints a table
each interval, or with -o json an object.

Top takes nothing from the readers. It looks only at the headers of records, which takes some
nanoseconds for each, and not at the samples.
` + mapHelp,
		Example: `  ringbuf top
  ringbuf top name events -d 0.5
  ringbuf top -n 3 -o json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeMap,
	}
	out := outputFlag(cmd)
	n := cmd.Flags().IntP("iterations", "n", 0,
		"number of intervals after which top ends; 0 means until interrupted")
	delay := cmd.Flags().Float64P("delay", "d", 1, "length of an interval in seconds")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q, err := rings.ParseQuery(args)
		switch {
		case err != nil:
			return usageError{err}
		case *n < 0:
			return usageErrorf("-n %d: it must not be negative", *n)
		case !(*delay >= 0.01 && *delay <= 86400):
			return usageErrorf("-d %v: it must be 0.01 to 86400 seconds", *delay)
		}
		m, err := meter.New(q)
		if err != nil {
			return err
		}
		defer m.Close()
		interval := time.Duration(*delay * float64(time.Second))
		if stdout, ok := cmd.OutOrStdout().(*os.File); ok && *out == outputTable &&
			term.IsTerminal(stdout.Fd()) {
			noColor, err := cmd.Flags().GetBool("no-color")
			if err != nil {
				return err
			}
			return topScreen(m, interval, *n, noColor)
		}
		return topLines(cmd.OutOrStdout(), cmd.ErrOrStderr(), m, interval, *n, *out)
	}
	return cmd
}

// topScreen shows n measurements on a terminal, or for n = 0 any number.
func topScreen(m *meter.Meter, interval time.Duration, n int, noColor bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	model := screen.New(ctx, m, interval, n)
	options := []tea.ProgramOption{tea.WithFPS(20)}
	if noColor {
		options = append(options, tea.WithColorProfile(colorprofile.Ascii))
	}
	_, err := tea.NewProgram(model, options...).Run()
	if errors.Is(err, tea.ErrInterrupted) {
		err = nil // a signal ends top like a key
	}
	return errors.Join(err, model.Err())
}

// topLines prints n measurements, or for n = 0 any number, as tables or lines of JSON.
func topLines(stdout, stderr io.Writer, m *meter.Meter, interval time.Duration, n int,
	out output) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	for i := 0; i < n || n == 0; i++ {
		rows, err := m.Measure(ctx, interval)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if i == 0 {
			for _, missing := range m.Missing() {
				fmt.Fprintln(stderr, "ringbuf:", missing)
			}
		}
		if out == outputJSON {
			err = encodeRows(stdout, rows, time.Now())
		} else {
			err = writeRows(stdout, rows, i > 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeRows(w io.Writer, rows []meter.Row, again bool) error {
	t := text.Table{
		Header: []string{"ID", "NAME", "TYPE", "SIZE", "FILL", "PEAK", "BYTES/S", "REC/S", "MEAN",
			"LOST/S", "OWNER"},
		Numeric: []bool{true, false, false, true, true, true, true, true, true, true, false},
	}
	for i := range rows {
		var row text.Row
		for _, cell := range []func(*meter.Row) string{
			screen.ID, screen.Name, screen.Type, screen.Size, screen.Fill, screen.Peak,
			screen.BytesPerSecond,
			screen.RecordsPerSecond, screen.MeanSize, screen.LostPerSecond, screen.Owner,
		} {
			row = append(row, []string{cell(&rows[i])})
		}
		t.Rows = append(t.Rows, row)
	}
	if again {
		fmt.Fprintln(w)
	}
	return t.Write(w)
}

// A measuredJSON is the JSON object that top prints for a ring buffer. docs/tool.md has the meaning
// of the fields. Fields may be added, but not removed.
type measuredJSON struct {
	Time            time.Time `json:"time"`
	IntervalSeconds float64   `json:"interval_seconds"`
	ringJSON
	PeakFillBytes      *int     `json:"peak_fill_bytes"`
	PeakFillPercent    *float64 `json:"peak_fill_percent"`
	BytesPerSecond     *float64 `json:"bytes_per_second"`
	RecordsPerSecond   *float64 `json:"records_per_second"`
	MeanSizeBytes      *float64 `json:"mean_size_bytes"`
	DiscardedPerSecond *float64 `json:"discarded_per_second"`
	MissedBytes        uint64   `json:"missed_bytes"`
	LostPerSecond      *float64 `json:"lost_per_second"`
	LostShared         bool     `json:"lost_shared"`
	usageJSON
}

func encodeRows(w io.Writer, rows []meter.Row, now time.Time) error {
	encoder := json.NewEncoder(w)
	for i := range rows {
		r := &rows[i]
		perSecond := func(n float64) *float64 {
			if n < 0 || r.Interval == 0 {
				return nil
			}
			n = round(r.Rate(n))
			return &n
		}
		j := measuredJSON{
			Time: now, IntervalSeconds: r.Interval.Seconds(),
			ringJSON:           newRingJSON(r.Ring, r.Fill, r.Consumer, r.Producer),
			BytesPerSecond:     perSecond(float64(r.Bytes)),
			RecordsPerSecond:   perSecond(r.Records),
			DiscardedPerSecond: perSecond(r.Discarded),
			LostPerSecond:      perSecond(float64(r.Lost)),
			LostShared:         r.LostShared && r.Lost >= 0,
			MissedBytes:        r.Missed,
			usageJSON:          newUsageJSON(r.Usage),
		}
		j.PeakFillBytes, j.PeakFillPercent = fillJSON(r.Ring, r.Peak)
		if r.Interval > 0 && r.MeanSize >= 0 {
			mean := round(r.MeanSize)
			j.MeanSizeBytes = &mean
		}
		if err := encoder.Encode(j); err != nil {
			return err
		}
	}
	return nil
}
