package ringbuf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// A writerBook counts what one goroutine wrote, and what came back.
type writerBook struct {
	submitted uint64 // samples, numbered from 0 on
	discarded uint64
	received  uint64
}

const (
	stressWriters   = 4
	stressMaxSample = 2000
)

// stressSample writes a sample to buf: the number of its writer, its size, its own number, and
// bytes that follow from these.
func stressSample(buf []byte, writer int, seq uint64) {
	if len(buf) < 16 {
		return
	}
	binary.NativeEndian.PutUint32(buf, uint32(writer))
	binary.NativeEndian.PutUint32(buf[4:], uint32(len(buf)))
	binary.NativeEndian.PutUint64(buf[8:], seq)
	for i := 16; i < len(buf); i++ {
		buf[i] = byte(seq) + byte(i)
	}
}

// TestStressWriter writes from several goroutines, by all methods. The kernel drains as far as
// the Reader of the replies keeps up. The test interrupts the goroutines by deadlines and
// contexts, and closes the Writer in the middle. What was submitted must come back, once and in
// order, and nothing else.
func TestStressWriter(t *testing.T) {
	t.Run("drained by others", func(t *testing.T) { stressWriter(t, false) })
	t.Run("drained by the Writer", func(t *testing.T) { stressWriter(t, true) })
}

func stressWriter(t *testing.T, drains bool) {
	end := time.Now().Add(*stressFor)
	var total writerBook
	var waits uint64
	for round := 0; round == 0 || time.Now().Before(end); round++ {
		before := resources()
		b, s := stressRound(t, round, drains)
		total.submitted += b.submitted
		total.discarded += b.discarded
		total.received += b.received
		waits += s.Waits
		if err := awaitResources(before); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("round %d failed", round)
		}
	}
	t.Logf("%d samples were submitted and received, %d discarded, %d calls waited for room",
		total.submitted, total.discarded, waits)
	if total.submitted != total.received || total.submitted == 0 || total.discarded == 0 {
		t.Errorf("%d samples were submitted, %d received, %d discarded", total.submitted, total.received,
			total.discarded)
	}
	if waits == 0 && !drains {
		t.Error("nobody waited for room")
	}
}

func stressRound(t *testing.T, round int, drains bool) (sum writerBook, stats WriterStats) {
	wire := newWire(t, 4*os.Getpagesize()) // a sample is up to an eighth of it
	defer wire.Close()
	defer wire.r.Close()
	wire.w.Close()
	wire.Control().Limit = 16 // 32 KiB, of 1 MiB for replies
	var opts []WriterOption
	// keepsUp reports whether the program may drain. What it drains must have room among the
	// replies.
	keepsUp := func() bool { return wire.r.AvailableBytes() < 512<<10 }
	if drains {
		opts = append(opts, WithDrain(func() error {
			for !keepsUp() {
				runtime.Gosched()
			}
			for wire.Drain() == 16 {
				for !keepsUp() {
					runtime.Gosched()
				}
			}
			return nil
		}))
	}
	w, err := NewWriter(wire, opts...)
	if err != nil {
		t.Fatal(err)
	}

	var books [stressWriters]writerBook
	var writing, others group
	var stop atomic.Bool
	for i := range books {
		rnd := rand.New(rand.NewPCG(uint64(round), uint64(i)))
		writing.Go(func() { stressOne(t, w, i, &books[i], rnd) })
	}
	if !drains {
		others.Go(func() {
			for !stop.Load() {
				if !keepsUp() || wire.Drain() == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	others.Go(func() { // interrupts
		for !stop.Load() {
			w.SetDeadline(time.Unix(0, 1))
			w.SetDeadline(time.Time{})
			time.Sleep(100 * time.Microsecond)
		}
	})
	received := make(chan struct{})
	go func() {
		defer close(received)
		var rec Record
		for {
			err := wire.r.ReadInto(&rec)
			if errors.Is(err, ErrFlushed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			stressReceive(t, &books, rec.RawSample)
		}
	}()

	for p := (patience{left: 100 * time.Millisecond}); !p.over(); {
		time.Sleep(time.Millisecond)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	writing.Wait()
	stop.Store(true)
	others.Wait()
	for wire.Drain() > 0 { // to the end: nothing holds it up
		for !keepsUp() {
			runtime.Gosched()
		}
	}
	wire.r.Flush()
	<-received

	stats = w.Stats()
	var lent uint64
	for i, b := range books {
		if b.submitted != b.received {
			t.Errorf("goroutine %d has submitted %d samples, and %d were received", i, b.submitted,
				b.received)
		}
		sum.submitted += b.submitted
		sum.discarded += b.discarded
		sum.received += b.received
	}
	lent = stats.Discarded - sum.discarded // by Close
	if stats.Samples != sum.submitted || lent > stressWriters || stats.Reserved != 0 {
		t.Errorf("Stats are %+v, and the goroutines counted %+v", stats, sum)
	}
	if c := wire.Control(); c.Refused > 0 || c.Samples != sum.submitted || c.Bytes != stats.Bytes {
		t.Errorf("the program counts %+v, and the Writer %+v", *c, stats)
	}
	return sum, stats
}

// stressOne writes until the Writer is closed.
func stressOne(t *testing.T, w *Writer, i int, b *writerBook, rnd *rand.Rand) {
	buf := make([]byte, stressMaxSample)
	for {
		n := 16 + rnd.IntN(stressMaxSample-16)
		if rnd.IntN(4) > 0 {
			n = 16 + rnd.IntN(48)
		}
		stressSample(buf[:n], i, b.submitted)
		var err error
		switch rnd.IntN(5) {
		case 0, 1:
			_, err = w.Write(buf[:n])
		case 2:
			ctx, cancel := context.WithCancel(context.Background())
			if rnd.IntN(8) == 0 {
				time.AfterFunc(50*time.Microsecond, cancel)
			}
			err = w.WriteContext(ctx, buf[:n])
			cancel()
		case 3, 4:
			var r *Reservation
			if r, err = w.Reserve(n); err != nil {
				break
			}
			bytes := r.Bytes()
			if rnd.IntN(3) == 0 {
				stressSample(bytes, i, ^uint64(0)) // which nobody may receive
				closed := isClosed(w)
				r.Discard()
				if !closed && !isClosed(w) {
					b.discarded++
				}
				continue
			}
			copy(bytes, buf)
			if rnd.IntN(4) == 0 {
				runtime.Gosched()
			}
			err = r.Submit()
		}
		switch {
		case err == nil:
			b.submitted++
		case errors.Is(err, ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.Canceled):
			t.Error(err)
			return
		}
	}
}

func stressReceive(t *testing.T, books *[stressWriters]writerBook, sample []byte) {
	if len(sample) < 16 || binary.NativeEndian.Uint32(sample) >= stressWriters {
		t.Errorf("received %d bytes that nobody wrote", len(sample))
		return
	}
	i := binary.NativeEndian.Uint32(sample)
	want := make([]byte, len(sample))
	stressSample(want, int(i), books[i].received)
	if !bytes.Equal(sample, want) {
		t.Errorf("goroutine %d: sample %d, of %d bytes, is not what was written", i, books[i].received,
			len(sample))
	}
	books[i].received++
}
