package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests cover lease.go, loan.go and queue_loans.go.

func mustLease(t *testing.T, r *Reader) *Lease {
	t.Helper()
	l, err := r.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wantLease(t *testing.T, l *Lease, samples ...string) {
	t.Helper()
	var got []string
	for rec := range l.Records() {
		got = append(got, string(rec.RawSample))
	}
	if !slices.Equal(got, samples) || l.Len() != len(samples) {
		t.Errorf("a lease of %d records has %q, want %q", l.Len(), got, samples)
	}
}

// wantConsumed checks how many bytes of the ring libbpf has consumed since from.
func wantConsumed(t *testing.T, r *Reader, from uint64, bytes int) {
	t.Helper()
	if got := r.queue.rings.consumerPos(0) - from; got != uint64(bytes) {
		t.Errorf("the consumer position is %d bytes further, want %d", got, bytes)
	}
}

func eachMapping(t *testing.T, test func(t *testing.T, opts ...Option)) {
	t.Run("libbpf's mapping", func(t *testing.T) { test(t, WithMaxDelay(0)) })
	t.Run("own mapping", func(t *testing.T) {
		test(t, WithMaxDelay(0), func(o *options) { o.ownMapping = true })
	})
}

func TestLeasedRecordsStayInTheRingUntilCommit(t *testing.T) {
	eachMapping(t, func(t *testing.T, opts ...Option) {
		ring, r := newRingAndReader(t, os.Getpagesize(), opts...)
		from := r.queue.rings.consumerPos(0)
		ring.Emit(discarded(8), text("a"), discarded(8), text("b"))
		l := mustLease(t, r)
		wantLease(t, l, "a", "b")
		wantLease(t, l, "a", "b") // again
		wantAvailable(t, r, 0)
		wantConsumed(t, r, from, 0)
		if err := l.Commit(); err != nil {
			t.Error(err)
		}
		wantConsumed(t, r, from, 4*16)
		if err := l.Commit(); err != nil {
			t.Errorf("a second Commit returned %v", err)
		}
		for range l.Records() {
			t.Error("a lease that was committed has records")
		}
		l.Release()
		wantConsumed(t, r, from, 4*16)
		stats := r.Stats()
		if g := stats.Rings[0]; g.Samples != 2 || g.Bytes != 2 || g.Discarded != 2 {
			t.Errorf("Stats are %+v", g)
		}
	})
}

func TestPositionNamesARecord(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	from := r.queue.rings.consumerPos(0)
	ring.Emit(text("a"), text("123456789"))
	l := mustLease(t, r)
	var got []uint64
	for rec := range l.Records() {
		got = append(got, l.Position(rec)-from)
	}
	if want := []uint64{16, 40}; !slices.Equal(got, want) {
		t.Errorf("positions are %d, want %d", got, want)
	}
	l.Release()
	l = mustLease(t, r)
	for rec := range l.Records() {
		if p := l.Position(rec) - from; p != got[0] {
			t.Errorf("position %d the second time, want %d", p, got[0])
		}
		break
	}
	l.Commit()
}

func TestReleasedRecordsComeAgainBeforeLaterOnes(t *testing.T) {
	ways := map[string]func(t *testing.T, r *Reader) string{
		"Read": func(t *testing.T, r *Reader) string { return string(mustRead(t, r).RawSample) },
		"Records": func(t *testing.T, r *Reader) string {
			for rec, err := range r.Records(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				return string(rec.RawSample)
			}
			return ""
		},
		"Lease": func(t *testing.T, r *Reader) (sample string) {
			l := mustLease(t, r)
			for rec := range l.Records() {
				sample += string(rec.RawSample)
			}
			if err := l.Commit(); err != nil {
				t.Error(err)
			}
			return sample
		},
	}
	for name, read := range ways {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
			from := r.queue.rings.consumerPos(0)
			var leases []*Lease
			for _, s := range []string{"a", "b", "c"} {
				ring.Emit(text(s))
				leases = append(leases, mustLease(t, r))
			}
			leases[1].Release()
			leases[0].Release()
			wantAvailable(t, r, 2*16)
			for _, want := range []string{"a", "b"} {
				if got := read(t, r); got != want {
					t.Errorf("%q came, want %q", got, want)
				}
			}
			if err := leases[1].Commit(); err == nil {
				t.Error("Commit after Release returned no error")
			}
			wantConsumed(t, r, from, 2*16)
			if err := leases[2].Commit(); err != nil {
				t.Error(err)
			}
			wantConsumed(t, r, from, 3*16)
			ring.Emit(text("d"))
			if got := read(t, r); got != "d" {
				t.Errorf("%q came, want d", got)
			}
			wantAvailable(t, r, 0)
		})
	}
}

