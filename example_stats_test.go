package ringbuf_test

import (
	"expvar"
	"log"
	"net/http"

	"github.com/libbpfgo/ringbuf"
)

// Publish the statistics with expvar, which is in the standard library. They appear as JSON at
// /debug/vars. For Prometheus, see the module metrics in this repository.
func ExampleReader_Stats() {
	var reader *ringbuf.Reader

	expvar.Publish("ringbuf", expvar.Func(func() any { return reader.Stats() }))
	log.Fatal(http.ListenAndServe("localhost:6060", nil))
}
