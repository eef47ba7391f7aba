package ringbuf

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests run on the kernel of this machine: a BPF program produces the
// records. queue_test.go has those that need no kernel.

func mustNewReader(t testing.TB, m Map, opts ...Option) *Reader {
	t.Helper()
	r, err := NewReader(m, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

func newRingAndReader(t testing.TB, size int, opts ...Option) (*bpftest.Ring, *Reader) {
	t.Helper()
	ring := bpftest.New(t, size)
	return ring, mustNewReader(t, ring, opts...)
}

func mustRead(t testing.TB, r *Reader) Record {
	t.Helper()
	rec, err := r.Read()
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return rec
}

// wantSample reads a sample and compares it.
func wantSample(t testing.TB, r *Reader, want string) {
	t.Helper()
	if rec := mustRead(t, r); string(rec.RawSample) != want {
		t.Fatalf("Read returned %q, want %q", rec.RawSample, want)
	}
}

func wantReadError(t testing.TB, r *Reader, want error) {
	t.Helper()
	if rec, err := r.Read(); !errors.Is(err, want) {
		t.Fatalf("Read returned %q, %v; want %v", rec.RawSample, err, want)
	}
}

func wantAvailable(t testing.TB, r *Reader, want int) {
	t.Helper()
	if got := r.AvailableBytes(); got != want {
		t.Fatalf("AvailableBytes is %d, want %d", got, want)
	}
}

type readResult struct {
	rec Record
	err error
}

// goRead calls Read in a goroutine and returns when it waits for samples.
func goRead(t testing.TB, r *Reader) <-chan readResult {
	t.Helper()
	result := make(chan readResult, 1)
	go func() {
		rec, err := r.Read()
		result <- readResult{rec, err}
	}()
	awaitFetching(t, r)
	return result
}

// awaitFetching returns when a goroutine fetches the ring.
func awaitFetching(t testing.TB, r *Reader) {
	t.Helper()
	await(t, "a goroutine that fetches", func() bool {
		r.queue.mu.Lock()
		defer r.queue.mu.Unlock()
		return r.queue.fetching
	})
}

// await returns when cond holds.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for p := (patience{left: 10 * time.Second}); !cond(); runtime.Gosched() {
		if p.over() {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// wantResult waits for the result of goRead.
func wantResult(t testing.TB, result <-chan readResult, sample string, want error) {
	t.Helper()
	select {
	case got := <-result:
		if !errors.Is(got.err, want) || string(got.rec.RawSample) != sample {
			t.Fatalf("the waiting Read returned %q, %v; want %q, %v", got.rec.RawSample, got.err, sample,
				want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read still waits")
	}
}

// wantWaiting fails if the Read of goRead returns within some time.
func wantWaiting(t testing.TB, result <-chan readResult) {
	t.Helper()
	select {
	case got := <-result:
		t.Fatalf("Read did not wait: %q, %v", got.rec.RawSample, got.err)
	case <-time.After(20 * time.Millisecond):
	}
}

// eachWait runs a test once with a Reader that blocks its thread for as long as it waits
// for samples, and once with one that parks the goroutine. The ring is empty.
func eachWait(t *testing.T, test func(t *testing.T, ring *bpftest.Ring, r *Reader)) {
	t.Run("blocked", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		r.queue.rings.(*libbpfRings).blockFor = time.Hour
		ring.Emit(text("recent"))
		wantSample(t, r, "recent")
		test(t, ring, r)
	})
	t.Run("parked", func(t *testing.T) {
		ring, r := newRingAndReader(t, os.Getpagesize())
		test(t, ring, r)
	})
}

// eachPace runs a test once with a Reader that reads eagerly, and once with one that
// may drain at ticks, also if its ring is small.
func eachPace(t *testing.T, test func(t *testing.T, pace Option)) {
	t.Run("eager", func(t *testing.T) { test(t, WithMaxDelay(0)) })
	t.Run("moderated", func(t *testing.T) { test(t, WithMaxDelay(2*time.Millisecond)) })
}

// A group is a WaitGroup with the Go method that it has since Go 1.25.
type group struct{ sync.WaitGroup }

func (g *group) Go(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}

func text(s string) bpftest.Sample { return bpftest.Sample{Data: []byte(s)} }

func quiet(s string) bpftest.Sample {
	return bpftest.Sample{Data: []byte(s), Flags: bpftest.NoWakeup}
}

func discarded(size int) bpftest.Sample {
	return bpftest.Sample{Data: make([]byte, size), Discard: true}
}

func TestReadReturnsSamplesWithTheirRemainingBytes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		samples   []bpftest.Sample
		available int
		want      []Record
	}{
		{
			name:      "one short sample",
			samples:   []bpftest.Sample{text("12345")},
			available: 16,
			want:      []Record{{RawSample: []byte("12345"), Remaining: 0}},
		},
		{
			name:      "the second of three is discarded",
			samples:   []bpftest.Sample{text("12345"), discarded(10), text("123456789012345")},
			available: 16 + 24 + 24,
			want: []Record{{RawSample: []byte("12345"), Remaining: 24 + 24},
				{RawSample: []byte("123456789012345"), Remaining: 0}},
		},
		{
			name: "every second of five is discarded",
			samples: []bpftest.Sample{
				text("12345"), discarded(10), text("123456789012345"), discarded(20),
				text("1234567890123456789012345"),
			},
			available: 16 + 24 + 24 + 32 + 40,
			want: []Record{
				{RawSample: []byte("12345"), Remaining: 24 + 24 + 32 + 40},
				{RawSample: []byte("123456789012345"), Remaining: 32 + 40},
				{RawSample: []byte("1234567890123456789012345"), Remaining: 0},
			},
		},
		{
			name:      "the first and the last are discarded",
			samples:   []bpftest.Sample{discarded(8), text("x"), discarded(100)},
			available: 16 + 16 + 112,
			want:      []Record{{RawSample: []byte("x"), Remaining: 112}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize())
			wantAvailable(t, r, 0)
			ring.Emit(tt.samples...)
			wantAvailable(t, r, tt.available)
			for i, want := range tt.want {
				got := mustRead(t, r)
				if !bytes.Equal(got.RawSample, want.RawSample) || got.Remaining != want.Remaining {
					t.Errorf("record %d is %q, %d; want %q, %d", i, got.RawSample, got.Remaining, want.RawSample,
						want.Remaining)
				}
				// Also while the rest of the batch is in memory.
				wantAvailable(t, r, want.Remaining)
			}
			r.SetDeadline(time.Unix(0, 1))
			wantReadError(t, r, os.ErrDeadlineExceeded)
			wantAvailable(t, r, 0)
		})
	}
}

func TestBufferSizeIsTheRingsSize(t *testing.T) {
	for _, size := range []int{os.Getpagesize(), 64 << 10, 16 << 20} {
		_, r := newRingAndReader(t, size)
		if got := r.BufferSize(); got != size {
			t.Errorf("BufferSize is %d, want %d", got, size)
		}
	}
}

func TestEverySizeThatTheKernelAcceptsIsRead(t *testing.T) {
	random := rand.New(rand.NewChaCha8([32]byte{}))
	sample := func(size int) bpftest.Sample {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		return bpftest.Sample{Data: data}
	}
	for _, ringSize := range []int{os.Getpagesize(), 64 << 10, 512 << 10} {
		t.Run(fmt.Sprint(ringSize), func(t *testing.T) {
			ring, r := newRingAndReader(t, ringSize)
			r.SetDeadline(time.Now().Add(10 * time.Second)) // if one is lost
			// One byte of the ring stays free, and records are multiples of 8.
			largest := ringSize - 8 - bpftest.HeaderSize
			sizes := []int{0, 1, 7, 8, 9, 15, 16, 17, 255, 256, 1000, ringSize / 2, largest - 1, largest}
			random.Shuffle(len(sizes), func(i, j int) { sizes[i], sizes[j] = sizes[j], sizes[i] })
			sizes = append(sizes, largest) // a second time, from another position
			for _, size := range sizes {
				want := sample(size)
				ring.Emit(want)
				rec := mustRead(t, r)
				if !bytes.Equal(rec.RawSample, want.Data) {
					t.Fatalf("sample of %d bytes came as one of %d bytes with other content", size,
						len(rec.RawSample))
				}
				if rec.RawSample == nil {
					t.Fatalf("RawSample of %d bytes is nil", size)
				}
			}
			if ring.TryEmit(sample(largest+1)) != 1 {
				t.Errorf("the kernel accepts %d bytes: the test does not try the largest sample", largest+1)
			}
			// Several of different sizes in one batch, more than it holds at first.
			var want []bpftest.Sample
			for used := 0; ; {
				s := sample(random.IntN(ringSize / 16))
				if used += s.RecordSize(); used >= ringSize {
					break
				}
				want = append(want, s)
			}
			ring.Emit(want...)
			for i, s := range want {
				if rec := mustRead(t, r); !bytes.Equal(rec.RawSample, s.Data) {
					t.Fatalf("sample %d differs", i)
				}
			}
			wantAvailable(t, r, 0)
		})
	}
}

func TestLargeSamplesDoNotMakeBatchesLarge(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	const large = 8 << 10
	var rec Record
	for range 20 {
		var samples []bpftest.Sample
		for i := range 2000 {
			size := 100
			if i%100 == 99 {
				size = large
			}
			samples = append(samples, bpftest.Sample{Data: make([]byte, size)})
		}
		ring.Emit(samples...)
		for i, s := range samples {
			if err := r.ReadInto(&rec); err != nil || len(rec.RawSample) != len(s.Data) {
				t.Fatalf("sample %d: %v, %d bytes, want %d", i, err, len(rec.RawSample), len(s.Data))
			}
		}
	}
	b := <-r.queue.turn
	r.queue.turn <- b
	if got, limit := len(*b.memory), keptMemory; got > limit {
		t.Errorf("a batch has %d bytes, want at most %d", got, limit)
	}
}

// TestLargeSampleLeavesNoMemory has a large sample among small ones.
func TestLargeSampleLeavesNoMemory(t *testing.T) {
	ring, r := newRingAndReader(t, 4<<20)
	for range 3 {
		ring.Emit(text("small"), bpftest.Sample{Data: make([]byte, 512<<10)}, text("small"))
		for i, want := range []int{5, 512 << 10, 5} {
			sample := mustRead(t, r).RawSample
			if len(sample) != want || cap(sample) > want+want/8+16 {
				t.Fatalf("sample %d has %d bytes and capacity %d, want %d", i, len(sample), cap(sample), want)
			}
		}
		ring.Emit(text("small"))
		mustRead(t, r)
		b := <-r.queue.turn
		r.queue.turn <- b
		if got := len(*b.memory); got > keptMemory {
			t.Errorf("a batch of a small sample has %d bytes of memory, want at most %d", got, keptMemory)
		}
	}
}

func TestReadGivesItsSampleAway(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	var kept [][]byte
	for i := range 1000 {
		ring.Emit(text(fmt.Sprint("sample ", i)))
		rec := mustRead(t, r)
		kept = append(kept, rec.RawSample)
		// An append must not reach the next sample.
		_ = append(rec.RawSample, "overwritten"...)
	}
	for i, sample := range kept {
		if want := fmt.Sprint("sample ", i); string(sample) != want {
			t.Fatalf("a kept sample is now %q, was %q", sample, want)
		}
	}
}

func TestReadIntoReusesMemory(t *testing.T) {
	ring, r := newRingAndReader(t, 64<<10)
	rec := Record{RawSample: make([]byte, 0, 100)}
	memory := &rec.RawSample[:1][0]
	ring.Emit(text("first"), text("the second"), text(""))
	for _, want := range []string{"first", "the second", ""} {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		if string(rec.RawSample) != want {
			t.Errorf("ReadInto stored %q, want %q", rec.RawSample, want)
		}
		if &rec.RawSample[:1][0] != memory {
			t.Error("ReadInto did not reuse RawSample")
		}
	}
	rec.RawSample = append(rec.RawSample, "kept"...)
	r.SetDeadline(time.Unix(0, 1))
	if err := r.ReadInto(&rec); !errors.Is(err, os.ErrDeadlineExceeded) ||
		string(rec.RawSample) != "kept" {
		t.Errorf("a failed ReadInto returned %v and left %q in RawSample", err, rec.RawSample)
	}
}

func TestAllocationsPerSample(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<20)
	var rec Record
	fill := func() {
		if got := ring.Count(0, 0, 10000, 0); got != 10000 {
			t.Fatalf("the ring had room for %d samples only", got)
		}
	}
	measure := func(read func() error) float64 {
		// The second time batches have reached their size.
		var perSample float64
		for range 2 {
			fill()
			perSample = testing.AllocsPerRun(9999, func() {
				if err := read(); err != nil {
					t.Fatal(err)
				}
			})
		}
		return perSample
	}
	if got := measure(func() error { return r.ReadInto(&rec) }); got != 0 {
		t.Errorf("ReadInto allocates %v times per sample, want 0", got)
	}
	// AllocsPerRun rounds down, so count what is needed for all.
	var before, after runtime.MemStats
	fill()
	runtime.ReadMemStats(&before)
	for range 10000 {
		mustRead(t, r)
	}
	runtime.ReadMemStats(&after)
	if perSample := float64(after.Mallocs-before.Mallocs) / 10000; perSample > 0.05 {
		t.Errorf("Read allocates %v times per sample, want at most 0.05", perSample)
	}
}

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

