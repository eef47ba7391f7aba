package ringbuf

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests end reads and loops by a deadline, Flush or a context.

func TestDeadlineInThePastReturnsAtOnce(t *testing.T) {
	_, r := newRingAndReader(t, os.Getpagesize())
	r.SetDeadline(time.Now().Add(-time.Second))
	wantReadError(t, r, os.ErrDeadlineExceeded)
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestDeadlineEndsAWait(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		const wait = 20 * time.Millisecond
		start := time.Now()
		r.SetDeadline(start.Add(wait))
		wantReadError(t, r, os.ErrDeadlineExceeded)
		if got := time.Since(start); got < wait {
			t.Errorf("Read returned after %v, before its deadline at %v", got, wait)
		}
	})
}

// TestDeadlineIsFinerThanAMillisecond compares Read with nanosleep, because on some machines,
// for example emulated ones, every timer is late.
func TestDeadlineIsFinerThanAMillisecond(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		for _, wait := range []time.Duration{100 * time.Microsecond, 2100 * time.Microsecond} {
			var late, machine []time.Duration
			for range 21 { // by turns
				late = append(late, lateness(wait, func(deadline time.Time) {
					r.SetDeadline(deadline)
					wantReadError(t, r, os.ErrDeadlineExceeded)
				}))
				machine = append(machine, lateness(wait, func(deadline time.Time) {
					left := syscall.NsecToTimespec(int64(time.Until(deadline)))
					syscall.Nanosleep(&left, nil)
				}))
			}
			// A wait that is rounded up to milliseconds is 900 µs late each time. On a busy
			// machine all waits but the best may be that late.
			best := slices.Min(late)
			limit := max(500*time.Microsecond, min(4*slices.Min(machine), 800*time.Microsecond))
			if best < 0 || best > limit {
				t.Errorf("a deadline %v away is met %v late at best, want %v at most (nanosleep: %v)",
					wait, best, limit, slices.Min(machine))
			}
		}
	})
}

// lateness calls wait with a deadline that is d away, and returns how late wait returned.
func lateness(d time.Duration, wait func(deadline time.Time)) time.Duration {
	deadline := time.Now().Add(d)
	wait(deadline)
	return time.Since(deadline)
}

func TestSetDeadlineActsOnAWaitingRead(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		wantWaiting(t, result)
		r.SetDeadline(time.Now().Add(time.Hour))
		wantWaiting(t, result)
		r.SetDeadline(time.Now().Add(time.Millisecond))
		wantResult(t, result, "", os.ErrDeadlineExceeded)

		r.SetDeadline(time.Now().Add(time.Hour))
		result = goRead(t, r)
		r.SetDeadline(time.Time{})
		wantWaiting(t, result)
		r.SetDeadline(time.Now().Add(-time.Hour))
		wantResult(t, result, "", os.ErrDeadlineExceeded)
	})
}

func TestZeroDeadlineRemovesIt(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		r.SetDeadline(time.Unix(0, 1))
		wantReadError(t, r, os.ErrDeadlineExceeded)
		r.SetDeadline(time.Time{})
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(text("sample"))
		wantResult(t, result, "sample", nil)
	})
}

func TestExpiredDeadlineReturnsSamplesFirst(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(quiet("12345"), quiet("1234567"))
	wantAvailable(t, r, 2*16)
	r.SetDeadline(time.Now())
	wantSample(t, r, "12345")
	wantAvailable(t, r, 16)
	wantSample(t, r, "1234567")
	wantAvailable(t, r, 0)
	wantReadError(t, r, os.ErrDeadlineExceeded)
	ring.Emit(text("new"))
	wantSample(t, r, "new")
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestDeadlineReturnsQuietSampleFirst(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(quiet("quiet"))
		r.SetDeadline(time.Now())
		wantResult(t, result, "quiet", nil)
		wantReadError(t, r, os.ErrDeadlineExceeded)
	})
}

