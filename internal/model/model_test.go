// Package model tests when the Reader may wait: see wakeup.pml.
package model

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var whole = flag.Bool("whole", false,
	"check all, not only what is quick, and print how what is broken goes wrong")

// A variant is wakeup.pml with some macros defined.
type variant struct {
	name    string
	defines string
	found   string // the failure to find
	quick   bool
}

var configurations = []variant{
	{name: "eager", defines: "EAGER=true", quick: true},
	{name: "eager, parked, 4 records", defines: "EAGER=true PARKED=true RECORDS=4"},
	{name: "eager, 4 records, room for 2", defines: "EAGER=true RECORDS=4 SLOTS=2"},
	{name: "eager, batches of 1", defines: "EAGER=true LIMIT=1"},
	{name: "moderated", quick: true},
	{name: "moderated, batches of 1", defines: "LIMIT=1"},
	{name: "moderated, room for 2", defines: "SLOTS=2"},
	{name: "eager, leases", defines: "EAGER=true LEASES=true", quick: true},
	{name: "eager, leases of 1, parked", defines: "EAGER=true LEASES=true LIMIT=1 PARKED=true"},
	{
		name:    "eager, leases, 4 records, room for 2",
		defines: "EAGER=true LEASES=true RECORDS=4 SLOTS=2",
	},
	{name: "moderated, leases of 1", defines: "LEASES=true LIMIT=1", quick: true},
	{name: "moderated, leases, room for 2", defines: "LEASES=true SLOTS=2"},
}

func TestModelLosesNoWakeup(t *testing.T) {
	forEach(t, configurations, func(t *testing.T, v variant) {
		dir := t.TempDir()
		if found := check(t, dir, v.defines, "-O1"); found != "" {
			t.Errorf("%s\n%s", found, trail(t, dir, v.defines))
		}
	})
}

// The test also shows that in each configuration the reader does come to wait forever.
func TestModelWithoutFenceLosesAWakeup(t *testing.T) {
	forEach(t, configurations, func(t *testing.T, v variant) {
		mustFind(t, t.TempDir(), "lost_wakeup", v.defines+" NO_FENCE", "-O0")
	})
}

// The fence exists to prevent one of these failures.
func TestModelNoticesWhatIsBroken(t *testing.T) {
	forEach(t, []variant{
		{"no fence, blocked", "NO_FENCE EAGER=true BLOCKED=true RECORDS=2", "lost_wakeup", true},
		{"no fence, parked", "NO_FENCE EAGER=true PARKED=true RECORDS=2", "lost_wakeup", false},
		{"no fence behind a commit",
			"NO_FENCE EAGER=true LEASES=true BLOCKED=true RECORDS=2", "lost_wakeup", true},
		{"wait without a look behind the fence",
			"WAIT_UNCHECKED EAGER=true BLOCKED=true RECORDS=2", "lost_wakeup", true},
		{"armed after the last look", "ARM_LATE EAGER=true PARKED=true RECORDS=2", "lost_wakeup", true},
		{"kernel looks before the commit", "LOOK_EARLY EAGER=true RECORDS=2", "lost_wakeup", false},
		{"kernel notifies of another record", "NOTIFY_LATE EAGER=true RECORDS=2", "lost_wakeup", false},
		{"ticks leave no record", "LEAVE_NONE BLOCKED=true", "not_silent", false},
		{"ticks leave a busy record", "LEAVE_BUSY BLOCKED=true", "not_silent", false},
		{"consumer position before the copy",
			"STORE_EARLY EAGER=true BLOCKED=true SLOTS=2", "lost_sample", true},
		{"a record too many is committed",
			"COMMIT_MORE EAGER=true LEASES=true RECORDS=4 SLOTS=2", "lost_sample", true},
		{"commits are not looked for before a wait",
			"LEND_UNCHECKED EAGER=true LEASES=true BLOCKED=true RECORDS=3 LIMIT=1", "lost_wakeup", true},
	}, func(t *testing.T, v variant) {
		dir := t.TempDir()
		// Breadth first, to find the shortest trail.
		mustFind(t, dir, v.found, v.defines, "-O0", "-DBFS")
		if *whole {
			t.Logf("how:\n%s", trail(t, dir, v.defines))
		}
	})
}

func forEach(t *testing.T, variants []variant, test func(*testing.T, variant)) {
	for _, v := range variants {
		if v.quick || *whole {
			t.Run(v.name, func(t *testing.T) {
				if *whole {
					t.Parallel()
				}
				test(t, v)
			})
		}
	}
}

func mustFind(t *testing.T, dir, what, defines string, flags ...string) {
	t.Helper()
	if found := check(t, dir, defines, flags...); !strings.Contains(found, what) {
		t.Fatalf("found %q, expected %s", found, what)
	}
}

var (
	states   = regexp.MustCompile(`(\d+) states, stored`)
	errors   = regexp.MustCompile(`errors: (\d+)`)
	mebibyte = regexp.MustCompile(`([\d.]+)\s+total actual memory usage`)
	failure  = regexp.MustCompile(`pan:\d+: .*`)
	// spin did not look at everything, or looked at too little.
	incomplete = regexp.MustCompile(
		`max search depth too small|out of memory|Search not completed|hash-compact`)
)

// check runs spin on all interleavings, in dir, and returns what goes wrong.
func check(t *testing.T, dir, defines string, flags ...string) string {
	t.Helper()
	began := time.Now()
	name := filepath.Base(t.Name())
	// Read the file here, so that the go command reruns the test when it has changed.
	model, err := os.ReadFile("wakeup.pml")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "wakeup.pml"), model, 0o644)
	}
	if err == nil {
		// Make the model older than any trail. spin warns if both are of the same second.
		err = os.Chtimes(filepath.Join(dir, "wakeup.pml"), time.Unix(0, 0), time.Unix(0, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	spin(t, dir, defines, "-a")
	command(t, dir, "cc", append([]string{"-w", "-DSAFETY", "-o", "pan", "pan.c"}, flags...)...)
	out := command(t, dir, "./pan")

	count := errors.FindStringSubmatch(out)
	stored := states.FindStringSubmatch(out)
	memory := mebibyte.FindStringSubmatch(out)
	if count == nil || stored == nil || memory == nil {
		t.Fatalf("no figures in\n%s", out)
	}
	if count[1] == "0" {
		if what := incomplete.FindString(out); what != "" {
			t.Fatalf("%s:\n%s", what, out)
		}
		t.Logf("%s: %s states, none goes wrong, %s MiB, %.1f s", name, stored[1], memory[1],
			time.Since(began).Seconds())
		return ""
	}
	t.Logf("%s: %s states until one goes wrong, %.1f s", name, stored[1], time.Since(began).Seconds())
	return failure.FindString(out)
}

// trail returns the steps that lead to the failure.
func trail(t *testing.T, dir, defines string) string {
	t.Helper()
	out := spin(t, dir, defines, "-t", "-T")
	steps, _, ok := strings.Cut(out, "spin: wakeup.pml")
	if !ok || steps == "" {
		t.Fatalf("no steps in\n%s", out)
	}
	return steps
}

func spin(t *testing.T, dir, defines string, args ...string) string {
	t.Helper()
	var flags []string // spin wants these first
	for _, define := range strings.Fields(defines) {
		flags = append(flags, "-D"+define)
	}
	return command(t, dir, "spin", append(append(flags, args...), "wakeup.pml")...)
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v (make model installs what this needs)\n%s", cmd, err, out)
	}
	return string(out)
}
