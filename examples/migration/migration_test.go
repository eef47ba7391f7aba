package migration_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/examples/migration"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// TestAllPrintTheSameEvent runs the three programs at the same time.
func TestAllPrintTheSameEvent(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	dir := buildCopy(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var programs []*program
	for _, name := range []string{"initringbuf", "cilium", "ringbuf"} {
		programs = append(programs, start(ctx, t, filepath.Join(dir, name)))
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	event := fmt.Sprintf("%d true", cmd.Process.Pid)
	wanted := func(line string) bool { return line == event }
	if inNamespace(t) {
		wanted = func(line string) bool { return strings.HasSuffix(line, " true") }
	}
	for _, p := range programs {
		p.next(wanted)
		p.interrupt()
	}
}

// buildCopy copies this module to a directory as a user might have it, under another name. It
// builds the programs there and returns their directory.
func buildCopy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	mains, err := filepath.Glob(filepath.Join(dir, "*/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	const name, oldName = "example.com/migration", "github.com/libbpfgo/ringbuf/examples/migration"
	for _, main := range mains {
		text, err := os.ReadFile(main)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(main, bytes.ReplaceAll(text, []byte(oldName), []byte(name)),
			0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"mod", "edit", "-module=" + name, "-replace=github.com/libbpfgo/ringbuf=" + checkout},
		{"build", "-buildvcs=false", "-o", "bin/", "./..."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return filepath.Join(dir, "bin")
}

// inNamespace reports whether processes have other numbers here than in the initial PID
// namespace.
func inNamespace(t *testing.T) bool {
	t.Helper()
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	return namespace != "pid:[4026531836]" // PROC_PID_INIT_INO in include/linux/proc_ns.h
}

// A program is one of the three programs, running.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *bufio.Scanner
	stderr bytes.Buffer
}

// start starts a program, and waits until it prints events.
func start(ctx context.Context, t *testing.T, path string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.CommandContext(ctx, path)}
	p.cmd.Stderr = &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewScanner(stdout)
	p.next(func(line string) bool { return line == migration.Header })
	return p
}

// next reads the output of the program up to a line that is wanted.
func (p *program) next(wanted func(line string) bool) {
	p.t.Helper()
	for p.stdout.Scan() {
		if wanted(p.stdout.Text()) {
			return
		}
	}
	p.t.Fatalf("%s ended: %v\n%s", p.cmd, p.cmd.Wait(), &p.stderr)
}

// interrupt interrupts the program, which must end without an error.
func (p *program) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	for p.stdout.Scan() {
	}
	if err := p.cmd.Wait(); err != nil || p.stderr.Len() > 0 {
		p.t.Errorf("%s ended with %v\n%s", p.cmd, err, &p.stderr)
	}
}
