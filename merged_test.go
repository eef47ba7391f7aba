package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// These tests run on the kernel of this machine. merged_sim_test.go has tests with a clock of
// their own.

// forever is longer than any test, so that the clock never ends a hold.
const forever = time.Hour

func stampOf(rec Record) uint64 { return bpftest.DecodeStamped(rec.RawSample).Time }

// keyOf returns the first byte of the sample.
func keyOf(rec Record) uint64 { return uint64(rec.RawSample[0]) }

// produceStamped has BPF programs in several goroutines write records into all rings, each with
// the time. left notes that a record came, and returns how many have not come yet. It panics if
// a record comes twice.
func produceStamped(rings []*bpftest.Ring, producers, perRing int) (producing *group,
	left func(rec Record) int) {
	producing = new(group)
	for p := range producers {
		producing.Go(func() {
			next := make([]int, len(rings))
			for more := true; more; runtime.Gosched() {
				more = false
				for i, ring := range rings {
					want := min(1+(p+next[i])%50, perRing-next[i])
					next[i] += ring.Stamp(p, uint64(next[i]), want)
					more = more || next[i] < perRing
				}
			}
		})
	}
	came := make([]bool, len(rings)*producers*perRing)
	n := len(came)
	return producing, func(rec Record) int {
		s := bpftest.DecodeStamped(rec.RawSample)
		i := (rec.Ring*producers+int(s.Producer))*perRing + int(s.Seq)
		if came[i] {
			panic(fmt.Sprintf("record %d of producer %d in ring %d came twice", s.Seq, s.Producer, rec.Ring))
		}
		came[i] = true
		n--
		return n
	}
}

// TestMergedRecordsAreInOrderAndComplete holds records back for long enough, in rings that have
// room for them.
func TestMergedRecordsAreInOrderAndComplete(t *testing.T) {
	for name, sizes := range map[string][]int{
		"several rings": {8 << 20, 8 << 20, 8 << 20},
		"one ring":      {16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			eachPace(t, func(t *testing.T, pace Option) {
				rings, r := newRings(t, sizes, pace)
				producing, left := produceStamped(rings, 3, 10_000)
				defer producing.Wait()
				last := uint64(0)
				for rec, err := range r.Merged(t.Context(), stampOf, time.Second) {
					if err != nil {
						t.Fatal(err)
					}
					if at := stampOf(rec); at < last {
						t.Fatalf("a record came %d ns after a later one", last-at)
					} else {
						last = at
					}
					if left(rec) == 0 {
						break
					}
				}
				if late := r.Stats().Late; late != 0 {
					t.Errorf("Stats has %d late records", late)
				}
				wantAvailable(t, r, 0)
			})
		})
	}
}

// TestMergedFloodLosesNothing has rings that are much too small for what is held back, and a
// loop that does not keep up. All records that the kernel accepted must come, and the late ones
// must be counted.
func TestMergedFloodLosesNothing(t *testing.T) {
	eachPace(t, func(t *testing.T, pace Option) {
		rings, r := newRings(t, []int{4096, 64 << 10, 8192}, pace)
		producing, left := produceStamped(rings, 3, 10_000)
		var flushing group
		defer flushing.Wait()
		flushing.Go(func() {
			producing.Wait()
			r.Flush()
		})
		last, late, n := uint64(0), uint64(0), -1
		for rec, err := range r.Merged(t.Context(), stampOf, forever) {
			if err == ErrFlushed {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if at := stampOf(rec); at < last {
				late++
			} else {
				last = at
			}
			if n = left(rec); n%1000 == 0 {
				runtime.Gosched()
			}
		}
		if n != 0 {
			t.Errorf("%d records did not come", n)
		}
		if got := r.Stats().Late; got != late {
			t.Errorf("Stats has %d late records, want %d", got, late)
		}
	})
}

// TestALateRecordComesAtOnceAndIsCounted has a program that is interrupted before it submits.
func TestALateRecordComesAtOnceAndIsCounted(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096})
	submit := rings[0].Busy([8]byte{5})
	rings[0].Emit(text("\x07"), text("\x1e"))
	rings[1].Emit(text("\x14"), text("\x0a"))
	var got []uint64
	var late []uint64 // so far
	for rec, err := range r.Merged(t.Context(), keyOf, time.Millisecond) {
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			submit() // later records were already held back for the whole time
		}
		got, late = append(got, keyOf(rec)), append(late, r.Stats().Late)
		if len(got) == 5 {
			break
		}
	}
	if want := []uint64{10, 20, 5, 7, 30}; !slices.Equal(got, want) {
		t.Errorf("got the keys %d, want %d", got, want)
	}
	if want := []uint64{0, 0, 1, 2, 2}; !slices.Equal(late, want) {
		t.Errorf("there were %d late records, want %d", late, want)
	}
	r.Close()
	if n := r.Stats().Late; n != 2 {
		t.Errorf("after Close there are %d late records, want 2", n)
	}
}

