package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func TestAWaitAllocatesNothing(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		var rec Record
		allocs := testing.AllocsPerRun(20, func() {
			r.SetDeadline(time.Now().Add(3 * time.Millisecond))
			if err := r.ReadInto(&rec); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		})
		if allocs != 0 {
			t.Errorf("a ReadInto that waits allocates %v times, want 0", allocs)
		}
	})
}

func TestReadWaitsForTheNextSample(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(text("later"))
		wantResult(t, result, "later", nil)
	})
}

func TestReadReturnsWhatIsThereWithoutNotification(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(quiet("before"))
	wantSample(t, r, "before")
	ring.Emit(quiet("between"))
	wantSample(t, r, "between")
}

func TestNoWakeupLeavesReadWaiting(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(quiet("quiet"))
		wantWaiting(t, result)
		wantAvailable(t, r, 16)
		ring.Emit(bpftest.Sample{Data: []byte("loud"), Flags: bpftest.ForceWakeup})
		wantResult(t, result, "quiet", nil)
		wantSample(t, r, "loud")
	})
}

// TestManyDiscardedRecordsHoldNothingBack discards records as fast as it can, several times
// around the ring for each drain.
func TestManyDiscardedRecordsHoldNothingBack(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		for i := range 200 {
			result := goRead(t, r)
			var discarding group
			for range 2 {
				discarding.Go(func() {
					for range 20 {
						ring.Discard(1000)
					}
				})
			}
			discarding.Wait()
			want := fmt.Sprint("sample ", i)
			await(t, "room in the ring", func() bool { return ring.TryEmit(text(want)) == 0 })
			wantResult(t, result, want, nil)
		}
	})
}

func TestBusyRecordHoldsBackThoseBehindIt(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		submit := ring.Busy([8]byte([]byte("busybusy")))
		ring.Count(1, 2, 1, 0)
		result := goRead(t, r)
		wantWaiting(t, result)
		wantAvailable(t, r, 16+24)
		submit()
		wantResult(t, result, "busybusy", nil)
		if got, want := bpftest.DecodeNumbered(mustRead(t, r).RawSample), uint64(2); got.Seq != want {
			t.Errorf("the record behind the busy one has number %d, want %d", got.Seq, want)
		}
	})
}

func TestBusyRecordDoesNotMakeReadSpin(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		submit := ring.Busy([8]byte{})
		// Force a notification, so that the kernel considers the ring readable.
		ring.Count(0, 0, 1, bpftest.ForceWakeup)
		used := make(chan time.Duration)
		start := time.Now()
		go func() {
			runtime.LockOSThread()
			before := threadTime()
			_, err := r.Read()
			if err != nil {
				t.Error(err)
			}
			used <- threadTime() - before
		}()
		awaitFetching(t, r)
		<-time.After(200 * time.Millisecond)
		submit()
		// Time in which a virtual machine does not run counts for the thread that ran in it.
		got := <-used
		if held := time.Since(start); got > held/2 {
			t.Errorf("Read took %v of processor time while a record was busy for %v", got, held)
		}
	})
}

func TestReadIsInterruptedWhileARecordIsBusy(t *testing.T) {
	for _, tt := range []struct {
		name      string
		interrupt func(r *Reader) error
		want      error
	}{
		{"Close", (*Reader).Close, os.ErrClosed},
		{"Flush", (*Reader).Flush, ErrFlushed},
		{"SetDeadline", func(r *Reader) error { r.SetDeadline(time.Now()); return nil },
			os.ErrDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
				result := goRead(t, r)
				wantWaiting(t, result)
				submit := ring.Busy([8]byte{}) // does not notify
				if err := tt.interrupt(r); err != nil {
					t.Error(err)
				}
				wantResult(t, result, "", tt.want)
				submit() // fails if the record was committed before
			})
		})
	}
}

func TestAfterAWakeNoWaitSpins(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		wantResult(t, result, "", ErrFlushed)
		result = goRead(t, r)
		r.SetDeadline(time.Unix(0, 1))
		wantResult(t, result, "", os.ErrDeadlineExceeded)
		r.queue.rings.(*libbpfRings).blockFor = 0 // now all waits park
		wantNoSpin(t, func(deadline time.Time) {
			r.SetDeadline(deadline)
			wantReadError(t, r, os.ErrDeadlineExceeded)
		})
	})
}

// wantNoSpin fails unless at least one of three waits until a deadline takes little processor
// time. On an emulated machine everything takes some. A wait that spins takes all of it, each
// time.
func wantNoSpin(t *testing.T, wait func(deadline time.Time)) {
	t.Helper()
	var used time.Duration
	for _, d := range []time.Duration{15 * time.Millisecond, 60 * time.Millisecond,
		240 * time.Millisecond} {
		before := processTime()
		wait(time.Now().Add(d))
		if used = processTime() - before; used <= d/2 {
			return
		}
	}
	t.Errorf("%v of processor time was used in a wait of 240ms", used)
}

