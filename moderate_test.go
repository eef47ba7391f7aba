package ringbuf

import (
	"context"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// The tests of the moderator itself need no kernel.

const recordSize = 72 // of a sample of 64 bytes

// pacedDrains notes n drains, one every interval, with the given number of samples each, and
// returns the time of the last one.
func pacedDrains(m *moderator, now time.Time, n int, interval time.Duration,
	samples uint64) time.Time {
	for range n {
		now = now.Add(interval)
		m.note(now, drained{moved: samples * recordSize, samples: samples, bytes: samples * recordSize})
	}
	return now
}

func TestModeratorTicksWhileSamplesFlow(t *testing.T) {
	for _, tt := range []struct {
		name     string
		options  options
		ring     int
		interval time.Duration // of notifications
		want     time.Duration // interval of ticks; 0: none
	}{
		{"1k/s", options{maxDelay: -1}, 16 << 20, time.Millisecond, 0},
		{"5k/s", options{maxDelay: -1}, 16 << 20, 200 * time.Microsecond, time.Millisecond},
		{"5k/s, no moderation", options{maxDelay: 0}, 16 << 20, 200 * time.Microsecond, 0},
		{"5k/s, longer delay", options{maxDelay: 40 * time.Millisecond}, 16 << 20,
			200 * time.Microsecond, 20 * time.Millisecond},
		{"100/s, longer delay", options{maxDelay: 40 * time.Millisecond}, 16 << 20,
			10 * time.Millisecond, 20 * time.Millisecond},
		{"20/s, longer delay", options{maxDelay: 40 * time.Millisecond}, 16 << 20,
			50 * time.Millisecond, 0},
		// 256 KiB are 3640 records, at 52 ns each, less 90 µs.
		{"20k/s, smaller ring", options{maxDelay: -1}, 256 << 10, 50 * time.Microsecond,
			99280 * time.Nanosecond},
		{"5k/s, smaller ring", options{maxDelay: -1}, 256 << 10, 200 * time.Microsecond, 0},
		{"20k/s, small ring", options{maxDelay: -1}, 64 << 10, 50 * time.Microsecond, 0},
		{"20k/s, smallest ring", options{maxDelay: -1}, 4 << 10, 50 * time.Microsecond, 0},
		{"20k/s, smallest ring, given delay", options{maxDelay: 2 * time.Millisecond}, 4 << 10,
			50 * time.Microsecond, time.Millisecond},
		{"5k/s, longest delay", options{maxDelay: math.MaxInt64}, 16 << 20, 200 * time.Microsecond,
			math.MaxInt64 / 2},
		{"delay too short for ticks", options{maxDelay: 40 * time.Microsecond}, 16 << 20,
			5 * time.Microsecond, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newModerator(tt.options, tt.ring)
			now := pacedDrains(&m, time.Now(), startCount, tt.interval, 1)
			if _, tick := m.next(now); tick {
				t.Errorf("ticks after %d notifications already", startCount)
			}
			now = pacedDrains(&m, now, 1, tt.interval, 1)
			pause, tick := m.next(now)
			if tick != (tt.want > 0) || pause != tt.want {
				t.Errorf("pause %v, tick %v, want %v", pause, tick, tt.want)
			}
		})
	}
}

// tickingModerator returns a moderator that ticks every millisecond, and the time of its last
// drain.
func tickingModerator(t *testing.T) (*moderator, time.Time) {
	t.Helper()
	m := newModerator(options{maxDelay: -1}, 16<<20)
	now := pacedDrains(&m, time.Now(), startCount+1, 100*time.Microsecond, 1)
	now = pacedDrains(&m, now, stopTicks, time.Millisecond, 10)
	if !m.ticking {
		t.Fatal("does not tick")
	}
	return &m, now
}