func TestFlushReturnsQuietSamplesThenErrFlushed(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(quiet("12345"), quiet("1234567"))
		wantWaiting(t, result)
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		wantResult(t, result, "12345", nil)
		wantSample(t, r, "1234567")
		wantReadError(t, r, ErrFlushed)

		result = goRead(t, r)
		wantWaiting(t, result)
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		wantResult(t, result, "", ErrFlushed)
	})
}

func TestFlushIsAnsweredOnceEach(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	for range 2 {
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	ring.Emit(text("sample")) // after both flushes
	r.SetDeadline(time.Unix(0, 1))
	wantReadError(t, r, ErrFlushed)
	wantReadError(t, r, ErrFlushed)
	wantSample(t, r, "sample")
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

// within10ms calls f 21 times and fails if the median of what it returns is more than 10 ms
// and, for busy machines, more than four times the median time to wake a thread. Single values
// may be disturbed.
func within10ms(t *testing.T, f func() time.Duration) {
	t.Helper()
	var took, machine []time.Duration
	for range 21 { // by turns
		took = append(took, f())
		machine = append(machine, wakeOfAThread(t))
	}
	slices.Sort(took)
	slices.Sort(machine)
	median := len(took) / 2
	if limit := max(10*time.Millisecond, 4*machine[median]); took[median] > limit {
		t.Errorf("it took %v, want %v at most", took[median], limit)
	}
}

// wakeOfAThread returns the time from a write to a pipe until a goroutine that blocks its
// thread in a read of that pipe has reported back.
func wakeOfAThread(t *testing.T) time.Duration {
	t.Helper()
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pipe[0])
	defer syscall.Close(pipe[1])
	reads, woken := make(chan struct{}), make(chan error)
	go func() {
		close(reads)
		_, err := syscall.Read(pipe[0], make([]byte, 1))
		woken <- err
	}()
	<-reads
	began := time.Now()
	if _, err := syscall.Write(pipe[1], []byte{0}); err != nil {
		t.Fatal(err)
	}
	if err := <-woken; err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// goReadContext is goRead with a context.
func goReadContext(ctx context.Context, r *Reader) <-chan readResult {
	result := make(chan readResult, 1)
	go func() {
		rec, err := r.ReadContext(ctx)
		result <- readResult{rec, err}
	}()
	return result
}

func TestContextEndsItsOwnReadOnly(t *testing.T) {
	for _, fetches := range []string{"the one that fetches", "one that waits for another"} {
		t.Run(fetches, func(t *testing.T) {
			eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
				within10ms(t, func() time.Duration {
					var others [2]<-chan readResult
					ctx, cancel := context.WithCancel(t.Context())
					var mine <-chan readResult
					if fetches == "the one that fetches" {
						mine = goReadContext(ctx, r)
						awaitFetching(t, r)
						others[0], others[1] = goReadFollowing(t, r), goReadFollowing(t, r)
					} else {
						others[0] = goRead(t, r)
						mine = goReadContext(ctx, r)
						awaitFollowers(t, 1)
						others[1] = goReadFollowing(t, r)
					}
					began := time.Now()
					cancel()
					wantResult(t, mine, "", context.Canceled)
					took := time.Since(began)
					ring.Emit(text("x"), text("x"))
					wantResult(t, others[0], "x", nil)
					wantResult(t, others[1], "x", nil)
					return took
				})
			})
		})
	}
}

// goReadFollowing is goRead while another goroutine fetches.
func goReadFollowing(t *testing.T, r *Reader) <-chan readResult {
	t.Helper()
	n := followers()
	result := make(chan readResult, 1)
	go func() {
		rec, err := r.Read()
		result <- readResult{rec, err}
	}()
	awaitFollowers(t, n+1)
	return result
}

// followers counts the goroutines that wait for their turn to fetch.
func followers() int { return goroutines("[select", ".receive(") }

