package metrics

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func TestEveryNumberIsPublished(t *testing.T) {
	c := collector{func() ringbuf.Stats {
		return ringbuf.Stats{
			Rings: []ringbuf.RingStats{
				{Name: "events", Size: 4096, Samples: 11, Bytes: 12, Discarded: 13, Available: 14, Peak: 15},
				{Name: "events", Size: 8192, Samples: 21, Bytes: 22, Discarded: 23, Available: 24, Peak: 25},
			},
			Drains: 1, Wakeups: 2, Ticks: 3, Lost: 1 << 40,
		}
	}}
	const want = `
# HELP ringbuf_available_bytes Bytes, headers and padding included, that were produced and not yet read.
# TYPE ringbuf_available_bytes gauge
ringbuf_available_bytes{index="0",ring="events"} 14
ringbuf_available_bytes{index="1",ring="events"} 24
# HELP ringbuf_discarded_records_total Records that the BPF program discarded.
# TYPE ringbuf_discarded_records_total counter
ringbuf_discarded_records_total{index="0",ring="events"} 13
ringbuf_discarded_records_total{index="1",ring="events"} 23
# HELP ringbuf_drains_total Times that records were taken out of a ring.
# TYPE ringbuf_drains_total counter
ringbuf_drains_total 1
# HELP ringbuf_lost_records_total Records that the kernel refused because a ring was full, if they are counted.
# TYPE ringbuf_lost_records_total counter
ringbuf_lost_records_total 1.099511627776e+12
# HELP ringbuf_peak_bytes Most bytes, headers and padding included, in the ring in the last minute.
# TYPE ringbuf_peak_bytes gauge
ringbuf_peak_bytes{index="0",ring="events"} 15
ringbuf_peak_bytes{index="1",ring="events"} 25
# HELP ringbuf_sample_bytes_total Bytes of the samples that were drained, without headers and padding.
# TYPE ringbuf_sample_bytes_total counter
ringbuf_sample_bytes_total{index="0",ring="events"} 12
ringbuf_sample_bytes_total{index="1",ring="events"} 22
# HELP ringbuf_samples_total Samples that were drained from the ring.
# TYPE ringbuf_samples_total counter
ringbuf_samples_total{index="0",ring="events"} 11
ringbuf_samples_total{index="1",ring="events"} 21
# HELP ringbuf_size_bytes Size of the ring.
# TYPE ringbuf_size_bytes gauge
ringbuf_size_bytes{index="0",ring="events"} 4096
ringbuf_size_bytes{index="1",ring="events"} 8192
# HELP ringbuf_ticks_total Drains on the timer of wakeup moderation.
# TYPE ringbuf_ticks_total counter
ringbuf_ticks_total 3
# HELP ringbuf_wakeups_total Waits that the kernel ended by a notification.
# TYPE ringbuf_wakeups_total counter
ringbuf_wakeups_total 2
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint finds %v, %v", problems, err)
	}
}

// newRingAndReader returns a ring of one page and a Reader of it, without wakeup moderation.
func newRingAndReader(t *testing.T) (*bpftest.Ring, *ringbuf.Reader) {
	t.Helper()
	ring := bpftest.New(t, os.Getpagesize())
	r, err := ringbuf.NewReader(ring, ringbuf.WithMaxDelay(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return ring, r
}

func read(t *testing.T, r *ringbuf.Reader, n int) {
	t.Helper()
	for range n {
		if _, err := r.Read(); err != nil {
			t.Fatal(err)
		}
	}
}

// gathered returns all values, in the format name{label="value",...} value.
func gathered(t *testing.T, g prometheus.Gatherer) (values []string) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			var labels []string
			for _, label := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", label.GetName(), label.GetValue()))
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			values = append(values, fmt.Sprintf("%s{%s} %v", family.GetName(), strings.Join(labels, ","),
				value))
		}
	}
	return values
}

func wantGathered(t *testing.T, g prometheus.Gatherer, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := gathered(t, g); !slices.Equal(got, want) {
		t.Errorf("gathered\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCollectorFollowsTheReader(t *testing.T) {
	ring, r := newRingAndReader(t)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(r))
	size := os.Getpagesize()
	wantGathered(t, registry,
		`ringbuf_drains_total{} 0`,
		`ringbuf_wakeups_total{} 0`,
		`ringbuf_ticks_total{} 0`,
		`ringbuf_lost_records_total{} 0`,
		`ringbuf_samples_total{index="0",ring="events"} 0`,
		`ringbuf_sample_bytes_total{index="0",ring="events"} 0`,
		`ringbuf_discarded_records_total{index="0",ring="events"} 0`,
		fmt.Sprintf(`ringbuf_size_bytes{index="0",ring="events"} %d`, size),
		`ringbuf_available_bytes{index="0",ring="events"} 0`,
		`ringbuf_peak_bytes{index="0",ring="events"} 0`)

	discarded := bpftest.Sample{Data: make([]byte, 8), Discard: true}
	ring.Emit(
		bpftest.Sample{Data: make([]byte, 1)}, discarded,
		bpftest.Sample{Data: make([]byte, 20)}, discarded,
		bpftest.Sample{Data: make([]byte, 300)})
	const total = 16 + 16 + 32 + 16 + 312
	read(t, r, 2)
	wantGathered(t, registry,
		`ringbuf_drains_total{} 1`,
		`ringbuf_wakeups_total{} 0`,
		`ringbuf_ticks_total{} 0`,
		`ringbuf_lost_records_total{} 0`,
		`ringbuf_samples_total{index="0",ring="events"} 3`,
		`ringbuf_sample_bytes_total{index="0",ring="events"} 321`,
		`ringbuf_discarded_records_total{index="0",ring="events"} 2`,
		fmt.Sprintf(`ringbuf_size_bytes{index="0",ring="events"} %d`, size),
		`ringbuf_available_bytes{index="0",ring="events"} 328`,
		fmt.Sprintf(`ringbuf_peak_bytes{index="0",ring="events"} %d`, total))
}

func TestReadersOfOneRegistryHaveALabelEach(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	var readers []*ringbuf.Reader
	for n := range 2 {
		ring, r := newRingAndReader(t)
		for range n + 1 {
			ring.Emit(bpftest.Sample{Data: make([]byte, 8)})
		}
		read(t, r, n+1)
		labels := prometheus.Labels{"reader": fmt.Sprint(n)}
		if err := prometheus.WrapRegistererWith(labels, registry).Register(NewCollector(r)); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	const want = `
# HELP ringbuf_samples_total Samples that were drained from the ring.
# TYPE ringbuf_samples_total counter
ringbuf_samples_total{index="0",reader="0",ring="events"} 1
ringbuf_samples_total{index="0",reader="1",ring="events"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want),
		"ringbuf_samples_total"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint finds %v, %v", problems, err)
	}

	labels := prometheus.Labels{"reader": "1"}
	err = prometheus.WrapRegistererWith(labels, registry).Register(NewCollector(readers[0]))
	if !errors.As(err, new(prometheus.AlreadyRegisteredError)) {
		t.Errorf("the second Reader with a label was registered: %v", err)
	}
	if !prometheus.WrapRegistererWith(labels, registry).Unregister(NewCollector(readers[1])) {
		t.Error("the Reader with the label 1 could not be unregistered")
	}
	for _, value := range gathered(t, registry) {
		if !strings.Contains(value, `reader="0"`) {
			t.Errorf("after Unregister there is %s", value)
		}
	}
}

func TestAClosedReaderKeepsItsLastValues(t *testing.T) {
	ring, r := newRingAndReader(t)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(r))
	ring.Emit(bpftest.Sample{Data: make([]byte, 8)})
	read(t, r, 1)
	before := gathered(t, registry)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantGathered(t, registry, before...)
}
