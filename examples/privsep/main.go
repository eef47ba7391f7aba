// Privsep prints a line for each program that is executed on this machine, from a process
// without privileges. The loader has privileges. It loads and attaches a BPF program, and sends
// the descriptor of its ring to the reader. Then it keeps only the link: events come while the
// link exists.
//
// The reader is another process of this program. It receives the descriptor over a Unix socket,
// so it could also be another program that somebody else started.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/libbpfgo/ringbuf"
)

//go:embed privsep.bpf.o
var object []byte

const (
	readerArgument = "reader"
	socketFD       = 3     // in the reader
	nobody         = 65534 // user and group of the reader
)

// event has the layout of struct event in privsep.bpf.c.
type event struct {
	PID  uint32
	Comm [16]byte
}

func main() {
	role, run := "loader", load
	if len(os.Args) == 2 && os.Args[1] == readerArgument {
		role, run = "reader", read
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "privsep: %s: %v\n", role, err)
		os.Exit(1)
	}
}

// load is the main function of the loader.
func load() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	conn, err := unixConn(fds[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	link, err := attachAndSend(conn)
	if err != nil {
		return err
	}
	defer link.Close()

	cmd := exec.Command("/proc/self/exe", readerArgument)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	if err := startUnprivileged(cmd); err != nil {
		return fmt.Errorf("start reader: %w", err)
	}
	theirs.Close()
	// Closing the link ends the events. Closing the socket tells the reader to read the
	// remaining events and end. If the loader is killed, the kernel closes both. A second
	// signal does not wait for the reader.
	context.AfterFunc(ctx, func() {
		stop()
		link.Close()
		conn.Close()
	})
	return cmd.Wait()
}

// attachAndSend attaches the BPF program, sends the descriptor of its ring, and returns the
// descriptor of the link. It closes the module's descriptors. The kernel keeps the program for
// the link, and the ring for the program.
func attachAndSend(conn *net.UnixConn) (link *os.File, err error) {
	module, err := loadObject(object, nil)
	if err != nil {
		return nil, err
	}
	defer module.Close()
	events, err := module.GetMap("events")
	if err != nil {
		return nil, err
	}
	rights := syscall.UnixRights(events.FileDescriptor())
	if _, _, err := conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		return nil, err
	}
	prog, err := module.GetProgram("sched_process_exec")
	if err != nil {
		return nil, err
	}
	attached, err := prog.AttachRawTracepoint("sched_process_exec")
	if err != nil {
		return nil, err
	}
	// Not dup(2): the reader would inherit the descriptor.
	fd, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(attached.FileDescriptor()),
		syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return nil, fmt.Errorf("duplicate link: %w", errno)
	}
	return os.NewFile(fd, "link"), nil
}

// startUnprivileged starts a process of a user without capabilities, and without root's groups.
// The process inherits no_new_privs from its thread, so setuid programs and file capabilities
// give it none either. The thread ends with the goroutine.
func startUnprivileged(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		const prSetNoNewPrivs = 38 // include/uapi/linux/prctl.h
		if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0,
			0); errno != 0 {
			started <- fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", errno)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// read is the main function of the reader.
func read() error {
	conn, err := unixConn(socketFD)
	if err != nil {
		return err
	}
	defer conn.Close()
	fd, err := receiveFD(conn)
	if err != nil {
		return err
	}
	reader, err := ringbuf.NewReader(ringbuf.FD(fd))
	syscall.Close(fd)
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w: before Linux 6.0, kernel.unprivileged_bpf_disabled must be 0", err)
	}
	if err != nil {
		return err
	}
	defer reader.Close()

	// Ctrl-C is for the loader, which closes the socket when no more events come.
	signal.Ignore(syscall.SIGINT)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	go func() {
		<-terminate
		conn.Close()
	}()
	go func() {
		conn.Read(make([]byte, 1))
		reader.Flush()
	}()
	return print(reader)
}

// print prints the reader's privileges, and then events until the reader is flushed.
func print(reader *ringbuf.Reader) error {
	privileges, err := privileges()
	if err != nil {
		return err
	}
	fmt.Println(privileges)
	const row = "%8v  %s\n"
	fmt.Printf(row, "PID", "COMM")
	var record ringbuf.Record
	for {
		err := reader.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrFlushed) {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := ringbuf.As[event](record)
		if err != nil {
			return err
		}
		comm, _, _ := bytes.Cut(e.Comm[:], []byte{0})
		fmt.Printf(row, e.PID, comm)
	}
}

// privileges returns the privileges of this process, as the kernel shows them.
func privileges() (string, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	var lines []string
	for line := range strings.Lines(string(status)) {
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "Groups", "CapPrm", "CapEff", "NoNewPrivs":
			lines = append(lines, name+": "+strings.Join(strings.Fields(value), " "))
		}
	}
	return strings.Join(lines, ", "), nil
}

// receiveFD receives the descriptor from the loader.
func receiveFD(conn *net.UnixConn) (int, error) {
	rights := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return 0, err
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d control messages, not 1: %v", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, fmt.Errorf("%d descriptors, not 1: %v", len(fds), err)
	}
	return fds[0], nil
}

// unixConn returns the connection of a socket's descriptor, and closes the descriptor.
func unixConn(fd int) (*net.UnixConn, error) {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
