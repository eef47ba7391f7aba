// Package tso tests the order in which the C code accesses memory: see tso.c.
package tso

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNoScheduleLosesAWakeup(t *testing.T) {
	if schedules, lost := run(t); lost != 0 {
		t.Errorf("%d of %d schedules lose a wakeup", lost, schedules)
	}
}

// This shows what the fence prevents, and that the simulated machine can detect it.
func TestWithoutFenceWakeupsAreLost(t *testing.T) {
	if schedules, lost := run(t, "unfenced"); lost == 0 {
		t.Errorf("none of %d schedules loses a wakeup", schedules)
	}
}

// run compiles and runs tso.c.
func run(t *testing.T, args ...string) (schedules, lost int) {
	t.Helper()
	// The go command reruns a test when a file that it looked at has changed.
	sources := []string{"../../ringbuf_cgo.c", "../../ringbuf_cgo_wait.c", "../../ringbuf_cgo.h"}
	for _, name := range append(sources, "tso.c") {
		if _, err := os.Stat(name); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(t.TempDir(), "tso")
	flags := append(strings.Fields(os.Getenv("CGO_CFLAGS")), "-O2", "-Wall", "-o", program, "tso.c")
	flags = append(flags, strings.Fields(os.Getenv("CGO_LDFLAGS"))...)
	if out, err := exec.Command(cmp.Or(os.Getenv("CC"), "cc"), flags...).CombinedOutput(); err != nil {
		t.Fatalf("compile tso.c: %v\n%s", err, out)
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	if _, err := fmt.Sscanf(string(out), "%d schedules, %d lose", &schedules, &lost); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return schedules, lost
}