func TestDiscardedRecordsAreSkipped(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		result := goRead(t, r)
		for range 100 { // several times around the ring
			ring.Emit(discarded(100))
			await(t, "the discarded record to be skipped",
				func() bool { return r.queue.rings.consumerPos(0) == r.queue.rings.producerPos(0) })
		}
		ring.Emit(discarded(8), text("sample"))
		wantResult(t, result, "sample", nil)
		wantAvailable(t, r, 0)
	})
}

// TestManyDiscardedRecordsHoldNothingBack discards as fast as it can, several times
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
		// A notification, so that for the kernel the ring is readable.
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
		// In a virtual machine, time in which that did not run counts for who ran there.
		got := <-used
		if held := time.Since(start); got > held/2 {
			t.Errorf("Read took %v of processor time while a record was busy for %v", got, held)
		}
	})
}

// threadTime returns the processor time that the calling thread has used.
func threadTime() time.Duration {
	const rusageThread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
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
				submit := ring.Busy([8]byte{}) // notifies nobody
				if err := tt.interrupt(r); err != nil {
					t.Error(err)
				}
				wantResult(t, result, "", tt.want)
				submit() // fails if the record was committed before
			})
		})
	}
}

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

// TestDeadlineIsFinerThanAMillisecond allows for machines, emulated ones, on which every
// timer is late.
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
			// Were either wait rounded to milliseconds, it would be 900 µs late, each time. On a busy
			// machine all but the best may be.
			best := slices.Min(late)
			limit := max(500*time.Microsecond, min(4*slices.Min(machine), 800*time.Microsecond))
			if best < 0 || best > limit {
				t.Errorf("a deadline %v away is met %v late at best, want %v at most (nanosleep: %v)",
					wait, best, limit, slices.Min(machine))
			}
		}
	})
}

