package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/libbpfgo/ringbuf"
)

// NewWriterCollector returns a Collector that publishes w.Stats(). It calls Stats once for each
// collection. The label ring of its metrics is the name of the map. The metrics are
//
//	ringbuf_writer_samples_total
//	ringbuf_writer_sample_bytes_total
//	ringbuf_writer_discarded_records_total
//	ringbuf_writer_repaired_records_total
//	ringbuf_writer_waits_total
//	ringbuf_writer_drains_total            always 0 without a drain function
//	ringbuf_writer_reservations
//	ringbuf_writer_size_bytes
//	ringbuf_writer_fill_bytes
//
// For several Writers, and for the end of a Writer, see [NewCollector]: the same holds for Writers.
func NewWriterCollector(w *ringbuf.Writer) prometheus.Collector { return writerCollector{w.Stats} }

type writerCollector struct{ stats func() ringbuf.WriterStats }

func ofWriter(kind prometheus.ValueType, name, help string,
	value func(ringbuf.WriterStats) float64) metric[ringbuf.WriterStats] {
	return newMetric(kind, "writer_"+name, help, []string{"ring"}, value)
}

var writerMetrics = []metric[ringbuf.WriterStats]{
	ofWriter(counter, "samples_total", "Samples that were written to the user ring buffer.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Samples) }),
	ofWriter(counter, "sample_bytes_total",
		"Bytes of these samples, without headers and padding.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Bytes) }),
	ofWriter(counter, "discarded_records_total", "Reservations that were given up.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Discarded) }),
	ofWriter(counter, "repaired_records_total",
		"Records of a dead Writer that this one discarded.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Repaired) }),
	ofWriter(counter, "waits_total", "Calls that found no room, and waited for it.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Waits) }),
	ofWriter(counter, "drains_total", "Calls of the function that has the kernel drain.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Drains) }),
	ofWriter(gauge, "reservations", "Reservations that are out.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Reserved) }),
	ofWriter(gauge, "size_bytes", "Size of the user ring buffer.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Size) }),
	ofWriter(gauge, "fill_bytes",
		"Bytes that the kernel has not drained, with headers and padding.",
		func(s ringbuf.WriterStats) float64 { return float64(s.Fill) }),
}

// Describe implements prometheus.Collector.
func (writerCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range writerMetrics {
		descs <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c writerCollector) Collect(metrics chan<- prometheus.Metric) {
	stats := c.stats()
	for _, m := range writerMetrics {
		metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(stats), stats.Name)
	}
}