// TestLeaseOfWhatReadHasDrained leases samples that a Read has drained and nobody has read, and
// releases them.
func TestLeaseOfWhatReadHasDrained(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
	ring.Emit(text("a"), text("b"), text("c"), text("d"))
	wantSample(t, r, "a")
	l := mustLease(t, r)
	wantLease(t, l, "b", "c", "d")
	ring.Emit(text("e"))
	wantAvailable(t, r, 16)
	l.Release()
	wantAvailable(t, r, 4*16)
	for rec, err := range r.Records(t.Context()) {
		if err != nil || string(rec.RawSample) != "b" || rec.Remaining != 2*16 {
			t.Errorf("got %q, %d bytes remain, %v", rec.RawSample, rec.Remaining, err)
		}
		break
	}
	wantAvailable(t, r, 3*16)
	wantSample(t, r, "c")
	l = mustLease(t, r)
	wantLease(t, l, "d")
	if err := l.Commit(); err != nil {
		t.Error(err)
	}
	wantSample(t, r, "e")
	wantAvailable(t, r, 0)
}

func TestDroppedLeaseIsReleased(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"))
	mustLease(t, r)
	await(t, "the lease to be collected", func() bool {
		runtime.GC()
		return r.AvailableBytes() == 16
	})
	wantSample(t, r, "a")
}

// TestLeasesCommittedInReverse has leases that 8 goroutines commit in reverse order, under a
// flood. In every third round they release the leases instead, and the records must come again
// in order.
func TestLeasesCommittedInReverse(t *testing.T) {
	const goroutines, samples = 8, 40_000
	ring, r := newRingAndReader(t, 1<<20)
	var produced group
	produced.Go(func() {
		for seq := 0; seq < samples; runtime.Gosched() {
			seq += ring.Count(0, uint64(seq), min(500, samples-seq), 0)
		}
	})
	next := uint64(0)
	for round := 0; next < samples; round++ {
		var leases []*Lease
		var first []uint64
		for range goroutines {
			r.SetDeadline(time.Now().Add(20 * time.Millisecond))
			l, err := r.Lease(t.Context())
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			for rec := range l.Records() {
				if len(first) == len(leases) {
					first = append(first, bpftest.DecodeNumbered(rec.RawSample).Seq)
				}
			}
			leases = append(leases, l)
		}
		release := round%3 == 0
		turns := make([]chan bool, len(leases)+1)
		for i := range turns {
			turns[i] = make(chan bool, 1)
		}
		var returning group
		for i, l := range leases {
			returning.Go(func() {
				<-turns[i+1]
				before := r.queue.rings.consumerPos(0)
				if release {
					l.Release()
				} else if err := l.Commit(); err != nil {
					t.Error(err)
				}
				if i > 0 && r.queue.rings.consumerPos(0) != before {
					t.Error("libbpf consumed before an earlier lease was committed")
				}
				turns[i] <- true
			})
		}
		turns[len(leases)] <- true
		returning.Wait()
		if len(leases) == 0 {
			continue
		}
		if release {
			again := mustLease(t, r)
			for rec := range again.Records() {
				if got := bpftest.DecodeNumbered(rec.RawSample).Seq; got != first[0] {
					t.Fatalf("sample %d came again, want %d", got, first[0])
				}
				break
			}
			again.Release()
			continue
		}
		for i, l := range leases {
			if first[i] != next {
				t.Fatalf("lease %d begins with sample %d, want %d", i, first[i], next)
			}
			next += uint64(l.Len())
		}
	}
	produced.Wait()
	r.SetDeadline(time.Time{})
	wantAvailable(t, r, 0)
}

func TestALeaseKeepsAnEighthOfTheRing(t *testing.T) {
	for _, size := range []int{os.Getpagesize(), 64 << 10, 4 << 20} {
		t.Run(fmt.Sprint(size>>10, " KiB"), func(t *testing.T) {
			ring, r := newRingAndReader(t, size)
			ring.Count(0, 0, numberedCapacity(size), 0)
			before := r.AvailableBytes()
			l := mustLease(t, r)
			most := min(size/8, maxLeaseSize)
			if kept := before - r.AvailableBytes(); kept > most || kept < most-numberedRecord {
				t.Errorf("a lease keeps %d bytes, want %d", kept, most)
			}
			l.Commit()
		})
	}
	t.Run("large record", func(t *testing.T) {
		size := os.Getpagesize()
		ring, r := newRingAndReader(t, size)
		ring.Emit(bpftest.Sample{Data: make([]byte, size/2)}, text("b"))
		l := mustLease(t, r)
		if l.Len() != 1 {
			t.Errorf("a lease has %d records, want only the large one", l.Len())
		}
		l.Commit()
		wantSample(t, r, "b")
	})
}

