package main

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestNamesOfKernels(t *testing.T) {
	for path, want := range map[string]string{
		"/k/vmlinuz-5.10.0-32-cloud-amd64":           "5.10.0-32",
		"/k/vmlinuz-6.16.3+deb13+1-cloud-arm64":      "6.16.3",
		"./bzImage":                                  "bzImage",
		"./a/bzImage":                                "a-bzImage",
		"../linux/arch/x86/boot/vmlinuz-6.1-mine.gz": "6.1-mine.gz",
	} {
		if got := nameOf(path); got != want {
			t.Errorf("%s is called %q, want %q", path, got, want)
		}
	}
}

// consoleOf returns the console output of a guest. In it a selftest and two tests of the tool
// pass, and the tests of the package print lines, in the format of go test -v.
func consoleOf(lines ...string) string {
	return strings.Join(append(append([]string{
		"Booting",
		"vmtest: Linux 6.1.0-32-cloud-amd64",
		"vmtest: begin selftest",
		"=== RUN   read",
		"--- PASS: read (0.10s)",
		"PASS",
		"vmtest: end selftest: ok",
		"vmtest: begin package",
	}, lines...),
		"vmtest: end package: ok",
		"vmtest: begin tool",
		"=== RUN   TestList",
		"--- PASS: TestList (0.10s)",
		"PASS",
		"vmtest: end tool: ok",
		"vmtest: begin tail",
		"=== RUN   TestTail",
		"--- PASS: TestTail (0.10s)",
		"PASS",
		"vmtest: end tail: ok",
		"vmtest: done", ""), "\n")
}

// verdictsOf returns others and the verdicts of the tests that pass in consoleOf.
func verdictsOf(others map[string]verdict) map[string]verdict {
	for _, name := range []string{"selftest read", "ringbuf TestList", "ringbuf tail: TestTail"} {
		others[name] = verdict{"pass", ""}
	}
	return others
}

func TestResultsOfAConsole(t *testing.T) {
	for name, tt := range map[string]struct {
		console string
		err     error
		want    map[string]verdict
		failure string // part of the error
		says    string
	}{
		"all is well": {
			console: consoleOf("=== RUN   TestA", "--- PASS: TestA (0.00s)",
				"=== RUN   TestNew", "    a_test.go:1: needs Linux 6.19", "--- SKIP: TestNew (0.00s)", "PASS"),
			want: verdictsOf(map[string]verdict{
				"TestA": {"pass", ""}, "TestNew": {"skip", "a_test.go:1: needs Linux 6.19"},
			}),
			says: "4 passed, 1 skipped",
		},
		"a test fails": {
			console: strings.Replace(consoleOf("=== RUN   TestNew", "    a_test.go:2: wrong",
				"--- FAIL: TestNew (0.00s)", "FAIL"),
				"end package: ok", "end package: exit status 1", 1),
			want:    verdictsOf(map[string]verdict{"TestNew": {"fail", "a_test.go:2: wrong"}}),
			failure: "package failed: exit status 1",
			says:    "3 passed, 1 FAILED, FAILED",
		},
		"a test does not end": {
			console: consoleOf("=== RUN   TestNew", "    a_test.go:2: stuck"),
			want: verdictsOf(map[string]verdict{
				"TestNew": {"fail", "it did not end; a_test.go:2: stuck"},
			}),
			says: "3 passed, 1 FAILED",
		},
		"no test runs": {
			console: consoleOf(),
			want:    verdictsOf(map[string]verdict{}),
			failure: "package ran no test",
			says:    "3 passed, FAILED",
		},
		"the kernel ends early": {
			console: "Booting\nvmtest: Linux 6.1.0\nvmtest: begin selftest\n=== RUN   read\nOops\n",
			err:     errors.New("the kernel ended"),
			want:    map[string]verdict{"selftest read": {"fail", "it did not end; Oops"}},
			failure: "the kernel ended\nselftest failed: \npackage did not start",
			says:    "0 passed, 1 FAILED, FAILED",
		},
		"the guest says nothing": {
			console: "Booting\n",
			want:    map[string]verdict{},
			failure: "the guest did not say which kernel it runs on",
			says:    "0 passed, FAILED",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := resultsOf(tt.console, tt.err)
			if !maps.Equal(r.verdicts, tt.want) {
				t.Errorf("the verdicts are %q, want %q", r.verdicts, tt.want)
			}
			if want := (version{6, 1}); r.release != want && name != "the guest says nothing" {
				t.Errorf("the release is %v, want %v", r.release, want)
			}
			if got := r.String(); got != tt.says {
				t.Errorf("it says %q, want %q", got, tt.says)
			}
			if (r.err != nil) != (tt.failure != "") || r.err != nil && !strings.Contains(r.err.Error(),
				tt.failure) {
				t.Errorf("the error is %v, want %q", r.err, tt.failure)
			}
		})
	}
}

func TestWhatNoChosenKernelCanRunIsNoFailure(t *testing.T) {
	var (
		passes = verdict{action: "pass"}
		fails  = verdict{"fail", "a_test.go:2: wrong"}
		skips  = verdict{"skip", "a_test.go:1: needs Linux 6.19"}
		evades = verdict{"skip", "a_test.go:1: it may not"} // it does not say what it needs
	)
	type kernel struct {
		release version
		new     verdict // of TestNew
	}
	for name, tt := range map[string]struct {
		kernels []kernel
		want    string // the error
	}{
		"all are too old":         {[]kernel{{version{6, 1}, skips}, {version{6, 12}, skips}}, ""},
		"one is, and is the only": {[]kernel{{version{6, 1}, skips}}, ""},
		"one runs it":             {[]kernel{{version{6, 1}, skips}, {version{7, 3}, passes}}, ""},
		"new enough, and skips it": {[]kernel{{version{6, 1}, skips}, {version{7, 3}, skips}},
			"TestNew was skipped on Linux 7.3, although it needs 6.19"},
		"just new enough": {[]kernel{{version{6, 19}, skips}},
			"TestNew was skipped on Linux 6.19, although it needs 6.19"},
		"a version is no fraction":  {[]kernel{{version{6, 2}, skips}}, ""},
		"one skips what others run": {[]kernel{{version{6, 1}, evades}, {version{6, 12}, passes}}, ""},
		"all skip it for no reason": {[]kernel{{version{6, 1}, evades}, {version{6, 12}, evades}},
			"TestNew ran on no kernel"},
		"one does, and others lack it": {[]kernel{{version{6, 1}, skips}, {version{7, 3}, verdict{}}},
			"TestNew ran on no kernel"},
		"it fails": {[]kernel{{version{6, 1}, skips}, {version{7, 3}, fails}},
			"tests failed on Linux 7.3"},
	} {
		t.Run(name, func(t *testing.T) {
			var chosen table
			for _, k := range tt.kernels {
				verdicts := map[string]verdict{"TestA": passes, "selftest read": passes}
				if k.new.action != "" {
					verdicts["TestNew"] = k.new
				}
				chosen = append(chosen,
					column{k.release.String(), results{release: k.release, verdicts: verdicts}})
			}
			var out strings.Builder
			got := ""
			if err := chosen.print(&out); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("the error is %q, want %q\n%s", got, tt.want, &out)
			}
			for _, want := range []string{"1 other tests", "TestNew", "selftest read"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the table is without %q:\n%s", want, &out)
				}
			}
		})
	}
}