// goMerged runs a loop that holds back all records, and returns when it holds back the given
// number of bytes.
func goMerged(ctx context.Context, t *testing.T, r *Reader, bytes int) <-chan []string {
	t.Helper()
	before := r.AvailableBytes()
	result := make(chan []string, 1)
	go func() {
		var got []string
		for rec, err := range r.Merged(ctx, keyOf, forever) {
			if err != nil {
				got = append(got, err.Error())
			} else {
				got = append(got, string(rec.RawSample))
			}
		}
		result <- got
	}()
	await(t, "the loop to find all", func() bool { return r.AvailableBytes() == before-bytes })
	awaitFetching(t, r)
	return result
}

func wantMerged(t *testing.T, result <-chan []string, want ...string) {
	t.Helper()
	select {
	case got := <-result:
		if !slices.Equal(got, want) {
			t.Fatalf("the loop got %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the loop still waits")
	}
}

func TestMergedEndsAsRecordsDoes(t *testing.T) {
	emit := func(rings []*bpftest.Ring) int {
		rings[0].Emit(text("b"), discarded(8), text("d"))
		rings[1].Emit(text("c"), text("a"), quiet("e"))
		return 5*16 + 16
	}
	for name, wait := range map[string]func(*Reader){
		"blocked": func(r *Reader) {},
		"parked": func(r *Reader) {
			blocked.Add(1000)
			t.Cleanup(func() { blocked.Add(-1000) })
		},
	} {
		run := func(what string, test func(t *testing.T, rings []*bpftest.Ring, r *Reader)) {
			t.Run(name+"/"+what, func(t *testing.T) {
				rings, r := newRings(t, []int{4096, 4096})
				wait(r)
				test(t, rings, r)
			})
		}
		run("Flush", func(t *testing.T, rings []*bpftest.Ring, r *Reader) {
			result := goMerged(t.Context(), t, r, emit(rings))
			r.Flush()
			wantMerged(t, result, "a", "b", "c", "d", "e", ErrFlushed.Error())
			wantAvailable(t, r, 0)
		})
		run("Flush before", func(t *testing.T, rings []*bpftest.Ring, r *Reader) {
			emit(rings)
			r.Flush()
			rings[0].Emit(text("A")) // after the flush
			wantRecords(t, r.Merged(t.Context(), keyOf, forever), ErrFlushed, "a", "b", "c", "d", "e")
			wantSample(t, r, "A")
		})
		run("deadline", func(t *testing.T, rings []*bpftest.Ring, r *Reader) {
			result := goMerged(t.Context(), t, r, emit(rings))
			r.SetDeadline(time.Now().Add(time.Millisecond))
			wantMerged(t, result, "a", "b", "c", "d", "e", os.ErrDeadlineExceeded.Error())
			emit(rings)
			wantRecords(t, r.Merged(t.Context(), keyOf, forever), os.ErrDeadlineExceeded,
				"a", "b", "c", "d", "e")
		})
		run("context", func(t *testing.T, rings []*bpftest.Ring, r *Reader) {
			ctx, cancel := context.WithCancel(t.Context())
			n := emit(rings)
			result := goMerged(ctx, t, r, n)
			cancel()
			wantMerged(t, result, context.Canceled.Error())
			wantAvailable(t, r, n)
			for range 5 {
				mustRead(t, r)
			}
			wantAvailable(t, r, 0)
		})
		run("Close", func(t *testing.T, rings []*bpftest.Ring, r *Reader) {
			result := goMerged(t.Context(), t, r, emit(rings))
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			wantMerged(t, result)
			for i, want := range [][]string{{"b", "d"}, {"c", "a", "e"}} {
				next := mustNewReader(t, rings[i])
				for _, sample := range want {
					wantSample(t, next, sample)
				}
				next.Close()
			}
		})
	}
}

// TestMergedEndsInTheLoop closes the Reader, or ends the context, in the body of a loop. No
// record may come after that.
func TestMergedEndsInTheLoop(t *testing.T) {
	for name, want := range map[string][]string{
		"Close": {"a"}, "context": {"a", context.Canceled.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, 4096)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ring.Emit(text("c"), text("a"), text("b"))
			r.Flush()
			var got []string
			for rec, err := range r.Merged(ctx, keyOf, forever) {
				if err != nil {
					got = append(got, err.Error())
					break
				}
				got = append(got, string(rec.RawSample))
				if name == "Close" {
					r.Close()
				} else {
					cancel()
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if name == "Close" {
				r = mustNewReader(t, ring)
				wantSample(t, r, "c")
				wantSample(t, r, "a") // it is behind c, which did not come
				wantSample(t, r, "b")
			} else {
				wantSample(t, r, "c")
				wantSample(t, r, "b")
			}
			wantAvailable(t, r, 0)
		})
	}
}

// TestCloseWhileMergedHoldsWhatWasDrained looks at the rings after Close has unmapped them. The
// records that the loop holds were drained by a Read, and are in the Reader's memory.
func TestCloseWhileMergedHoldsWhatWasDrained(t *testing.T) {
	ring, r := newRingAndReader(t, 4096, WithMaxDelay(0))
	ring.Emit(text("x"), text("c"), text("a"), text("b"))
	wantSample(t, r, "x")
	l, err := r.queue.lend(t.Context(), wish{lend: true})
	if err != nil {
		t.Fatal(err)
	}
	m := newMerger(r.queue, keyOf, forever)
	m.take(l)
	defer m.release()
	r.Close()
	if _, err := m.collect(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("look after Close returned %v", err)
	}
}

func TestMergedLeavesWhatWasDrainedToOthers(t *testing.T) {
	ring, r := newRingAndReader(t, 4096, WithMaxDelay(0))
	ring.Emit(text("x"), text("c"), text("a"), text("d"), text("b"))
	wantSample(t, r, "x")
	ring.Emit(text("e"), text("A"))
	r.Flush()
	var got []string
	for rec, err := range r.Merged(t.Context(), keyOf, forever) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, string(rec.RawSample)); len(got) == 3 {
			break
		}
	}
	if want := []string{"A", "a", "b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	wantAvailable(t, r, 3*16)
	for _, want := range []string{"c", "d", "e"} {
		wantSample(t, r, want)
	}
	wantReadError(t, r, ErrFlushed)
	wantAvailable(t, r, 0)
}

