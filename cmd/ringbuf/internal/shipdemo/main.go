// Shipdemo shows that ship loses no record. "ringbuf ship" ships the ring of execsnoop to its own
// server, and "ringbuf subscribe" prints the records. Meanwhile, shipdemo starts programs, and
// kills the shipper twice. It fails unless each program was printed once and in order.
//
//	shipdemo RINGBUF EXECSNOOP.BPF.O
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

const (
	programs = 300
	every    = 20 * time.Millisecond
	away     = 500 * time.Millisecond // how long there is no shipper
	patience = 2 * time.Minute
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: ship-demo RINGBUF EXECSNOOP.BPF.O")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "ship-demo:", err)
		os.Exit(1)
	}
}

func run(tool, object string) error {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	id, detach, err := attach(object)
	if err != nil {
		return err
	}
	defer detach()
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "demo-program")
	if err := os.Symlink("/bin/true", program); err != nil {
		return err
	}

	shipper := &process{args: []string{tool, "ship", "--store", filepath.Join(dir, "store"),
		"--listen", addr, "id", strconv.Itoa(int(id))}}
	defer shipper.kill()
	if err := shipper.start(nil); err != nil {
		return err
	}
	seen, printed := make(chan int, programs), make(chan struct{})
	subscriber := &process{args: []string{tool, "subscribe", "--from", "nats://" + addr, "--btf",
		object, "-t", "struct event", "events"}}
	defer subscriber.kill()
	err = subscriber.start(func(stdout io.Reader) {
		defer close(printed)
		show(stdout, program, seen)
	})
	if err != nil {
		return err
	}

	var started []int
	again := make(chan error, 1) // empty while the shipper is about to be started again
	again <- nil
	for i := range programs {
		cmd := exec.Command(program)
		if err := cmd.Run(); err != nil {
			return err
		}
		started = append(started, cmd.Process.Pid)
		if i == programs/3 || i == programs/2 {
			fmt.Printf("--- kill -9 of the shipper, and of its server, after %d programs\n", i+1)
			if err := <-again; err != nil {
				return err
			}
			shipper.kill()
			time.AfterFunc(away, func() {
				fmt.Println("--- the shipper is started again")
				again <- shipper.start(nil)
			})
		}
		time.Sleep(every)
	}
	if err := <-again; err != nil {
		return err
	}
	pids, err := await(seen, printed, programs)
	if err != nil {
		return err
	}
	subscriber.cmd.Process.Signal(os.Interrupt)
	<-printed
	for pid := range drain(seen) {
		pids = append(pids, pid)
	}
	if !slices.Equal(pids, started) {
		return fmt.Errorf("%d programs were started and %d printed, or in another order", len(started),
			len(pids))
	}
	fmt.Printf("%d programs started, %d printed, each once and in order; the shipper was killed "+
		"twice\n",
		len(started), len(pids))
	return nil
}

// attach loads and attaches execsnoop's program, and returns the id of its ring.
func attach(object string) (id ebpf.MapID, detach func(), err error) {
	_ = rlimit.RemoveMemlock() // for kernels before 5.11
	collection, err := ebpf.LoadCollection(object)
	if err != nil {
		return 0, nil, fmt.Errorf("load %s: %w", object, err)
	}
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec",
		Program: collection.Programs["sched_process_exec"]})
	if err != nil {
		collection.Close()
		return 0, nil, err
	}
	info, err := collection.Maps["events"].Info()
	if err != nil {
		return 0, nil, err
	}
	id, _ = info.ID()
	return id, func() { attached.Close(); collection.Close() }, nil
}

// freeAddr returns a local address with a free port.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// pidOf finds pid, the first field of struct event.
var pidOf = regexp.MustCompile(`\bpid[=: ]+(\d+)`)

// show prints the output of a subscriber, and sends the pid in each line about a program to seen.
func show(stdout io.Reader, program string, seen chan<- int) {
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Println(lines.Text())
		if !strings.Contains(lines.Text(), program) {
			continue
		}
		if found := pidOf.FindStringSubmatch(lines.Text()); found != nil {
			pid, _ := strconv.Atoi(found[1])
			seen <- pid
		}
	}
}

// await waits for n pids.
func await(seen <-chan int, printed <-chan struct{}, n int) (pids []int, err error) {
	for timeout := time.After(patience); len(pids) < n; {
		select {
		case pid := <-seen:
			pids = append(pids, pid)
		case <-printed:
			return nil, errors.New("the subscriber has ended")
		case <-timeout:
			return nil, fmt.Errorf("%d of %d programs were printed", len(pids), n)
		}
	}
	return pids, nil
}

// drain yields the values that are in a channel now.
func drain(c <-chan int) func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for {
			select {
			case v := <-c:
				if !yield(v) {
					return
				}
			default:
				return
			}
		}
	}
}

// A process is a process of the tool, which can be started again.
type process struct {
	args []string
	cmd  *exec.Cmd
}

// start starts the process. A goroutine calls read, unless it is nil.
func (p *process) start(read func(stdout io.Reader)) error {
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if read == nil {
		return p.cmd.Start()
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go read(stdout)
	return nil
}

func (p *process) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}
