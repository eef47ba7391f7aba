package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// These tests run the tool as its users do. They create the rings and BPF programs in this kernel.

// tool is the path of the tool.
var tool string

func TestMain(m *testing.M) {
	_ = rlimit.RemoveMemlock() // for kernels before 5.11
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	if tool = os.Getenv("RINGBUF_TOOL"); tool != "" { // on machines without a compiler
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// Tests run the tool as other users, too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	tool = filepath.Join(dir, "ringbuf")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", tool, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// A result is the output and exit code of a command.
type result struct {
	stdout, stderr string
	code           int
}

// run runs the tool until it ends.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return runCommand(t, exec.Command(tool, args...))
}

func runCommand(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// wantOK returns the lines of standard output. It fails the test if the exit code is not 0.
func (r result) wantOK(t *testing.T) []string {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("ended with code %d: %s", r.code, r.stderr)
	}
	return strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
}

// An object is a JSON object of list or top.
type object struct {
	ID               uint32
	Name, Type       string
	Flags            []string
	SizeBytes        int      `json:"size_bytes"`
	FillBytes        *int     `json:"fill_bytes"`
	FillPercent      *float64 `json:"fill_percent"`
	ConsumerPosition uint64   `json:"consumer_position"`
	ProducerPosition uint64   `json:"producer_position"`
	Programs         []struct {
		ID         uint32
		Name, Type string
	}
	Processes []struct {
		PID  int
		Comm string
		Via  []string
	}
	Pins []string

	IntervalSeconds    float64  `json:"interval_seconds"`
	PeakFillBytes      *int     `json:"peak_fill_bytes"`
	PeakFillPercent    *float64 `json:"peak_fill_percent"`
	BytesPerSecond     *float64 `json:"bytes_per_second"`
	RecordsPerSecond   *float64 `json:"records_per_second"`
	MeanSizeBytes      *float64 `json:"mean_size_bytes"`
	DiscardedPerSecond *float64 `json:"discarded_per_second"`
	MissedBytes        uint64   `json:"missed_bytes"`
	LostPerSecond      *float64 `json:"lost_per_second"`
	LostShared         bool     `json:"lost_shared"`
	Time               time.Time
}

func decode(t *testing.T, line string) (o object) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return o
}

// A ring is a ring buffer with a program that writes into it.
type ring struct {
	t  *testing.T
	m  *ebpf.Map
	p  *ebpf.Program
	id uint32
}

// sampleSize is the size of a sample, and recordSize the size of its record in the ring.
const (
	sampleSize = 60
	recordSize = 72
	maxWrites  = 500 // in one run of the program
)

// newRing creates a ring, and a program "write" that writes into it.
func newRing(t *testing.T, name string, size int) *ring {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.RingBuf, MaxEntries: uint32(size)})
	if err != nil {
		kinds.SkipOrFail(t, err)
	}
	r := &ring{t: t, m: m}
	t.Cleanup(func() { r.close() })
	r.id = mapID(t, m)
	// The context is the number of records to write. The program returns how many were refused.
	r.p, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "write", Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: append(zeroStack(sampleSize+4),
			asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
			asm.Mov.Imm(asm.R7, 0),
			asm.Mov.Imm(asm.R8, 0),
			asm.JGE.Reg(asm.R7, asm.R6, "end").WithSymbol("loop"),
			asm.JGE.Imm(asm.R7, maxWrites, "end"),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -(sampleSize+4)),
			asm.Mov.Imm(asm.R3, sampleSize),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRingbufOutput.Call(),
			asm.Add.Imm(asm.R7, 1),
			asm.JEq.Imm(asm.R0, 0, "loop"),
			asm.Add.Imm(asm.R8, 1),
			asm.Ja.Label("loop"),
			asm.Mov.Reg(asm.R0, asm.R8).WithSymbol("end"),
			asm.Return(),
		),
	})
	if err != nil {
		kinds.SkipOrFail(t, err)
	}
	return r
}

// zeroStack clears size bytes of the stack.
func zeroStack(size int16) (ins asm.Instructions) {
	ins = append(ins, asm.Mov.Imm(asm.R9, 0))
	for at := int16(8); at <= size; at += 8 {
		ins = append(ins, asm.StoreMem(asm.RFP, -at, asm.R9, asm.DWord))
	}
	return ins
}

func (r *ring) close() {
	if r.m != nil {
		r.m.Close()
		r.p.Close()
		r.m, r.p = nil, nil
	}
}

// write tries to write n records, and returns how many the ring had room for.
func (r *ring) write(n int) (written int) {
	r.t.Helper()
	for n > 0 {
		batch := min(n, maxWrites)
		refused, err := r.p.Run(&ebpf.RunOptions{Context: uint64(batch)})
		if err != nil {
			r.t.Fatal(err)
		}
		written += batch - int(refused)
		n -= batch
	}
	return written
}

// consume moves the consumer position to the producer position, as if all records had been read.
func (r *ring) consume() {
	r.t.Helper()
	page := os.Getpagesize()
	consumer, err := syscall.Mmap(r.m.FD(), 0, page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_SHARED)
	if err != nil {
		r.t.Fatal(err)
	}
	defer syscall.Munmap(consumer)
	producer, err := syscall.Mmap(r.m.FD(), int64(page), page, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		r.t.Fatal(err)
	}
	defer syscall.Munmap(producer)
	// SAFETY: both mappings are page-aligned, and stay until the end of this function.
	to := atomic.LoadUint64((*uint64)(unsafe.Pointer(&producer[0])))
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&consumer[0])), to)
}

func mapID(t *testing.T, m *ebpf.Map) uint32 {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return uint32(id)
}

// newUser returns a program that refers to maps, but does nothing with them.
func newUser(t *testing.T, name string, maps ...*ebpf.Map) *ebpf.Program {
	t.Helper()
	var ins asm.Instructions
	for _, m := range maps {
		ins = append(ins, asm.LoadMapPtr(asm.R1, m.FD()))
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: append(ins, asm.Mov.Imm(asm.R0, 0), asm.Return()),
	})
	if err != nil {
		kinds.SkipOrFail(t, err)
	}
	return p
}

// fdID returns the id of the map of a descriptor.
func fdID(t *testing.T, fd int) uint32 {
	t.Helper()
	dup, err := syscall.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMapFromFD(dup)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return mapID(t, m)
}
