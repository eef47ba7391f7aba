// What is measured: everything, or only what the table of bars needs.

package main

import (
	"runtime"
	"slices"
)

// A step is a configuration, with the readers that take turns in it.
type step struct {
	config
	readers []string
}

const (
	tinyRing  = 64 << 10
	smallRing = 256 << 10
	largeRing = 16 << 20
)

var (
	rings        = []int{smallRing, largeRing}
	quietRings   = []int{tinyRing, smallRing, largeRing}
	drainSizes   = []int{16, 64, 256, 1024, 4096}
	streamSizes  = []int{64, 512, 1024, 4096}
	pacedRates   = []int{1_000, 5_000, 20_000, 100_000, 500_000}
	barRates     = []int{20_000, 100_000, 500_000}
	latencyRates = []int{5_000, 1_000, 10} // every 200 µs, every ms, after 100 ms of idleness
	idleCounts   = []int{1, 100, 1_000}
)

// cachedOf drains samples that the same processor has just written, and that are still in its
// second-level cache.
func cachedOf(size int) config {
	return config{Measure: measureDrain, Ring: smallRing, Size: size, Cached: true}
}

func drainOf(size int) config { return config{Measure: measureDrain, Ring: largeRing, Size: size} }

func streamOf(ring, size, producers int) config {
	return config{Measure: measureStream, Ring: ring, Size: size, Producers: producers}
}

func pacedAt(ring, rate int) config {
	return config{Measure: measurePaced, Ring: ring, Size: 64, Producers: 1, Rate: rate}
}

func latencyAt(rate int) config {
	return config{Measure: measureLatency, Ring: largeRing, Size: 64, Producers: 1, Rate: rate}
}

func idleOf(readers int) config { return config{Measure: measureIdle, Readers: readers} }

// latencyReaders leaves out the C program, which only counts samples.
var latencyReaders = allReaders[:len(allReaders)-1]

// idleReaders are the readers that can differ when they are idle.
var idleReaders = []string{ringbufReadInto, ringbufReadIntoEager, ciliumReadInto, libbpfgoChannel}

// quietReaders show the gain from quiet notifications.
var quietReaders = []string{none, ringbufReadInto, ringbufDelayed, ringbufQuiet}

func fullPlan() []step {
	var plan []step
	for _, size := range drainSizes {
		plan = append(plan, step{cachedOf(size), allReaders}, step{drainOf(size), allReaders})
	}
	for _, ring := range rings {
		for _, size := range streamSizes {
			for _, producers := range producerCounts {
				readers := allReaders
				if ring == largeRing && producers == manyProducers {
					readers = append(slices.Clone(readers), ringbufSharded)
				}
				plan = append(plan, step{streamOf(ring, size, producers), readers})
			}
		}
		for _, rate := range pacedRates {
			readers := append([]string{none}, allReaders...)
			plan = append(plan, step{pacedAt(ring, rate), append(readers, ringbufDelayed, ringbufQuiet)})
		}
	}
	for _, rate := range pacedRates {
		plan = append(plan, step{pacedAt(tinyRing, rate), quietReaders})
	}
	for _, rate := range latencyRates {
		plan = append(plan, step{latencyAt(rate), latencyReaders})
	}
	for _, readers := range idleCounts {
		who := idleReaders
		if readers > libbpfgoMost {
			who = idleReaders[:len(idleReaders)-1]
		}
		plan = append(plan, step{idleOf(readers), who})
	}
	return plan
}

// libbpfgoMost is the largest number of ring buffers that libbpfgo allows in a process: its
// maxEventChannels.
const libbpfgoMost = 512

// manyProducers is one for each CPU, but at least two.
var manyProducers = max(2, runtime.NumCPU())

var producerCounts = []int{1, manyProducers}

var drainReaders = []string{ringbufReadInto, ringbufRecords, ringbufLease, ciliumReadInto}

func quickPlan() []step {
	plan := []step{
		{cachedOf(64), []string{ringbufReadInto, ringbufRecords, ringbufLease,
			ringbufReadEager, ciliumRead, ciliumReadInto, libbpfgoChannel}},
		{cachedOf(256), drainReaders},
		{cachedOf(1024), drainReaders},
		{cachedOf(4096), drainReaders},
		{drainOf(64), drainReaders},
		{drainOf(1024), drainReaders},
		{streamOf(largeRing, 64, 1), []string{ringbufReadInto, ringbufRecords, ciliumReadInto,
			libbpfgoChannel}},
		{streamOf(largeRing, 512, 1), []string{ringbufReadInto, ringbufRecords, ciliumReadInto}},
		{streamOf(largeRing, 1024, 1), []string{ringbufReadInto, ringbufRecords, ciliumReadInto}},
		{streamOf(largeRing, 64, manyProducers), []string{ringbufRecords, ringbufSharded}},
		{latencyAt(5_000), []string{ringbufReadIntoEager, ciliumReadInto}},
		{latencyAt(1_000), []string{ringbufReadInto, ringbufReadIntoEager}},
		{latencyAt(10), []string{ringbufReadInto, ciliumReadInto}},
		{idleOf(1), []string{ringbufReadInto}},
		{idleOf(1_000), []string{ringbufReadInto}},
	}
	for _, ring := range rings {
		for _, rate := range barRates {
			readers := []string{none, ringbufReadInto, ringbufRecords, ciliumReadInto}
			if ring == largeRing && rate == barRates[0] {
				readers = append(readers, ringbufReadIntoEager, libbpfgoChannel)
			}
			plan = append(plan, step{pacedAt(ring, rate), readers})
		}
	}
	return plan
}
