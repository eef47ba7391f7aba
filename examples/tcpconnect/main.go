// Tcpconnect prints a line for each TCP connection that a process of this machine
// begins, over IPv4 or IPv6, until it is interrupted.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

//go:embed tcpconnect.bpf.o
var object []byte

// event is struct event of tcpconnect.bpf.c.
type event struct {
	PID    uint32
	Family uint16
	Port   [2]byte // as in the packet
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
	module, err := bpfobj.Load(object, nil)
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
	reader, err := ringbuf.NewReader(events)
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
	lost, err := lostEvents(module)
	if err != nil {
		return err
	}
	fmt.Printf("%d connections seen, %d lost\n", seen, lost)
	return nil
}

// print prints n events, or if that is 0, events until ctx is done.
func print(ctx context.Context, reader *ringbuf.Reader, n int) (seen int, err error) {
	const row = "%-15s %8v  %-16s %-6s %v\n"
	fmt.Printf(row, "TIME", "PID", "COMM", "FAMILY", "DESTINATION")
	for record, err := range records(ctx, reader) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			return seen, err
		}
		e, err := as[event](record)
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

// records yields records until the Reader is closed, or an error. That of a ctx that is done
// comes after what was in the ring.
func records(ctx context.Context, reader *ringbuf.Reader) iter.Seq2[ringbuf.Record, error] {
	return func(yield func(ringbuf.Record, error) bool) {
		defer context.AfterFunc(ctx, func() { reader.SetDeadline(time.Unix(0, 0)) })()
		for {
			record, err := reader.Read()
			switch {
			case errors.Is(err, ringbuf.ErrClosed):
				return
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = ctx.Err()
			}
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// as decodes the sample of a record.
func as[T any](record ringbuf.Record) (*T, error) {
	v := new(T)
	if _, err := binary.Decode(record.RawSample, binary.NativeEndian, v); err != nil {
		return nil, fmt.Errorf("sample of %d bytes: %w", len(record.RawSample), err)
	}
	return v, nil
}

// lostEvents returns the program's variable lost.
func lostEvents(module *bpf.Module) (uint64, error) {
	variables, err := module.GetMap(".bss")
	if err != nil {
		return 0, err
	}
	key := uint32(0)
	// SAFETY: libbpf reads the key during the call only.
	value, err := variables.GetValue(unsafe.Pointer(&key))
	if err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(value), nil
}
