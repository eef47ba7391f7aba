// Package migration is the common part of three programs that do the same, with libbpfgo's
// InitRingBuf, with cilium/ebpf and with this repository's ringbuf. To compare them:
//
//	diff initringbuf/main.go ringbuf/main.go
//	diff cilium/main.go ringbuf/main.go
package migration

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
)

// Object is the BPF object: program sched_process_exec submits to ring events.
//
//go:embed events.bpf.o
var Object []byte

// Header is printed before the first event.
const Header = "PID COMM"

// Print prints the sample of an event.
func Print(sample []byte) error {
	var event struct {
		PID  uint32
		Comm [16]byte
	}
	if _, err := binary.Decode(sample, binary.NativeEndian, &event); err != nil {
		return fmt.Errorf("sample of %d bytes: %w", len(sample), err)
	}
	comm, _, _ := bytes.Cut(event.Comm[:], []byte{0})
	fmt.Printf("%d %s\n", event.PID, comm)
	return nil
}