// TestAPanicInMergedLosesNothing has the caller's code panic: in the key function, and in the
// body.
func TestAPanicInMergedLosesNothing(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096}, WithMaxDelay(0))
	rings[0].Emit(text("b"), text("d"))
	rings[1].Emit(text("c"), text("a"))
	r.Flush()
	loop := func(key func(Record) uint64, body func(sample string)) {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		for rec := range r.Merged(t.Context(), key, forever) {
			body(string(rec.RawSample))
		}
	}
	loop(func(rec Record) uint64 {
		if rec.RawSample[0] == 'a' {
			panic("in the key")
		}
		return keyOf(rec)
	}, nil)
	loop(keyOf, func(sample string) {
		if sample == "b" {
			panic("in the body")
		}
	})
	var got []string
	for range 3 {
		got = append(got, string(mustRead(t, r).RawSample))
	}
	if slices.Sort(got); !slices.Equal(got, []string{"b", "c", "d"}) {
		t.Errorf("after the panics %q were left", got)
	}
	wantReadError(t, r, ErrFlushed)
	if n := r.queue.windowsOut; n != 0 {
		t.Errorf("%d loans are out", n)
	}
}

// TestMergedDeliversOtherRingsBesideABrokenOne moves the consumer position of one ring.
func TestMergedDeliversOtherRingsBesideABrokenOne(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096}, WithMaxDelay(0))
	rings[0].Emit(text("x"))
	wantSample(t, r, "x")
	moveConsumer(t, rings[0], 8)
	rings[1].Emit(text("b"), text("a"))
	var got []string
	var last error
	for rec, err := range r.Merged(t.Context(), keyOf, forever) {
		if last = err; err == nil {
			got = append(got, string(rec.RawSample))
		}
	}
	if !errors.Is(last, syscall.EUCLEAN) || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %q and %v", got, last)
	}
	moveConsumer(t, rings[0], -8)
	rings[0].Emit(text("y"))
	wantSample(t, r, "y")
}

// TestMergedTellsOfLosses ends loops by a panic and in the middle.
func TestMergedTellsOfLosses(t *testing.T) {
	ring := bpftest.NewLoss(t, 4096, 0)
	r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), WithMaxDelay(0))
	seq, lost := uint64(0), uint64(0)
	add := func(rec Record) { lost += rec.Lost }
	const left = 40  // more than one lease
	lose := func() { // loses some records before those that it leaves in the ring
		seq += uint64(ring.Try(0, 0, seq, 1000))
		r.Flush()
		for rec, err := range r.Records(t.Context()) {
			if err != nil {
				break
			}
			add(rec)
		}
		seq += uint64(ring.Try(0, 0, seq, left))
	}
	newestFirst := func(rec Record) uint64 { return ^bpftest.DecodeNumbered(rec.RawSample).Seq }
	loop := func(n int, body func(rec Record)) {
		for rec, err := range r.Merged(t.Context(), newestFirst, 0) {
			if err != nil {
				t.Fatal(err)
			}
			body(rec)
			if n--; n == 0 {
				break
			}
		}
	}
	lose()
	func() {
		defer func() { recover() }()
		loop(1, func(rec Record) {
			if rec.Lost == 0 {
				t.Error("the first record does not tell of what was lost")
			}
			panic("in the body")
		})
	}()
	loop(5, add)
	if want := r.Stats().Lost; lost != want || want == 0 {
		t.Errorf("the first records tell of %d losses, want %d", lost, want)
	}
	lose()
	loop(left, add)
	if want := r.Stats().Lost; lost != want {
		t.Errorf("the records tell of %d losses, want %d", lost, want)
	}
}

