// Child processes and their protocol. A child is this program, with a role and its order as
// arguments. It writes the line "ready" when it is set up, and waits for a line if its role
// demands it. Then it writes its result as a line of JSON.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The descriptors of the first workload in a child. Those of the next workloads follow.
const (
	ringFD      = 3
	programFD   = 4
	workloadFDs = 2 // of each workload
)

const (
	roleConsume = "consume"
	roleDrain   = "drain"
	roleWait    = "wait"
	roleProduce = "produce"
)

// playRole runs the role of a child. It reports false in a process that is not a child.
func playRole() (isChild bool, err error) {
	if len(os.Args) != 3 {
		return false, nil
	}
	order := []byte(os.Args[2])
	switch os.Args[1] {
	case roleConsume:
		return true, obey(order, consume)
	case roleDrain:
		return true, obey(order, drain)
	case roleWait:
		return true, obey(order, wait)
	case roleProduce:
		return true, obey(order, produce)
	}
	return false, nil
}

func obey[O any](order []byte, role func(O) error) error {
	var o O
	if err := json.Unmarshal(order, &o); err != nil {
		return err
	}
	return role(o)
}

// ready, awaitGo and report are called in the child.

func ready() { fmt.Println("ready") }

func awaitGo() error {
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

func report(result any) error { return json.NewEncoder(os.Stdout).Encode(result) }

// A child is a child process, as the parent sees it.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Writer
	stdout *bufio.Reader
	stderr bytes.Buffer
	late   atomic.Bool // it was killed because its context was done
}

// start starts a child and waits until it is ready. The child is killed when ctx is done, or
// when the thread that called start ends.
func start(ctx context.Context, role string, order any, workloads ...*workload) (*child, error) {
	argument, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, "/proc/self/exe", role, string(argument))}
	c.cmd.Cancel = func() error {
		c.late.Store(true)
		return c.cmd.Process.Kill()
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = &c.stderr
	for _, w := range workloads {
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, w.ring, w.program)
	}
	if role == roleProduce {
		// Otherwise the runtime signals goroutines that run for long, even in a run of the BPF
		// program.
		c.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.stdout = bufio.NewReader(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := c.stdout.ReadString('\n'); err != nil {
		return nil, c.fail(fmt.Errorf("%s did not get ready: %w", role, err))
	}
	return c, nil
}

// release sends the line that the child waits for.
func (c *child) release() error {
	_, err := io.WriteString(c.stdin, "go\n")
	return err
}

// result reads the child's result and waits for the child to end.
func (c *child) result(result any) error {
	line, err := c.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, result)
	}
	if err == nil {
		err = c.cmd.Wait()
	}
	if err != nil {
		return c.fail(fmt.Errorf("no result from %s: %w", c.cmd.Args[1], err))
	}
	return nil
}

// fail kills the child and adds the child's stderr to err.
func (c *child) fail(err error) error {
	c.stop()
	if c.late.Load() {
		err = fmt.Errorf("%w, it took too long", err)
	}
	if said := strings.TrimSpace(c.stderr.String()); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// stop kills the child if it has not ended, and waits for its end.
func (c *child) stop() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// cpuTime returns the CPU time of all threads of the child, or 0 if c is nil.
func (c *child) cpuTime() (time.Duration, error) {
	if c == nil {
		return 0, nil
	}
	// The id of a process's clock, as clock_getcpuclockid(3) computes it.
	const perProcessSched = 2 // CPUCLOCK_SCHED
	id := int32(^c.cmd.Process.Pid)<<3 | perProcessSched
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		return 0, errors.Join(errors.New("CPU time of a child that has ended"), err)
	}
	return time.Duration(t.Nano()), nil
}

// A clock reads CLOCK_MONOTONIC, as bpf_ktime_get_ns does. Time.Since reads it without a system
// call.
type clock struct {
	base time.Time
	ns   int64 // CLOCK_MONOTONIC at base
}

func newClock() (*clock, error) {
	// If the thread is preempted between the two readings, the result is wrong by that time. So
	// take the closest pair.
	c, shortest := &clock{}, time.Duration(math.MaxInt64)
	for range 100 {
		var t unix.Timespec
		base := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			return nil, err
		}
		if took := time.Since(base); took < shortest {
			c.base, c.ns, shortest = base, t.Nano(), took
		}
	}
	return c, nil
}

func (c *clock) now() int64 { return c.ns + int64(time.Since(c.base)) }