func TestCloseWhileLeasesAreOut(t *testing.T) {
	ring, r := newRingAndReader(t, 1<<16, WithMaxDelay(0))
	before := resources()
	ring.Count(0, 0, 2000, 0)
	const goroutines = 4
	var reading, started group
	closed := make(chan struct{})
	started.Add(goroutines)
	for range goroutines {
		l := mustLease(t, r)
		reading.Go(func() {
			first := true
			for rec := range l.Records() {
				if first {
					started.Done()
					<-closed
				}
				first = false
				bpftest.DecodeNumbered(rec.RawSample)
			}
			if err := l.Commit(); !errors.Is(err, ErrClosed) {
				t.Errorf("Commit after Close returned %v", err)
			}
		})
	}
	started.Wait()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lease(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Lease after Close returned %v", err)
	}
	close(closed)
	reading.Wait()
	before.descriptors -= 5
	if err := awaitResources(before); err != nil {
		t.Errorf("Close and the last Commit left behind: %v", err)
	}
	next := mustNewReader(t, ring)
	wantNumbered(t, next, 0, 2000)
}

func TestAReadBesideALeaseGetsLaterRecords(t *testing.T) {
	eachMapping(t, func(t *testing.T, opts ...Option) {
		ring, r := newRingAndReader(t, os.Getpagesize(), opts...)
		from := r.queue.rings.consumerPos(0)
		ring.Emit(text("a"))
		l := mustLease(t, r)
		ring.Emit(text("b"), discarded(8), text("c"))
		wantSample(t, r, "b")
		wantSample(t, r, "c")
		wantConsumed(t, r, from, 0)
		// While the lease is out, the kernel does not notify.
		result := goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(text("d"))
		wantResult(t, result, "d", nil)
		if err := l.Commit(); err != nil {
			t.Error(err)
		}
		wantConsumed(t, r, from, 5*16)
		result = goRead(t, r)
		wantWaiting(t, result)
		ring.Emit(text("e"))
		wantResult(t, result, "e", nil)
	})
}

// TestNoWakeupIsLostWhenALeaseIsCommitted commits leases while other goroutines wait for later
// records. A lease may be committed at any moment before or after the kernel commits the next
// record.
func TestNoWakeupIsLostWhenALeaseIsCommitted(t *testing.T) {
	eachWaitUnderLoad(t, func(t *testing.T, opts ...Option) {
		ring := bpftest.NewStress(t, os.Getpagesize(), uint64(time.Now().UnixNano()))
		r := mustNewReader(t, ring, opts...)
		n := *rallies / 10
		r.queue.rings.(*libbpfRings).blockFor = time.Hour
		var progress atomic.Uint64
		stopWatching := watch(t, "", &progress)
		defer stopWatching()
		stop := make(chan struct{})
		var writing, reading group
		defer writing.Wait()
		defer close(stop)
		writing.Go(func() { ring.Serve(n, stop) })
		var seen atomic.Uint64
		for range 3 {
			reading.Go(func() {
				for {
					l, err := r.Lease(t.Context())
					if err != nil {
						return
					}
					runtime.Gosched()
					if err := l.Commit(); err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					if progress.Store(seen.Add(uint64(l.Len()))); seen.Load() == n {
						r.Close()
					}
				}
			})
		}
		reading.Wait()
		if seen.Load() != n {
			t.Errorf("%d samples came, want %d", seen.Load(), n)
		}
	})
}

// TestAPanicDoesNotKeepTheTurn has the caller's context panic, or end its goroutine, during a
// read.
func TestAPanicDoesNotKeepTheTurn(t *testing.T) {
	for name, end := range map[string]func(){
		"panic":  func() { panic("in the caller's context") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			_, r := newRingAndReader(t, os.Getpagesize())
			for _, read := range []struct {
				call  func(ctx context.Context)
				after int // calls of Err; during the last one the goroutine has the turn
			}{
				{func(ctx context.Context) { r.ReadContext(ctx) }, 2},
				{func(ctx context.Context) { r.Lease(ctx) }, 1},
			} {
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { recover() }()
					read.call(&badContext{Context: context.Background(), end: end, after: read.after})
				}()
				<-done
			}
			closed := make(chan readResult, 1)
			go func() { closed <- readResult{err: r.Close()} }()
			if got := within(t, "Close", closed); got.err != nil {
				t.Error(got.err)
			}
		})
	}
}