// goroutines counts the goroutines whose stack trace contains both state and function.
func goroutines(state, function string) (n int) {
	buf := make([]byte, 1<<20)
	for goroutine := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(goroutine, state) && strings.Contains(goroutine, function) {
			n++
		}
	}
	return n
}

func awaitFollowers(t *testing.T, n int) {
	t.Helper()
	await(t, "a goroutine that waits for its turn", func() bool { return followers() >= n })
}

func TestDeadlineOfAContext(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		within10ms(t, func() time.Duration {
			deadline := time.Now().Add(3 * time.Millisecond)
			ctx, cancel := context.WithDeadline(t.Context(), deadline)
			defer cancel()
			if rec, err := r.ReadContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("ReadContext returned %q, %v", rec.RawSample, err)
			}
			late := time.Since(deadline)
			if late < 0 {
				t.Fatalf("ReadContext returned %v too early", -late)
			}
			return late
		})
	})
}

func TestADoneContextTakesNothing(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"), text("b"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if rec, err := r.ReadContext(ctx); err != context.Canceled {
		t.Errorf("ReadContext returned %q, %v", rec.RawSample, err)
	}
	wantRecords(t, r.Records(ctx), context.Canceled)
	wantAvailable(t, r, 2*16)
	if rec, err := r.ReadContext(t.Context()); err != nil || string(rec.RawSample) != "a" ||
		rec.Remaining != 16 {
		t.Errorf("ReadContext returned %q with %d bytes remaining, %v", rec.RawSample, rec.Remaining, err)
	}
	wantSample(t, r, "b")
}

func TestReadContextEndsAsReadDoes(t *testing.T) {
	_, r := newRingAndReader(t, os.Getpagesize())
	r.SetDeadline(time.Unix(1, 0))
	if _, err := r.ReadContext(t.Context()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a deadline ReadContext returned %v", err)
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadContext(t.Context()); !errors.Is(err, ErrFlushed) {
		t.Errorf("after Flush ReadContext returned %v", err)
	}
	r.Close()
	if _, err := r.ReadContext(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close ReadContext returned %v", err)
	}
}

func TestAFlushEndsWithAProducerThatIsAlwaysAhead(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(r *Reader)
		want error
	}{
		{"Flush", func(r *Reader) { r.Flush() }, ErrFlushed},
		{"deadline", func(r *Reader) { r.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		for name, read := range map[string]func(r *Reader, each func()) error{
			"ReadInto": func(r *Reader, each func()) error {
				var rec Record
				for {
					if err := r.ReadInto(&rec); err != nil {
						return err
					}
					each()
				}
			},
			"Records": func(r *Reader, each func()) error {
				for _, err := range r.Records(context.Background()) {
					if err != nil {
						return err
					}
					each()
				}
				return nil
			},
			"Merged": func(r *Reader, each func()) error {
				key := func(rec Record) uint64 { return bpftest.DecodeNumbered(rec.RawSample).Seq }
				for _, err := range r.Merged(context.Background(), key, forever) {
					if err != nil {
						return err
					}
					each()
				}
				return nil
			},
			"Lease": func(r *Reader, each func()) error {
				for {
					l, err := r.Lease(context.Background())
					if err != nil {
						return err
					}
					for range l.Records() {
						each()
					}
					l.Commit()
				}
			},
		} {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				const size = 1 << 16
				ring, r := newRingAndReader(t, size)
				seq := uint64(ring.Count(0, 0, numberedCapacity(size), 0))
				tt.end(r)
				n := 0
				err := read(r, func() {
					n++
					seq += uint64(ring.Count(0, seq, 2, 0)) // always ahead
					if n > 10*numberedCapacity(size) {
						r.Close()
					}
				})
				if !errors.Is(err, tt.want) {
					t.Fatalf("after %d records %v, want %v", n, err, tt.want)
				}
				if want := numberedCapacity(size); n != want {
					t.Errorf("%d records came, want the %d that were there", n, want)
				}
			})
		}
	}
}
