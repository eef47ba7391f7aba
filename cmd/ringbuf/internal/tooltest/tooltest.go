// Package tooltest runs the tool in tests, as its users do.
package tooltest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Path is the path of the tool, and WithoutCgo that of the same tool without cgo. Main builds them.
var Path, WithoutCgo string

// Main builds the tool, runs the tests and exits. Call it in TestMain of a package two directories
// below that of the tool. If RINGBUF_TOOL names the tool, Main builds nothing, because there is no
// compiler. Then there is no WithoutCgo.
func Main(m *testing.M) {
	if Path = os.Getenv("RINGBUF_TOOL"); Path != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	Path, WithoutCgo = filepath.Join(dir, "ringbuf"), filepath.Join(dir, "without-cgo")
	for path, cgo := range map[string]string{Path: "1", WithoutCgo: "0"} {
		build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "../..")
		build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("go build: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// A Process is a process of the tool. It is killed when the test ends.
type Process struct {
	*exec.Cmd
	Out *bufio.Reader // standard output

	t      *testing.T
	mu     sync.Mutex
	stderr strings.Builder
	line   chan struct{} // has a value when stderr has a new line
	ended  chan struct{} // closed when standard error is closed
}

// Start starts a program, which is Path or WithoutCgo.
func Start(t *testing.T, program string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: exec.Command(program, args...), t: t, line: make(chan struct{}, 1),
		ended: make(chan struct{})}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Out = bufio.NewReaderSize(stdout, 1<<20)
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Cmd.Process.Kill() })
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.stderr.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			select {
			case p.line <- struct{}{}:
			default:
			}
		}
	}()
	return p
}

// Messages returns what the process has written to standard error so far.
func (p *Process) Messages() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Await waits until standard error has one of these texts. It reports false if the process ends
// without one of them. After a minute without a new line it fails the test. One goroutine at a time
// may call it.
func (p *Process) Await(texts ...string) bool {
	p.t.Helper()
	for {
		ended := false
		select {
		case <-p.ended:
			ended = true
		default:
		}
		said := p.Messages()
		for _, text := range texts {
			if strings.Contains(said, text) {
				return true
			}
		}
		if ended {
			return false
		}
		select {
		case <-p.line:
		case <-p.ended:
		case <-time.After(time.Minute):
			p.t.Fatalf("it does not say %q, but %s", texts, said)
		}
	}
}

// MustAwait is like Await, but fails the test if Await reports false.
func (p *Process) MustAwait(text string) {
	p.t.Helper()
	if !p.Await(text) {
		p.t.Fatalf("it ended without %q: %s", text, p.Messages())
	}
}

// Interrupt sends the signal of Ctrl-C.
func (p *Process) Interrupt() { p.Cmd.Process.Signal(os.Interrupt) }

// Kill kills the process, and waits for its end.
func (p *Process) Kill() {
	p.Cmd.Process.Kill()
	p.Cmd.Wait()
}

// End waits for the end of the process. It returns the rest of standard output, all of standard
// error, and the exit code.
func (p *Process) End() (stdout, stderr string, code int) {
	p.t.Helper()
	out, err := io.ReadAll(p.Out)
	if err != nil {
		p.t.Fatal(err)
	}
	<-p.ended
	err = p.Cmd.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return string(out), p.Messages(), p.ProcessState.ExitCode()
}