// A badContext calls end from a certain call of Err on.
type badContext struct {
	context.Context
	end   func()
	after int
}

func (c *badContext) Err() error {
	if c.after--; c.after <= 0 {
		c.end()
	}
	return nil
}

func TestAWriteToAViewIsSIGSEGV(t *testing.T) {
	const inside = "RINGBUF_TEST_WRITE"
	if os.Getenv(inside) != "" {
		ring, r := newRingAndReader(t, os.Getpagesize())
		ring.Emit(text("a"))
		for rec := range r.Records(t.Context()) {
			rec.RawSample[0] = 'b'
		}
		return
	}
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	for _, traceback := range []string{"crash", "single"} {
		out, err := runTests("^"+t.Name()+"$", inside+"=1", "GOTRACEBACK="+traceback)
		fault := strings.Contains(out, "SIGSEGV: segmentation violation") ||
			strings.Contains(out, "unexpected fault address")
		if err == nil || !fault {
			t.Errorf("a body that writes to a view ended with %v\n%s", err, out)
		}
	}
}

// TestOwnersMayWriteBesideReadInto is for the race detector. A sample that Read has returned
// belongs to its caller, whatever ReadInto does in other goroutines.
func TestOwnersMayWriteBesideReadInto(t *testing.T) {
	const samples = 5_000
	ring, r := newRingAndReader(t, 1<<16)
	rng := rand.New(rand.NewPCG(1, 2))
	var seen atomic.Int64
	var reading group
	read := func(next func() error) {
		for next() == nil {
			if seen.Add(1) == samples {
				r.Close()
			}
		}
	}
	for range 2 {
		reading.Go(func() {
			read(func() error {
				rec, err := r.Read()
				for i := range rec.RawSample {
					rec.RawSample[i] = 0xff
				}
				return err
			})
		})
		reading.Go(func() {
			var rec Record
			read(func() error { return r.ReadInto(&rec) })
		})
	}
	for sent := 0; sent < samples; {
		// Few samples, so that ReadInto takes some batches whole and their memory is used
		// again. Samples of all sizes, so that a header in one batch is in the place of a
		// sample in the next.
		some := make([]bpftest.Sample, min(1+rng.IntN(3), samples-sent))
		for i := range some {
			some[i].Data = make([]byte, rng.IntN(100))
		}
		for refused := len(some); refused > 0; runtime.Gosched() {
			refused = ring.TryEmit(some[len(some)-refused:]...)
		}
		sent += len(some)
	}
	reading.Wait()
}

// TestLargeSamplesLeaveLoopsSmall runs two loops over a ring that had one large sample.
func TestLargeSamplesLeaveLoopsSmall(t *testing.T) {
	ring, r := newRingAndReader(t, 4<<20, WithMaxDelay(0))
	ring.Emit(bpftest.Sample{Data: make([]byte, 512<<10)})
	var rec Record
	if err := r.ReadInto(&rec); err != nil {
		t.Fatal(err)
	}
	const n = 200
	var seen atomic.Int64
	var ended atomic.Bool
	var reading group
	for range 2 {
		reading.Go(func() {
			for _, err := range r.Records(t.Context()) {
				if err != nil {
					t.Error(err)
				}
				// Each body keeps its record until the other loop has the next one.
				for i := seen.Add(1); seen.Load() == i && !ended.Load(); {
					runtime.Gosched()
				}
			}
		})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range int64(n) {
		ring.Count(0, 0, 1, 0)
		await(t, "the sample", func() bool { return seen.Load() == i+1 })
	}
	runtime.ReadMemStats(&after)
	ended.Store(true)
	r.Close()
	reading.Wait()
	if got := (after.TotalAlloc - before.TotalAlloc) / n; got > 4<<10 {
		t.Errorf("%d bytes are allocated for each small sample", got)
	}
}

// TestLeasesTellOfLosses checks that a lease reports losses as Read does. After a release they
// are reported again, after a commit they are not.
func TestLeasesTellOfLosses(t *testing.T) {
	const size = 1 << 16
	ring := bpftest.NewLoss(t, size, 0)
	r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), WithMaxDelay(0))
	n := numberedCapacity(size)
	if got := ring.Try(0, 0, 0, n+3); got != n {
		t.Fatalf("%d records were accepted, want %d", got, n)
	}
	drain := func(end int) (lost uint64) {
		for read := 0; read < end; {
			l := mustLease(t, r)
			for rec := range l.Records() {
				lost += rec.Lost
			}
			read += l.Len()
			if err := l.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		return lost
	}
	if lost := drain(n); lost != 0 {
		t.Errorf("%d were lost before records that came before the loss", lost)
	}
	ring.Try(0, 0, 0, 2)
	for range 2 {
		l := mustLease(t, r)
		var lost []uint64
		for rec := range l.Records() {
			lost = append(lost, rec.Lost)
		}
		if !slices.Equal(lost, []uint64{3, 0}) {
			t.Errorf("%d were lost before these records, want 3 and 0", lost)
		}
		l.Release()
	}
	for rec, err := range r.Records(t.Context()) {
		if err != nil || rec.Lost != 3 {
			t.Errorf("%d were lost, want 3 (%v)", rec.Lost, err)
		}
		break
	}
	if rec := mustRead(t, r); rec.Lost != 0 {
		t.Errorf("%d were lost, want none the second time", rec.Lost)
	}
	if got := r.Stats().Lost; got != 3 {
		t.Errorf("Stats have %d lost, want 3", got)
	}
}

