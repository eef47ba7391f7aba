// Flags checks what BPF_RB_NO_WAKEUP, BPF_RB_FORCE_WAKEUP and discarding mean for a Reader:
// what wakes it, and what it returns.
package main

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
	"github.com/libbpfgo/ringbuf/internal/testrun"
)

//go:embed main.bpf.o
var object []byte

// Flags of enum bpf_ringbuf_flags in include/uapi/linux/bpf.h.
const (
	noWakeup    = 1 << 0 // BPF_RB_NO_WAKEUP
	forceWakeup = 1 << 1 // BPF_RB_FORCE_WAKEUP
)

const (
	settle = 300 * time.Millisecond // until a goroutine waits in Read
	soon   = time.Second            // the deadline of a Read that nothing wakes
	late   = time.Minute            // deadline of a Read that is woken; otherwise it ends then
	early  = late / 2               // before then, a Read must have been woken

	recordSize = 16 // of a sample of 8 bytes
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flags:", err)
		os.Exit(1)
	}
}

func run() error {
	module, err := bpfobj.Load(object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	t := tester{}
	if t.submitProg, err = module.GetProgram("submit"); err != nil {
		return err
	}
	if t.discardProg, err = module.GetProgram("discard"); err != nil {
		return err
	}
	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
	if t.reader, err = ringbuf.NewReader(events); err != nil {
		return err
	}
	defer t.reader.Close()

	for _, test := range []struct {
		name string
		run  func() error
	}{
		{"a sample without wakeup does not end a wait", t.noWakeup},
		{"a sample without wakeup is read when it is there", t.noWakeupBefore},
		{"a forced wakeup ends a wait", t.forceWakeup},
		{"a forced wakeup of a discarded record ends a wait", t.forceWakeupOfDiscarded},
		{"discarded records do not end a wait", t.discard},
		{"discarded records count as bytes", t.bytes},
	} {
		if err := test.run(); err != nil {
			return fmt.Errorf("%s: %w", test.name, err)
		}
		fmt.Println(test.name)
	}
	return nil
}

type tester struct {
	reader                  *ringbuf.Reader
	submitProg, discardProg *bpf.BPFProg
}

func (t *tester) noWakeup() error {
	read := t.startRead(soon)
	time.Sleep(settle)
	return errors.Join(
		t.submit(1, noWakeup),
		// Read looks for itself at its deadline, and some milliseconds before.
		(<-read).check(1, 0, soon-10*time.Millisecond, early))
}

func (t *tester) noWakeupBefore() error {
	return errors.Join(
		t.submit(2, noWakeup),
		(<-t.startRead(late)).check(2, 0, 0, early))
}

func (t *tester) forceWakeup() error {
	read := t.startRead(late)
	time.Sleep(settle)
	return errors.Join(
		t.submit(3, noWakeup),
		t.submit(4, forceWakeup),
		(<-read).check(3, recordSize, settle, early),
		(<-t.startRead(late)).check(4, 0, 0, early))
}

func (t *tester) forceWakeupOfDiscarded() error {
	read := t.startRead(late)
	time.Sleep(settle)
	return errors.Join(
		t.submit(5, noWakeup),
		t.discardOne(forceWakeup),
		(<-read).check(5, recordSize, settle, early),
		t.wantNothing())
}

func (t *tester) discard() error {
	read := t.startRead(late)
	time.Sleep(settle)
	for range 1000 {
		if err := t.discardOne(0); err != nil {
			return err
		}
	}
	return errors.Join(
		t.submit(6, 0),
		(<-read).check(6, 0, settle, early),
		t.wantNothing())
}

func (t *tester) bytes() error {
	err := errors.Join(t.submit(7, 0), t.discardOne(0), t.submit(8, 0))
	if n := t.reader.AvailableBytes(); n != 3*recordSize {
		err = errors.Join(err, fmt.Errorf("%d bytes are available, want %d", n, 3*recordSize))
	}
	err = errors.Join(err,
		(<-t.startRead(late)).check(7, 2*recordSize, 0, early),
		(<-t.startRead(late)).check(8, 0, 0, early))
	if n := t.reader.AvailableBytes(); n != 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes are available, want none", n))
	}
	return err
}

func (t *tester) submit(sample, flags uint64) error { return runProg(t.submitProg, sample, flags) }
func (t *tester) discardOne(flags uint64) error     { return runProg(t.discardProg, 0, flags) }

func runProg(prog *bpf.BPFProg, args ...uint64) error {
	returned, err := testrun.Run(prog.FileDescriptor(), args...)
	if err != nil {
		return fmt.Errorf("run BPF program %s: %w", prog.Name(), err)
	}
	if returned != 0 {
		return fmt.Errorf("BPF program %s found the ring full", prog.Name())
	}
	return nil
}

// wantNothing checks that the ring is empty.
func (t *tester) wantNothing() error {
	t.reader.SetDeadline(time.Now())
	if record, err := t.reader.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("an empty ring gave %x, %v", record.RawSample, err)
	}
	return nil
}

type result struct {
	record ringbuf.Record
	err    error
	took   time.Duration
}

// startRead calls Read in a goroutine, with a deadline that is this far away.
func (t *tester) startRead(deadline time.Duration) <-chan result {
	read := make(chan result, 1)
	start := time.Now()
	t.reader.SetDeadline(start.Add(deadline))
	go func() {
		record, err := t.reader.Read()
		read <- result{record, err, time.Since(start)}
	}()
	return read
}

// check checks what Read returned, and that it took at least atLeast and less than lessThan.
func (r result) check(sample uint64, remaining int, atLeast, lessThan time.Duration) error {
	want := binary.NativeEndian.AppendUint64(nil, sample)
	switch {
	case r.err != nil:
		return r.err
	case string(r.record.RawSample) != string(want) || r.record.Remaining != remaining:
		return fmt.Errorf("read %x with %d bytes remaining, want %x with %d", r.record.RawSample,
			r.record.Remaining, want, remaining)
	case r.took < atLeast || r.took >= lessThan:
		return fmt.Errorf("read took %v, want %v or more and less than %v", r.took, atLeast, lessThan)
	}
	return nil
}
