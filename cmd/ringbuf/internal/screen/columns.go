package screen

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/meter"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// A column is a column of the table.
type column struct {
	title   string
	key     string // sorts by this column
	numeric bool   // aligned to the right, and sorted with the highest first
	width   int    // the minimum
	need    int    // a narrow terminal shows only the columns with the highest
	cell    func(*meter.Row) string
	compare func(a, b *meter.Row) int
}

// columns has all columns, from left to right.
var columns = []column{
	{title: "ID", key: "i", numeric: true, width: 3, need: 6, cell: ID,
		compare: by(func(r *meter.Row) uint32 { return r.Ring.ID })},
	{title: "NAME", key: "n", width: 8, need: 10, cell: Name,
		compare: by(func(r *meter.Row) string { return r.Ring.Name })},
	{title: "TYPE", key: "t", width: 9, need: 1, cell: Type,
		compare: by(Type)},
	{title: "SIZE", key: "s", numeric: true, width: 8, need: 2, cell: Size,
		compare: by(func(r *meter.Row) int { return r.Ring.Size })},
	{width: 6, need: 5}, // the bar
	{title: "FILL", key: "f", numeric: true, width: 5, need: 9, cell: Fill,
		compare: by(func(r *meter.Row) float64 { return part(r, r.Fill) })},
	{title: "PEAK", key: "k", numeric: true, width: 5, need: 7, cell: Peak,
		compare: by(func(r *meter.Row) float64 { return part(r, r.Peak) })},
	{title: "BYTES/S", key: "b", numeric: true, width: 8, need: 9, cell: BytesPerSecond,
		compare: by(func(r *meter.Row) float64 { return rate(r, float64(r.Bytes)) })},
	{title: "REC/S", key: "c", numeric: true, width: 6, need: 8, cell: RecordsPerSecond,
		compare: by(func(r *meter.Row) float64 { return rate(r, r.Records) })},
	{title: "MEAN", key: "m", numeric: true, width: 8, need: 3, cell: MeanSize,
		compare: by(func(r *meter.Row) float64 { return r.MeanSize })},
	{title: "LOST/S", key: "l", numeric: true, width: 6, need: 8, cell: LostPerSecond,
		compare: by(func(r *meter.Row) float64 { return rate(r, float64(r.Lost)) })},
	{title: "OWNER", key: "o", width: 12, need: 4, cell: Owner,
		compare: by(Owner)},
}

// growth says which columns a wide terminal makes wider, one after the other, and up to which
// width.
var growth = []struct{ index, width int }{
	{nameColumn, 15}, {barColumn, 12}, {ownerColumn, 26}, {barColumn, 30}, {ownerColumn, 60},
}

const (
	idColumn    = 0
	nameColumn  = 1
	barColumn   = 4
	bytesColumn = 7
	ownerColumn = 11

	gap = 1 // blanks between columns
)

func by[T cmp.Ordered](value func(*meter.Row) T) func(a, b *meter.Row) int {
	return func(a, b *meter.Row) int { return cmp.Compare(value(a), value(b)) }
}

// part returns n bytes as a part of the ring, or -1 if n is not known.
func part(r *meter.Row, n int) float64 {
	if n < 0 {
		return -1
	}
	return float64(n) / float64(r.Ring.Size)
}

// rate returns the rate per second of n, which was counted in the interval, or -1 if it is not
// known.
func rate(r *meter.Row, n float64) float64 {
	if n < 0 || r.Interval == 0 {
		return -1
	}
	return r.Rate(n)
}

// unknown is the cell of a value that is not known.
const unknown = "-"

// The functions that follow return the cells of a row, also for tables that are not on a screen.

// ID returns the id of the ring.
func ID(r *meter.Row) string { return fmt.Sprint(r.Ring.ID) }

// Name returns the name of the ring.
func Name(r *meter.Row) string { return text.Printable(r.Ring.Name) }

// Size returns the size of the ring, with its unit.
func Size(r *meter.Row) string { return text.Bytes(float64(r.Ring.Size)) }

