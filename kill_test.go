package ringbuf

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// The environment of a process that reads until it is killed.
const (
	killedPin = "RINGBUF_TEST_PIN"
	killedWay = "RINGBUF_TEST_WAY"
)

// The size of a sample in that process, and of its record.
const (
	killedSample = 64
	killedRecord = killedSample + bpftest.HeaderSize
)

func numberOf(sample []byte) uint64 { return binary.NativeEndian.Uint64(sample) }

// TestKillLosesNothing kills a process while it reads a pinned ring, and lets the next process
// go on. At its end, each loop body writes the number of its record to a pipe.
func TestKillLosesNothing(t *testing.T) {
	if pin := os.Getenv(killedPin); pin != "" {
		readUntilKilled(t, pin, os.Getenv(killedWay))
		return
	}
	// Five processes read some 5,500 records. Until it is dead, each may read as many more as
	// fit into a pipe and a buffer, 8,704; on a busy machine they do. None may have to wait for
	// more records.
	const size = 4 << 20
	for _, tt := range []struct {
		way         string
		again, lost uint64 // at most, in records
	}{
		{"Records", maxLeaseSize / killedRecord, 0},
		{"Lease", maxLeaseSize / killedRecord, 0},
		{"Merged", (size/4 + maxLeaseSize) / killedRecord, 0},
		{"ReadInto", 0, maxBatchSize / killedRecord},
	} {
		t.Run(tt.way, func(t *testing.T) {
			ring := bpftest.New(t, size)
			pin := filepath.Join(mountBPF(t), "events")
			if err := ring.BPFMap().Pin(pin); err != nil {
				t.Fatal(err)
			}
			n := uint64((size - 1) / killedRecord)
			samples := make([]bpftest.Sample, n)
			for i := range samples {
				samples[i].Data = make([]byte, killedSample)
				binary.NativeEndian.PutUint64(samples[i].Data, uint64(i))
			}
			ring.Emit(samples...)
			next := uint64(0)
			for round := range uint64(5) {
				first, last := killReader(t, pin, tt.way, 500+300*round)
				if first+tt.again < next || first > next+tt.lost {
					t.Errorf("round %d begins with record %d, want %d", round, first, next)
				}
				next = last + 1
			}
			r := mustNewReader(t, ring)
			r.SetDeadline(time.Unix(0, 1))
			first := numberOf(mustRead(t, r).RawSample)
			if first > next+tt.lost || first+tt.again < next {
				t.Errorf("the last process begins with record %d, want %d", first, next)
			}
			for want := first + 1; want < n; want++ {
				if got := numberOf(mustRead(t, r).RawSample); got != want {
					t.Fatalf("got record %d, want %d", got, want)
				}
			}
		})
	}
}

// killReader starts a process that reads, kills it after n records, and returns the first and
// the last record whose body ended.
func killReader(t *testing.T, pin, way string, n uint64) (first, last uint64) {
	t.Helper()
	runtime.LockOSThread() // the kernel kills the process when this thread ends
	defer runtime.UnlockOSThread()
	cmd := testCommand("^TestKillLosesNothing$", killedPin+"="+pin, killedWay+"="+way)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.ExtraFiles = []*os.File{in}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.SetReadDeadline(time.Now().Add(time.Minute)) // if it waits for records
	numbers := bufio.NewReader(out)
	read := func() (number uint64, err error) {
		err = binary.Read(numbers, binary.NativeEndian, &number)
		return number, err
	}
	for i := range n + 1 {
		if last, err = read(); err != nil {
			cmd.Process.Kill()
			t.Fatalf("number %d: %v; the process that reads ended with %v", i, err, cmd.Wait())
		}
		if i == 0 {
			first = last
		}
	}
	cmd.Process.Kill()
	if err := cmd.Wait(); !killed(err) {
		t.Fatalf("the process that reads ended with %v", err)
	}
	for number := last; err == nil; number, err = read() { // and those until it was dead
		last = number
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	return first, last
}

func killed(err error) bool {
	exit, ok := err.(*exec.ExitError)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

func readUntilKilled(t *testing.T, pin, way string) {
	m, err := OpenMap(pin)
	if err != nil {
		t.Fatal(err)
	}
	r := mustNewReader(t, m)
	out := os.NewFile(3, "numbers")
	body := func(sample []byte) {
		seq := numberOf(sample)
		// In one system call, so that a body has either ended or not.
		if _, err := out.Write(binary.NativeEndian.AppendUint64(nil, seq)); err != nil {
			t.Fatal(err)
		}
	}
	switch way {
	case "Records":
		for rec, err := range r.Records(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			body(rec.RawSample)
		}
	case "Merged":
		key := func(rec Record) uint64 { return numberOf(rec.RawSample) }
		for rec, err := range r.Merged(context.Background(), key, forever) {
			if err != nil {
				t.Fatal(err)
			}
			body(rec.RawSample)
		}
	case "Lease":
		for {
			l := mustLease(t, r)
			for rec := range l.Records() {
				body(rec.RawSample)
			}
			if err := l.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	case "ReadInto":
		var rec Record
		for {
			if err := r.ReadInto(&rec); err != nil {
				t.Fatal(err)
			}
			body(rec.RawSample)
		}
	}
	t.Fatal(fmt.Sprint("there is no way ", way))
}
