// Bench compares this module's Reader with cilium/ebpf's Reader, with libbpfgo's channel, and
// with libbpf itself. See docs/bench.
//
// Producer and consumer are separate processes, started anew for each measurement. The readers
// take turns, one measurement each, for a number of rounds.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"
)

func main() {
	isChild, err := playRole()
	if !isChild {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	quick := flag.Bool("quick", false,
		"measure only what the table of bars needs, and print that table")
	out := flag.String("out", ".",
		"directory for README.md, results.json and the charts; not used by -quick")
	rounds := flag.Int("rounds", 7, "number of `rounds`")
	duration := flag.Duration("run", 0, "duration of one run (default 400ms, with -quick 150ms)")
	only := flag.String("only", "",
		"measure only what matches `regexp`, such as 'drain.*cache', and print medians")
	writers := flag.Bool("writers", false,
		"measure who writes into a user ring buffer instead, and print a table")
	flag.Parse()
	plan := fullPlan()
	if *quick {
		plan = quickPlan()
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	plan = slices.DeleteFunc(plan, func(s step) bool { return !wanted.MatchString(s.config.String()) })
	if *duration == 0 {
		*duration = 400 * time.Millisecond
		if *quick {
			*duration = 150 * time.Millisecond
		}
	}

	if *writers {
		return benchWriters(os.Stdout, *rounds, *duration)
	}

	// Fail here once instead of in each measurement.
	probe, err := load(os.Getpagesize())
	if err != nil {
		return err
	}
	probe.close()

	// A child is killed when the thread that started it ends, so this thread must stay.
	runtime.LockOSThread()
	results, err := measureAll(plan, *rounds, *duration)
	if err != nil {
		return err
	}
	if *only != "" {
		err = results.writeMedians(os.Stdout)
	} else if *quick {
		if err = writeLegend(os.Stdout, results.Environment); err == nil {
			err = writeBars(os.Stdout, bars(results))
		}
	} else {
		err = writeAll(*out, results)
	}
	if err == nil && len(results.Errors) > 0 {
		err = fmt.Errorf("%d measurements failed", len(results.Errors))
	}
	return err
}

// measureAll runs the plan. It reports measurements that fail, and continues with the others.
func measureAll(plan []step, rounds int, d time.Duration) (*results, error) {
	environment, err := thisEnvironment()
	if err != nil {
		return nil, err
	}
	environment.Rounds, environment.RunMillis = rounds, d.Milliseconds()
	r := &results{Environment: environment}
	for i, s := range plan {
		fmt.Fprintf(os.Stderr, "%d/%d %v\n", i+1, len(plan), s.config)
		for round := range rounds {
			for _, reader := range s.readers {
				v, err := measure(s.config, reader, d)
				if err != nil {
					message := fmt.Sprintf("%v, round %d, %s: %v", s.config, round+1, reader, err)
					fmt.Fprintln(os.Stderr, message)
					r.Errors = append(r.Errors, message)
				}
				r.add(s.config, reader, v)
			}
		}
	}
	return r, nil
}

// writeAll writes the report, the raw results and the charts.
func writeAll(dir string, r *results) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for name, write := range map[string]func(*os.File) error{
		"results.json": func(f *os.File) error { return r.write(f) },
		"README.md":    func(f *os.File) error { return writeReport(f, r) },
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(write(f), f.Close()); err != nil {
			return err
		}
	}
	return writeCharts(dir, r)
}