// TestModeratorMakesUpItsMind checks that a Reader of a steady flow either ticks or does not.
// Changing between the two costs the notifications and the delay.
func TestModeratorMakesUpItsMind(t *testing.T) {
	const second = uint64(time.Second)
	for _, tt := range []struct {
		rate uint64 // samples per second
		want bool   // ticks, a millisecond apart
	}{
		{500, false}, {1000, false}, {1300, false}, {1500, true}, {2000, true}, {2500, true},
		{3000, true}, {20000, true},
	} {
		m := newModerator(options{maxDelay: -1}, 16<<20)
		begin := time.Now()
		var now, read uint64 // ns since begin, samples
		changes := 0
		for now < 2*second {
			pause, tick := m.next(begin.Add(time.Duration(now)))
			var n uint64
			if tick {
				now += uint64(pause)
				produced := now * tt.rate / second
				n = max(1, produced-read) - 1 // the newest is left
				if n == 0 {
					n = produced - read
				}
			} else {
				now = (read + 1) * second / tt.rate
				n = 1
			}
			read += n
			m.note(begin.Add(time.Duration(now)), drained{moved: n * recordSize, samples: n,
				bytes: n * recordSize, idle: tick && n == 0})
			if m.ticking != tick {
				changes++
			}
		}
		if m.ticking != tt.want || changes > 1 {
			t.Errorf("%d/s: ticks %v after %d changes, want %v", tt.rate, m.ticking, changes, tt.want)
		}
	}
}

func TestModeratorStops(t *testing.T) {
	one := drained{moved: recordSize, samples: 1, bytes: recordSize}
	for _, tt := range []struct {
		name  string
		ticks []drained
		want  bool // it still ticks
	}{
		{"at a tick without anything new", []drained{{moved: recordSize, samples: 1, bytes: recordSize,
			idle: true}}, false},
		{"not when three ticks gather one record each", []drained{one, one, one}, true},
		{"when four do", []drained{one, one, one, one}, false},
		{"not when there were many discarded records", []drained{{moved: 5 * recordSize},
			{moved: 5 * recordSize}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, now := tickingModerator(t)
			for _, d := range tt.ticks {
				now = now.Add(time.Millisecond)
				m.note(now, d)
			}
			if _, tick := m.next(now); tick != tt.want {
				t.Errorf("ticks: %v, want %v", tick, tt.want)
			}
		})
	}
}

func TestModeratorDoesNotPauseAfterAFullBatch(t *testing.T) {
	m, now := tickingModerator(t)
	m.note(now, drained{moved: 100 * recordSize, samples: 100, bytes: 100 * recordSize, unfinished: true})
	if pause, tick := m.next(now); pause > 0 || !tick {
		t.Errorf("pause %v, tick %v, want none and true", pause, tick)
	}
}

func TestModeratorTicksSoonerWhenTheRingFillsUp(t *testing.T) {
	m, now := tickingModerator(t)
	const half = (8 << 20) / recordSize
	now = pacedDrains(m, now, 1, time.Millisecond, half)
	if pause, _ := m.next(now); pause < 490*time.Microsecond || pause > 510*time.Microsecond {
		t.Errorf("pause %v after half of the ring was filled in 1 ms, want 500 µs", pause)
	}
	now = pacedDrains(m, now, 1, 500*time.Microsecond, half/10)
	if pause, _ := m.next(now); pause != time.Millisecond {
		t.Errorf("pause %v, want 1 ms again", pause)
	}
}

func TestModeratorCountsTheDelayFromTheDrain(t *testing.T) {
	m, now := tickingModerator(t)
	if pause, _ := m.next(now.Add(300 * time.Microsecond)); pause != 700*time.Microsecond {
		t.Errorf("pause %v, want 700 µs", pause)
	}
	if pause, tick := m.next(now.Add(time.Second)); pause > 0 || !tick {
		t.Errorf("pause %v, tick %v, want an overdue tick", pause, tick)
	}
}

// The tests below run on the kernel of this machine.

