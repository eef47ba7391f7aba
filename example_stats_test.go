package ringbuf_test

import (
	"expvar"
	"log"
	"net/http"

	"github.com/libbpfgo/ringbuf"
)

// With expvar no other package is needed to look at a Reader: what the Func returns is shown
// as JSON at /debug/vars. For Prometheus there is a module beside this package, metrics.
func ExampleReader_Stats() {
	var reader *ringbuf.Reader

	expvar.Publish("ringbuf", expvar.Func(func() any { return reader.Stats() }))
	log.Fatal(http.ListenAndServe("localhost:6060", nil))
}