// lateness returns how late a wait ends for a deadline so far away.
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
	ring.Emit(text("sample")) // later
	r.SetDeadline(time.Unix(0, 1))
	wantReadError(t, r, ErrFlushed)
	wantReadError(t, r, ErrFlushed)
	wantSample(t, r, "sample")
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestCloseInterruptsRead(t *testing.T) {
	eachWait(t, func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		results := []<-chan readResult{goRead(t, r), goRead(t, r), goRead(t, r)}
		for _, result := range results {
			wantWaiting(t, result)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for _, result := range results {
			wantResult(t, result, "", os.ErrClosed)
		}
	})
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
		r.queue.rings.(*libbpfRings).blockFor = 0 // to park also what blocked until now
		wantNoSpin(t, func(deadline time.Time) {
			r.SetDeadline(deadline)
			wantReadError(t, r, os.ErrDeadlineExceeded)
		})
	})
}

// wantNoSpin checks that a wait until a deadline takes little processor time, at least once:
// an emulated machine takes some for anything. Who spins takes all, each time.
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

// TestWakeEndsTheNextWait calls wake when fetch has begun but does not wait yet.
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
			src.wake() // or Close waits
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

func TestAfterClose(t *testing.T) {
	before := resources()
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("first"), text("drained, never read"))
	wantSample(t, r, "first")
	ring.Emit(text("never drained"))
	for range 2 {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	wantReadError(t, r, os.ErrClosed)
	wantReadError(t, r, ErrClosed)
	if err := r.ReadInto(new(Record)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReadInto after Close returned %v", err)
	}
	if err := r.Flush(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Flush after Close returned %v", err)
	}
	r.SetDeadline(time.Now())
	wantReadError(t, r, os.ErrClosed)
	wantAvailable(t, r, 0)
	if got := r.BufferSize(); got != os.Getpagesize() {
		t.Errorf("BufferSize after Close is %d", got)
	}

	next := mustNewReader(t, ring)
	wantSample(t, next, "never drained")
	next.Close()
	ring.Close()
	if err := awaitResources(before); err != nil {
		t.Errorf("after Close: %v", err)
	}
}