func TestTickLeavesTheNewestRecord(t *testing.T) {
	a, b := text("a"), text("b")
	large := bpftest.Sample{Data: make([]byte, 1000)} // of a ring of 4096 bytes
	for _, tt := range []struct {
		name    string
		samples []bpftest.Sample
		busy    bool // a record that is not committed follows
		want    []string
		left    int // bytes
	}{
		{"two", []bpftest.Sample{a, b}, false, []string{"a"}, 16},
		{"three", []bpftest.Sample{a, b, a}, false, []string{"a", "b"}, 16},
		{"only one", []bpftest.Sample{a}, false, []string{"a"}, 0},
		{"nothing", nil, false, nil, 0},
		{"discarded newest", []bpftest.Sample{a, discarded(8)}, false, []string{"a"}, 16},
		{"discarded between", []bpftest.Sample{a, discarded(8), b}, false, []string{"a"}, 32},
		{"discarded in front", []bpftest.Sample{discarded(8), a, b}, false, []string{"a"}, 16},
		{"discarded in front of only one", []bpftest.Sample{discarded(8), a}, false, []string{"a"}, 0},
		{"discarded only", []bpftest.Sample{discarded(8), discarded(8)}, false, nil, 0},
		{"large newest", []bpftest.Sample{a, large}, false, []string{"a", string(large.Data)}, 0},
		{"busy behind two", []bpftest.Sample{a, b}, true, []string{"a"}, 32},
		{"busy behind only one", []bpftest.Sample{a}, true, []string{"a"}, 16},
		{"busy behind discarded", []bpftest.Sample{a, discarded(8)}, true, []string{"a"}, 32},
		{"busy only", nil, true, nil, 16},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ring, r := newRingAndReader(t, 4096)
			ring.Emit(tt.samples...)
			if tt.busy {
				defer ring.Busy([8]byte{})()
			}
			lib := r.queue.rings.(*libbpfRings)
			var b batch
			if err := lib.tick(&b, &request{}); err != nil {
				t.Fatal(err)
			}
			var got []string
			var u unread
			u.add(&b)
			for sample, ok := takeOne(&u); ok; sample, ok = takeOne(&u) {
				got = append(got, string(sample))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("drained %q, want %q", got, tt.want)
			}
			if idle := lib.nothingNew && lib.ringsLeft == 0; idle != (tt.name == "nothing") {
				t.Errorf("idle: %v", idle)
			}
			if left := int(lib.producerPos(0) - lib.consumerPos(0)); left != tt.left {
				t.Errorf("left %d bytes, want %d", left, tt.left)
			}
		})
	}
}

// newTickingReader returns a Reader that has begun to tick at this interval, and its ring.
func newTickingReader(t *testing.T, interval time.Duration) (*bpftest.Ring, *Reader) {
	t.Helper()
	ring, r := newRingAndReader(t, 1<<20, WithMaxDelay(2*interval))
	// On a busy machine it may take several times as many samples until they come often enough.
	for range 100 * (startCount + 1) {
		ring.Count(0, 0, 1, 0)
		mustRead(t, r)
		if r.queue.rings.(*libbpfRings).moderator.ticking {
			return ring, r
		}
	}
	t.Fatal("the Reader does not tick")
	return nil, nil
}

func TestBytesOfTheRecordThatATickLeft(t *testing.T) {
	ring, r := newTickingReader(t, 20*time.Millisecond)
	ring.Emit(text("a"), text("b"), text("c"))
	for i, want := range []string{"a", "b", "c"} {
		rec := mustRead(t, r)
		if left := (2 - i) * 16; string(rec.RawSample) != want || rec.Remaining != left {
			t.Errorf("Read returned %q with %d bytes remaining, want %q and %d", rec.RawSample,
				rec.Remaining, want, left)
		} else {
			wantAvailable(t, r, left)
		}
	}
}

// In this test and the next two, ticks are an hour apart, so that only the tested call ends the
// wait.
func TestFlushActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"), text("b"))
	result := goRead(t, r)
	wantWaiting(t, result)
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	wantResult(t, result, "a", nil)
	wantSample(t, r, "b")
	wantReadError(t, r, ErrFlushed)
}

func TestDeadlineActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"), text("b"))
	result := goRead(t, r)
	wantWaiting(t, result)
	deadline := time.Now().Add(30 * time.Millisecond)
	r.SetDeadline(deadline)
	wantResult(t, result, "a", nil)
	if early := time.Until(deadline); early > 0 {
		t.Errorf("Read returned %v before its deadline", early)
	}
	wantSample(t, r, "b")
	wantReadError(t, r, os.ErrDeadlineExceeded)
}

func TestCloseActsDuringATick(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	ring.Emit(text("a"))
	result := goRead(t, r)
	wantWaiting(t, result)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	wantResult(t, result, "", os.ErrClosed)
}

func TestWakeEndsAPauseThatBlocksItsThread(t *testing.T) {
	ring, r := newRingAndReader(t, 4096)
	ring.Emit(text("a"), text("b"))
	lib := r.queue.rings.(*libbpfRings)
	begin := time.Now()
	time.AfterFunc(20*time.Millisecond, lib.wake)
	if err := lib.door.pause(time.Hour, deaf); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 20*time.Millisecond || !lib.door.woken() {
		t.Errorf("the pause ended after %v, want 20 ms", took)
	}
}

func TestNoSampleWaitsLongerThanMaxDelay(t *testing.T) {
	const maxDelay = 200 * time.Millisecond
	for _, tt := range []struct {
		name     string
		interval time.Duration
		bursts   int
		size     int // samples of a burst
	}{
		{"steady", 3 * time.Millisecond, 300, 1},
		{"bursty", 250 * time.Millisecond, 4, 100},
		{"single samples", 300 * time.Millisecond, 3, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ring, r := newTickingReader(t, maxDelay/2)
			n := tt.bursts * tt.size
			clock := newTurnClock(t)
			sent := make([]atomic.Int64, n) // time of clock
			go func() {
				ticker := time.NewTicker(tt.interval)
				defer ticker.Stop()
				for i := range n {
					if i%tt.size == 0 {
						<-ticker.C
					}
					sent[i].Store(int64(clock.now()))
					ring.Count(0, uint64(i), 1, 0)
				}
			}()
			var longest time.Duration
			for range n {
				rec := mustRead(t, r)
				now := clock.now()
				seq := bpftest.DecodeNumbered(rec.RawSample).Seq
				longest = max(longest, now-time.Duration(sent[seq].Load()))
			}
			if longest > maxDelay*5/4 {
				t.Errorf("a sample waited for %v, want at most %v", longest, maxDelay)
			}
			if tt.name == "steady" && r.Stats().Ticks == 0 {
				t.Error("the Reader did not tick")
			}
		})
	}
}

// TestALongDelayLooksAtTheRing submits records of which the kernel does not notify, while a
// Reader waits for its first record.
func TestALongDelayLooksAtTheRing(t *testing.T) {
	test := func(t *testing.T, ring *bpftest.Ring, r *Reader) {
		for range 3 {
			result := goRead(t, r)
			wantWaiting(t, result) // longer than the delay
			ring.Emit(quiet("x"))
			wantResult(t, result, "x", nil)
		}
	}
	for name, blockFor := range map[string]time.Duration{"blocked": time.Hour, "parked": 0} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize(), WithMaxDelay(unpromptedDelay))
			r.queue.rings.(*libbpfRings).blockFor = blockFor
			test(t, ring, r)
		})
	}
	t.Run("ticking without a thread", func(t *testing.T) {
		ring, r := newTickingReader(t, unpromptedDelay/2)
		blocked.Add(1000) // from now on no thread may block
		defer blocked.Add(-1000)
		result := goRead(t, r)
		ring.Emit(quiet("x"))
		wantResult(t, result, "x", nil)
		test(t, ring, r)
	})
}

// TestLargeRecordsAfterSmallOnesEndAPause has a ring that small records would not fill in time.
func TestLargeRecordsAfterSmallOnesEndAPause(t *testing.T) {
	ring, r := newTickingReader(t, time.Hour)
	result := goRead(t, r)
	large := bpftest.Sample{Data: make([]byte, 1<<17), Flags: bpftest.NoWakeup}
	forced := bpftest.Sample{Data: []byte("forced"), Flags: bpftest.ForceWakeup}
	ring.Emit(large, large, forced)
	wantResult(t, result, string(large.Data), nil)
}

