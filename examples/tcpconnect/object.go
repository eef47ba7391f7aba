package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	bpf "github.com/aquasecurity/libbpfgo"
)

// loadObject loads a BPF object. It calls prepare, unless that is nil, before it loads. It
// loads from a file: for an object in memory, libbpfgo up to v0.9 first raises the memlock
// limit. Raising it takes CAP_SYS_RESOURCE, and is not necessary since Linux 5.11.
func loadObject(object []byte, prepare func(*bpf.Module) error) (*bpf.Module, error) {
	// By default libbpfgo prints all messages of libbpf.
	bpf.SetLoggerCbs(bpf.Callbacks{Log: func(level int, message string) {
		if level == bpf.LibbpfWarnLevel {
			fmt.Fprint(os.Stderr, message)
		}
	}})
	file, err := os.CreateTemp("", "*.bpf.o")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(object)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	module, err := bpf.NewModuleFromFileArgs(bpf.NewModuleArgs{BPFObjPath: file.Name(),
		SkipMemlockBump: true})
	if err != nil {
		return nil, fmt.Errorf("open BPF object: %w", err)
	}
	if prepare != nil {
		err = prepare(module)
	}
	if err == nil {
		err = module.BPFLoadObject()
	}
	if err != nil {
		module.Close()
		if errors.Is(err, syscall.EPERM) {
			err = fmt.Errorf("%w: root, or CAP_BPF and CAP_PERFMON, is needed", err)
		}
		return nil, err
	}
	return module, nil
}
