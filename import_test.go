package ringbuf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// program is what a user of libbpfgo might write in a module of their own. Its
// argument is the BPF object of package bpftest.
const program = `package main

import (
	"encoding/binary"
	"fmt"
	"os"

	bpf "github.com/aquasecurity/libbpfgo"
	"github.com/libbpfgo/ringbuf"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	module, err := bpf.NewModuleFromFileArgs(bpf.NewModuleArgs{BPFObjPath: os.Args[1], SkipMemlockBump: true})
	must(err)
	must(module.BPFLoadObject())
	bpfMap, err := module.GetMap("events")
	must(err)
	info, err := bpf.GetMapInfoByFD(bpfMap.FileDescriptor())
	must(err)
	mapLow, err := bpf.GetMapByID(info.ID)
	must(err)
	count, err := module.GetProgram("count")
	must(err)

	for i, m := range []ringbuf.Map{bpfMap, mapLow, ringbuf.FD(bpfMap.FileDescriptor())} {
		args := make([]byte, 32) // producer, first number, records, flags
		binary.NativeEndian.PutUint64(args[8:], uint64(100+i))
		binary.NativeEndian.PutUint64(args[16:], 1)
		must(count.Run(&bpf.RunOpts{CtxIn: args, CtxSizeIn: uint32(len(args))}))

		reader, err := ringbuf.NewReader(m)
		must(err)
		record, err := reader.Read()
		must(err)
		must(reader.Close())
		fmt.Println(binary.NativeEndian.Uint64(record.RawSample[8:]))
	}
}
`

func TestProgramInAnotherModule(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile("go.sum")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"main.go": program,
		"go.sum":  string(sums),
		"go.mod": `module example.com/agent

go 1.24

require (
	github.com/aquasecurity/libbpfgo v0.9.2-libbpf-1.5.1
	github.com/libbpfgo/ringbuf v0.0.0
)

replace github.com/libbpfgo/ringbuf => ` + here + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", ".", filepath.Join(here, "internal/bpftest/bpftest.bpf.o"))
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if want := "100\n101\n102\n"; string(out) != want {
		t.Errorf("the program printed %q, want %q", out, want)
	}
}
