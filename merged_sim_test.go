package ringbuf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// These tests need no kernel. They have rings in memory and a clock that the test drives. So
// they can compare a loop over Merged with its promises, to the nanosecond.

// simulatedRings are rings in which events happen at given times. Time passes only while a
// goroutine waits, and in the caller's code.
type simulatedRings struct {
	t      *testing.T
	now    time.Time
	events []event // to come, in order
	all    []*simulatedRing
	next   int
	woken  bool
	rng    *rand.Rand
}

var errNoMoreEvents = errors.New("nothing will happen any more")

type event struct {
	at   time.Time
	what func()
}

type simulatedRing struct {
	ring
	memory             []byte
	consumed, produced uint64
	lent               uint64 // where to look next
}

func newSimulatedRings(t *testing.T, rng *rand.Rand, sizes ...int) *simulatedRings {
	s := &simulatedRings{t: t, rng: rng, now: time.Unix(1e9, 0)}
	for _, size := range sizes {
		words := make([]uint64, 2*size/8)
		g := &simulatedRing{memory: unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 2*size)}
		g.ring = ring{uint64(size), unsafe.Pointer(&words[0]), &g.consumed, &g.produced}
		s.all = append(s.all, g)
	}
	return s
}

// at makes an event happen after a time.
func (s *simulatedRings) at(after time.Duration, what func()) {
	at := s.now.Add(after)
	i, _ := slices.BinarySearchFunc(s.events, at, func(e event, at time.Time) int {
		if e.at.After(at) {
			return 1
		}
		return -1
	})
	s.events = slices.Insert(s.events, i, event{at, what})
}

// pass lets time pass, and events happen.
func (s *simulatedRings) pass(d time.Duration) {
	until := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(until) {
		e := s.events[0]
		s.events = s.events[1:]
		s.now = e.at
		e.what()
	}
	s.now = until
}

// write writes to both copies of the bytes: the memory of the ring is there twice in a row.
func (g *simulatedRing) write(pos uint64, b []byte) {
	for i, c := range b {
		at := (pos + uint64(i)) & (g.size - 1)
		g.memory[at], g.memory[at+g.size] = c, c
	}
}

// reserve returns a function that commits the record, or nil if the ring is full.
func (g *simulatedRing) reserve(sample []byte) (commit func(discard bool)) {
	pos := g.produced
	size := uint64(len(sample)+recordHeaderSize+7) &^ 7
	if pos+size-g.consumed > g.size-1 {
		return nil
	}
	header := uint32(len(sample))
	g.write(pos, binary.NativeEndian.AppendUint64(nil, uint64(header|busyBit)))
	g.produced += size
	return func(discard bool) {
		g.write(pos+recordHeaderSize, sample)
		if discard {
			header |= discardBit
		}
		g.write(pos, binary.NativeEndian.AppendUint64(nil, uint64(header)))
	}
}

func (s *simulatedRings) fetch(b *batch, q request) error {
	if !q.notBefore.IsZero() {
		// The wait may end early.
		longest := time.Duration(s.rng.Int64N(int64(time.Millisecond)))
		s.pass(max(0, min(q.notBefore.Sub(s.now), longest)))
		return nil
	}
	for {
		for range s.all {
			i := s.next
			s.next = (s.next + 1) % len(s.all)
			g := s.all[i]
			until := ^uint64(0)
			if q.until != nil {
				until = q.until[i]
			}
			var w window
			g.look(&w, g.lent, until, g.size/8, false)
			w.ring = i
			if w.samples > 0 {
				b.window = w
				g.lent = w.end
				return nil
			}
			if w.discards > 0 && !(q.anyLoans && q.hasLoans[i]) {
				g.consumed, g.lent = w.end, w.end
			}
		}
		switch {
		case s.woken, !q.deadline.IsZero() && !s.now.Before(q.deadline):
			s.woken = false
			return nil
		case len(s.events) == 0:
			return errNoMoreEvents
		}
		s.pass(s.events[0].at.Sub(s.now))
	}
}

func (s *simulatedRings) consume(i, samples, discards int, end uint64) error {
	g := s.all[i]
	n, d := g.count(window{start: g.consumed, end: end})
	if n != samples || d != discards || end > g.lent {
		s.t.Fatalf("%d samples and %d discarded records are to be consumed, up to %d; "+
			"there are %d and %d, up to %d",
			samples, discards, end, n, d, g.lent)
	}
	g.consumed = end
	return nil
}

