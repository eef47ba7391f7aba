package metrics

import (
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func TestEveryNumberOfAWriterIsPublished(t *testing.T) {
	c := writerCollector{func() ringbuf.WriterStats {
		return ringbuf.WriterStats{Name: "commands", Size: 4096, Samples: 11, Bytes: 12, Discarded: 13,
			Repaired: 14, Waits: 15, Drains: 16, Reserved: 17, Fill: 18}
	}}
	const want = `
# HELP ringbuf_writer_fill_bytes Bytes that the kernel has not drained, with headers and padding.
# TYPE ringbuf_writer_fill_bytes gauge
ringbuf_writer_fill_bytes{ring="commands"} 18
# HELP ringbuf_writer_discarded_records_total Reservations that were given up.
# TYPE ringbuf_writer_discarded_records_total counter
ringbuf_writer_discarded_records_total{ring="commands"} 13
# HELP ringbuf_writer_drains_total Calls of the function that has the kernel drain.
# TYPE ringbuf_writer_drains_total counter
ringbuf_writer_drains_total{ring="commands"} 16
# HELP ringbuf_writer_repaired_records_total Records of a dead Writer that this one discarded.
# TYPE ringbuf_writer_repaired_records_total counter
ringbuf_writer_repaired_records_total{ring="commands"} 14
# HELP ringbuf_writer_reservations Reservations that are out.
# TYPE ringbuf_writer_reservations gauge
ringbuf_writer_reservations{ring="commands"} 17
# HELP ringbuf_writer_sample_bytes_total Bytes of these samples, without headers and padding.
# TYPE ringbuf_writer_sample_bytes_total counter
ringbuf_writer_sample_bytes_total{ring="commands"} 12
# HELP ringbuf_writer_samples_total Samples that were written to the user ring buffer.
# TYPE ringbuf_writer_samples_total counter
ringbuf_writer_samples_total{ring="commands"} 11
# HELP ringbuf_writer_size_bytes Size of the user ring buffer.
# TYPE ringbuf_writer_size_bytes gauge
ringbuf_writer_size_bytes{ring="commands"} 4096
# HELP ringbuf_writer_waits_total Calls that found no room, and waited for it.
# TYPE ringbuf_writer_waits_total counter
ringbuf_writer_waits_total{ring="commands"} 15
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestAWriterIsCollected(t *testing.T) {
	ring := bpftest.NewUser(t, os.Getpagesize(), os.Getpagesize())
	w, err := ringbuf.NewWriter(ring)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP ringbuf_writer_fill_bytes Bytes that the kernel has not drained, with headers and padding.
# TYPE ringbuf_writer_fill_bytes gauge
ringbuf_writer_fill_bytes{ring="commands"} 112
`
	if err := testutil.CollectAndCompare(NewWriterCollector(w), strings.NewReader(want),
		"ringbuf_writer_fill_bytes"); err != nil {
		t.Error(err)
	}
}
