package metrics

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

const (
	rules     = "prometheus/rules.yml"
	dashboard = "grafana/dashboard.json"
)

// find returns the path of a program of Prometheus. If the program is not installed, find skips the
// test, or fails it in CI.
func find(t *testing.T, program string) string {
	t.Helper()
	name, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("RINGBUF_KERNEL_TESTS") == "require" {
			t.Fatalf("%v: make test-metrics should have installed it", err)
		}
		t.Skipf("%v: make test-metrics installs it", err)
	}
	return name
}

func mustReadFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// expressions returns the expressions of the dashboard, for all instances and rings.
func expressions(t *testing.T) (list []string) {
	t.Helper()
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal([]byte(mustReadFile(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$ring", ".*")
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			list = append(list, variables.Replace(target.Expr))
		}
	}
	if len(list) == 0 {
		t.Fatal("the dashboard has no expressions")
	}
	return list
}

// exportedNames returns the names that a collector exports.
func exportedNames(c prometheus.Collector) (names []string) {
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	for desc := range descs {
		_, name, _ := strings.Cut(desc.String(), `fqName: "`)
		name, _, _ = strings.Cut(name, `"`)
		names = append(names, name)
	}
	return names
}

var metricName = regexp.MustCompile(`\bringbuf_[a-z_]+`)

// ofShipping reports whether a metric is of package ship/metrics, which has its own tests.
func ofShipping(name string) bool { return strings.HasPrefix(name, "ringbuf_ship_") }

func TestDashboardAndRulesNameMetricsThatAreExported(t *testing.T) {
	exported := append(exportedNames(collector{}), exportedNames(writerCollector{})...)
	shown := strings.Join(expressions(t), "\n")
	for _, file := range []string{dashboard, rules} {
		names := metricName.FindAllString(mustReadFile(t, file), -1)
		if len(names) == 0 {
			t.Errorf("%s names no metrics", file)
		}
		for _, name := range names {
			if !ofShipping(name) && !slices.Contains(exported, name) {
				t.Errorf("%s names %s, which is not exported", file, name)
			}
		}
	}
	for _, name := range exported {
		if !slices.Contains(metricName.FindAllString(shown, -1), name) {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

func runPromtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(find(t, "promtool"), args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestRulesAlertWhereTheyMust(t *testing.T) {
	runPromtool(t, "check", "rules", rules)
	runPromtool(t, "test", "rules", "prometheus/rules_test.yml")
}

func TestEveryAlertHasARuleTest(t *testing.T) {
	tests := mustReadFile(t, "prometheus/rules_test.yml")
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(mustReadFile(t, rules), -1)
	if len(alerts) == 0 {
		t.Error("there are no alerts")
	}
	for _, alert := range alerts {
		if !strings.Contains(tests, "alertname: "+alert[1]+"\n") {
			t.Errorf("rules_test.yml does not test %s", alert[1])
		}
	}
}

func TestDashboardHasExpressionsThatPrometheusParses(t *testing.T) {
	text := "groups:\n- name: dashboard\n  rules:\n"
	for i, expr := range expressions(t) {
		text += fmt.Sprintf("  - record: panel:%d\n    expr: %q\n", i, expr)
	}
	name := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	runPromtool(t, "check", "rules", name)
}

// A server is a Prometheus that scrapes every second.
type server struct {
	t   *testing.T
	url string
}

// startServer starts a Prometheus on a free port. It scrapes the target.
func startServer(t *testing.T, target, rules string) *server {
	t.Helper()
	program, dir := find(t, "prometheus"), t.TempDir()
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs:
- job_name: ringbuf
  static_configs: [{targets: [%q]}]
`, target)
	for name, text := range map[string]string{"prometheus.yml": config, "rules.yml": rules} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Prometheus logs its address. Its later output must be read too, or it would block.
	address, ended := make(chan string, 1), make(chan struct{})
	var logged strings.Builder
	go func() {
		defer close(ended)
		listening := regexp.MustCompile(`msg="Listening on".* address=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&logged, lines.Text())
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				address <- found[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus logged:\n%s", logged.String())
		}
	})
	select {
	case a := <-address:
		return &server{t, "http://" + a}
	case <-ended:
		t.Fatal("Prometheus ended")
		return nil
	}
}

// get stores the data of an answer of the API in value. It reports false if there is none yet,
// because Prometheus is still starting.
func (s *server) get(path string, value any) bool {
	s.t.Helper()
	response, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusServiceUnavailable {
		return false
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: value}
	err = json.NewDecoder(response.Body).Decode(&answer)
	if err != nil || answer.Status != "success" {
		s.t.Fatalf("%s: %s, %s, %v", path, response.Status, answer.Error, err)
	}
	return true
}

// query returns the present values of an expression.
func (s *server) query(expr string) (values []string) {
	s.t.Helper()
	var data struct{ Result []struct{ Value [2]any } }
	s.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	for _, result := range data.Result {
		values = append(values, fmt.Sprint(result.Value[1]))
	}
	return values
}

// firing returns the names of the firing alerts, each with its ring if it has one, sorted.
func (s *server) firing() (alerts []string) {
	s.t.Helper()
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	s.get("/api/v1/alerts", &data)
	for _, alert := range data.Alerts {
		if alert.State == "firing" {
			alerts = append(alerts, strings.TrimSpace(alert.Labels["alertname"]+" "+alert.Labels["ring"]))
		}
	}
	slices.Sort(alerts)
	return alerts
}

// await polls until is returns true. It gives up shortly before the time limit of go test, because
// the time that is needed depends on the machine.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline, _ := t.Deadline()
	for !is() {
		if !deadline.IsZero() && time.Until(deadline) < 20*time.Second {
			t.Fatalf("in all that time: not %s", what)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func TestPrometheusAlertsOfAReader(t *testing.T) {
	find(t, "prometheus")
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	reader, err := ringbuf.NewReader(ring, ringbuf.WithMaxDelay(0),
		ringbuf.WithLossCounter(ring.Counter()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewCollector(reader))
	target := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer target.Close()

	// Shorten each minute in the rules to five seconds.
	minutes := regexp.MustCompile(`\b(\d+)m\b`)
	quick := minutes.ReplaceAllStringFunc(mustReadFile(t, rules), func(d string) string {
		long, err := time.ParseDuration(d)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(long / 12)
	})
	server := startServer(t, strings.TrimPrefix(target.URL, "http://"), quick)
	await(t, "a Reader without losses", func() bool {
		return slices.Equal(server.query("ringbuf_lost_records_total"), []string{"0"})
	})
	if alerts := server.firing(); len(alerts) > 0 {
		t.Errorf("alerts of an idle Reader: %q", alerts)
	}

	const tried = 1000
	accepted := ring.Try(0, 0, 0, tried)
	if accepted == 0 || accepted == tried {
		t.Fatalf("%d of %d records were accepted", accepted, tried)
	}
	want := fmt.Sprint(tried - accepted)
	await(t, want+" records lost", func() bool {
		return slices.Equal(server.query("ringbuf_lost_records_total"), []string{want})
	})
	const (
		lost  = "RingbufRecordsLost"
		stuck = "RingbufReaderStuck events"
		fills = "RingbufRingFills events"
	)
	fires := func(alert string) func() bool {
		return func() bool { return slices.Contains(server.firing(), alert) }
	}
	for _, alert := range []string{lost, stuck, fills} {
		await(t, alert, fires(alert))
	}

	for range accepted {
		if _, err := reader.Read(); err != nil {
			t.Fatal(err)
		}
	}
	for _, alert := range []string{lost, stuck} {
		await(t, "the end of "+alert, func() bool { return !fires(alert)() })
	}
	for _, expr := range expressions(t) {
		if strings.Contains(expr, "ringbuf_ship_") || strings.Contains(expr, "ringbuf_writer_") {
			server.query(expr)
		} else if len(server.query(expr)) == 0 {
			t.Errorf("the dashboard's panel is empty: %s", expr)
		}
	}
}
