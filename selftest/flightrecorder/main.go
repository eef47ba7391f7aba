// Flightrecorder lets examples/flightrecorder record this process. It asks twice for the last
// system calls, and checks that they are those that this process has made. It is skipped if the
// kernel has no ring buffers in overwrite mode.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const statusSkip = 4 // KSFT_SKIP in tools/testing/selftests/kselftest.h

var errSkip = errors.New("skipped")

func main() {
	switch err := run(); {
	case errors.Is(err, errSkip):
		fmt.Println(err)
		os.Exit(statusSkip)
	case err != nil:
		fmt.Fprintln(os.Stderr, "flightrecorder:", err)
		os.Exit(1)
	}
}

func run() error {
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	if namespace != "pid:[4026531836]" { // PROC_PID_INIT_INO in include/linux/proc_ns.h
		return fmt.Errorf("%w: in a PID namespace this process does not know its number", errSkip)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(self), "../flightrecorder"),
		"-p", strconv.Itoa(os.Getpid()), "-n", "1000000")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stdout)
	if _, err := lines.ReadString('\n'); err != nil { // the line that says that it records
		cmd.Wait()
		if strings.Contains(stderr.String(), "Linux 6.19") {
			return fmt.Errorf("%w: needs Linux 6.19", errSkip)
		}
		return fmt.Errorf("it did not begin: %s", stderr.String())
	}
	// The second time, more has been written than the ring holds: the newest calls must be
	// there.
	for _, calls := range []int{100, 100_000} {
		for range calls {
			syscall.Getppid()
		}
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			return err
		}
		all, ours, err := readCalls(lines)
		if err != nil {
			return err
		}
		fmt.Printf("after %d calls of getppid it has %d, and %d of others\n", calls, ours, all-ours)
		if ours < min(calls, 5000) || ours > calls {
			return fmt.Errorf("%d of them are missing, or too many", calls-ours)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("it ended with %w: %s", err, stderr.String())
	}
	return nil
}

// readCalls reads what the example prints on a signal. It returns the number of system calls,
// and how many of them are getppid.
func readCalls(lines *bufio.Reader) (all, ours int, err error) {
	var inRing int
	head, err := lines.ReadString('\n')
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscanf(head, "%d of %d system calls", &all, &inRing)
	if err != nil || all != inRing {
		return 0, 0, fmt.Errorf("it printed %q", head)
	}
	if _, err := lines.ReadString('\n'); err != nil { // the column headings
		return 0, 0, err
	}
	for range all {
		line, err := lines.ReadString('\n')
		if err != nil {
			return 0, 0, err
		}
		if strings.HasSuffix(line, fmt.Sprintf(" %d\n", syscall.SYS_GETPPID)) {
			ours++
		}
	}
	return all, ours, nil
}
