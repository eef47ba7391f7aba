// Package screen shows the measurements of a meter on a terminal.
package screen

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/meter"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/text"
)

// A Meter has the methods of meter.Meter that a Model uses.
type Meter interface {
	Measure(ctx context.Context, interval time.Duration) ([]meter.Row, error)
	Missing() []string
}

// A Model is the state of the screen, for bubbletea. After Init, only Update changes it.
type Model struct {
	ctx   context.Context
	meter Meter
	left  int // number of measurements that are still to be shown, or 0 for any number
	err   error

	interval  time.Duration
	measuring bool
	paused    bool
	help      bool

	rows    []meter.Row
	missing []string
	order   int // the column by which the rows are sorted
	reverse bool
	top     int // the first row that is shown

	width, height int
}

// New returns a Model that shows n measurements, or for n = 0 any number, of the given interval.
func New(ctx context.Context, m Meter, interval time.Duration, n int) *Model {
	return &Model{ctx: ctx, meter: m, interval: interval, left: n, order: bytesColumn, width: 80,
		height: 24}
}

// Err returns the error that ended the program, or nil.
func (m *Model) Err() error { return m.err }

// A measured is the result of a measurement.
type measured struct {
	rows    []meter.Row
	missing []string
	first   bool
	err     error
}

// measure returns a command, which bubbletea runs in its own goroutine. There is never more than
// one at a time. The command does not use the Model, only copies of two of its fields.
func (m *Model) measure(interval time.Duration) tea.Cmd {
	m.measuring = true
	ctx, meter := m.ctx, m.meter
	return func() tea.Msg {
		rows, err := meter.Measure(ctx, interval)
		if err != nil {
			return measured{err: err}
		}
		return measured{rows, meter.Missing(), interval == 0, nil}
	}
}

// Init starts a measurement that ends at once, so that the screen shows the rings before the first
// interval has passed.
func (m *Model) Init() tea.Cmd { return m.measure(0) }

// Update handles a message.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.scroll(0)
	case measured:
		return m, m.show(msg)
	case tea.KeyPressMsg:
		return m, m.press(msg.String())
	}
	return m, nil
}

func (m *Model) show(msg measured) tea.Cmd {
	m.measuring = false
	if msg.err != nil {
		m.err = msg.err
		return tea.Quit
	}
	if m.paused {
		return nil
	}
	m.rows, m.missing = msg.rows, msg.missing
	m.sort()
	if m.left > 0 && !msg.first {
		if m.left--; m.left == 0 {
			return tea.Quit
		}
	}
	return m.measure(m.interval)
}

// The limits of the interval that keys set.
const (
	minInterval = 100 * time.Millisecond
	maxInterval = time.Minute
)

func (m *Model) press(key string) tea.Cmd {
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h":
		m.help = !m.help
	case "esc":
		m.help = false
	case "p", "space":
		if m.paused = !m.paused; !m.paused && !m.measuring {
			return m.measure(m.interval)
		}
	case "+", "=":
		m.interval = min(m.interval*2, maxInterval)
	case "-":
		m.interval = max(m.interval/2, minInterval)
	case "r":
		m.reverse = !m.reverse
		m.sort()
	case "right", ">", "left", "<":
		step := 1
		if key == "left" || key == "<" {
			step = len(columns) - 1
		}
		m.order = (m.order + step) % len(columns)
		if m.order == barColumn {
			m.order = (m.order + step) % len(columns)
		}
		m.reverse = false
		m.sort()
	case "down", "j":
		m.scroll(1)
	case "up":
		m.scroll(-1)
	case "pgdown":
		m.scroll(m.room())
	case "pgup":
		m.scroll(-m.room())
	case "home", "g":
		m.scroll(-len(m.rows))
	case "end", "G":
		m.scroll(len(m.rows))
	default:
		for i, c := range columns {
			if c.key == key {
				m.order, m.reverse = i, false
				m.sort()
			}
		}
	}
	return nil
}

// sort sorts the rows by the chosen column: numbers with the highest first, and words in
// alphabetical order.
func (m *Model) sort() {
	c := columns[m.order]
	slices.SortStableFunc(m.rows, func(a, b meter.Row) int {
		order := c.compare(&a, &b)
		if c.numeric != m.reverse {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.Ring.ID, b.Ring.ID))
	})
	m.scroll(0)
}

// room returns the number of rows that the terminal has room for.
func (m *Model) room() int {
	others := 3 // summary, header, keys
	if m.warns() {
		others++
	}
	return max(1, m.height-others)
}

func (m *Model) scroll(by int) { m.top = max(0, min(m.top+by, len(m.rows)-m.room())) }

var (
	bold    = lipgloss.NewStyle().Bold(true)
	faint   = lipgloss.NewStyle().Faint(true)
	reverse = lipgloss.NewStyle().Reverse(true)
	green   = lipgloss.NewStyle().Foreground(lipgloss.Green)
	yellow  = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	red     = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
)

// View draws the Model.
func (m *Model) View() tea.View {
	lines := []string{m.summary()}
	if m.help {
		lines = append(lines, strings.Split(helpText, "\n")...)
	} else {
		lines = append(lines, m.table()...)
	}
	below := m.below()
	lines = lines[:min(len(lines), max(1, m.height-len(below)))]
	for len(lines) < m.height-len(below) {
		lines = append(lines, "")
	}
	lines = append(lines, below...)
	for i := range lines {
		lines[i] = ansi.Truncate(lines[i], m.width, "")
	}
	v := tea.NewView(strings.Join(lines, "\n"))
	v.AltScreen = true
	v.WindowTitle = "ringbuf top"
	return v
}

