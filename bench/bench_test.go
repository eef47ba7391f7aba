package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets this test binary also be the child processes.
func TestMain(m *testing.M) {
	if isChild, err := playRole(); isChild {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// requireKernel skips the test if this process cannot load BPF programs. With
// RINGBUF_KERNEL_TESTS=require the test fails instead.
func requireKernel(t *testing.T) {
	t.Helper()
	w, err := load(os.Getpagesize())
	if err == nil {
		w.close()
		return
	}
	if os.Getenv("RINGBUF_KERNEL_TESTS") != "require" && errors.Is(err, syscall.EPERM) {
		t.Skipf("this process cannot load BPF programs: %v", err)
	}
	t.Fatalf("load BPF programs: %v", err)
}

// positive fails the test unless the named values exist and are positive.
func positive(t *testing.T, v values, names ...string) {
	t.Helper()
	for _, name := range names {
		if !(v[name] > 0) {
			t.Errorf("%s is %v", name, v[name])
		}
	}
}

func TestEveryReaderReadsWhatWasAccepted(t *testing.T) {
	requireKernel(t)
	const run = 20 * time.Millisecond
	for _, reader := range append(slices.Clone(allReaders), ringbufSharded, ringbufDelayed,
		ringbufQuiet) {
		for _, c := range []struct {
			config
			values []string
		}{
			{config{Measure: measureDrain, Ring: 1 << 16, Size: 64}, []string{"ns"}},
			{streamOf(smallRing, 512, 2), []string{"rate", "cpu_ns", "producer_ns"}},
			{pacedAt(smallRing, 20_000), []string{"mean", "p50", "p99", "cpu"}},
			{latencyAt(5_000), []string{"p50", "p90", "p99", "p999"}},
		} {
			t.Run(reader+"/"+c.Measure, func(t *testing.T) {
				v, err := measure(c.config, reader, run)
				if err != nil {
					t.Fatal(err)
				}
				if reader != libbpfFloor || c.Measure != measureLatency {
					positive(t, v, c.values...)
				}
			})
		}
	}
}

func TestNobodyReadsAndNothingIsRefused(t *testing.T) {
	requireKernel(t)
	v, err := measure(pacedAt(smallRing, 500_000), none, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	positive(t, v, "mean")
	if v["refused"] != 0 {
		t.Errorf("%v samples were refused", v["refused"])
	}
}

func TestIdleReadersAreWatched(t *testing.T) {
	requireKernel(t)
	for _, reader := range idleReaders {
		t.Run(reader, func(t *testing.T) {
			t.Parallel()
			v, err := measure(idleOf(3), reader, 0)
			if err != nil {
				t.Fatal(err)
			}
			positive(t, v, "threads", "rss")
		})
	}
}

func TestErrorNamesWhatTheChildSaid(t *testing.T) {
	requireKernel(t)
	_, err := measure(drainOf(64), "no such reader", 0)
	if err == nil || !strings.Contains(err.Error(), "there is no reader no such reader") {
		t.Errorf("got error %v", err)
	}
}

func TestTallyFindsGapsAndRepetitions(t *testing.T) {
	sample := func(producer, number uint64) []byte {
		return append(binary.NativeEndian.AppendUint64(nil, producer<<56|number), make([]byte, 8)...)
	}
	for name, c := range map[string]struct {
		samples [][]byte
		seen    uint64
		err     string
	}{
		"in order": {[][]byte{sample(0, 0), sample(1, 0), sample(0, 1), make([]byte, endSize)}, 3, ""},
		"gap": {[][]byte{sample(0, 0), sample(0, 2)}, 1,
			"got sample 2 of producer 0 instead of 1"},
		"repetition": {[][]byte{sample(7, 0), sample(7, 0)}, 1,
			"got sample 0 of producer 7 instead of 1"},
		"short": {[][]byte{make([]byte, 3)}, 0, "got a sample of 3 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			tally := &tally{want: noLimit}
			for i, s := range c.samples {
				if more, last := tally.take(s), i == len(c.samples)-1; more == last {
					t.Errorf("sample %d: more is %v", i, more)
				}
			}
			message := ""
			if tally.err != nil {
				message = tally.err.Error()
			}
			if tally.seen != c.seen || message != c.err {
				t.Errorf("got %d samples and error %q", tally.seen, message)
			}
		})
	}
}

func TestMediansIgnoreFailedRounds(t *testing.T) {
	nan := math.NaN()
	if got := median([]float64{5, nan, 1, 2}); got != 2 {
		t.Errorf("median is %v", got)
	}
	if got := median([]float64{nan}); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
	if got := ratio([]float64{1, nan, 8, 0}, []float64{2, 1, 2, 0}); got != 1 {
		t.Errorf("ratio is %v", got)
	}
}

// fake returns results that have every value for each step of plan.
func fake(plan []step, rounds int) *results {
	r := &results{Environment: environment{Rounds: rounds}}
	for _, s := range plan {
		for range rounds {
			for _, reader := range s.readers {
				v := values{}
				for _, name := range strings.Fields(
					"ns allocations rate refused cpu_ns producer_ns cpu mean p50 p90 p99 p999 threads rss") {
					v[name] = 2
				}
				r.add(s.config, reader, v)
			}
		}
	}
	return r
}

func TestQuickPlanHasAllThatBarsNeed(t *testing.T) {
	for _, b := range bars(fake(quickPlan(), 1)) {
		if strings.Contains(b.measured, "NaN") {
			t.Errorf("%s: %s", b.what, b.measured)
		}
	}
}

func TestReportIsComplete(t *testing.T) {
	dir := t.TempDir()
	if err := writeAll(dir, fake(fullPlan(), 5)); err != nil {
		t.Fatal(err)
	}
	report, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, chart := range []string{costChart(smallRing), costChart(largeRing), streamChart,
		drainChart, latencyChart} {
		if info, err := os.Stat(filepath.Join(dir, chart)); err != nil || info.Size() == 0 {
			t.Errorf("%s is missing: %v", chart, err)
		}
		if !strings.Contains(string(report), "]("+chart+")") {
			t.Errorf("the report does not show %s", chart)
		}
	}
	_, sharded, _ := strings.Cut(string(report), "\n## Sharded\n")
	sharded, _, _ = strings.Cut(sharded, "\n## ")
	const cell = "0.00 / 2e+02 % / 2 / 2"
	for _, reader := range []string{ringbufRecords, ringbufSharded} {
		row := "| " + reader + strings.Repeat(" | "+cell, len(streamSizes)) + " |\n"
		if !strings.Contains(sharded, row) {
			t.Errorf("the report has no %q in\n%s", row, sharded)
		}
	}
	for _, ring := range quietRings {
		_, quiet, _ := strings.Cut(string(report),
			"\n## Quiet notifications, ring of "+bytesName(ring)+"\n")
		quiet, _, _ = strings.Cut(quiet, "\n## ")
		cells := strings.Repeat(" | 0.002 / 0.002 / 0.002 / 2 % / 2", len(pacedRates))
		for _, reader := range quietReaders {
			if row := "| " + reader + cells + " |\n"; !strings.Contains(quiet, row) {
				t.Errorf("the report has no %q in\n%s", row, quiet)
			}
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(raw) || len(raw) > 512<<10 {
		t.Errorf("results.json has %d bytes, valid: %v", len(raw), json.Valid(raw))
	}
}

// TestModerationSurvivesFloods turns a trickle of 20,000 samples a second into a flood of four
// times the size of the ring. It counts the floods of which the kernel refused samples. With
// the default delay these must not be more than when the ring is read eagerly. When something
// else has a processor, both lose more, and moderation loses more than the eager Reader. So the
// two take turns, and the test fails only if losses recur for some seconds.
func TestModerationSurvivesFloods(t *testing.T) {
	requireKernel(t)
	const (
		floods = 30
		noise  = floods / 3
	)
	for _, ring := range []int{4 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20} {
		loses := true
		for try := 0; loses && try < 12; try++ {
			eager, moderated := 0, 0
			for range 3 {
				eager += countLossyFloods(t, ringbufReadIntoEager, ring, floods/3)
				moderated += countLossyFloods(t, ringbufReadInto, ring, floods/3)
			}
			t.Logf("ring of %s: samples of %d floods were refused when read eagerly, of %d when moderated,"+
				" of %d each",
				bytesName(ring), eager, moderated, floods)
			loses = moderated > eager+noise
		}
		if loses {
			t.Errorf("ring of %s: moderation loses samples", bytesName(ring))
		}
	}
}

// TestQuietNotificationsSurviveFloods uses programs that notify nobody until a quarter of the
// ring is filled. Filling the rest takes longer than the scheduler takes to run the Reader.
func TestQuietNotificationsSurviveFloods(t *testing.T) {
	requireKernel(t)
	const (
		floods = 20
		noise  = floods / 3
	)
	lossy := map[string]int{}
	for range 2 {
		for _, reader := range []string{ringbufReadIntoEager, ringbufDelayed, ringbufQuiet} {
			lossy[reader] += countLossyFloods(t, reader, largeRing, floods/2)
		}
	}
	t.Logf("of %d floods samples were refused: %v", floods, lossy)
	if lossy[ringbufQuiet] > lossy[ringbufReadIntoEager]+noise {
		t.Errorf("quiet notifications lose samples")
	}
	if lossy[ringbufDelayed] < floods-noise {
		t.Errorf("with the kernel's notifications a delay of %v should lose samples", longDelay)
	}
}

// countLossyFloods returns the number of floods of which the kernel refused samples.
func countLossyFloods(t *testing.T, reader string, ring, floods int) (lossy int) {
	t.Helper()
	const (
		size    = 64
		trickle = 50 * time.Microsecond
		samples = 120 // of the trickle: enough for ticking to start
	)
	w, err := load(ring)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	// A child is killed when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	consumer, err := start(t.Context(), roleConsume, consumerOrder{Reader: reader, Rings: 1}, w)
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.stop()
	p := newProgram(w.program.Fd(), order{Size: size, Quiet: uint64(quietThreshold(reader, ring))})
	defer p.close()
	run := func(count int) {
		p.order.Count = uint32(count)
		if err := p.run(); err != nil {
			t.Fatal(err)
		}
	}
	for range floods {
		next := time.Now()
		for range samples {
			for time.Now().Before(next) {
			}
			run(1)
			next = next.Add(trickle)
		}
		// Short runs, for a kernel that does not preempt them.
		refused := uint32(0)
		for left := 4 * ring / recordSize(size); left > 0; left -= burst {
			run(min(left, burst))
			refused += p.order.Refused
		}
		if refused > 0 {
			lossy++
		}
		p.order.Count = 0
		if err := awaitEmpty(p); err != nil {
			t.Fatal(err)
		}
	}
	return lossy
}

func TestCPUName(t *testing.T) {
	for _, tt := range []struct{ cpuinfo, want string }{
		{"cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n", "AMD EPYC (family 26, model 2)"},
		{"processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n", "arm64"},
	} {
		if got := cpuName(tt.cpuinfo, "arm64"); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