func (s *simulatedRings) allConsumed(int)          {}
func (s *simulatedRings) wake()                    { s.woken = true }
func (s *simulatedRings) lookedTo(i int) uint64    { return s.all[i].lent }
func (s *simulatedRings) view(i int) *ring         { return &s.all[i].ring }
func (s *simulatedRings) consumerPos(i int) uint64 { return s.all[i].consumed }
func (s *simulatedRings) producerPos(i int) uint64 { return s.all[i].produced }
func (s *simulatedRings) stats() Stats {
	return Stats{Rings: make([]RingStats, len(s.all))}
}
func (s *simulatedRings) close() error { return nil }

func (s *simulatedRings) sizes() (sizes []int) {
	for _, g := range s.all {
		sizes = append(sizes, int(g.size))
	}
	return sizes
}

// A simulation runs loops over Merged and checks each record.
type simulation struct {
	*simulatedRings
	reader *Reader
	hold   time.Duration
	grain  time.Duration // how much longer a record may be held back
	slow   bool          // the caller's code takes time

	keys     []uint64          // of the records that were accepted, by number
	came     []int             // how often each came, or 1 if it was discarded
	seen     []simulatedRecord // in the order in which they were found, in this loop
	found    map[uint64]time.Time
	last     simulatedRecord // the one with the highest key that came in this loop
	any      bool
	late     uint64
	early    int           // that came before they were due
	heldBack time.Duration // the longest
	flushed  bool
}

type simulatedRecord struct {
	key, number uint64
	at          time.Time // when it was found
}

func newSimulation(t *testing.T, rng *rand.Rand, hold time.Duration, sizes ...int) *simulation {
	s := &simulation{simulatedRings: newSimulatedRings(t, rng, sizes...), hold: hold}
	s.grain = min(max(hold/4, minInterval), time.Millisecond)
	s.found = make(map[uint64]time.Time)
	s.reader = newReader(s.simulatedRings)
	t.Cleanup(func() { s.reader.Close() })
	return s
}

// simulatedSample returns a sample with its key and a number that no other sample has.
func simulatedSample(key, number uint64) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, key), number)
}

func decodeSimulated(rec Record) simulatedRecord {
	return simulatedRecord{key: numberOf(rec.RawSample), number: numberOf(rec.RawSample[8:])}
}

// write has a program reserve a record after one time, and commit or discard it after another.
func (s *simulation) write(ring int, key uint64, reserve, commit time.Duration, discard bool) {
	s.at(reserve, func() {
		number := uint64(len(s.keys))
		done := s.all[ring].reserve(simulatedSample(key, number))
		if done == nil {
			return // the ring is full
		}
		s.keys, s.came = append(s.keys, key), append(s.came, 0)
		if discard {
			s.came[number] = 1
		}
		s.at(commit, func() { done(discard) })
	})
}

// random has programs write n records, about gap apart. Each can be read no later than worst
// after its key was taken.
func (s *simulation) random(worst, gap time.Duration, n int) (end time.Duration) {
	at := time.Duration(0)
	for range n {
		at += time.Duration(s.rng.Int64N(int64(2*gap) + 1))
		if s.rng.IntN(50) == 0 {
			at += 20 * gap
		}
		reserve := time.Duration(s.rng.Int64N(int64(worst)/2 + 1))
		commit := time.Duration(s.rng.Int64N(int64(worst)/2 + 1))
		switch s.rng.IntN(4) {
		case 0, 1:
			reserve, commit = reserve/100, commit/100
		case 2:
			reserve, commit = worst/2, worst/2
		}
		key := uint64(at) / 1000 // some are equal
		s.write(s.rng.IntN(len(s.all)), key, at+reserve, commit, s.rng.IntN(8) == 0)
	}
	return at + worst
}

func (s *simulation) flush() {
	s.flushed = true
	s.reader.Flush()
}

