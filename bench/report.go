// The report, in Markdown.

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// A section of the report is a table with a row for each reader.
type section struct {
	title, text string
	readers     []string
	columns     []column
}

// A column shows the medians of some values of a configuration.
type column struct {
	head string
	config
	values []value
}

// A value is written as its median times scale.
type value struct {
	name, format string
	scale        float64
}

func (c column) cell(r *results, reader string) string {
	var cells []string
	for _, v := range c.values {
		x := r.median(c.config, reader, v.name)
		if math.IsNaN(x) {
			return "–"
		}
		cells = append(cells, fmt.Sprintf(v.format, x*v.scale))
	}
	return strings.Join(cells, " / ")
}

// micros are values in nanoseconds, written in microseconds.
func micros(names ...string) []value {
	var all []value
	for _, name := range names {
		all = append(all, value{name, "%.3g", 1e-3})
	}
	return all
}

var (
	consumerCPU  = value{"cpu", "%.2g %%", 1}
	streamValues = []value{{"rate", "%.2f", 1e-6}, {"refused", "%.2g %%", 100}, {"cpu_ns", "%.3g", 1}}
)

// sections returns all sections, without the table of bars.
func sections() []section {
	var all []section
	for _, ring := range rings {
		cost := section{
			title: "Cost to the traced workload, ring of " + bytesName(ring),
			text: "How long a run of a BPF program takes that submits one sample of 64 bytes, " +
				"by the clock\naround BPF_PROG_TEST_RUN: mean / p50 / p99 in µs.\n\n" +
				"![chart](" + costChart(ring) + ")",
			readers: append([]string{none}, allReaders...),
		}
		cpu := section{
			title:   "CPU of the consumer, ring of " + bytesName(ring),
			text:    "In % of one CPU, in the same runs. Idle: one reader that waits.",
			readers: allReaders,
			columns: []column{{"idle", idleOf(1), []value{consumerCPU}}},
		}
		stream := section{
			title: "Stream, ring of " + bytesName(ring),
			text: "Producers flat out: million samples that were read per second / share " +
				"of samples that the\nkernel refused because the ring was full / the consumer's CPU in " +
				"ns per sample.",
			readers: allReaders,
		}
		if ring == largeRing {
			stream.text += "\n\n![chart](" + streamChart + ")"
		}
		for _, rate := range pacedRates {
			head, c := fmt.Sprintf("%d/s", rate), pacedAt(ring, rate)
			cost.columns = append(cost.columns, column{head, c, micros("mean", "p50", "p99")})
			cpu.columns = append(cpu.columns, column{head, c, []value{consumerCPU}})
		}
		for _, size := range streamSizes {
			for _, producers := range producerCounts {
				stream.columns = append(stream.columns, column{
					fmt.Sprintf("%d B, producers: %d", size, producers), streamOf(ring, size, producers),
					streamValues,
				})
			}
		}
		all = append(all, cost, cpu, stream)
	}

	sharded := section{
		title: "Sharded",
		text: fmt.Sprintf("Streams of %d producers into one ring of %s, as above, and into one each, "+
			"of which one Reader\nreads all: as above / CPU of a producer in ns per sample, whether "+
			"accepted or refused.", manyProducers, bytesName(largeRing)),
		readers: []string{ringbufRecords, ringbufSharded},
	}
	for _, size := range streamSizes {
		sharded.columns = append(sharded.columns, column{
			fmt.Sprintf("%d B", size), streamOf(largeRing, size, manyProducers),
			append(slices.Clone(streamValues), value{"producer_ns", "%.3g", 1}),
		})
	}

	for _, ring := range quietRings {
		quiet := section{
			title: "Quiet notifications, ring of " + bytesName(ring),
			text: "The cost to the traced workload, as above / CPU of the consumer / samples " +
				"that the kernel refused.\nQuiet: programs that use ringbuf_quiet() with a quarter " +
				"of the ring, and WithMaxDelay of 200 ms.",
			readers: quietReaders,
		}
		for _, rate := range pacedRates {
			quiet.columns = append(quiet.columns, column{
				fmt.Sprintf("%d/s", rate), pacedAt(ring, rate),
				append(micros("mean", "p50", "p99"), consumerCPU, value{"refused", "%.0f", 1}),
			})
		}
		all = append(all, quiet)
	}

	drain := section{
		title: "Drain",
		text: "Reading a full ring of " + bytesName(largeRing) + ": ns per sample.\n\n![chart](" +
			drainChart + ")",
		readers: allReaders,
	}
	cached := section{
		title: "Drain, in the cache",
		text: "Reading a full ring of " + bytesName(smallRing) +
			", which the same processor has just filled: ns per\n" +
			"sample.",
		readers: allReaders,
	}
	ns := []value{{"ns", "%.3g", 1}}
	for _, size := range drainSizes {
		head := fmt.Sprintf("%d B", size)
		drain.columns = append(drain.columns, column{head, drainOf(size), ns})
		cached.columns = append(cached.columns, column{head, cachedOf(size), ns})
	}
	drain.columns = append(drain.columns, column{"allocations per sample, 64 B", drainOf(64),
		[]value{{"allocations", "%.3f", 1}}})

	latency := section{
		title: "Latency",
		text: "From submission to the return of Read: p50 / p90 / p99 / p99.9 in µs.\n\n![chart](" +
			latencyChart + ")",
		readers: latencyReaders,
	}
	for _, rate := range latencyRates {
		latency.columns = append(latency.columns, column{latencyName(rate), latencyAt(rate),
			micros("p50", "p90", "p99", "p999")})
	}

	idle := section{
		title: "Idle",
		text: "Readers that wait, each for a ring of its own: OS threads / resident MiB of the " +
			"process / CPU.\n" +
			fmt.Sprintf("Libbpfgo allows %d ring buffers in a process.", libbpfgoMost),
		readers: idleReaders,
	}
	for _, count := range idleCounts {
		idle.columns = append(idle.columns, column{
			fmt.Sprintf("readers: %d", count), idleOf(count),
			[]value{{"threads", "%.0f", 1}, {"rss", "%.0f", 1. / (1 << 20)}, consumerCPU},
		})
	}
	return append(all, sharded, drain, cached, latency, idle)
}

