package ringbuf

import (
	"errors"
	"sync"
	"sync/atomic"
)

// How a Writer makes the kernel drain the ring.

// A Program is a BPF program. *libbpfgo.BPFProg and FD implement Program.
type Program interface {
	FileDescriptor() int
}

// WithDrain sets a function that makes the kernel drain the ring. The Writer calls it after records
// were submitted or discarded.
//
// Write and Submit call drain themselves if no call is running, and return its error. If a call is
// running, one more call follows it, in another goroutine, for everything that was submitted in
// the meantime. So calls never overlap, and after the last record a call begins. If a call in that
// other goroutine fails, the next Write, Submit or Close that makes a call returns the error.
//
// While calls wait for room, drain is also called from time to time, because a drain may leave
// records in the ring. drain must not call methods of the Writer, except Stats. Deadlines and
// contexts do not interrupt it.
func WithDrain(drain func() error) WriterOption {
	return func(o *writerOptions) { o.drains = append(o.drains, drain) }
}

// WithDrainProgram is like WithDrain with a function that runs prog. prog must have the type
// BPF_PROG_TYPE_SYSCALL. It is run without a context, by the command BPF_PROG_TEST_RUN of bpf(2),
// which returns when the program does. The program, SEC("syscall"), returns what
// bpf_user_ringbuf_drain returned, or 0:
//
//   - It is run again if it may have stopped at the limit of one drain, which is 131072 records,
//     discarded ones included (BPF_MAX_USER_RINGBUF_SAMPLES).
//   - It is run again, for up to a second, if it returned -EBUSY: somebody else drains the ring.
//   - Another negative number is an errno. It means that the ring has something that the kernel
//     does not accept as a record.
//
// The program should pass BPF_RB_NO_WAKEUP. The Writer itself wakes calls that wait for room, and
// the kernel's notification takes longer than the rest, above all in a virtual machine.
//
// The Writer duplicates the descriptor of the program. So prog may be closed.
func WithDrainProgram(prog Program) WriterOption {
	return func(o *writerOptions) { o.progs = append(o.progs, prog) }
}

// A drainer calls the function of WithDrain. A nil drainer does nothing.
type drainer struct {
	call    func() error
	release func() // releases what call needs
	waker   *waker
	ring    *userRing

	state  atomic.Int32
	rests  sync.WaitGroup
	calls  atomic.Uint64
	failed atomic.Pointer[error] // an error that was not returned yet
}

// States of a drainer.
const (
	drainIdle    = iota
	drainRunning // a call is running, or will begin, that drains everything that was submitted before
	drainAgain   // another call must follow
)

func newDrainer(o writerOptions) (*drainer, error) {
	switch {
	case len(o.drains)+len(o.progs) > 1:
		return nil, errors.New("more than one of WithDrain and WithDrainProgram")
	case len(o.drains) == 1 && o.drains[0] == nil:
		return nil, errors.New("WithDrain without a function")
	case len(o.drains) == 1:
		return &drainer{call: o.drains[0], release: func() {}}, nil
	case len(o.progs) == 1:
		return newProgramDrainer(o.progs[0])
	}
	return nil, nil
}

// kick makes sure that a call drains what was submitted before. If it makes the call itself, it
// returns the error.
func (d *drainer) kick() error {
	for {
		switch d.state.Load() {
		case drainAgain:
			return nil
		case drainRunning:
			if d.state.CompareAndSwap(drainRunning, drainAgain) {
				return nil
			}
		case drainIdle:
			if d.state.CompareAndSwap(drainIdle, drainRunning) {
				return d.first()
			}
		}
	}
}

// first makes the first of a series of calls.
func (d *drainer) first() error {
	defer func() { // deferred, because a caller may recover from a panic of the function
		if !d.state.CompareAndSwap(drainRunning, drainIdle) {
			// More was submitted. Another goroutine drains that, because the caller has waited
			// enough.
			d.rests.Add(1)
			go d.rest()
		}
	}()
	err := d.run()
	if failed := d.failed.Load(); err == nil && failed != nil &&
		d.failed.CompareAndSwap(failed, nil) {
		err = *failed
	}
	return err
}

func (d *drainer) run() error {
	d.calls.Add(1)
	defer d.waker.drained()
	return d.call()
}

// rest calls the function until nothing was submitted during a call.
func (d *drainer) rest() {
	defer d.rests.Done()
	for {
		d.state.Store(drainRunning)
		d.keep(d.run())
		if d.state.CompareAndSwap(drainRunning, drainIdle) {
			return
		}
	}
}

// keep keeps an error for a later call to return.
func (d *drainer) keep(err error) {
	if err != nil {
		d.failed.Store(&err)
	}
}

// end waits for running calls, calls the function once more if call is true, and returns an error
// that was not returned yet. Nobody may submit at the same time.
func (d *drainer) end(call bool) (err error) {
	if d == nil {
		return nil
	}
	d.wait()
	if call {
		err = d.run()
	}
	if failed := d.failed.Swap(nil); err == nil && failed != nil {
		err = *failed
	}
	return err
}

// wait waits for running calls of a Writer that is no longer used.
func (d *drainer) wait() {
	if d != nil {
		d.rests.Wait()
	}
}

func (d *drainer) free() {
	if d != nil {
		d.release()
	}
}
