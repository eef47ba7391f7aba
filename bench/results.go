// Results: the measurements of every round, with medians and ratios.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// values are the numbers of one round, by name.
type values map[string]float64

// MarshalJSON writes four digits of each value, because no measurement here has more.
func (v values) MarshalJSON() ([]byte, error) {
	short := map[string]json.Number{}
	for name, x := range v {
		short[name] = json.Number(strconv.FormatFloat(x, 'g', 4, 64))
	}
	return json.Marshal(short)
}

// A series has the values of each round, for one reader in one configuration. A round that
// failed has none.
type series struct {
	config
	Reader string   `json:"reader"`
	Rounds []values `json:"rounds"`
}

// results are all series, in the order in which they were started.
type results struct {
	Environment environment
	Series      []*series
	Errors      []string
}

func (r *results) add(c config, reader string, v values) {
	s := r.find(c, reader)
	if s == nil {
		s = &series{config: c, Reader: reader}
		r.Series = append(r.Series, s)
	}
	s.Rounds = append(s.Rounds, v)
}

// writeMedians writes the medians of all values, one line for each reader.
func (r *results) writeMedians(w io.Writer) error {
	for _, s := range r.Series {
		fmt.Fprintf(w, "%v, %s:", s.config, s.Reader)
		for _, name := range slices.Sorted(maps.Keys(s.Rounds[0])) {
			fmt.Fprintf(w, " %s %.4g", name, r.median(s.config, s.Reader, name))
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

func (r *results) find(c config, reader string) *series {
	for _, s := range r.Series {
		if s.config == c && s.Reader == reader {
			return s
		}
	}
	return nil
}

// get returns the value of each round, or NaN where it is missing.
func (r *results) get(c config, reader, name string) []float64 {
	s := r.find(c, reader)
	if s == nil {
		return nil
	}
	var all []float64
	for _, v := range s.Rounds {
		x, ok := v[name]
		if !ok {
			x = math.NaN()
		}
		all = append(all, x)
	}
	return all
}

// median returns the median over the rounds, or NaN.
func (r *results) median(c config, reader, name string) float64 {
	return median(r.get(c, reader, name))
}

// median ignores NaN. If there is nothing else, it returns NaN.
func median(all []float64) float64 {
	sorted := slices.DeleteFunc(slices.Clone(all), math.IsNaN)
	if len(sorted) == 0 {
		return math.NaN()
	}
	slices.Sort(sorted)
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// pairwise returns the median of f over pairs of values of the same round, which had the same
// disturbances.
func pairwise(a, b []float64, f func(a, b float64) float64) float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		all = append(all, f(a[i], b[i]))
	}
	return median(all)
}

// ratio is the pairwise a/b, or 1 where both are 0.
func ratio(a, b []float64) float64 {
	return pairwise(a, b, func(a, b float64) float64 {
		if a == b {
			return 1
		}
		return a / b
	})
}

// write writes JSON with one line for each series, which keeps diffs small.
func (r *results) write(w io.Writer) error {
	var b bytes.Buffer
	line := func(before string, v any, after string) error {
		encoded, err := json.Marshal(v)
		fmt.Fprintf(&b, "%s%s%s\n", before, encoded, after)
		return err
	}
	if err := line(`{"environment": `, r.Environment, ","); err != nil {
		return err
	}
	if err := line(`"errors": `, append([]string{}, r.Errors...), ","); err != nil {
		return err
	}
	before := `"results": [` + "\n"
	for i, s := range r.Series {
		after := ","
		if i == len(r.Series)-1 {
			after = "\n]}"
		}
		if err := line(before, s, after); err != nil {
			return fmt.Errorf("%v, %s: %w", s.config, s.Reader, err)
		}
		before = ""
	}
	_, err := w.Write(b.Bytes())
	return err
}

// An environment describes the machine that the results depend on.
type environment struct {
	Kernel    string `json:"kernel"`
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Go        string `json:"go"`
	Cilium    string `json:"cilium/ebpf"`
	Libbpfgo  string `json:"libbpfgo"`
	Libbpf    string `json:"libbpf"`
	Rounds    int    `json:"rounds"`
	RunMillis int64  `json:"run_ms"`
}

func thisEnvironment() (environment, error) {
	e := environment{CPU: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Libbpf: libbpfVersion()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return e, fmt.Errorf("uname: %w", err)
	}
	e.Kernel = unix.ByteSliceToString(uts.Release[:])
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return e, err
	}
	e.CPU = cpuName(string(cpuinfo), e.CPU)
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range build.Deps {
			switch dep.Path {
			case "github.com/cilium/ebpf":
				e.Cilium = dep.Version
			case "github.com/aquasecurity/libbpfgo":
				e.Libbpfgo = dep.Version
			}
		}
	}
	return e, nil
}

// cpuName returns the name of the last processor in /proc/cpuinfo. It adds family and model,
// because processors of several kinds may have the same name. Without them it returns name.
func cpuName(cpuinfo, name string) string {
	of := map[string]string{}
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		of[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	if of["model name"] != "" {
		name = of["model name"]
	}
	if of["cpu family"] != "" {
		name += fmt.Sprintf(" (family %s, model %s)", of["cpu family"], of["model"])
	}
	return name
}
