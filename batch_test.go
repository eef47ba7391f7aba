package ringbuf

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// newBatch returns a batch of the samples, each with a record of 100 bytes, in memory
// of its own.
func newBatch(samples ...string) *batch {
	var buf []byte
	for i, s := range samples {
		buf = appendEntry(buf, uint64(i+1)*100, 100, s)
	}
	b := &batch{producer: 1000, last: uint64(len(samples)) * 100}
	b.set(buf, len(buf))
	return b
}

func takeOne(u *unread) (sample []byte, ok bool) {
	sample, _, at, ok := u.peek()
	return sample, ok && u.take(at, sample)
}

func TestUnreadReturnsEntriesInOrder(t *testing.T) {
	var samples []string
	for size := range 9 {
		samples = append(samples, strings.Repeat("x", size))
	}
	var u unread
	u.add(newBatch(samples...))
	for i, want := range samples {
		before, _ := u.before(0)
		sample, remaining, at, ok := u.peek()
		if !ok || string(sample) != want || remaining != 1000-(i+1)*100 || before != uint64(i)*100 {
			t.Errorf("entry %d is %q, %v, remaining %d, before %d", i, sample, ok, remaining, before)
		}
		if cap(sample) != len(sample) {
			t.Errorf("an append to sample %d reaches the next", i)
		}
		if u.empty() || !u.take(at, sample) {
			t.Errorf("entry %d could not be taken", i)
		}
	}
	if sample, _, _, ok := u.peek(); ok || !u.empty() {
		t.Errorf("there is another entry: %q", sample)
	}
}

func TestUnreadGivesAnEntryToOneOnly(t *testing.T) {
	var u unread
	u.add(newBatch("a", "b"))
	sample, _, at, _ := u.peek()
	if !u.take(at, sample) || u.take(at, sample) {
		t.Error("an entry was not taken once")
	}
	takeOne(&u)
	u.add(newBatch("c", "d"))
	if u.take(at, sample) {
		t.Error("an entry was taken with what was peeked of another batch")
	}
	u.clear()
	if sample, _, _, ok := u.peek(); ok {
		t.Errorf("there is %q after clear", sample)
	}
}

func TestBatchLeavesMemoryToItsKeepers(t *testing.T) {
	var b batch
	var u unread
	poll := func(min, size int) (room []byte) {
		b.reset()
		room = b.room(min, size)
		entries := appendEntry(nil, 8, 8, "")
		copy(room, entries)
		b.entries = room[:len(entries)]
		u.add(&b)
		return room
	}
	first := poll(64, 100)
	takeOne(&u)
	second := poll(64, 100)
	if &first[0] != &second[0] {
		t.Error("memory that nobody kept was not used again")
	}
	if !u.keep(nil) {
		t.Error("a sample cannot be kept")
	}
	takeOne(&u)
	third := poll(64, 100)
	if &third[0] != &second[entryHeaderSize] || len(third) != 100-entryHeaderSize {
		t.Error("the rest of memory that somebody kept was not used")
	}
	takeOne(&u)
	fourth := poll(90, 200)
	if len(fourth) != 200 || b.memory.kept.Load() {
		t.Errorf("%d bytes of room, want 200 new ones", len(fourth))
	}
}

// TestOwnerMayWriteWhileOthersPeek is for the race detector.
func TestOwnerMayWriteWhileOthersPeek(t *testing.T) {
	for range 200 {
		var u unread
		u.add(newBatch("sample"))
		var users, peeking group
		peeking.Add(2)
		for range 2 {
			users.Go(func() {
				sample, _, at, _ := u.peek()
				peeking.Done()
				peeking.Wait()
				copied := copySample(nil, sample)
				if u.take(at, sample) {
					if string(copied) != "sample" {
						t.Errorf("%q was taken", copied)
					}
					sample[0] = 0
				}
			})
		}
		users.Wait()
	}
}

// TestUnreadUnderContention has keepers and copiers fight for small batches in little
// memory, which is written to as soon as a batch is taken.
func TestUnreadUnderContention(t *testing.T) {
	const samples = 300_000
	var (
		u     unread
		seen  [samples]atomic.Bool
		wrong atomic.Int64

		mu   sync.Mutex
		b    batch
		next int
	)
	put := func() (more bool) {
		mu.Lock()
		defer mu.Unlock()
		if !u.empty() {
			return true
		}
		b.reset()
		room := b.room(600, 4096)
		var entries []byte
		for range 3 {
			if next == samples {
				break
			}
			sample := slices.Repeat(binary.NativeEndian.AppendUint64(nil, uint64(next)), 1+next%16)
			entries = appendEntry(entries, uint64(next), 8, string(sample))
			next++
		}
		writeAsC(room, entries)
		b.entries = room[:len(entries)]
		u.add(&b)
		return len(entries) > 0
	}
	var users group
	for i := range 4 {
		users.Go(func() {
			var buf []byte
			for {
				sample, _, at, ok := u.peek()
				if !ok {
					if !put() {
						return
					}
					continue
				}
				mine := sample
				if i%2 == 0 {
					u.keep(sample)
				} else {
					buf = copySample(buf, sample)
					mine = buf
				}
				if !u.take(at, sample) {
					continue
				}
				runtime.Gosched()
				n := binary.NativeEndian.Uint64(mine)
				want := slices.Repeat(binary.NativeEndian.AppendUint64(nil, n), 1+int(n%16))
				if n >= samples || !slices.Equal(mine, want) || seen[n].Swap(true) {
					wrong.Add(1)
				}
			}
		})
	}
	users.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d samples were torn, overwritten or taken twice", wrong.Load())
	}
	for n := range seen {
		if !seen[n].Load() {
			t.Fatalf("sample %d is missing", n)
		}
	}
}

// writeAsC copies unseen by the race detector, as C does.
//
//go:norace
func writeAsC(to, from []byte) {
	//lint:ignore S1001 copy would be seen
	for i := range from {
		to[i] = from[i]
	}
}