// TestMergedReusesItsMemory runs a loop over many leases, each of which keeps 64 KiB of keys or
// more.
func TestMergedReusesItsMemory(t *testing.T) {
	rings, r := newRings(t, []int{1 << 20, 1 << 20})
	const each, rounds = 2_000, 50
	emit := func() {
		for _, ring := range rings {
			if got := ring.Stamp(0, 0, each); got != each {
				t.Fatalf("the ring had room for %d samples only", got)
			}
		}
	}
	emit()
	var before, after runtime.MemStats
	n := 0
	for _, err := range r.Merged(t.Context(), stampOf, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 5*2*each {
			runtime.ReadMemStats(&before)
		}
		if n%(2*each) == 0 && n < rounds*2*each {
			emit()
		} else if n == rounds*2*each {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if bytes := after.TotalAlloc - before.TotalAlloc; bytes > rounds*2*each*16 {
		t.Errorf("%d KiB were allocated for %d records", bytes>>10, n)
	}
	if mallocs := after.Mallocs - before.Mallocs; mallocs > uint64(n)/10 {
		t.Errorf("%d allocations for %d records", mallocs, n)
	}
}

// TestMergedHearsOfARingThatFillsUp has a loop that by itself looks once an hour, and a program
// that forces a wakeup.
func TestMergedHearsOfARingThatFillsUp(t *testing.T) {
	for _, wait := range []string{"blocked", "parked"} {
		t.Run(wait, func(t *testing.T) {
			ring, r := newRingAndReader(t, 4096, WithMaxDelay(forever))
			if wait == "parked" {
				blocked.Add(1000) // from now on no thread may block
				defer blocked.Add(-1000)
			}
			came := make(chan string, 1000)
			var looping group
			defer looping.Wait()
			defer r.Close()
			ring.Emit(text("a"))
			looping.Go(func() {
				for rec, err := range r.Merged(t.Context(), keyOf, forever) {
					if err != nil {
						t.Error(err)
					}
					came <- string(rec.RawSample)
				}
			})
			await(t, "the loop to find one", func() bool { return r.AvailableBytes() == 0 })
			awaitFetching(t, r)
			many := slices.Repeat([]bpftest.Sample{quiet("b")}, 100) // more than a quarter
			many[99].Flags = bpftest.ForceWakeup
			ring.Emit(many...)
			select {
			case sample := <-came:
				if sample != "a" {
					t.Errorf("got %q", sample)
				}
			case <-time.After(10 * time.Second):
				t.Error("the loop did not hear of it")
			}
		})
	}
}

// TestMergedWaitsNoLongerThanAFloodTakes compares the default delay, and none, with a long
// delay.
func TestMergedWaitsNoLongerThanAFloodTakes(t *testing.T) {
	shortest := func(opts ...Option) time.Duration {
		_, r := newRingAndReader(t, 1<<20, opts...)
		wait := time.Duration(math.MaxInt64)
		for range 10 {
			began := time.Now()
			if err := r.queue.rings.(*libbpfRings).waitNotBefore(forever); err != nil {
				t.Fatal(err)
			}
			wait = min(wait, time.Since(began))
		}
		return wait
	}
	given := shortest(WithMaxDelay(200 * time.Millisecond))
	if given < 100*time.Millisecond {
		t.Errorf("with a delay of 200 ms it waits for %v", given)
	}
	for name, wait := range map[string]time.Duration{
		"default": shortest(), "eager": shortest(WithMaxDelay(0)),
	} {
		if wait > given/2 {
			t.Errorf("%s: it waits for %v", name, wait)
		}
	}
	// A ring with less room is left alone for a shorter time than an empty one.
	g := ringFlow{size: 1 << 20, record: 72}
	if full, empty := g.timeToFill(1<<18), g.timeToFill(1<<20); full >= empty/2 || full <= 0 {
		t.Errorf("a flood of what there is room for takes %v, and %v in a ring that is empty", full,
			empty)
	}
}