func TestNothingIsDrainedWhileNobodyReads(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	other := mustNewReader(t, ring)
	ring.Emit(text("first"), text("second"))
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	wantSample(t, r, "first")
	wantSample(t, r, "second")
	wantReadError(t, r, ErrFlushed)
	ring.Emit(text("third"))
	wantAvailable(t, r, 16)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantAvailable(t, other, 16)
	wantSample(t, other, "third")
}

func TestReaderOutlivesItsModule(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("first"), text("second"))
	wantSample(t, r, "first")
	ring.Close()
	wantSample(t, r, "second")
	wantAvailable(t, r, 0)
	r.SetDeadline(time.Now().Add(time.Millisecond))
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestDroppedReaderIsCleanedUp(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	ring.Emit(text("sample"))
	func() {
		r, err := NewReader(ring)
		if err != nil {
			t.Fatal(err)
		}
		wantSample(t, r, "sample")
		r.SetDeadline(time.Now().Add(time.Millisecond)) // has been parked
		wantReadError(t, r, os.ErrDeadlineExceeded)
		if got := resources(); got.descriptors <= before.descriptors || got.mappings <= before.mappings {
			t.Fatalf("with a Reader there is %+v, without %+v: the test sees nothing", got, before)
		}
		runtime.KeepAlive(r)
	}()
	if err := awaitResources(before); err != nil { // collects garbage
		t.Error(err)
	}
}

