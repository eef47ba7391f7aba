// Package metrics exports the Stats of a ship.Shipper to Prometheus. For expvar, publish the
// Stats directly:
//
//	expvar.Publish("ship", expvar.Func(func() any { return shipper.Stats() }))
package metrics

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/libbpfgo/ringbuf/ship"
)

// NewCollector returns a Collector of the Stats of s. Its metrics have the labels host, ring
// and id (of the map). It is safe for concurrent use, while the Shipper runs and afterwards.
func NewCollector(s *ship.Shipper) prometheus.Collector { return collector{s.Stats} }

type collector struct{ stats func() ship.Stats }

// A metric is one number of a ring.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(ship.RingStats) float64
}

func of(kind prometheus.ValueType, name, help string, value func(ship.RingStats) float64) metric {
	name = prometheus.BuildFQName("ringbuf", "ship", name)
	return metric{prometheus.NewDesc(name, help, []string{"host", "ring", "id"}, nil), kind, value}
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var all = []metric{
	of(gauge, "in_flight_records", "Records that are taken from the ring and not acknowledged.",
		func(s ship.RingStats) float64 { return float64(s.InFlight) }),
	of(gauge, "in_flight_bytes", "Bytes of the ring that these records take.",
		func(s ship.RingStats) float64 { return float64(s.InFlightBytes) }),
	of(counter, "acknowledged_records_total", "Records that the sink has acknowledged.",
		func(s ship.RingStats) float64 { return float64(s.Acknowledged) }),
	of(counter, "redelivered_records_total", "Records that were given to the sink again.",
		func(s ship.RingStats) float64 { return float64(s.Redelivered) }),
	of(counter, "failures_total", "Attempts of the sink that failed.",
		func(s ship.RingStats) float64 { return float64(s.Failures) }),
	of(counter, "lost_records_total", "Records that the kernel refused, as far as the sink was told.",
		func(s ship.RingStats) float64 { return float64(s.Lost) }),
	of(gauge, "lag_bytes", "Bytes of the ring that were produced and are not acknowledged.",
		func(s ship.RingStats) float64 { return float64(s.LagBytes) }),
	of(gauge, "lag_seconds", "Time since the oldest record in flight was found.",
		func(s ship.RingStats) float64 { return s.LagSeconds }),
}

// Describe implements prometheus.Collector.
func (collector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range all {
		descs <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	for _, r := range c.stats().Rings {
		for _, m := range all {
			metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(r), r.Ring.Host, r.Ring.Name,
				strconv.FormatUint(uint64(r.Ring.ID), 10))
		}
	}
}
