package ringbuf

import (
	"errors"
	"sync"
	"sync/atomic"
)

// How a Writer makes the kernel drain.

// A Program is a BPF program, such as a *libbpfgo.BPFProg, or FD for a bare descriptor.
type Program interface {
	FileDescriptor() int
}

// WithDrain lets the Writer call drain after records were submitted, or discarded, for it to make
// the kernel drain the ring. It is called by the Write or Submit that finds no call running, which
// returns its error. What is submitted while it runs leads to one more call, for all of it, in
// another goroutine. So no two calls run at once, and after the last record one begins. An error of
// a call in that goroutine is returned by the next call that makes one, or by Close.
//
// It is also called now and then while calls wait for room, since a drain may leave some of what is
// there. It must not call methods of the Writer other than Stats. Deadlines and contexts do not
// interrupt it.
func WithDrain(drain func() error) WriterOption {
	return func(o *writerOptions) { o.drains = append(o.drains, drain) }
}

// WithDrainProgram is WithDrain with a function that runs prog, of type BPF_PROG_TYPE_SYSCALL, by
// the command BPF_PROG_TEST_RUN of bpf(2), without a context, and does not return before the
// program does. The program, SEC("syscall"), returns what bpf_user_ringbuf_drain returned, or 0:
//
//   - if it may have ended because one call takes at most 131072 records, discarded ones included
//     (BPF_MAX_USER_RINGBUF_SAMPLES), it is run again;
//   - if it is -EBUSY, since the ring is being drained elsewhere, likewise, up to a second;
//   - another negative number is the errno of an error: the ring has what the kernel takes for no
//     record.
//
// The program should pass BPF_RB_NO_WAKEUP: the Writer wakes by itself who waits for room, and the
// kernel's notification takes longer than the rest, above all in a virtual machine.
//
// The Writer duplicates the program's descriptor, so that prog may be closed.
func WithDrainProgram(prog Program) WriterOption {
	return func(o *writerOptions) { o.progs = append(o.progs, prog) }
}

// A drainer calls the function of WithDrain. A nil one does nothing.
type drainer struct {
	call    func() error
	release func() // of what call needs
	waker   *waker
	ring    *userRing

	state  atomic.Int32
	rests  sync.WaitGroup
	calls  atomic.Uint64
	failed atomic.Pointer[error] // of a call whose error nobody has got
}

// States of a drainer.
const (
	drainIdle    = iota
	drainRunning // a call is running, or about to, that drains all that was submitted before
	drainAgain   // another one is to follow
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

// kick has the function called for what was submitted before, and returns the error if it does so
// itself.
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
	defer func() { // also if the function panics, from which a caller may recover
		if !d.state.CompareAndSwap(drainRunning, drainIdle) {
			// Others have submitted. The caller has waited long enough.
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

// rest goes on until a call has ended without that there was more.
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

// keep keeps an error for a later call.
func (d *drainer) keep(err error) {
	if err != nil {
		d.failed.Store(&err)
	}
}

// end waits for calls that are running, calls once more if so asked, and returns an error that
// nobody has got. Nothing may be submitted meanwhile.
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

// wait waits for calls that are running, of a Writer that nobody uses any more.
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
