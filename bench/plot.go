// The charts, in SVG.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// File names of the charts.
const (
	streamChart  = "stream.svg"
	drainChart   = "drain.svg"
	latencyChart = "latency.svg"
)

func costChart(ring int) string {
	return "cost-" + strings.ReplaceAll(bytesName(ring), " ", "") + ".svg"
}

// charted are the readers in the charts. More lines would be hard to tell apart. Read has the
// same path as ReadInto.
var charted = []string{none, libbpfFloor, ringbufReadInto, ringbufReadIntoEager, ciliumReadInto,
	libbpfgoChannel}

var colors = map[string]color.Color{
	none:                 color.RGBA{0x77, 0x77, 0x77, 0xff},
	libbpfFloor:          color.RGBA{0x33, 0x22, 0x88, 0xff},
	ringbufReadInto:      color.RGBA{0x00, 0x77, 0x55, 0xff},
	ringbufReadIntoEager: color.RGBA{0x66, 0xbb, 0x55, 0xff},
	ciliumReadInto:       color.RGBA{0xdd, 0x88, 0x00, 0xff},
	libbpfgoChannel:      color.RGBA{0xbb, 0x22, 0x44, 0xff},
}

var errNoResults = errors.New("a chart has no results")

func writeCharts(dir string, r *results) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
	for _, ring := range rings {
		err := writeLines(filepath.Join(dir, costChart(ring)), lines{
			title: "Cost of a sample to the traced workload, ring of " + bytesName(ring),
			x:     "samples per second",
			y:     "µs, mean",
			xs:    pacedRates,
			at: func(rate int, reader string) float64 {
				return r.median(pacedAt(ring, rate), reader, "mean") / 1e3
			},
		})
		if err != nil {
			return err
		}
	}
	err := writeLines(filepath.Join(dir, drainChart), lines{
		title: "Reading a full ring of " + bytesName(largeRing),
		x:     "bytes of a sample",
		y:     "ns per sample",
		xs:    drainSizes,
		at:    func(size int, reader string) float64 { return r.median(drainOf(size), reader, "ns") },
	})
	if err != nil {
		return err
	}

	stream := streamOf(largeRing, 64, 1)
	err = writeBarCharts(filepath.Join(dir, streamChart),
		barChart{"64 B, ring of 16 MiB: million samples/s",
			func(reader string) float64 { return r.median(stream, reader, "rate") / 1e6 }},
		barChart{"CPU of the consumer: ns per sample",
			func(reader string) float64 { return r.median(stream, reader, "cpu_ns") }},
	)
	if err != nil {
		return err
	}
	var latencies []barChart
	for _, rate := range latencyRates {
		latencies = append(latencies, barChart{
			"p50 in µs, " + latencyName(rate),
			func(reader string) float64 { return r.median(latencyAt(rate), reader, "p50") / 1e3 },
		})
	}
	return writeBarCharts(filepath.Join(dir, latencyChart), latencies...)
}

// lines is a chart with logarithmic axes and a line for each reader.
type lines struct {
	title, x, y string
	xs          []int
	at          func(x int, reader string) float64
}

func writeLines(path string, l lines) error {
	const legendWidth = 1.9 * vg.Inch
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = l.title, l.x, l.y
	p.Title.Padding = vg.Points(8)
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Add(plotter.NewGrid())

	// The legend lists the lines in the order of their right ends.
	last := func(reader string) float64 { return l.at(l.xs[len(l.xs)-1], reader) }
	readers := slices.DeleteFunc(slices.Clone(charted),
		func(reader string) bool { return math.IsNaN(last(reader)) })
	slices.SortStableFunc(readers,
		func(a, b string) int { return int(math.Copysign(1, last(b)-last(a))) })
	for _, reader := range readers {
		var points plotter.XYs
		for _, x := range l.xs {
			points = append(points, plotter.XY{X: float64(x), Y: l.at(x, reader)})
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", l.title, reader, err)
		}
		line.Color, line.Width = colors[reader], vg.Points(1.8)
		dots.Color, dots.Shape, dots.Radius = colors[reader], draw.CircleGlyph{}, vg.Points(2.5)
		if reader == none {
			line.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
		}
		p.Add(line, dots)
		p.Legend.Add(reader, line, dots)
	}
	if len(readers) == 0 {
		return errNoResults
	}
	p.Legend.Top, p.Legend.XOffs, p.Legend.Padding = true, legendWidth, vg.Points(4)

	var ticks plot.ConstantTicks
	for _, x := range l.xs {
		ticks = append(ticks, plot.Tick{Value: float64(x), Label: shortNumber(x)})
	}
	p.X.Tick.Marker = ticks
	p.Y.Min, p.Y.Max = p.Y.Min/1.2, p.Y.Max*1.2
	p.Y.Tick.Marker = decades(p.Y.Min, p.Y.Max)
	return writeChart(path, 8*vg.Inch, 4*vg.Inch, legendWidth, p)
}

