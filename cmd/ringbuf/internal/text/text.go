// Package text formats names, numbers and tables for terminals.
package text

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// Printable replaces the characters of s that are not printable, because they could control the
// terminal. Anybody can choose the names of processes, maps and files.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Bytes formats a number of bytes with three digits and a binary unit, such as 1.21 MiB.
func Bytes(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for ; n >= 999.5 && i < len(units)-1; i++ {
		n /= 1024
	}
	return digits(n) + " " + units[i]
}

// Count formats a number with three digits and a decimal unit, such as 1.21M.
func Count(n float64) string {
	units := []string{"", "k", "M", "G", "T", "P", "E"}
	i := 0
	for ; n >= 999.5 && i < len(units)-1; i++ {
		n /= 1000
	}
	return digits(n) + units[i]
}

// digits formats a number from 0 to 1023 with three digits, or four if necessary. It formats an
// integer without decimals.
func digits(n float64) string {
	switch {
	case n == float64(int(n)), n >= 99.95:
		return strconv.FormatFloat(n, 'f', 0, 64)
	case n >= 9.995:
		return strconv.FormatFloat(n, 'f', 1, 64)
	}
	return strconv.FormatFloat(n, 'f', 2, 64)
}

// A Row has the cells of a row of a table. Each cell has one or more lines.
type Row [][]string

// A Table has a header and rows. Its columns are as wide as their longest line.
type Table struct {
	Header  []string
	Numeric []bool // which columns are aligned to the right
	Rows    []Row
}

// gap is the number of blanks between columns.
const gap = 2

func (t *Table) widths() []int {
	widths := make([]int, len(t.Header))
	for i, h := range t.Header {
		widths[i] = ansi.StringWidth(h)
	}
	for _, row := range t.Rows {
		for i, cell := range row {
			for _, line := range cell {
				widths[i] = max(widths[i], ansi.StringWidth(line))
			}
		}
	}
	return widths
}

// Width returns the width of the table in characters of a terminal.
func (t *Table) Width() int {
	sum := -gap
	for _, w := range t.widths() {
		sum += w + gap
	}
	return sum
}

// Write writes the table, however wide it is.
func (t *Table) Write(w io.Writer) error {
	var b strings.Builder
	widths := t.widths()
	header := make(Row, len(t.Header))
	for i, h := range t.Header {
		header[i] = []string{h}
	}
	for _, row := range append([]Row{header}, t.Rows...) {
		height := 1
		for _, cell := range row {
			height = max(height, len(cell))
		}
		for n := range height {
			line := ""
			for i, cell := range row {
				s := ""
				if n < len(cell) {
					s = cell[n]
				}
				space := strings.Repeat(" ", widths[i]-ansi.StringWidth(s))
				if t.Numeric[i] {
					s = space + s
				} else {
					s += space
				}
				line += s + strings.Repeat(" ", gap)
			}
			fmt.Fprintln(&b, strings.TrimRight(line, " "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteBlocks writes each row as a block of lines, one for each line of a cell that is not empty.
// The first line of a cell begins with the name of its column. Use it if the table is too wide.
func (t *Table) WriteBlocks(w io.Writer) error {
	var b strings.Builder
	name := 0
	for _, h := range t.Header {
		name = max(name, ansi.StringWidth(h))
	}
	for i, row := range t.Rows {
		if i > 0 {
			fmt.Fprintln(&b)
		}
		for i, cell := range row {
			label := t.Header[i]
			for _, line := range cell {
				if line != "" {
					fmt.Fprintf(&b, "%-*s  %s\n", name, label, line)
				}
				label = ""
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