// summary returns the first line.
func (m *Model) summary() string {
	var bytes, records float64
	for i := range m.rows {
		bytes += max(0, rate(&m.rows[i], float64(m.rows[i].Bytes)))
		records += max(0, rate(&m.rows[i], m.rows[i].Records))
	}
	rings := "1 ring"
	if len(m.rows) != 1 {
		rings = fmt.Sprintf("%d rings", len(m.rows))
	}
	left := fmt.Sprintf("ringbuf top  %s  %s/s  %s records/s", rings, text.Bytes(bytes),
		text.Count(records))
	right := fmt.Sprintf("every %v", m.interval)
	if m.paused {
		right = "PAUSED"
	}
	return bold.Render(left) + strings.Repeat(" ", max(2, m.width-len(left)-len(right))) + right
}

func (m *Model) table() (lines []string) {
	digits := 0
	for i := range m.rows {
		digits = max(digits, len(ID(&m.rows[i])))
	}
	shown := fit(m.width, digits)
	var header []string
	for _, s := range shown {
		title := s.title
		if s.index == m.order {
			title = sortMark(s.numeric != m.reverse) + title
		}
		header = append(header, s.pad(title))
	}
	line := strings.Join(header, strings.Repeat(" ", gap))
	lines = append(lines,
		reverse.Render(line+strings.Repeat(" ", max(0, m.width-ansi.StringWidth(line)))))
	for i := m.top; i < min(len(m.rows), m.top+m.room()); i++ {
		lines = append(lines, m.row(&m.rows[i], shown))
	}
	if m.rows != nil && len(m.rows) == 0 {
		lines = append(lines, "there is no ring buffer")
	}
	return lines
}

func sortMark(falling bool) string {
	if falling {
		return "▼"
	}
	return "▲"
}

func (m *Model) row(r *meter.Row, shown []shown) string {
	var cells []string
	for _, s := range shown {
		switch {
		case s.index == barColumn:
			cells = append(cells, bar(r, s.width))
		case r.Lost > 0 && s.key == "l":
			cells = append(cells, red.Render(s.pad(s.cell(r))))
		default:
			cells = append(cells, s.pad(s.cell(r)))
		}
	}
	return strings.Join(cells, strings.Repeat(" ", gap))
}

// bar draws the fill of a ring, with a mark at its peak, in this width.
func bar(r *meter.Row, width int) string {
	fill, peak := min(1, max(0, part(r, r.Fill))), min(1, max(0, part(r, r.Peak)))
	eighths := int(fill * float64(width) * 8)
	full := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		full += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	used := ansi.StringWidth(full)
	at := int(peak * float64(width)) // the cell that the peak is in
	empty := strings.Repeat(" ", width-used)
	if at = min(at, width-1); at >= used && peak > 0 {
		empty = strings.Repeat(" ", at-used) + "│" + strings.Repeat(" ", width-at-1)
	}
	return level(fill).Render(full) + level(peak).Faint(true).Render(empty)
}

// level returns the style for a fill, which is a part of the ring.
func level(part float64) lipgloss.Style {
	switch {
	case part >= 0.8:
		return red
	case part >= 0.5:
		return yellow
	}
	return green
}

// below returns the lines below the table: the missing privileges, and the keys.
func (m *Model) below() (lines []string) {
	if m.height < 2 {
		return nil
	}
	keys := "q quit  p pause  < > sort  r reverse  + - interval  ↑ ↓ scroll  ? help"
	if rows := len(m.rows); rows > m.room() && !m.help {
		keys = fmt.Sprintf("%d-%d of %d  ", m.top+1, min(rows, m.top+m.room()), rows) + keys
	}
	if m.warns() {
		lines = append(lines, yellow.Render(strings.Join(m.missing, "; ")))
	}
	return append(lines, faint.Render(keys))
}

// warns reports whether there is a line about missing privileges.
func (m *Model) warns() bool { return len(m.missing) > 0 && m.height >= 10 }

// helpText has no line that is longer than 78 columns.
const helpText = `
q  Ctrl-C            quit
p  space             pause, or continue
<  >  left  right    sort by the next column, or by the key of a column:
                       i id  n name  t type  s size  f fill  k peak
                       b bytes/s  c records/s  m mean  l lost/s  o owner
r                    reverse the order
+  -                 longer, shorter intervals
up down PgUp PgDn    scroll; g or Home to the first, G or End to the last
?  h                 show this help, or the table again

FILL     Bytes that were produced and not yet consumed, as a part of the size.
         The mark in the bar, and PEAK: the most since top first saw the ring.
BYTES/S  Bytes that were produced, with headers and padding.
REC/S    Records that were submitted. MEAN is the mean size of their samples.
         ~ means estimated: the ring filled up faster than top looked at it.
LOST/S   Records that the kernel refused, if a RINGBUF_LOSS_COUNTER counts them.
         * means together with other rings of the same programs.
OWNER    One of the processes that have the ring or a program that uses it.`