func TestChildrenInheritNothing(t *testing.T) {
	before := descriptors(t)
	ring := bpftest.New(t, os.Getpagesize())
	loaded := descriptors(t)
	mustNewReader(t, ring)
	opened := 0
	for fd := range descriptors(t) {
		if before[fd] || loaded[fd] {
			continue
		}
		opened++
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d of the Reader is not close-on-exec (%v)", fd, errno)
		}
	}
	if opened == 0 {
		t.Error("the Reader seems to have no descriptors: the test sees nothing")
	}
}

// descriptors returns the open descriptors of this process.
func descriptors(t *testing.T) map[int]bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := make(map[int]bool)
	for _, entry := range entries {
		var fd int
		fmt.Sscan(entry.Name(), &fd)
		// ReadDir's own is closed by now.
		if _, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			fds[fd] = true
		}
	}
	return fds
}

func TestConcurrentReadersShareTheSamples(t *testing.T) { eachPace(t, testConcurrentReaders) }

func testConcurrentReaders(t *testing.T, pace Option) {
	const (
		producers = 2
		readers   = 4
		each      = 20000
	)
	ring, r := newRingAndReader(t, 16<<10, pace)
	var producing group
	for p := range producers {
		producing.Go(func() {
			for seq := 0; seq < each; {
				seq += ring.Count(p, uint64(seq), min(each-seq, 1+seq%50), 0)
			}
		})
	}
	var (
		mu     sync.Mutex
		seen   [producers][]uint64
		total  int
		allIn  = make(chan struct{})
		failed atomic.Bool
	)
	var reading group
	for i := range readers {
		reading.Go(func() {
			var last [producers]int64
			for p := range last {
				last[p] = -1
			}
			var rec Record
			for {
				var err error
				if i%2 == 0 {
					rec, err = r.Read()
				} else {
					err = r.ReadInto(&rec)
				}
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil {
					if !failed.Swap(true) {
						t.Error(err)
					}
					return
				}
				n := bpftest.DecodeNumbered(rec.RawSample)
				if int64(n.Seq) <= last[n.Producer] {
					t.Errorf("a goroutine read %d after %d", n.Seq, last[n.Producer])
				}
				last[n.Producer] = int64(n.Seq)
				clear(rec.RawSample) // it belongs to this goroutine
				mu.Lock()
				seen[n.Producer] = append(seen[n.Producer], n.Seq)
				if total++; total == producers*each {
					close(allIn)
				}
				mu.Unlock()
			}
		})
	}
	// Meanwhile everything else that a program might call.
	stop := make(chan struct{})
	var others group
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r.SetDeadline(time.Now().Add(time.Minute))
				r.SetDeadline(time.Time{})
				if n := r.AvailableBytes(); n < 0 || n > r.BufferSize()+maxBatchSize {
					t.Errorf("AvailableBytes is %d", n)
				}
			}
		}
	})
	producing.Wait()
	select {
	case <-allIn:
	case <-time.After(30 * time.Second):
		t.Error("not all samples arrived")
	}
	close(stop)
	others.Wait()
	r.Close()
	reading.Wait()
	for p, seqs := range seen {
		slices.Sort(seqs)
		for i, seq := range seqs {
			if seq != uint64(i) {
				t.Fatalf("producer %d: sample %d is missing or came twice, next is %d", p, i, seq)
			}
		}
		if len(seqs) != each {
			t.Errorf("producer %d: %d samples, want %d", p, len(seqs), each)
		}
	}
}

