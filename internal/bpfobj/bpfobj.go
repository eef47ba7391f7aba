// Package bpfobj loads BPF objects that are embedded in a Go program.
package bpfobj

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	bpf "github.com/aquasecurity/libbpfgo"
)

// warnings has the warnings of libbpf. libbpf's other messages are dropped.
var warnings struct {
	sync.Mutex
	strings.Builder
}

func init() {
	bpf.SetLoggerCbs(bpf.Callbacks{Log: func(level int, msg string) {
		if level == bpf.LibbpfWarnLevel {
			warnings.Lock()
			defer warnings.Unlock()
			warnings.WriteString(msg)
		}
	}})
}

// Load loads the BPF object in elf. It calls prepare, unless that is nil, before it loads. The
// error includes libbpf's warnings, unless a privilege is missing.
//
// Unlike libbpfgo.NewModuleFromBuffer, Load leaves the memlock limit alone. The limit matters
// only before kernel 5.11, where libbpf raises it. A process without CAP_SYS_RESOURCE cannot
// raise it.
func Load(elf []byte, prepare func(*bpf.Module) error) (*bpf.Module, error) {
	Warnings()
	module, err := open(elf)
	if err != nil {
		return nil, fmt.Errorf("open BPF object: %w", err)
	}
	if prepare != nil {
		err = prepare(module)
	}
	if err == nil {
		err = module.BPFLoadObject()
	}
	if err == nil {
		return module, nil
	}
	module.Close()
	if errors.Is(err, syscall.EPERM) {
		return nil, fmt.Errorf("%w: root, or CAP_BPF and CAP_PERFMON, is needed", err)
	}
	return nil, fmt.Errorf("%w\n%s", err, Warnings())
}

// Warnings returns libbpf's warnings since the last call.
func Warnings() string {
	warnings.Lock()
	defer warnings.Unlock()
	defer warnings.Reset()
	return warnings.String()
}

func open(elf []byte) (*bpf.Module, error) {
	f, err := os.CreateTemp("", "*.bpf.o")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(elf)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return bpf.NewModuleFromFileArgs(bpf.NewModuleArgs{BPFObjPath: f.Name(), SkipMemlockBump: true})
}