// decades returns ticks at 1, 2 and 5 times the powers of ten.
func decades(least, most float64) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for decade := math.Pow(10, math.Floor(math.Log10(least))); decade <= most; decade *= 10 {
		for _, factor := range []float64{1, 2, 5} {
			if v := factor * decade; v >= least && v <= most {
				ticks = append(ticks, plot.Tick{Value: v, Label: fmt.Sprintf("%.3g", v)})
			}
		}
	}
	return ticks
}

func shortNumber(n int) string {
	if n >= 1000 && n%1000 == 0 {
		return fmt.Sprintf("%dk", n/1000)
	}
	return fmt.Sprint(n)
}

// A barChart has a labelled bar for each reader that has a result.
type barChart struct {
	title string
	at    func(reader string) float64
}

// writeBarCharts writes bar charts side by side.
func writeBarCharts(path string, charts ...barChart) error {
	var plots []*plot.Plot
	for _, c := range charts {
		p, err := c.plot()
		if err != nil {
			return err
		}
		plots = append(plots, p)
	}
	return writeChart(path, vg.Length(len(charts))*4*vg.Inch, 2.2*vg.Inch, vg.Points(4), plots...)
}

func (b barChart) plot() (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = b.title
	p.Title.Padding = vg.Points(8)
	var names []string
	var labels plotter.XYLabels
	for i := range charted {
		reader := charted[len(charted)-1-i] // the axis points upwards
		x := b.at(reader)
		if math.IsNaN(x) {
			continue
		}
		bar, err := plotter.NewBarChart(plotter.Values{x}, vg.Points(14))
		if err != nil {
			return nil, err
		}
		bar.Horizontal = true
		bar.XMin = float64(len(names))
		bar.Color, bar.LineStyle.Width = colors[reader], 0
		p.Add(bar)
		labels.XYs = append(labels.XYs, plotter.XY{X: x, Y: bar.XMin})
		labels.Labels = append(labels.Labels, fmt.Sprintf("%.3g", x))
		names = append(names, reader)
	}
	if len(names) == 0 {
		return nil, errNoResults
	}
	values, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	values.Offset = vg.Point{X: vg.Points(4)}
	for i := range values.TextStyle {
		values.TextStyle[i].YAlign = draw.YCenter
	}
	p.Add(values)
	p.NominalY(names...)
	p.Y.Padding = vg.Points(12)
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	p.X.Min = 0
	p.X.Max *= 1.2 // room for the labels
	p.HideX()
	return p, nil
}

// writeChart writes plots side by side, with a margin to their right.
func writeChart(path string, width, height, right vg.Length, plots ...*plot.Plot) error {
	canvas := vgsvg.New(width, height)
	all := draw.New(canvas)
	all.FillPolygon(color.White, []vg.Point{
		all.Min, {X: all.Max.X, Y: all.Min.Y}, all.Max, {X: all.Min.X, Y: all.Max.Y}})
	const pad = 6
	tiles := draw.Tiles{Rows: 1, Cols: len(plots), PadX: 3 * pad,
		PadTop: pad, PadRight: right + pad, PadBottom: pad, PadLeft: pad}
	for i, c := range plot.Align([][]*plot.Plot{plots}, tiles, all)[0] {
		plots[i].Draw(c)
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// Few systems have this font. The others that are named have letters of the same width.
	const family = "font-family:Liberation Sans"
	text := strings.ReplaceAll(svg.String(), family, family+",Arial,Helvetica,sans-serif")
	return os.WriteFile(path, []byte(text), 0o666)
}
