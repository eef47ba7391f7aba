// The bars: what this module promises about its speed, and whether the measurements confirm it.

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// A bar is a row of the table of bars.
type bar struct {
	what     string
	measured string
	limit    string
	met      bool
}

func writeBars(w io.Writer, all []bar) error {
	var rows [][]string
	for _, b := range all {
		met := "no"
		if b.met {
			met = "yes"
		}
		rows = append(rows, []string{b.what, b.measured, b.limit, met})
	}
	return writeTable(w, []string{"what", "measured", "bar", "met"}, rows)
}

// A comparison compares a value of two readers. It becomes a bar on their ratio.
type comparison struct {
	what string
	config
	value      string
	reader     string
	other      string
	comparator string // ≤ or ≥
	limit      float64
}

func (c comparison) bar(r *results) bar {
	x := ratio(r.get(c.config, c.reader, c.value), r.get(c.config, c.other, c.value))
	return limited(fmt.Sprintf("%s: %s over %s", c.what, c.reader, c.other), x, c.comparator, c.limit)
}

func limited(what string, x float64, comparator string, limit float64) bar {
	met := comparator == "≤" && x <= limit || comparator == "≥" && x >= limit
	return bar{what, times(x), fmt.Sprintf("%s %g×", comparator, limit), met}
}

