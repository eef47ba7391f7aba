// Picture draws the contents of a terminal as SVG. It reads them as tmux capture-pane -ep prints
// them.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"html"
	"os"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// A style is the look of characters.
type style struct {
	color                string // of the text, or empty
	bold, faint, reverse bool
}

// The colors of a dark terminal.
const (
	background = "#1b1f24"
	foreground = "#d7dce2"
)

var colors = []string{"#1b1f24", "#ff6b68", "#7fc97f", "#e6c15c", "#6cb6ff", "#c792ea", "#5fd7d7",
	"#d7dce2"}

// The size of a character, in pixels.
const (
	cellWidth  = 8.4
	cellHeight = 17
	margin     = 12
)

func main() {
	title := flag.String("title", "", "of the picture")
	flag.Parse()
	if err := draw(*title); err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

func draw(title string) error {
	var lines []string
	columns := 0
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		lines = append(lines, in.Text())
		columns = max(columns, ansi.StringWidth(in.Text()))
	}
	if columns == 0 {
		return fmt.Errorf("the terminal is empty")
	}
	width, height := float64(columns)*cellWidth+2*margin, float64(len(lines))*cellHeight+2*margin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" `+
		`viewBox="0 0 %.0f %.0f" role="img">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", html.EscapeString(title))
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" rx="6" fill="%s"/>`+"\n", background)
	fmt.Fprintf(&b, `<g font-family="ui-monospace,DejaVu Sans Mono,Menlo,Consolas,monospace" `+
		`font-size="14" xml:space="preserve">`+"\n")
	var s style
	for i, line := range lines {
		s = drawLine(&b, line, i, s)
	}
	b.WriteString("</g>\n</svg>\n")
	_, err := os.Stdout.WriteString(b.String())
	return err
}

// drawLine draws a line that begins in style s, and returns the style in which it ends.
func drawLine(b *strings.Builder, line string, row int, s style) style {
	column := 0
	for line != "" {
		if rest, ok := strings.CutPrefix(line, "\x1b["); ok {
			sequence, after, _ := strings.Cut(rest, "m")
			s = s.apply(sequence)
			line = after
			continue
		}
		text, after, escaped := strings.Cut(line, "\x1b")
		line = after
		if escaped {
			line = "\x1b" + after
		}
		s.write(b, text, row, column)
		column += ansi.StringWidth(text)
	}
	return s
}

// apply returns the style after an SGR sequence.
func (s style) apply(sequence string) style {
	codes := strings.Split(sequence, ";")
	for i := 0; i < len(codes); i++ {
		n, _ := strconv.Atoi(codes[i])
		switch {
		case n == 0:
			s = style{}
		case n == 1:
			s.bold = true
		case n == 2:
			s.faint = true
		case n == 7:
			s.reverse = true
		case n == 22:
			s.bold, s.faint = false, false
		case n == 27:
			s.reverse = false
		case n >= 30 && n <= 37:
			s.color = colors[n-30]
		case n >= 90 && n <= 97:
			s.color = colors[n-90]
		case n == 39:
			s.color = ""
		case n == 38 && i+2 < len(codes) && codes[i+1] == "5":
			if c, _ := strconv.Atoi(codes[i+2]); c < len(colors) {
				s.color = colors[c]
			}
			i += 2
		}
	}
	return s
}

func (s style) write(b *strings.Builder, text string, row, column int) {
	width := ansi.StringWidth(text)
	x, y := margin+float64(column)*cellWidth, float64(margin+row*cellHeight)
	color := s.color
	if color == "" {
		color = foreground
	}
	if s.reverse {
		fmt.Fprintf(b, `<rect x="%.1f" y="%.0f" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y,
			float64(width)*cellWidth, cellHeight, color)
		color = background
	}
	if strings.TrimSpace(text) == "" {
		return
	}
	extra := ""
	if s.bold {
		extra += ` font-weight="bold"`
	}
	if s.faint {
		extra += ` opacity="0.6"`
	}
	// In some viewers, blanks at the beginning have no width.
	trimmed := strings.TrimLeft(text, " ")
	x += float64(len(text)-len(trimmed)) * cellWidth
	trimmed = strings.TrimRight(trimmed, " ")
	fmt.Fprintf(b, `<text x="%.1f" y="%.0f" fill="%s" textLength="%.1f" `+
		`lengthAdjust="spacingAndGlyphs"%s>%s</text>`+"\n",
		x, y+13, color, float64(ansi.StringWidth(trimmed))*cellWidth, extra, html.EscapeString(trimmed))
}