func TestOrderOfOneReader(t *testing.T) { eachPace(t, testOrderOfOneReader) }

func testOrderOfOneReader(t *testing.T, pace Option) {
	ring, r := newRingAndReader(t, os.Getpagesize(), pace)
	const samples = 50000
	go func() {
		for seq := 0; seq < samples; {
			seq += ring.Count(0, uint64(seq), min(samples-seq, 1024), 0)
		}
	}()
	var rec Record
	for want := range uint64(samples) {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		if got := bpftest.DecodeNumbered(rec.RawSample).Seq; got != want {
			t.Fatalf("sample %d came, want %d", got, want)
		}
	}
}

func TestCloseUnderLoad(t *testing.T) { eachPace(t, testCloseUnderLoad) }

func testCloseUnderLoad(t *testing.T, pace Option) {
	ring := bpftest.New(t, 64<<10)
	stop := make(chan struct{})
	var producing group
	producing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				ring.Count(0, 0, 100, 0)
			}
		}
	})
	defer producing.Wait()
	defer close(stop)
	for range 100 {
		r, err := NewReader(ring, pace)
		if err != nil {
			t.Fatal(err)
		}
		var users group
		started := make(chan struct{}, 4)
		for i := range 3 {
			users.Go(func() {
				started <- struct{}{}
				var rec Record
				for {
					var err error
					if i == 0 {
						_, err = r.Read()
					} else {
						err = r.ReadInto(&rec)
					}
					if errors.Is(err, os.ErrClosed) {
						return
					} else if err != nil && !errors.Is(err, ErrFlushed) &&
						!errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
						return
					}
				}
			})
		}
		users.Go(func() {
			started <- struct{}{}
			for r.Flush() == nil {
				r.SetDeadline(time.Now())
				r.SetDeadline(time.Time{})
				r.AvailableBytes()
				r.BufferSize()
			}
		})
		for range 4 {
			<-started
		}
		var closing group
		for range 2 {
			closing.Go(func() {
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				wantReadError(t, r, os.ErrClosed)
			})
		}
		closing.Wait()
		users.Wait()
	}
}

// Go keeps the threads that other tests made it start.
func TestIdleReadersHoldNoThreads(t *testing.T) { inOwnProcess(t, testIdleReaders) }

func testIdleReaders(t *testing.T) {
	// All is opened before the first measurement, because that takes threads too.
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

	// Readers that have had a sample block threads for a while, but few.
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

// threads returns how many threads this process has.
func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// spareThreads makes the runtime start threads, which it keeps. It starts one now and
// then for reasons of its own, but seldom if it has some to spare.
func spareThreads(n int) {
	var locked, done group
	release := make(chan struct{})
	locked.Add(n)
	for range n {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			locked.Done()
			<-release
		})
	}
	locked.Wait()
	close(release)
	done.Wait()
}

// TestDiscardsThatGoRoundTheRingInAWait: libbpf does not return while programs discard as fast as
// it looks, so it may pass more than the ring has room for before it finds a sample. Here the test
// passes them in its place.
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

// awaitPollOfLibbpf returns when a thread of this process is in libbpf's epoll_wait(), for one
// ring.
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
			// The number, then the arguments: of Go's own epoll instance it wants more events.
			if f := strings.Fields(string(call)); len(f) > 3 && f[0] == number && f[3] == "0x1" {
				return true
			}
		}
		return false
	})
}