// TestWakeEndsTheNextWait calls wake just before fetch.
func TestWakeEndsTheNextWait(t *testing.T) {
	wantEarlyReturn := func(t *testing.T, r *Reader) {
		t.Helper()
		src := r.queue.rings
		result := make(chan readResult, 1)
		src.wake()
		go func() { result <- readResult{err: src.fetch(new(batch), request{})} }()
		select {
		case got := <-result:
			if got.err != nil {
				t.Errorf("fetch returned %v", got.err)
			}
		case <-time.After(10 * time.Second):
			src.wake() // otherwise Close would wait
			<-result
			t.Error("fetch still waits")
		}
	}
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) { wantEarlyReturn(t, r) })
	t.Run("long before a tick", func(t *testing.T) {
		_, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(time.Hour))
		startTicking(r)
		wantEarlyReturn(t, r)
	})
}

// TestIdleReadersHoldNoThreads has a process of its own, because Go keeps the threads that
// other tests made it start.
func TestIdleReadersHoldNoThreads(t *testing.T) { inOwnProcess(t, testIdleReaders) }

func testIdleReaders(t *testing.T) {
	// Open all Readers before the first measurement, because that takes threads too.
	var readers []*Reader
	for range 100 {
		m, err := bpf.CreateMap(bpf.MapTypeRingbuf, "empty", 0, 0, os.Getpagesize(), nil)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, mustNewReader(t, m))
		syscall.Close(m.FileDescriptor())
	}
	spareThreads(8)
	runtime.GC()
	awaitParked := func(n int) {
		t.Helper()
		await(t, "Readers to park", func() bool { return goroutines("[IO wait", ").park(") == n })
	}
	results := []<-chan readResult{goRead(t, readers[0])}
	awaitParked(1)
	one := threads(t)
	for _, r := range readers[1:] {
		results = append(results, goRead(t, r))
	}
	awaitParked(len(readers))
	hundred := threads(t)
	if hundred > one {
		t.Errorf("100 waiting Readers need %d threads, one needs %d", hundred, one)
	}
	if n := blocked.Load(); n != 0 {
		t.Errorf("%d waiting Readers block a thread", n)
	}

	// Readers that have just had a sample block threads for a while, but only a few.
	for range 8 {
		ring, r := newRingAndReader(t, os.Getpagesize())
		ring.Emit(text("recent"))
		wantSample(t, r, "recent")
		results = append(results, goRead(t, r))
	}
	if active, limit := threads(t), hundred+2*runtime.GOMAXPROCS(0); active > limit {
		t.Errorf("with 8 active Readers there are %d threads, want at most %d", active, limit)
	}
	wantWaiting(t, results[0])
	for i, result := range results {
		if len(result) > 0 {
			t.Errorf("Reader %d did not wait", i)
		}
	}
}

// TestDiscardsThatGoRoundTheRingInAWait passes more discarded records in one wait than the ring
// has room for. libbpf may do this while programs discard as fast as it looks. Here the test
// passes the records in its place.
func TestDiscardsThatGoRoundTheRingInAWait(t *testing.T) {
	for _, rounds := range []int{1, 2, 5} {
		ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
		r.queue.rings.(*libbpfRings).blockFor = time.Hour
		position := consumerPosition(t, ring)
		ring.Emit(text("a"))
		wantSample(t, r, "a") // a wait after a sample blocks
		result := goRead(t, r)
		awaitPollOfLibbpf(t)
		quiet := bpftest.Sample{Data: make([]byte, 1024), Discard: true, Flags: bpftest.NoWakeup}
		for range 4*rounds + 1 {
			ring.Emit(quiet)
			atomic.AddUint64(position, uint64(quiet.RecordSize()))
		}
		ring.Emit(text("b"))
		wantResult(t, result, "b", nil)
		ring.Emit(text("c"))
		wantSample(t, r, "c")
	}
}

// awaitPollOfLibbpf returns when a thread of this process is in the epoll_wait() of libbpf, for
// one ring.
func awaitPollOfLibbpf(t *testing.T) {
	t.Helper()
	number := map[string]string{"amd64": "232", "arm64": "22"}[runtime.GOARCH] // epoll_(p)wait
	await(t, "a wait in ring_buffer__poll()", func() bool {
		threads, err := filepath.Glob("/proc/self/task/*/syscall")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			call, _ := os.ReadFile(thread) // it may have ended
			// The number of the call, then its arguments. For Go's own epoll instance maxevents
			// is larger.
			if f := strings.Fields(string(call)); len(f) > 3 && f[0] == number && f[3] == "0x1" {
				return true
			}
		}
		return false
	})
}

// TestThePollIsInterrupted checks that the eventfd ends a wait in ring_buffer__poll. Nothing
// else ends this wait for an hour.
func TestThePollIsInterrupted(t *testing.T) {
	for name, act := range map[string]struct {
		call func(r *Reader)
		want error
	}{
		"Close":       {func(r *Reader) { r.Close() }, ErrClosed},
		"Flush":       {func(r *Reader) { r.Flush() }, ErrFlushed},
		"SetDeadline": {func(r *Reader) { r.SetDeadline(time.Unix(0, 1)) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
			lib := r.queue.rings.(*libbpfRings)
			lib.blockFor = time.Hour
			ring.Emit(text("a"))
			wantSample(t, r, "a") // a wait after a sample blocks
			result := goRead(t, r)
			awaitFetching(t, r)
			wantWaiting(t, result)
			act.call(r)
			if got := within(t, "Read", result); !errors.Is(got.err, act.want) {
				t.Errorf("Read returned %v, want %v", got.err, act.want)
			}
		})
	}
}