// bars judges the results. The measurements of quickPlan suffice.
func bars(r *results) []bar {
	stream64, stream512 := streamOf(largeRing, 64, 1), streamOf(largeRing, 512, 1)
	cached := func(size int) string { return fmt.Sprintf("drain of %d B, in the cache, time", size) }
	drain64 := cachedOf(64)
	stream1024 := streamOf(largeRing, 1024, 1)
	at20k := pacedAt(largeRing, 20_000)

	all := []bar{costBar(r, largeRing), costBar(r, smallRing)}
	for _, c := range []comparison{
		{cached(64), drain64, "ns", ringbufRecords, ciliumReadInto, "≤", 0.75},
		{cached(64), drain64, "ns", ringbufLease, ciliumReadInto, "≤", 0.75},
		{cached(256), cachedOf(256), "ns", ringbufRecords, ciliumReadInto, "≤", 0.75},
		{cached(256), cachedOf(256), "ns", ringbufLease, ciliumReadInto, "≤", 0.75},
		{cached(1024), cachedOf(1024), "ns", ringbufRecords, ciliumReadInto, "≤", 0.9},
		{cached(1024), cachedOf(1024), "ns", ringbufLease, ciliumReadInto, "≤", 0.9},
		{cached(4096), cachedOf(4096), "ns", ringbufRecords, ciliumReadInto, "≤", 0.9},
		{cached(4096), cachedOf(4096), "ns", ringbufLease, ciliumReadInto, "≤", 0.9},
		{cached(64), drain64, "ns", ringbufReadInto, ciliumReadInto, "≤", 1.15},
		{cached(1024), cachedOf(1024), "ns", ringbufReadInto, ciliumReadInto, "≤", 1.25},
		{"drain of 64 B, not in the cache, time", drainOf(64), "ns",
			ringbufRecords, ciliumReadInto, "≤", 0.75},
		{"drain of 64 B, not in the cache, time", drainOf(64), "ns",
			ringbufReadInto, ciliumReadInto, "≤", 1.15},
		{"drain of 1024 B, not in the cache, time", drainOf(1024), "ns",
			ringbufRecords, ciliumReadInto, "≤", 0.9},
		{"drain of 1024 B, not in the cache, time", drainOf(1024), "ns",
			ringbufReadInto, ciliumReadInto, "≤", 1.25},
		{"stream of 64 B, CPU per sample", stream64, "cpu_ns",
			ringbufRecords, ciliumReadInto, "≤", 0.35},
		{"stream of 64 B, throughput", stream64, "rate", ringbufRecords, ciliumReadInto, "≥", 1.5},
		{"stream of 512 B, CPU per sample", stream512, "cpu_ns",
			ringbufRecords, ciliumReadInto, "≤", 0.5},
		{"stream of 1024 B, throughput", stream1024, "rate", ringbufReadInto, ciliumReadInto, "≥", 1},
		{"stream of 1024 B, throughput", stream1024, "rate", ringbufRecords, ciliumReadInto, "≥", 1.3},
		{"stream of 64 B, throughput", stream64, "rate", ringbufReadInto, ciliumReadInto, "≥", 1.25},
		{"stream of 64 B, CPU per sample", stream64, "cpu_ns",
			ringbufReadInto, ciliumReadInto, "≤", 0.65},
		{"stream of 512 B, throughput", stream512, "rate", ringbufReadInto, ciliumReadInto, "≥", 1.1},
		{fmt.Sprintf("stream of 64 B, %d producers, throughput", manyProducers),
			streamOf(largeRing, 64, manyProducers), "rate", ringbufSharded, ringbufRecords, "≥", 1.5},
		{"drain of 64 B, time", drain64, "ns", ciliumRead, ringbufReadEager, "≥", 1.7},
		{"consumer CPU at 20k/s", at20k, "cpu", ringbufReadInto, ciliumReadInto, "≤", 0.4},
		{"consumer CPU at 20k/s", at20k, "cpu", ringbufReadIntoEager, ciliumReadInto, "≤", 1.25},
		{"latency at 1k/s, p50", latencyAt(1_000), "p50",
			ringbufReadInto, ringbufReadIntoEager, "≤", 1.15},
		{"latency at 5k/s, p50", latencyAt(5_000), "p50",
			ringbufReadIntoEager, ciliumReadInto, "≤", 0.9},
		{"latency at 5k/s, p90", latencyAt(5_000), "p90",
			ringbufReadIntoEager, ciliumReadInto, "≤", 1.1},
		{"latency after 100 ms of idleness, p50", latencyAt(10), "p50",
			ringbufReadInto, ciliumReadInto, "≤", 1.1},
		{"stream of 64 B, throughput", stream64, "rate", ringbufReadInto, libbpfgoChannel, "≥", 3},
		{"stream of 64 B, CPU per sample", stream64, "cpu_ns",
			libbpfgoChannel, ringbufReadInto, "≥", 3},
		{"drain of 64 B, time", drain64, "ns", libbpfgoChannel, ringbufReadInto, "≥", 3},
		{"drain of 64 B, allocations", drain64, "allocations",
			libbpfgoChannel, ringbufReadEager, "≥", 3},
		{"consumer CPU at 20k/s", at20k, "cpu", libbpfgoChannel, ringbufReadInto, "≥", 3},
	} {
		all = append(all, c.bar(r))
	}

	// Subtract the cost without a reader. Noise can make the difference negative; it then
	// counts as none.
	base := r.get(at20k, none, "mean")
	excess := func(reader string) []float64 {
		var all []float64
		for i, mean := range r.get(at20k, reader, "mean") {
			all = append(all, max(0, mean-base[i]))
		}
		return all
	}
	drops64 := r.median(stream64, ringbufReadInto, "refused")
	drops512 := r.median(stream512, ringbufReadInto, "refused")
	ciliumDrops64 := r.median(stream64, ciliumReadInto, "refused")
	ciliumDrops512 := r.median(stream512, ciliumReadInto, "refused")
	allocations := r.median(drain64, ringbufReadEager, "allocations")
	threads := r.median(idleOf(1_000), ringbufReadInto, "threads") -
		r.median(idleOf(1), ringbufReadInto, "threads")
	idleCPU := r.median(idleOf(1_000), ringbufReadInto, "cpu")
	return append(all,
		limited("excess cost to the traced workload at 20k/s: libbpfgo channel over ringbuf.ReadInto",
			ratio(excess(libbpfgoChannel), excess(ringbufReadInto)), "≥", 3),
		bar{"stream of 64 B: drops", percent(drops64) + " (cilium ReadInto " + percent(ciliumDrops64) +
			")", "0", drops64 == 0},
		bar{"stream of 512 B: drops", percent(drops512) + " (cilium ReadInto " +
			percent(ciliumDrops512) + ")", "fewer, or 0", drops512 < ciliumDrops512 || drops512 == 0},
		bar{"drain of 64 B: allocations of ringbuf.Read eager per sample",
			fmt.Sprintf("%.3f", allocations), "≤ 0.05", allocations <= 0.05},
		bar{"1,000 idle Readers: OS threads more than of 1", fmt.Sprintf("%.0f", threads), "≤ 8",
			threads <= 8},
		bar{"1,000 idle Readers: CPU", percent(idleCPU / 100), "≤ 0.5 %", idleCPU <= 0.5},
	)
}

// costBar shows the rates side by side. The worst one counts.
func costBar(r *results, ring int) bar {
	overNone := func(reader string) (all []string, worst float64) {
		for _, rate := range barRates {
			c := pacedAt(ring, rate)
			x := ratio(r.get(c, reader, "mean"), r.get(c, none, "mean"))
			all, worst = append(all, times(x)), max(worst, x) // NaN if any is
		}
		return all, worst
	}
	ours, worst := overNone(ringbufReadInto)
	b := limited("cost to the traced workload, mean, at 20k, 100k and 500k/s, ring of "+
		bytesName(ring)+": ringbuf.ReadInto over none", worst, "≤", 1.05)
	ciliums, _ := overNone(ciliumReadInto)
	b.measured = fmt.Sprintf("%s (cilium ReadInto %s)", strings.Join(ours, ", "),
		strings.Join(ciliums, ", "))
	return b
}

func times(x float64) string {
	if math.IsInf(x, 1) {
		return "∞"
	}
	return fmt.Sprintf("%.2f×", x)
}

func percent(share float64) string { return fmt.Sprintf("%.2g %%", 100*share) }