func TestWakeupsAreThoseThatEndedAPause(t *testing.T) {
	for _, d := range []time.Duration{8 * time.Millisecond, 40 * time.Millisecond} {
		t.Run(d.String(), func(t *testing.T) {
			ring, r := newTickingReader(t, d)
			r.queue.rings.(*libbpfRings).moderator.maxDelay = max(2*d, unpromptedDelay)
			before := r.Stats()
			for i := range 5 {
				ring.Count(0, uint64(i), 3, 0) // the kernel notifies of the first, at most
				for range 2 {
					mustRead(t, r)
				}
			}
			after := r.Stats()
			if ticks := after.Ticks - before.Ticks; ticks < 4 {
				t.Errorf("there were %d ticks", ticks)
			}
			if wakeups := after.Wakeups - before.Wakeups; wakeups > 1 {
				t.Errorf("%d wakeups are counted, want 1 at most", wakeups)
			}
		})
	}
}

// TestAFillingRingEndsAPause forces wakeups while ticks are an hour apart. A wakeup ends the
// pause only if an eighth of the ring is filled.
func TestAFillingRingEndsAPause(t *testing.T) {
	const eighth = 1 << 20 / 8 / (bpftest.HeaderSize + bpftest.NumberedSize)
	flood := func(t *testing.T, ring *bpftest.Ring, woken <-chan struct{}) {
		t.Helper()
		waits := func(what string) {
			t.Helper()
			select {
			case <-woken:
				t.Fatalf("%s ended the pause", what)
			case <-time.After(20 * time.Millisecond):
			}
		}
		waits("nothing")
		ring.Count(0, 0, eighth-10, bpftest.NoWakeup)
		ring.Count(0, 0, 1, bpftest.ForceWakeup)
		waits("a wakeup while the ring was nearly empty")
		ring.Count(0, 0, 20, bpftest.NoWakeup)
		waits("a ring that fills up without a wakeup")
		ring.Count(0, 0, 1, bpftest.ForceWakeup)
		select {
		case <-woken:
		case <-time.After(10 * time.Second):
			t.Fatal("a wakeup did not end the pause")
		}
	}
	t.Run("blocked", func(t *testing.T) {
		ring, r := newTickingReader(t, time.Hour)
		lib := r.queue.rings.(*libbpfRings)
		woken := make(chan struct{})
		go func() {
			defer close(woken)
			if err := lib.door.pause(time.Hour, untilEighth); err != nil {
				t.Error(err)
			}
		}()
		defer func() {
			lib.wake() // if nothing else has
			<-woken
		}()
		flood(t, ring, woken)
		if wakeups := r.Stats().Wakeups; wakeups == 0 {
			t.Error("no wakeup is counted")
		}
	})
	t.Run("parked", func(t *testing.T) {
		ring, r := newTickingReader(t, time.Hour)
		woken := make(chan struct{})
		go func() {
			defer close(woken)
			if _, err := r.Read(); err != nil {
				t.Error(err)
			}
		}()
		awaitFetching(t, r)
		flood(t, ring, woken)
		// The other records are read at once too.
		for range eighth {
			mustRead(t, r)
		}
	})
}

// TestFirstSampleAfterIdlenessComesAtOnce has an idle Reader that by itself would not look for
// an hour, whether it ticks or not. So the kernel must notify it.
func TestFirstSampleAfterIdlenessComesAtOnce(t *testing.T) {
	const d = 20 * time.Millisecond
	ring, r := newTickingReader(t, d)
	m := &r.queue.rings.(*libbpfRings).moderator
	for try := 0; m.ticking && try < 20; try++ {
		r.SetDeadline(time.Now().Add(2 * d))
		wantReadError(t, r, os.ErrDeadlineExceeded)
	}
	m.maxDelay, m.interval = 2*time.Hour, time.Hour
	r.SetDeadline(time.Time{})
	result := goRead(t, r)
	wantWaiting(t, result)
	ring.Emit(text("first"))
	wantResult(t, result, "first", nil)
}

