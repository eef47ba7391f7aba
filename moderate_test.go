package ringbuf

import (
	"math"
	"testing"
	"time"
)

// These tests need no kernel. ticks_test.go has tests of Readers that tick.

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
	const moved = 100 * recordSize
	m.note(now, drained{moved: moved, samples: 100, bytes: moved, unfinished: true})
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
