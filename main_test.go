package ringbuf

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// TestMain fails when tests pass but leave goroutines, descriptors or mappings of
// rings behind.
func TestMain(m *testing.M) {
	status := bpftest.Status()
	fmt.Println(status)
	// Fuzzing starts the goroutine of os/signal, which never ends.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	signal.Stop(signals)
	before := resources()
	code := m.Run()
	fmt.Println(status) // and at the end of a long output
	if code == 0 {
		if err := awaitResources(before); err != nil {
			fmt.Println("leak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// resourceCount is how much of what a Reader holds this process has.
type resourceCount struct{ goroutines, descriptors, mappings int }

func resources() resourceCount {
	// The test binary itself may have descriptors that are not yet collected.
	runtime.GC()
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	return resourceCount{
		goroutines:  runtime.NumGoroutine(),
		descriptors: len(descriptors),
		mappings:    strings.Count(string(maps), "bpf-map"),
	}
}

// awaitResources waits until this process has no more than want, for goroutines
// and cleanups take a moment to end.
func awaitResources(want resourceCount) error {
	var got resourceCount
	for p := (patience{left: 5 * time.Second}); !p.over(); {
		got = resources()
		if got.goroutines <= want.goroutines && got.descriptors <= want.descriptors &&
			got.mappings <= want.mappings {
			return nil
		}
		runtime.Gosched()
	}
	pprof.Lookup("goroutine").WriteTo(os.Stdout, 1)
	return fmt.Errorf("have %+v, want at most %+v", got, want)
}

// inOwnProcess runs a test in a process of its own, because it changes what all of a
// process has, or measures that after other tests changed it. env is what else is in
// the environment there.
func inOwnProcess(t *testing.T, test func(t *testing.T), env ...string) {
	t.Helper()
	const inside = "RINGBUF_TEST_ALONE"
	if os.Getenv(inside) == t.Name() {
		test(t)
		return
	}
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	out, err := runTests("^"+t.Name()+"$", append(env, inside+"="+t.Name())...)
	if err != nil || !strings.Contains(out, "--- PASS: "+t.Name()+" ") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.Contains(line, "_test.go:") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// runTests runs tests of this binary in another process, and returns what that printed.
func runTests(pattern string, env ...string) (string, error) {
	// The process ends with the thread that started it, if this one times out.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := testCommand(pattern, env...)
	if dir := flag.Lookup("test.gocoverdir").Value.String(); dir != "" {
		cmd.Args = append(cmd.Args, "-test.gocoverdir="+dir)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func testCommand(pattern string, env ...string) *exec.Cmd {
	args := []string{"-test.run=" + pattern, "-test.v", fmt.Sprint("-cycles=", *cycles)}
	if timeout, ok := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); ok {
		// Earlier than in this process, so that what it says then is seen.
		args = append(args, fmt.Sprint("-test.timeout=", timeout*3/4))
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// On a machine that is busy with others a limit by the wall's clock says nothing of the code
// that is tested. So these two count time only while this process has turns on a processor.

// A patience is for who looks again and again.
type patience struct {
	left time.Duration
	last time.Time
}

func (p *patience) over() bool {
	now := time.Now()
	if !p.last.IsZero() {
		p.left -= min(now.Sub(p.last), 10*time.Millisecond)
	}
	p.last = now
	return p.left < 0
}

// A turnClock is for who waits.
type turnClock struct{ ns atomic.Int64 }

func newTurnClock(t *testing.T) *turnClock {
	c := new(turnClock)
	stop := make(chan struct{})
	var ticking group
	ticking.Go(func() {
		const turn = time.Millisecond
		ticker := time.NewTicker(turn)
		defer ticker.Stop()
		last := time.Now()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				now := time.Now()
				c.ns.Add(int64(min(now.Sub(last), 2*turn)))
				last = now
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		ticking.Wait()
	})
	return c
}

// now returns a time after the clock was made.
func (c *turnClock) now() time.Duration { return time.Duration(c.ns.Load()) }
