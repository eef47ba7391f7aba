package metrics

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/libbpfgo/ringbuf/ship"
)

func TestEveryNumberIsPublished(t *testing.T) {
	c := collector{func() ship.Stats {
		return ship.Stats{Rings: []ship.RingStats{{
			Ring:     ship.Ring{Host: "web1", Boot: "b", Name: "events", ID: 7},
			InFlight: 1, InFlightBytes: 2, Acknowledged: 3, Redelivered: 4, Failures: 5, Lost: 6,
			LagBytes: 7, LagSeconds: 8.5,
		}}}
	}}
	const want = `
# HELP ringbuf_ship_acknowledged_records_total Records that the sink has acknowledged.
# TYPE ringbuf_ship_acknowledged_records_total counter
ringbuf_ship_acknowledged_records_total{host="web1",id="7",ring="events"} 3
# HELP ringbuf_ship_failures_total Attempts of the sink that failed.
# TYPE ringbuf_ship_failures_total counter
ringbuf_ship_failures_total{host="web1",id="7",ring="events"} 5
# HELP ringbuf_ship_in_flight_bytes Bytes of the ring that these records take.
# TYPE ringbuf_ship_in_flight_bytes gauge
ringbuf_ship_in_flight_bytes{host="web1",id="7",ring="events"} 2
# HELP ringbuf_ship_in_flight_records Records that are taken from the ring and not acknowledged.
# TYPE ringbuf_ship_in_flight_records gauge
ringbuf_ship_in_flight_records{host="web1",id="7",ring="events"} 1
# HELP ringbuf_ship_lag_bytes Bytes of the ring that were produced and are not acknowledged.
# TYPE ringbuf_ship_lag_bytes gauge
ringbuf_ship_lag_bytes{host="web1",id="7",ring="events"} 7
# HELP ringbuf_ship_lag_seconds Time since the oldest record in flight was found.
# TYPE ringbuf_ship_lag_seconds gauge
ringbuf_ship_lag_seconds{host="web1",id="7",ring="events"} 8.5
# HELP ringbuf_ship_lost_records_total Records that the kernel refused, as far as the sink was told.
# TYPE ringbuf_ship_lost_records_total counter
ringbuf_ship_lost_records_total{host="web1",id="7",ring="events"} 6
# HELP ringbuf_ship_redelivered_records_total Records that were given to the sink again.
# TYPE ringbuf_ship_redelivered_records_total counter
ringbuf_ship_redelivered_records_total{host="web1",id="7",ring="events"} 4
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint finds %v, %v", problems, err)
	}
}

// The dashboard and the rules are in module metrics, whose test checks the other metrics.
func TestDashboardAndRulesNameMetricsThatAreExported(t *testing.T) {
	descs := make(chan *prometheus.Desc, len(all))
	collector{}.Describe(descs)
	close(descs)
	names := regexp.MustCompile(`\bringbuf_ship_[a-z_]+`)
	shown := map[string]bool{}
	for desc := range descs {
		_, name, _ := strings.Cut(desc.String(), `fqName: "`)
		name, _, _ = strings.Cut(name, `"`)
		shown[name] = false
	}
	for _, file := range []string{"grafana/dashboard.json", "prometheus/rules.yml"} {
		text, err := os.ReadFile("../../metrics/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names.FindAllString(string(text), -1) {
			if _, exported := shown[name]; !exported {
				t.Errorf("%s names %s, which is not exported", file, name)
			}
			shown[name] = true
		}
	}
	for name, shown := range shown {
		if !shown {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}
