// Package metrics publishes the Stats of a ringbuf.Reader or ringbuf.Writer to Prometheus.
//
// The directory prometheus has alert rules for these metrics. The directory grafana has a
// dashboard.
//
// The package is in a module of its own, so that package ringbuf depends only on libbpf.
package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/libbpfgo/ringbuf"
)

// NewCollector returns a Collector that publishes r.Stats(). It calls Stats once for each
// collection. The metrics of the Reader are
//
//	ringbuf_drains_total
//	ringbuf_wakeups_total
//	ringbuf_ticks_total
//	ringbuf_lost_records_total      always 0 without ringbuf.WithLossCounter
//
// Each ring has the following metrics. The label ring is the name of the map. The label index is
// the index of the map in the Reader, from 0 on, because two maps may have the same name.
//
//	ringbuf_samples_total
//	ringbuf_sample_bytes_total
//	ringbuf_discarded_records_total
//	ringbuf_size_bytes
//	ringbuf_available_bytes
//	ringbuf_peak_bytes              of the last minute
//
// If there are several Readers, give each a label that distinguishes it:
//
//	labels := prometheus.Labels{"reader": "exec"}
//	prometheus.WrapRegistererWith(labels, registry).MustRegister(metrics.NewCollector(r))
//
// A registered Collector retains r, and publishes its last values after r.Close. To end that, call
// Unregister of the same Registerer.
func NewCollector(r *ringbuf.Reader) prometheus.Collector { return collector{r.Stats} }

type collector struct{ stats func() ringbuf.Stats }

// A metric publishes one number of a T, which is ringbuf.Stats, ringbuf.RingStats or
// ringbuf.WriterStats.
type metric[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(T) float64
}

func newMetric[T any](kind prometheus.ValueType, name, help string, labels []string,
	value func(T) float64) metric[T] {
	return metric[T]{prometheus.NewDesc("ringbuf_"+name, help, labels, nil), kind, value}
}

func ofReader(kind prometheus.ValueType, name, help string,
	value func(ringbuf.Stats) float64) metric[ringbuf.Stats] {
	return newMetric(kind, name, help, nil, value)
}

func ofRing(kind prometheus.ValueType, name, help string,
	value func(ringbuf.RingStats) float64) metric[ringbuf.RingStats] {
	return newMetric(kind, name, help, []string{"ring", "index"}, value)
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var readerMetrics = []metric[ringbuf.Stats]{
	ofReader(counter, "drains_total", "Times that records were taken out of a ring.",
		func(s ringbuf.Stats) float64 { return float64(s.Drains) }),
	ofReader(counter, "wakeups_total", "Waits that the kernel ended by a notification.",
		func(s ringbuf.Stats) float64 { return float64(s.Wakeups) }),
	ofReader(counter, "ticks_total", "Drains on the timer of wakeup moderation.",
		func(s ringbuf.Stats) float64 { return float64(s.Ticks) }),
	ofReader(counter, "lost_records_total",
		"Records that the kernel refused because a ring was full, if they are counted.",
		func(s ringbuf.Stats) float64 { return float64(s.Lost) }),
}

var ringMetrics = []metric[ringbuf.RingStats]{
	ofRing(counter, "samples_total", "Samples that were drained from the ring.",
		func(s ringbuf.RingStats) float64 { return float64(s.Samples) }),
	ofRing(counter, "sample_bytes_total",
		"Bytes of the samples that were drained, without headers and padding.",
		func(s ringbuf.RingStats) float64 { return float64(s.Bytes) }),
	ofRing(counter, "discarded_records_total", "Records that the BPF program discarded.",
		func(s ringbuf.RingStats) float64 { return float64(s.Discarded) }),
	ofRing(gauge, "size_bytes", "Size of the ring.",
		func(s ringbuf.RingStats) float64 { return float64(s.Size) }),
	ofRing(gauge, "available_bytes",
		"Bytes, headers and padding included, that were produced and not yet read.",
		func(s ringbuf.RingStats) float64 { return float64(s.Available) }),
	ofRing(gauge, "peak_bytes",
		"Most bytes, headers and padding included, in the ring in the last minute.",
		func(s ringbuf.RingStats) float64 { return float64(s.Peak) }),
}

// Describe implements prometheus.Collector.
func (collector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range readerMetrics {
		descs <- m.desc
	}
	for _, m := range ringMetrics {
		descs <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	stats := c.stats()
	for _, m := range readerMetrics {
		metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(stats))
	}
	for i, ring := range stats.Rings {
		for _, m := range ringMetrics {
			metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(ring), ring.Name,
				strconv.Itoa(i))
		}
	}
}
