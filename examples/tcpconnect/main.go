// Tcpconnect prints a line for each TCP connection that a process on this machine begins, over
// IPv4 or IPv6, until it is interrupted.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/libbpfgo/ringbuf"
)

//go:embed tcpconnect.bpf.o
var object []byte

// event has the layout of struct event in tcpconnect.bpf.c.
type event struct {
	PID    uint32
	Family uint16
	Port   [2]byte // in network byte order
	Addr   [16]byte
	Comm   [16]byte
}

func main() {
	n := flag.Int("n", 0, "end after `n` connections")
	flag.Parse()
	if err := run(*n); err != nil {
		fmt.Fprintln(os.Stderr, "tcpconnect:", err)
		os.Exit(1)
	}
}

func run(n int) error {
	module, err := loadObject(object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	prog, err := module.GetProgram("inet_sock_set_state")
	if err != nil {
		return err
	}
	if _, err := prog.AttachRawTracepoint("inet_sock_set_state"); err != nil {
		return err
	}
	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
	losses, err := module.GetMap("losses")
	if err != nil {
		return err
	}
	reader, err := ringbuf.NewReader(events, ringbuf.WithLossCounter(losses))
	if err != nil {
		return err
	}
	defer reader.Close()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	seen, err := print(ctx, reader, n)
	if err != nil {
		return err
	}
	fmt.Printf("%d connections seen, %d lost\n", seen, reader.Stats().Lost)
	return nil
}

// print prints n events, or if n is 0, events until ctx is done.
func print(ctx context.Context, reader *ringbuf.Reader, n int) (seen int, err error) {
	const row = "%-15s %8v  %-16s %-6s %v\n"
	fmt.Printf(row, "TIME", "PID", "COMM", "FAMILY", "DESTINATION")
	for e, err := range ringbuf.Samples[event](ctx, reader) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			return seen, err
		}
		comm, _, _ := bytes.Cut(e.Comm[:], []byte{0})
		family, destination := e.destination()
		fmt.Printf(row, time.Now().Format("15:04:05.000000"), e.PID, comm, family, destination)
		if seen++; seen == n {
			break
		}
	}
	return seen, nil
}

func (e *event) destination() (family string, to netip.AddrPort) {
	port := binary.BigEndian.Uint16(e.Port[:])
	if e.Family == syscall.AF_INET {
		return "IPv4", netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Addr[:])), port)
	}
	return "IPv6", netip.AddrPortFrom(netip.AddrFrom16(e.Addr), port)
}