// Fill returns the fill in percent of the ring.
func Fill(r *meter.Row) string { return percent(part(r, r.Fill)) }

// Peak returns the peak of the fill in percent of the ring.
func Peak(r *meter.Row) string { return percent(part(r, r.Peak)) }

// Type returns the type of the ring: user, overwrite or ring.
func Type(r *meter.Row) string {
	switch {
	case r.Ring.IsUser():
		return "user"
	case r.Ring.Overwrites():
		return "overwrite"
	}
	return "ringbuf"
}

// BytesPerSecond returns the rate of bytes, with its unit.
func BytesPerSecond(r *meter.Row) string {
	if n := rate(r, float64(r.Bytes)); n >= 0 {
		return text.Bytes(n)
	}
	return unknown
}

// RecordsPerSecond returns the rate of records, with a ~ if it is estimated.
func RecordsPerSecond(r *meter.Row) string {
	n := rate(r, r.Records)
	switch {
	case n < 0:
		return unknown
	case r.Missed > 0:
		return "~" + text.Count(n)
	}
	return text.Count(n)
}

// MeanSize returns the mean size of records, with its unit, and with a ~ if it is estimated.
func MeanSize(r *meter.Row) string {
	switch {
	case r.Interval == 0 || r.MeanSize < 0:
		return unknown
	case r.Missed > 0:
		return "~" + text.Bytes(r.MeanSize)
	}
	return text.Bytes(r.MeanSize)
}

// LostPerSecond returns the rate of lost records, with a * if it includes those of other rings.
func LostPerSecond(r *meter.Row) string {
	n := rate(r, float64(r.Lost))
	switch {
	case n < 0:
		return unknown
	case r.LostShared:
		return text.Count(n) + "*"
	}
	return text.Count(n)
}

// Owner returns one of the users of the ring, and how many more of its kind there are.
func Owner(r *meter.Row) string {
	u := r.Usage
	switch {
	case len(u.Processes) > 0:
		owner := u.Owner()
		return more(fmt.Sprintf("%s (%d)", text.Printable(owner.Comm), owner.PID), len(u.Processes))
	case len(u.Programs) > 0:
		return more("program "+text.Printable(u.Programs[0].Name), len(u.Programs))
	case len(u.Pins) > 0:
		return more(text.Printable(u.Pins[0]), len(u.Pins))
	}
	return unknown
}

func more(first string, n int) string {
	if n > 1 {
		return fmt.Sprintf("%s +%d", first, n-1)
	}
	return first
}

func percent(part float64) string {
	switch {
	case part < 0:
		return "?"
	case part > 0 && part < 0.0995:
		return fmt.Sprintf("%.1f%%", 100*part)
	}
	return fmt.Sprintf("%.0f%%", 100*part)
}

// A shown is a column that the terminal has room for, with its width.
type shown struct {
	*column
	index int
	width int
}

// fit returns the columns that a terminal of this width has room for. digits is the number of
// digits of the longest id.
func fit(width, digits int) (fitting []shown) {
	for need := 0; ; need++ {
		fitting = fitting[:0]
		left := width + gap
		for i := range columns {
			c := &columns[i]
			if c.need < need {
				continue
			}
			s := shown{c, i, c.width}
			if i == idColumn {
				s.width = max(s.width, digits)
			}
			fitting = append(fitting, s)
			left -= s.width + gap
		}
		if left >= 0 || len(fitting) <= 1 {
			return grow(fitting, left)
		}
	}
}

// grow gives the columns the width that is left.
func grow(fitting []shown, left int) []shown {
	for _, g := range growth {
		for i := range fitting {
			if s := &fitting[i]; s.index == g.index && s.width < g.width && left > 0 {
				more := min(left, g.width-s.width)
				s.width += more
				left -= more
			}
		}
	}
	return fitting
}

// pad cuts or pads a cell to the width of its column.
func (s shown) pad(cell string) string {
	cell = ansi.Truncate(cell, s.width, "…")
	space := strings.Repeat(" ", max(0, s.width-ansi.StringWidth(cell)))
	if s.numeric {
		return space + cell
	}
	return cell + space
}
