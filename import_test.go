package ringbuf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests build a program in another module, as a user does.

const (
	libbpfgo       = "github.com/aquasecurity/libbpfgo"
	lowestLibbpfgo = "v0.6.0-libbpf-1.3" // what the README promises
)

// program is a program that a user of libbpfgo might write in another module. Its argument is
// the BPF object of package workload.
const program = `package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"

	bpf "github.com/aquasecurity/libbpfgo"
	"github.com/libbpfgo/ringbuf"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	runtime.LockOSThread()
	module, err := bpf.NewModuleFromFileArgs(
		bpf.NewModuleArgs{BPFObjPath: os.Args[1], SkipMemlockBump: true})
	must(err)
	var namespace syscall.Stat_t
	must(syscall.Stat("/proc/self/ns/pid", &namespace))
	must(module.InitGlobalVariable("traced_pid", uint32(os.Getpid())))
	must(module.InitGlobalVariable("namespace_dev", namespace.Dev))
	must(module.InitGlobalVariable("namespace_ino", namespace.Ino))
	must(module.BPFLoadObject())
	bpfMap, err := module.GetMap("events")
	must(err)
	info, err := bpf.GetMapInfoByFD(bpfMap.FileDescriptor())
	must(err)
	mapLow, err := bpf.GetMapByID(info.ID)
	must(err)
	prog, err := module.GetProgram("task_rename")
	must(err)
	_, err = prog.AttachRawTracepoint("task_rename")
	must(err)

	for _, m := range []ringbuf.Map{bpfMap, mapLow, ringbuf.FD(bpfMap.FileDescriptor())} {
		must(os.WriteFile("/proc/thread-self/comm", []byte("renamed"), 0))
		reader, err := ringbuf.NewReader(m)
		must(err)
		record, err := reader.Read()
		must(err)
		left := reader.AvailableBytes()
		must(reader.Close())
		thread := binary.NativeEndian.Uint32(record.RawSample[4:])
		fmt.Println(thread == uint32(syscall.Gettid()), left)
	}
}
`

// TestProgramInAnotherModule runs the program with the libbpfgo that these tests are built
// with, and with the lowest one that the README promises.
func TestProgramInAnotherModule(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	versions := []string{lowestLibbpfgo, goTool(t, "", "list", "-m", "-f", "{{.Version}}", libbpfgo)}
	for _, version := range slices.Compact(versions) {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			// As go mod tidy would, but without fetching: bench/go.sum has the newest versions.
			sums, err := os.ReadFile("go.sum")
			benchSums, benchErr := os.ReadFile("bench/go.sum")
			err = errors.Join(err, benchErr,
				os.WriteFile(filepath.Join(dir, "go.sum"), append(sums, benchSums...), 0o644),
				os.WriteFile(filepath.Join(dir, "main.go"), []byte(program), 0o644),
				os.WriteFile(filepath.Join(dir, "go.mod"), fmt.Appendf(nil, `module example.com/agent

go 1.24

require (
	%s %s
	github.com/libbpfgo/ringbuf v0.0.0
)

replace github.com/libbpfgo/ringbuf => %s
`, libbpfgo, version, here), 0o644))
			if err != nil {
				t.Fatal(err)
			}
			if got := goTool(t, dir, "list", "-mod=mod", "-m", "-f", "{{.Version}}",
				libbpfgo); got != version {
				t.Fatalf("this module turns libbpfgo %s into %s", version, got)
			}
			const want = "true 0\ntrue 0\ntrue 0"
			if got := goTool(t, dir, "run", ".",
				filepath.Join(here, "internal/workload/workload.bpf.o")); got != want {
				t.Errorf("the program printed %q, want %q", got, want)
			}
		})
	}
	t.Run("metrics takes the same", func(t *testing.T) {
		mod, err := os.ReadFile("metrics/go.mod")
		if err != nil {
			t.Fatal(err)
		}
		if line := libbpfgo + " " + lowestLibbpfgo + " // indirect\n"; !strings.Contains(string(mod),
			line) {
			t.Errorf("metrics/go.mod has no line %q", line)
		}
	})
}

// goTool runs a go command in the module in dir, or in this module if dir is "", and returns
// its output. GOFLAGS may name a go.mod for this module. Another module does not get that flag.
func goTool(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	if flags, ok := os.LookupEnv("GOFLAGS"); ok && dir != "" {
		others := slices.DeleteFunc(strings.Fields(flags),
			func(flag string) bool { return strings.HasPrefix(flag, "-modfile=") })
		cmd.Env = append(os.Environ(), "GOFLAGS="+strings.Join(others, " "))
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}