// writeLegend writes what was measured, on which machine, and how to read the bars.
func writeLegend(w io.Writer, e environment) error {
	_, err := fmt.Fprintf(w, `Linux %s, %d × %s, %s;
cilium/ebpf %s, libbpfgo %s, libbpf %s.

- Figures are medians of %d rounds of %d ms each; latency takes longer. The readers took turns.
- A ratio, x over y, is the median over all rounds of x divided by y.
- This module's Reader is as NewReader makes it, with wakeup moderation. "eager" is WithMaxDelay(0).
  "sharded" is one Reader of several rings, one for each producer.
- Producer and consumer are processes of their own. The consumer touches every byte and checks that
  no sample is missing. "libbpf C no-op" only counts samples. "none" is no reader at all.
- A bar is what this module aims for. Noise makes some miss.

`, e.Kernel, e.CPUs, e.CPU, e.Go, e.Cilium, e.Libbpfgo, e.Libbpf, e.Rounds, e.RunMillis)
	return err
}

func writeReport(w io.Writer, r *results) error {
	_, err := fmt.Fprint(w, `# Benchmarks

Written by `+"`make bench`"+`; [results.json](results.json) has every round's numbers.

`)
	if err == nil {
		err = writeLegend(w, r.Environment)
	}
	if err != nil {
		return err
	}
	for _, failure := range r.Errors {
		if _, err := fmt.Fprintf(w, "**Failed:** %s\n\n", failure); err != nil {
			return err
		}
	}
	if err := writeBars(w, bars(r)); err != nil {
		return err
	}
	for _, s := range sections() {
		if _, err := fmt.Fprintf(w, "\n## %s\n\n%s\n\n", s.title, s.text); err != nil {
			return err
		}
		header, rows := []string{"reader"}, [][]string{}
		for _, c := range s.columns {
			header = append(header, c.head)
		}
		for _, reader := range s.readers {
			row := []string{reader}
			for _, c := range s.columns {
				row = append(row, c.cell(r, reader))
			}
			rows = append(rows, row)
		}
		if err := writeTable(w, header, rows); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(w io.Writer, header []string, rows [][]string) error {
	b := &strings.Builder{}
	row := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	row(header)
	fmt.Fprintf(b, "|---%s|\n", strings.Repeat("|---:", len(header)-1))
	for _, cells := range rows {
		row(cells)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func latencyName(rate int) string {
	switch rate {
	case 5_000:
		return "1 every 200 µs"
	case 1_000:
		return "1 every ms"
	}
	return "after 100 ms of idleness"
}

func bytesName(n int) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