// TestReleaseWakesWhoWaits releases a lease while a Read waits for the kernel, which does not
// notify of released records.
func TestReleaseWakesWhoWaits(t *testing.T) {
	for name, drained := range map[string]bool{"of the ring": false, "of what was drained": true} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
			if ring.Emit(text("a"), text("b")); drained {
				wantSample(t, r, "a")
			}
			l := mustLease(t, r)
			result := goRead(t, r)
			wantWaiting(t, result)
			l.Release()
			if drained {
				wantResult(t, result, "b", nil)
			} else {
				wantResult(t, result, "a", nil)
			}
		})
	}
}

func TestACommitInTheLoopEndsIt(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"), text("b"))
	l := mustLease(t, r)
	var came []string
	for rec := range l.Records() {
		came = append(came, string(rec.RawSample))
		if err := l.Commit(); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(came, []string{"a"}) {
		t.Errorf("the loop yielded %q, want only the record before Commit", came)
	}
}

func TestAvailableBytesWithReleasedLeases(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(0))
	var leases []*Lease
	for range 2 {
		ring.Emit(text("a"), text("b"))
		leases = append(leases, mustLease(t, r))
	}
	leases[0].Release()
	wantAvailable(t, r, 2*16)
	wantSample(t, r, "a")
	wantAvailable(t, r, 16)
	leases[1].Release()
	wantAvailable(t, r, 3*16)
	for _, want := range []string{"b", "a", "b"} {
		wantSample(t, r, want)
	}
	wantAvailable(t, r, 0)
}

// TestDiscardsArePassedBesideALeaseOfAnotherRing checks that a lease of one ring does not keep
// libbpf from passing discarded records of another.
func TestDiscardsArePassedBesideALeaseOfAnotherRing(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096}, WithMaxDelay(0))
	rings[0].Emit(text("a"))
	l := mustLease(t, r)
	result := goRead(t, r)
	for range 10 * 4096 / 16 {
		for rings[1].TryEmit(discarded(8)) > 0 {
			runtime.Gosched()
		}
	}
	for rings[1].TryEmit(text("b")) > 0 {
		runtime.Gosched()
	}
	wantResult(t, result, "b", nil)
	if err := l.Commit(); err != nil {
		t.Error(err)
	}
}

// TestWaitsBesideALease has a call wait for later records while a lease is out. The kernel notifies
// of records of another ring only. Of the ring with the lease, the call finds records by itself.
func TestWaitsBesideALease(t *testing.T) {
	for ring, name := range []string{"of the same ring", "of another ring"} {
		t.Run(name, func(t *testing.T) {
			rings, r := newRings(t, []int{1 << 16, 1 << 16})
			rings[0].Emit(text("lent"))
			lease := mustLease(t, r)
			clock := newTurnClock(t)
			before := r.Stats().Wakeups
			for range 5 {
				result := goRead(t, r)
				wantWaiting(t, result)
				sent := clock.now()
				rings[ring].Emit(text("later"))
				wantResult(t, result, "later", nil)
				if took := clock.now() - sent; took > maxLentPause*5/4 {
					t.Errorf("a record waited for %v, want at most %v", took, maxLentPause)
				}
			}
			// A record may also come between two waits.
			if woken := r.Stats().Wakeups - before; ring == 0 && woken > 0 || ring == 1 && woken == 0 {
				t.Errorf("the kernel ended %d waits", woken)
			}
			if err := lease.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
}
