package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

const selftestPrefix = "selftest "

// The commands that the guest runs. They print the format of go test -v.
var commands = []struct {
	name   string
	prefix string // of the names of its tests
	args   []string
}{
	{"selftest", selftestPrefix, []string{"/selftest"}},
	// Skip tests that compile programs, because the guest has no compiler. Skip tests with a
	// fake kernel: they are the same everywhere, and slow here. Rallies are slow too, and the
	// host runs enough of them.
	{"package", "", []string{"/ringbuf.test", "-test.v=test2json", "-test.timeout=15m",
		"-rallies=5000", "-test.skip=^(TestProgramInAnotherModule|TestWatcherWorksWithoutCgo|" +
			"TestWatcherYieldsAllThatIsSubmitted|TestNoRecordIsTornThatIsOverwrittenMeanwhile|" +
			"TestMerged(OrderIsPerfect.*|CountsWhat.*|LeavesRoom.*|OrdersABacklog|LeavesTheRest.*))$"}},
	// Skip tests that need other programs, a terminal, or the speed of a real processor.
	{"tool", "ringbuf ", []string{"/tool.test", "-test.v=test2json", "-test.timeout=5m",
		"-test.skip=^(TestListSaysThatNothingCanBePinned|TestPrivileges|TestTop(OnATerminal|" +
			"EndsWithASignal|HasNoColors.*|Scrolls|IsCheap|CountsWhatIsProduced|Estimates.*))$"}},
	{"tail", "ringbuf tail: ", []string{"/tail.test", "-test.v=test2json", "-test.timeout=5m",
		"-test.skip=^(TestAMillion.*|TestWritingAMillion.*|TestWithoutCgo.*|TestWatchingTakes.*|" +
			"TestTshark.*)$"}},
}

// Messages between the guest and the host.
const (
	probeParameter = "vmtest.probe" // kernel parameter: end at once
	releaseMark    = "vmtest: Linux "
	beginMark      = "vmtest: begin "
	endMark        = "vmtest: end "
	doneMark       = "vmtest: done\n"
)

// guest is the main function of process 1. It does not return.
func guest() {
	if err := runCommands(); err != nil {
		fmt.Println("vmtest:", err)
	} else {
		fmt.Print(doneMark)
	}
	// Output is sent by interrupts from a buffer. Wait until it is sent, as tcdrain(3) does.
	const tcsbrk = 0x5409
	syscall.Syscall(syscall.SYS_IOCTL, 1, tcsbrk, 1)
	// qemu ends when the guest restarts.
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	panic("no restart")
}

func runCommands() error {
	for dir, fs := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs",
		"/tmp": "tmpfs"} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), syscall.Mount(fs, dir, fs, 0, "")); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	parameters, err := os.ReadFile("/proc/cmdline")
	if err != nil || strings.Contains(string(parameters), probeParameter) {
		return err
	}
	major := 0
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err == nil {
		fmt.Print(releaseMark, string(release))
		_, err = fmt.Sscanf(string(release), "%d.", &major)
	}
	if err == nil && major < 6 {
		// With another value, such a kernel lets a process without capabilities use no map.
		err = os.WriteFile("/proc/sys/kernel/unprivileged_bpf_disabled", []byte("0"), 0)
	}
	if err != nil {
		return err
	}
	for _, c := range commands {
		fmt.Println(beginMark + c.name)
		cmd := exec.Command(c.args[0], c.args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		cmd.Env = []string{"RINGBUF_KERNEL_TESTS=require", "RINGBUF_TOOL=/ringbuf"}
		status := "ok"
		if err := cmd.Run(); err != nil {
			status = err.Error()
		}
		fmt.Printf("%s%s: %s\n", endMark, c.name, status)
	}
	return nil
}
