// Unprivileged sends the descriptor of a ring over a Unix socket to a process that has no
// capabilities and can get none. It checks that this process reads every event.
package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/workload"
)

const (
	statusSkip = 4 // for selftest/main.go
	argument   = "read without capabilities"
	duration   = time.Second
)

// errOldKernel is returned if the test is impossible because the kernel is older than 6.0.
var errOldKernel = errors.New("before Linux 6.0, kernel.unprivileged_bpf_disabled must be 0")

func main() {
	workload.Main()
	run := run
	if len(os.Args) == 2 && os.Args[1] == argument {
		run = readWithoutCapabilities
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "unprivileged:", err)
		if errors.Is(err, errOldKernel) {
			os.Exit(statusSkip)
		}
		os.Exit(1)
	}
}

func run() error {
	w, err := workload.New(nil)
	if err != nil {
		return err
	}
	defer w.Close()
	child, conn, err := startChild()
	if err != nil {
		return err
	}
	defer child.Wait()
	defer conn.Close()
	rights := syscall.UnixRights(w.Events.FileDescriptor())
	if _, _, err := conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		return err
	}
	fromChild := gob.NewDecoder(conn)
	var r report
	if err := fromChild.Decode(&r); err != nil {
		return err
	}
	if r.Denied && bpfIsDenied() {
		return errOldKernel
	}
	if r.Err != "" {
		return errors.New(r.Err)
	}
	if err := w.Start(); err != nil {
		return err
	}
	time.Sleep(duration)
	if err := w.Stop(); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{0}); err != nil {
		return err
	}
	if err := fromChild.Decode(&r); err != nil {
		return err
	}
	if r.Err != "" {
		return errors.New(r.Err)
	}
	counters, err := w.Counters()
	if err != nil {
		return err
	}
	if err := r.Seen.CheckComplete(counters); err != nil {
		return err
	}
	fmt.Printf("%d events read\n", r.Seen.Total())
	return nil
}

// bpfIsDenied reports whether the kernel refuses all bpf(2) commands without CAP_BPF.
func bpfIsDenied() bool {
	major := 0
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return false
	}
	if _, err := fmt.Sscanf(string(release), "%d.", &major); err != nil || major >= 6 {
		return false
	}
	disabled, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	return err == nil && disabled[0] != '0'
}

// startChild starts a process without capabilities, and returns a socket to it.
func startChild() (*exec.Cmd, *net.UnixConn, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	defer theirs.Close()
	conn, err := unixConn(fds[0])
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("/proc/self/exe", argument)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread, which loses privileges, ends with this goroutine
		started <- startUnprivileged(cmd)
	}()
	return cmd, conn, <-started
}

// startUnprivileged starts a process without capabilities. Afterwards the calling thread may
// have lost its privileges.
func startUnprivileged(cmd *exec.Cmd) error {
	if os.Geteuid() == 0 {
		// A user other than root loses all capabilities at execve.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	} else {
		// With no_new_privs, execve grants only file capabilities that the process has already.
		// So drop all.
		header := struct {
			version uint32
			pid     int32
		}{version: 0x20080522} // _LINUX_CAPABILITY_VERSION_3
		var none [2]struct{ effective, permitted, inheritable uint32 }
		// SAFETY: the kernel reads both during the call only.
		_, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)),
			uintptr(unsafe.Pointer(&none)), 0)
		if errno != 0 {
			return fmt.Errorf("capset: %w", errno)
		}
	}
	// The child inherits this: neither file capabilities nor setuid count.
	const prSetNoNewPrivs = 38
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs,
		1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", errno)
	}
	return cmd.Start()
}

func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// A report is sent by the child when it has a Reader, and at the end.
type report struct {
	Seen   workload.Sequences
	Err    string
	Denied bool // the child may not use the map
}

func readWithoutCapabilities() error {
	conn, err := unixConn(3)
	if err != nil {
		return err
	}
	defer conn.Close()
	toParent := gob.NewEncoder(conn)
	reader, err := openReader(conn)
	if err != nil {
		return toParent.Encode(report{Err: err.Error(), Denied: errors.Is(err, syscall.EPERM)})
	}
	defer reader.Close()
	if err := toParent.Encode(report{}); err != nil {
		return err
	}
	go func() {
		conn.Read(make([]byte, 1))
		reader.Flush()
	}()
	var r report
	if err := workload.ReadUntil(reader, ringbuf.ErrFlushed, r.Seen.Check); err != nil {
		r.Err = err.Error()
	}
	return toParent.Encode(r)
}

// openReader receives a descriptor, and opens a Reader of its ring.
func openReader(conn *net.UnixConn) (*ringbuf.Reader, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	for _, line := range []string{
		"CapInh:\t0000000000000000\n",
		"CapPrm:\t0000000000000000\n",
		"CapEff:\t0000000000000000\n",
		"CapAmb:\t0000000000000000\n",
		"NoNewPrivs:\t1\n",
	} {
		if !strings.Contains(string(status), line) {
			return nil, fmt.Errorf("this process should have %q:\n%s", line, status)
		}
	}
	rights := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages, %v", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fds[0])
	return ringbuf.NewReader(ringbuf.FD(fds[0]))
}
