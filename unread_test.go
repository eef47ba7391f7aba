package ringbuf

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

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

// TestUnreadUnderContention has four goroutines take samples from small batches. The memory is
// small, and written to again as soon as a batch is taken.
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
		room := b.room(600)
		var entries []byte
		for range 3 {
			if next == samples {
				break
			}
			sample := slices.Repeat(binary.NativeEndian.AppendUint64(nil, uint64(next)), 1+next%16)
			entries = appendEntry(entries, uint64(next), 8, sample)
			next++
		}
		writeAsC(room, entries)
		b.entries = room[:len(entries)]
		u.add(&b)
		return len(entries) > 0
	}
	var users group
	for range 4 {
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
				buf = append(buf[:0], sample...)
				if !u.take(at, sample) {
					continue
				}
				mine := buf
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

// writeAsC copies as C does: the race detector does not see it.
//
//go:norace
func writeAsC(to, from []byte) {
	//lint:ignore S1001 copy would be seen
	for i := range from {
		to[i] = from[i]
	}
}
