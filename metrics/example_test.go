package metrics_test

import (
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/metrics"
)

func ExampleNewCollector() {
	var reader *ringbuf.Reader

	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics.NewCollector(reader))
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	log.Fatal(http.ListenAndServe("localhost:9090", nil))
}

// Each Reader has a label. Its collector is registered and unregistered with that label.
func ExampleNewCollector_severalReaders() {
	var readers map[string]*ringbuf.Reader

	for name, reader := range readers {
		labels := prometheus.Labels{"reader": name}
		registerer := prometheus.WrapRegistererWith(labels, prometheus.DefaultRegisterer)
		collector := metrics.NewCollector(reader)
		registerer.MustRegister(collector)
		defer registerer.Unregister(collector)
	}
}