// loop reads n records, or all up to the flush if n is 0.
func (s *simulation) loop(n int) (err error) {
	m := newMerger(s.reader.queue, func(rec Record) uint64 {
		r := decodeSimulated(rec)
		r.at = s.now
		s.seen = append(s.seen, r)
		s.found[r.number] = s.now
		if s.slow && s.rng.IntN(10) == 0 {
			s.pass(time.Duration(s.rng.Int64N(int64(s.hold)/4 + 1)))
		}
		return r.key
	}, s.hold)
	m.now = func() time.Time { return s.now }
	s.any, s.seen = false, nil
	m.loop(s.t.Context(), func(rec Record, e error) bool {
		if e != nil {
			err = e
			return true
		}
		s.check(decodeSimulated(rec))
		if s.slow && s.rng.IntN(10) == 0 {
			s.pass(time.Duration(s.rng.Int64N(1 << s.rng.IntN(18))))
		}
		n--
		return n != 0
	})
	return err
}

func (s *simulation) check(r simulatedRecord) {
	s.note(r)
	if s.any && r.key < s.last.key {
		s.late++
	}
	if !s.any || r.key >= s.last.key {
		s.last, s.any = r, true
	}
	// A record is due if it was held back for long enough, or if one with a higher key was.
	due := func(f simulatedRecord) bool { return f.key >= r.key && s.now.Sub(f.at) >= s.hold }
	if !s.flushed && !slices.ContainsFunc(s.seen, due) {
		s.early++
	}
	s.heldBack = max(s.heldBack, s.now.Sub(s.found[r.number]))
	for i, g := range s.all {
		if most := g.size/4 + g.size/8 + 24; g.lent-g.consumed > most {
			s.t.Fatalf("%d bytes of ring %d are held back, want at most %d", g.lent-g.consumed, i, most)
		}
	}
}

// note counts a record that came. It fails if the record came before or was never written.
func (s *simulation) note(r simulatedRecord) {
	s.t.Helper()
	if r.number >= uint64(len(s.keys)) || s.keys[r.number] != r.key || s.came[r.number] > 0 {
		s.t.Fatalf("a record with key %d came twice, or is none of the %d", r.key, len(s.keys))
	}
	s.came[r.number]++
}

// wantAll fails unless each record came once and exactly the late ones are counted.
func (s *simulation) wantAll() {
	s.t.Helper()
	for number, n := range s.came {
		if n != 1 {
			s.t.Fatalf("record %d of %d came %d times", number, len(s.came), n)
		}
	}
	if got := s.reader.Stats().Late; got != s.late {
		s.t.Fatalf("Stats has %d late records, want %d", got, s.late)
	}
}

func eachSeed(t *testing.T, n uint64, test func(t *testing.T, rng *rand.Rand)) {
	for seed := range n {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { test(t, rand.New(rand.NewPCG(seed, 0))) }) {
			return
		}
	}
}

// someRings returns the sizes of one to four rings.
func someRings(rng *rand.Rand, size int) []int { return slices.Repeat([]int{size}, 1+rng.IntN(4)) }

func someHold(rng *rand.Rand) time.Duration {
	return time.Duration(rng.Int64N(int64(20 * time.Millisecond)))
}

// TestMergedOrderIsPerfectIfNothingComesTooLate has programs that are interrupted between
// taking their key and committing, but for no longer than the loop holds back.
func TestMergedOrderIsPerfectIfNothingComesTooLate(t *testing.T) {
	eachSeed(t, 200, func(t *testing.T, rng *rand.Rand) {
		s := newSimulation(t, rng, someHold(rng), someRings(rng, 1<<16)...)
		s.slow = rng.IntN(2) == 0
		end := s.random(s.hold, time.Duration(rng.Int64N(int64(s.hold/4)+1)), 400)
		s.at(end, s.flush)
		if err := s.loop(0); err != ErrFlushed {
			t.Fatal(err)
		}
		s.wantAll()
		if s.late > 0 {
			t.Errorf("%d records were late", s.late)
		}
		if s.early > 0 {
			t.Errorf("%d records came before it was known that none with a lower key will", s.early)
		}
		if s.heldBack > s.hold+s.grain && !s.slow {
			t.Errorf("a record was held back for %v, want %v at most", s.heldBack, s.hold+s.grain)
		}
	})
}

