//go:build linux && cgo

package ringbuf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

const secondReaderEnv = "RINGBUF_TEST_SECOND_READER"

// readSecond is the body of a second process that reads the same ring. It reads one sample for
// each line on its standard input.
func readSecond(t *testing.T, keep bool) {
	if err := os.WriteFile("/proc/self/comm", []byte("second\n \"r\""), 0); err != nil {
		t.Fatal(err)
	}
	r := mustNewReader(t, FD(3))
	if !keep {
		syscall.Close(3)
	}
	fmt.Println("opened")
	lines := bufio.NewReader(os.Stdin)
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return
		}
		fmt.Println("read", string(mustRead(t, r).RawSample))
	}
}

// TestTheErrorNamesTheOtherReader has two processes read one ring.
func TestTheErrorNamesTheOtherReader(t *testing.T) {
	if keep := os.Getenv(secondReaderEnv); keep != "" {
		readSecond(t, keep == "true")
		return
	}
	ring := bpftest.New(t, os.Getpagesize())
	here := fmt.Sprintf("this process (descriptor %d%s)", ring.FileDescriptor(), givenMark)
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprint("keeps its descriptor: ", keep), func(t *testing.T) {
			r := mustNewReader(t, ring)
			file := os.NewFile(uintptr(mapByID(t, ring, 0)), "events")
			cmd := testCommand("^TestTheErrorNamesTheOtherReader$", fmt.Sprintf("%s=%v", secondReaderEnv,
				keep))
			cmd.ExtraFiles = []*os.File{file}
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
			defer cmd.Wait()
			defer in.Close()
			lines := bufio.NewScanner(out)
			await := func(want string) {
				t.Helper()
				for lines.Scan() {
					if strings.HasSuffix(lines.Text(), want) {
						return
					}
				}
				t.Fatalf("the process did not print %q", want)
			}
			await("opened")
			ring.Emit(text("mine"))
			wantSample(t, r, "mine")
			ring.Emit(text("yours"))
			io.WriteString(in, "\n")
			await("read yours")

			want := here
			if keep {
				want = fmt.Sprintf("pid %d (%q), %s", cmd.Process.Pid, "second\n \"r\"", here)
			}
			want = ": the ring has another reader or is corrupt: structure needs cleaning; the map is " +
				"also open in " + want
			wantEnd := func(err error) {
				t.Helper()
				if !errors.Is(err, syscall.EUCLEAN) || !strings.HasSuffix(fmt.Sprint(err), want) {
					t.Errorf("the error is %q, and should end with %q", err, want)
				}
			}
			_, err = r.Read()
			wantEnd(err)
			wantEnd(r.ReadInto(new(Record)))
			_, err = r.Lease(t.Context())
			wantEnd(err)
			for _, err := range r.Records(t.Context()) {
				wantEnd(err)
			}
		})
	}
}

// TestACommitNamesTheOtherReader moves the consumer position while a lease is out.
func TestACommitNamesTheOtherReader(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("sample"))
	lease, err := r.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	moveConsumer(t, ring, 8)
	err = lease.Commit()
	if want := fmt.Sprintf("also open in this process (descriptor %d%s)", ring.FileDescriptor(),
		givenMark); !strings.HasSuffix(fmt.Sprint(err), want) {
		t.Errorf("the error is %q, without %q", err, want)
	}
	moveConsumer(t, ring, -8)

	moveConsumer(t, ring, 4)
	if r, err := NewReader(ring); err == nil || !strings.Contains(err.Error(),
		"also open in this process") {
		t.Errorf("NewReader returned %v, %v", r, err)
	}
	moveConsumer(t, ring, -4)
}

func TestTheSearchForOthersEnds(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	id := uint32(mapID(t, ring))
	if who := namesOfHolders([]uint32{id}, 0); who[id] != "" {
		t.Errorf("without a look it found %q", who)
	}
	var fds []int
	for range 2 {
		fds = append(fds, mapByID(t, ring, 0))
	}
	defer closeAll(fds)
	who := namesOfHolders([]uint32{id, 1<<32 - 1}, math.MaxInt)
	numbers := regexp.MustCompile(`[0-9]+`).FindAllString(who[id], -1)
	for _, fd := range append(fds, ring.FileDescriptor()) {
		if !strings.Contains(strings.Join(numbers, " "), strconv.Itoa(fd)) {
			t.Errorf("descriptor %d is not in %q", fd, who[id])
		}
	}
	if who[1<<32-1] != "" || len(numbers) != 3 {
		t.Errorf("it found %q", who)
	}
}