// TestTicksSilenceTheKernel counts notifications by polling the map, as any process that has it
// can.
func TestTicksSilenceTheKernel(t *testing.T) {
	for name, tt := range map[string]struct {
		drain func(*libbpfRings, *batch) error
		want  int
	}{
		"read eagerly": {func(r *libbpfRings, b *batch) error {
			_, _,
				err := r.findAny(b, &request{})
			return err
		}, 100},
		"at ticks": {func(r *libbpfRings, b *batch) error { return r.tick(b, &request{}) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			ring, r := newRingAndReader(t, os.Getpagesize())
			w := watchNotifications(t, ring)
			notifications, drained := 0, 0
			for range 100 {
				ring.Emit(text("a"), text("b"))
				if w.since(t, 0) {
					notifications++
				}
				var b batch
				if err := tt.drain(r.queue.rings.(*libbpfRings), &b); err != nil {
					t.Fatal(err)
				}
				var u unread
				u.add(&b)
				for _, ok := takeOne(&u); ok; _, ok = takeOne(&u) {
					drained++
				}
			}
			if notifications != tt.want {
				t.Errorf("the kernel notified %d times, want %d", notifications, tt.want)
			}
			if left := int(r.queue.rings.producerPos(0)-r.queue.rings.consumerPos(
				0)) / 16; drained+left != 200 || left > 1 {
				t.Errorf("%d samples were drained and %d left of 200", drained, left)
			}
		})
	}
}

func TestContextActsDuringATick(t *testing.T) {
	for _, d := range []time.Duration{8 * time.Millisecond, time.Hour} {
		_, r := newTickingReader(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		result := goReadContext(ctx, r)
		awaitFetching(t, r)
		cancel()
		wantResult(t, result, "", context.Canceled)
	}
}

func TestModeratorGoesByTheFullestRing(t *testing.T) {
	m := newModerator(options{maxDelay: 2 * time.Hour}, 1<<20, 1<<20, 1<<20, 1<<20)
	now := pacedDrains(&m, time.Now(), startCount+1, time.Microsecond, 1)
	round := func(bytes ...uint64) time.Duration {
		now = now.Add(time.Hour)
		for ring, n := range bytes {
			m.note(now, drained{ring: ring, moved: n, samples: n / recordSize, bytes: n,
				unfinished: ring < len(bytes)-1})
		}
		return m.interval
	}
	// A quarter of each ring is no reason for the next tick to come sooner.
	if got := round(1<<18, 1<<18, 1<<18, 1<<18); got != time.Hour {
		t.Errorf("interval %v after a tick that found a quarter of each ring filled", got)
	}
	if got := round(1, 1<<19, 1, 1); math.Abs(float64(got-30*time.Minute)) > float64(time.Second) {
		t.Errorf("interval %v after one that found half of one ring filled", got)
	}
}

// TestModeratorDelaysForTheRingThatAFloodFillsFirst compares moderators of several rings with
// moderators of one.
func TestModeratorDelaysForTheRingThatAFloodFillsFirst(t *testing.T) {
	delay := func(sizes []int, records ...uint64) time.Duration {
		m := newModerator(options{maxDelay: -1}, sizes...)
		for ring, record := range records {
			m.note(time.Now(), drained{ring: ring, moved: 10 * record, samples: 10, bytes: 10 * record})
		}
		return m.longestInterval()
	}
	small, large := delay([]int{1 << 18}, 72), delay([]int{1 << 21}, 1032)
	if small == large || small <= 0 || large <= 0 {
		t.Fatalf("the delays are %v and %v", small, large)
	}
	if got := delay([]int{1 << 20, 1 << 18, 1 << 20}, 72, 72, 72); got != small {
		t.Errorf("the delay with a small ring is %v, want %v", got, small)
	}
	if got := delay([]int{1 << 21, 1 << 20}, 1032, 72); got != large {
		t.Errorf("the delay with a ring of large records is %v, want %v", got, large)
	}
}
