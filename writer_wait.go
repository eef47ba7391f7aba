package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// A Writer waits for room without a thread, in Go's netpoller, until the kernel notifies of a
// drain. The kernel reports EPOLLOUT while any byte is free. So the netpoller, which is
// edge-triggered, only tells that there was a drain. The positions tell whether it made enough
// room.
//
// There is also a timer, because some drains do not notify, or not soon: those with
// BPF_RB_NO_WAKEUP, those that find only discarded records, and long ones. Its pauses grow while
// nothing is drained.

const (
	minRoomPause = time.Millisecond
	maxRoomPause = 64 * time.Millisecond
)

// waitForRoom waits until there is room for a sample of n bytes. The caller must hold mu. On
// success it holds mu again, on failure not.
func (w *Writer) waitForRoom(ctx context.Context, n int) error {
	w.waiting++
	w.stats.Waits++
	w.mu.Unlock()
	locked := false
	defer func() { // deferred, because ctx or the drain function may panic
		if locked {
			w.waiting--
			return
		}
		w.mu.Lock()
		w.waiting--
		w.mu.Unlock()
	}()
	if err := w.takeTurn(ctx, n); err != nil {
		return err
	}
	defer func() { w.turn <- struct{}{} }()
	if err := w.parkForRoom(ctx, n); err != nil {
		return err
	}
	locked = true
	return nil
}

// takeTurn waits until the calls that came before have room.
func (w *Writer) takeTurn(ctx context.Context, n int) error {
	for {
		select {
		case <-w.turn:
			return nil
		default:
		}
		deadline, changed := w.deadlineNow()
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return w.tooLate(n)
			}
			timeout = time.After(left)
		}
		select {
		case <-w.turn:
			return nil
		case <-w.done:
			return errWriterClosed
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
		case <-changed:
		}
	}
}

// parkForRoom waits for room. The caller must have the turn. On success mu is locked.
func (w *Writer) parkForRoom(ctx context.Context, n int) error {
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, w.waker.wake)()
	}
	w.waker.parked.Store(true)
	defer w.waker.parked.Store(false)
	need := recordEnd(0, uint32(n))
	pause, drained := w.minPause, false
	for left := w.ring.room(); ; {
		// Reset before looking at anything. So a later change ends the wait.
		w.waker.woken.Store(false)
		w.mu.Lock()
		switch room := w.ring.room(); {
		case w.closed:
			w.mu.Unlock()
			return errWriterClosed
		case !w.ring.sound():
			w.mu.Unlock()
			return w.failed(errMoved)
		case room >= need:
			return nil
		case room != left:
			left, pause = room, w.minPause
		}
		w.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
		deadline, _ := w.deadlineNow()
		now := time.Now()
		if !deadline.IsZero() && !now.Before(deadline) {
			return w.tooLate(n)
		}
		// A drain may have left records in the ring.
		if w.drainer != nil && !drained {
			drained = true
			if err := w.drainer.kick(); err != nil {
				return err
			}
			continue
		}
		until := now.Add(pause)
		if !deadline.IsZero() && deadline.Before(until) {
			until = deadline
		}
		if err := w.park(until, need); err != nil {
			return w.failed(err)
		}
		pause, drained = max(w.minPause, min(2*pause, maxRoomPause)), false
	}
}

// park waits until there is room, until the given time or until wake.
func (w *Writer) park(until time.Time, need uint64) error {
	// The netpoller hears of drains only now. Otherwise each drain would wake a thread.
	if err := w.ring.arm(true); err != nil {
		return err
	}
	defer w.ring.arm(false)
	err := w.ring.file.SetReadDeadline(until)
	// In this order. A wake that comes later sets its own deadline, which counts.
	if err == nil && !w.waker.woken.Load() {
		err = w.ring.parked.Read(func(uintptr) bool { return w.ring.room() >= need })
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// A waker ends the waits in park.
type waker struct {
	file   *os.File
	woken  atomic.Bool // wake was called
	parked atomic.Bool // a call is in parkForRoom
}

// wake ends the current park, or the next one.
func (k *waker) wake() {
	k.woken.Store(true)
	k.file.SetReadDeadline(time.Unix(0, 1))
}

// drained must be called after a drain, because the kernel need not notify of it. Either this sees
// that a call is parked, or that call sees the new consumer position.
func (k *waker) drained() {
	if k.parked.Load() {
		k.wake()
	}
}

func (w *Writer) deadlineNow() (time.Time, <-chan struct{}) {
	w.timing.Lock()
	defer w.timing.Unlock()
	return w.deadline, w.changed
}

func (w *Writer) tooLate(n int) error {
	return fmt.Errorf("ringbuf: writer: the deadline passed before map %q, of %d bytes, had room for "+
		"a sample of %d: does a program drain it? %w", w.ring.name, w.ring.size, n,
		os.ErrDeadlineExceeded)
}