// TestMergedCountsWhatComesTooLate has programs that are interrupted for longer than the loop
// holds back.
func TestMergedCountsWhatComesTooLate(t *testing.T) {
	late := uint64(0)
	eachSeed(t, 100, func(t *testing.T, rng *rand.Rand) {
		s := newSimulation(t, rng, someHold(rng), someRings(rng, 1<<16)...)
		s.slow = rng.IntN(2) == 0
		end := s.random(5*s.hold, time.Duration(rng.Int64N(int64(s.hold/4)+1)), 400)
		s.at(end, s.flush)
		if err := s.loop(0); err != ErrFlushed {
			t.Fatal(err)
		}
		s.wantAll()
		if s.early > 0 {
			t.Errorf("%d records came before it was known that none with a lower key will", s.early)
		}
		if s.heldBack > s.hold+s.grain && !s.slow {
			t.Errorf("a record was held back for %v, want %v at most", s.heldBack, s.hold+s.grain)
		}
		late += s.late
	})
	if late < 1000 {
		t.Errorf("only %d records were late altogether", late)
	}
}

// TestMergedLeavesRoomInTheRings has programs that write more than the rings have room for in
// the time that the loop holds back.
func TestMergedLeavesRoomInTheRings(t *testing.T) {
	early := 0
	eachSeed(t, 100, func(t *testing.T, rng *rand.Rand) {
		s := newSimulation(t, rng, time.Second, someRings(rng, 4096)...)
		s.at(s.random(time.Millisecond, 100*time.Microsecond, 2000), s.flush)
		if err := s.loop(0); err != ErrFlushed {
			t.Fatal(err)
		}
		s.wantAll()
		if len(s.keys) != 2000 {
			t.Errorf("%d records of 2000 were refused", 2000-len(s.keys))
		}
		early += s.early
	})
	if early == 0 {
		t.Error("no record came early")
	}
}

// TestMergedOrdersABacklog begins with a backlog in each ring, over the same span of keys. Ring
// 0 has much more than may be held back of it. Its later records must still come before those
// of the other rings that have higher keys.
func TestMergedOrdersABacklog(t *testing.T) {
	eachSeed(t, 20, func(t *testing.T, rng *rand.Rand) {
		s := newSimulation(t, rng, time.Second, 16<<10, 16<<10, 16<<10)
		for key := range uint64(650) {
			s.write(0, key, 0, 0, false)
			if key%20 == 0 {
				s.write(1, key, 0, 0, false)
			}
			if key%3 == 0 {
				s.write(2, key, 0, 0, false)
			}
		}
		s.at(10*time.Second, s.flush)
		s.pass(0)
		if err := s.loop(0); err != ErrFlushed {
			t.Fatal(err)
		}
		s.wantAll()
		if len(s.keys) != 650+650/20+1+650/3+1 || s.late > 0 {
			t.Errorf("%d of %d records were late", s.late, len(s.keys))
		}
		if s.early == 0 {
			t.Error("all were held back")
		}
	})
}

// TestMergedLeavesTheRestToOthers leaves loops in the middle, also while a flush is pending.
// The records that came are then mixed in the rings with those that did not.
func TestMergedLeavesTheRestToOthers(t *testing.T) {
	eachSeed(t, 200, func(t *testing.T, rng *rand.Rand) {
		s := newSimulation(t, rng, someHold(rng), someRings(rng, 4096<<rng.IntN(3))...)
		end := s.random(5*s.hold, time.Duration(rng.Int64N(int64(s.hold/4)+1)), 400)
		const flushes = 10
		for range flushes {
			s.at(time.Duration(rng.Int64N(int64(end))), s.flush)
		}
		flushed := 0
		for {
			var err error
			switch rng.IntN(3) {
			case 0: // Read copies what is lent, and leaves some in the Reader's memory
				var rec Record
				if rec, err = s.reader.Read(); err == nil {
					s.note(decodeSimulated(rec))
				}
			case 1:
				var l *Lease
				if l, err = s.reader.Lease(t.Context()); err != nil {
					break
				}
				for rec := range l.Records() {
					s.note(decodeSimulated(rec))
				}
				err = l.Commit()
			case 2:
				err = s.loop(1 + rng.IntN(100))
			}
			if err == ErrFlushed {
				flushed++
			} else if errors.Is(err, errNoMoreEvents) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if flushed != flushes {
			t.Errorf("%d answers to %d flushes", flushed, flushes)
		}
		s.wantAll()
		s.reader.SetDeadline(time.Unix(0, 1))
		wantReadError(t, s.reader, os.ErrDeadlineExceeded)
		for i, g := range s.all {
			if g.consumed != g.produced {
				t.Errorf("%d bytes of ring %d are not consumed", g.produced-g.consumed, i)
			}
		}
		if got := s.reader.AvailableBytes(); got != 0 {
			t.Errorf("%d bytes are available", got)
		}
	})
}
