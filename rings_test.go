package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"reflect"
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

func TestMultiReaderReturnsTheRecordsOfEachRingInOrder(t *testing.T) {
	page := os.Getpagesize()
	rings, r := newRings(t, []int{page, 4 * page, 2 * page})
	if got := r.BufferSize(); got != 7*page {
		t.Errorf("BufferSize is %d, want %d", got, 7*page)
	}
	rings[0].Emit(text("a"), discarded(20), text("bb"))
	rings[2].Emit(discarded(8), text("cccccccccc"), text("d"))
	wantAvailable(t, r, 16+32+16+16+24+16)
	for i, want := range []Record{
		{RawSample: []byte("a"), Remaining: 32 + 16, Ring: 0},
		{RawSample: []byte("bb"), Remaining: 0, Ring: 0},
		{RawSample: []byte("cccccccccc"), Remaining: 16, Ring: 2},
		{RawSample: []byte("d"), Remaining: 0, Ring: 2},
	} {
		if got := mustRead(t, r); !reflect.DeepEqual(got, want) {
			t.Errorf("record %d is %+v, want %+v", i, got, want)
		}
		// The bytes behind the last record that was read of each ring.
		wantAvailable(t, r, []int{32 + 16 + 16 + 24 + 16, 16 + 24 + 16, 16, 0}[i])
	}
	rings[1].Emit(text("e"))
	rec := Record{RawSample: make([]byte, 0, 100), Ring: 17, Remaining: 17, Lost: 17}
	if err := r.ReadInto(&rec); err != nil || string(rec.RawSample) != "e" || rec.Ring != 1 ||
		rec.Remaining != 0 || rec.Lost != 0 {
		t.Errorf("ReadInto returned %+v, %v", rec, err)
	}
	rings[2].Emit(text("f"))
	for rec, err := range r.Records(t.Context()) {
		if err != nil || string(rec.RawSample) != "f" || rec.Ring != 2 {
			t.Errorf("Records returned %+v, %v", rec, err)
		}
		break
	}
	r.Close()
	wantAvailable(t, r, 0)
}

func TestMultiReaderWaitsForEachRing(t *testing.T) {
	sizes := slices.Repeat([]int{os.Getpagesize()}, 3)
	for name, blockFor := range map[string]time.Duration{"blocked": time.Hour, "parked": 0} {
		t.Run(name, func(t *testing.T) {
			rings, r := newRings(t, sizes)
			r.queue.rings.(*libbpfRings).blockFor = blockFor
			for range 3 {
				for i, ring := range rings {
					result := goRead(t, r)
					wantWaiting(t, result)
					ring.Emit(text(fmt.Sprint(i)))
					wantResult(t, result, fmt.Sprint(i), nil)
				}
			}
			busy := rings[1].Busy([8]byte{'b', 'u', 's', 'y'})
			result := goRead(t, r)
			wantWaiting(t, result)
			rings[2].Emit(text("x")) // not held back by the busy record of another
			wantResult(t, result, "x", nil)
			result = goRead(t, r)
			wantWaiting(t, result)
			busy()
			wantResult(t, result, "busy\x00\x00\x00\x00", nil)
		})
	}
}

// TestAFloodedRingDoesNotHoldUpAQuietOne counts how many records of a ring that always has more
// come before one of another ring.
func TestAFloodedRingDoesNotHoldUpAQuietOne(t *testing.T) {
	const (
		sample = bpftest.NumberedSize
		most   = maxBatchSize/(recordHeaderSize+sample) + 1 // in a batch
	)
	t.Run("full ring", func(t *testing.T) {
		rings, r := newRings(t, []int{1 << 20, os.Getpagesize()})
		rings[0].Count(0, 0, 40_000, 0)
		for _, limit := range []int{minBatchSize / (recordHeaderSize + sample), most, most, most} {
			rings[1].Emit(text("quiet"))
			n := 0
			for mustRead(t, r).Ring == 0 {
				n++
			}
			if n > limit {
				t.Errorf("%d records of the full ring came before one of the other, want at most %d", n, limit)
			}
			for range 3 * most {
				if rec := mustRead(t, r); rec.Ring != 0 {
					t.Fatalf("got %+v", rec)
				}
			}
		}
	})
	eachPace(t, func(t *testing.T, pace Option) {
		rings, r := newRings(t, []int{1 << 16, os.Getpagesize()}, pace)
		var stop atomic.Bool
		var flooding group
		flooding.Go(func() {
			for seq := uint64(0); !stop.Load(); {
				seq += uint64(rings[0].Count(0, seq, 256, 0))
			}
		})
		next := uint64(0)
		for range 50 {
			rings[1].Emit(text("quiet"))
			for n := 0; ; n++ {
				rec := mustRead(t, r)
				if rec.Ring == 1 {
					break
				}
				if got := bpftest.DecodeNumbered(rec.RawSample); got.Seq != next {
					t.Fatalf("got sample %d of the flooded ring, want %d", got.Seq, next)
				}
				next++
				// Three batches at most: the present one, one of a round that had begun, and
				// one because the quiet ring has just been drained.
				if n > 3*most {
					t.Fatalf("%d records of the flooded ring came before one of the other", n)
				}
			}
		}
		stop.Store(true)
		flooding.Wait()
	})
}

// TestManyRingsLoseNothing has producers that each write to all rings as fast as they can, and
// goroutines that read in each way.
func TestManyRingsLoseNothing(t *testing.T) { eachPace(t, testManyRings) }

func testManyRings(t *testing.T, pace Option) {
	const producers, perRing = 2, 5_000
	rings, r := newRings(t, []int{4096, 8192, 4096, 65536, 4096}, pace)
	var producing, reading group
	for p := range producers {
		producing.Go(func() {
			next := make([]int, len(rings))
			for left := true; left; runtime.Gosched() {
				left = false
				for i, ring := range rings {
					want := min(100, perRing-next[i])
					next[i] += ring.Count(p, uint64(next[i]), want, 0)
					left = left || next[i] < perRing
				}
			}
		})
	}
	var mu sync.Mutex
	seen := make([][producers][perRing]int, len(rings))
	n := 0
	note := func(rec Record) {
		s := bpftest.DecodeNumbered(rec.RawSample)
		mu.Lock()
		defer mu.Unlock()
		seen[rec.Ring][s.Producer][s.Seq]++
		if n++; n == producers*perRing*len(rings) {
			go r.Close()
		}
	}
	reading.Go(func() {
		for {
			rec, err := r.Read()
			if err != nil {
				return
			}
			note(rec)
		}
	})
	reading.Go(func() {
		var rec Record
		for r.ReadInto(&rec) == nil {
			note(rec)
		}
	})
	reading.Go(func() {
		for rec, err := range r.Records(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			note(rec)
		}
	})
	producing.Wait()
	reading.Wait()
	for i := range seen {
		for p := range seen[i] {
			for seq, times := range seen[i][p] {
				if times != 1 {
					t.Fatalf("sample %d of producer %d in ring %d was read %d times", seq, p, i, times)
				}
			}
		}
	}
	for i, s := range r.Stats().Rings {
		if s.Samples != producers*perRing || s.Bytes != producers*perRing*bpftest.NumberedSize {
			t.Errorf("ring %d: %+v", i, s)
		}
	}
}

func TestARingWithoutOrderDoesNotHoldUpOthers(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096})
	for _, ring := range rings {
		ring.Emit(text("a"), text("b"))
	}
	wantSample(t, r, "a")
	wantSample(t, r, "b")
	moveConsumer(t, rings[0], 8)
	rings[0].Emit(text("c"))
	wantSample(t, r, "a") // of the other ring
	wantSample(t, r, "b")
	for range 3 {
		_, err := r.Read()
		if !errors.Is(err, syscall.EUCLEAN) || !strings.Contains(err.Error(), `map 0, "events"`) {
			t.Fatalf("Read returned %v", err)
		}
		rings[1].Emit(text("d"))
		wantSample(t, r, "d")
	}
	moveConsumer(t, rings[0], -8)
	wantSample(t, r, "c")
}

func TestNewMultiReaderNamesTheMapThatItRefuses(t *testing.T) {
	a, b := bpftest.New(t, 4096), bpftest.New(t, 4096)
	counts, err := a.Module().GetMap("plan")
	if err != nil {
		t.Fatal(err)
	}
	twice, err := syscall.Dup(a.FileDescriptor())
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(twice)
	corrupt := bpftest.New(t, 4096)
	moveConsumer(t, corrupt, 4)
	for _, tt := range []struct {
		maps  []Map
		parts []string
	}{
		{nil, []string{"no map given"}},
		{[]Map{a, nil}, []string{"map 1", "no map given"}},
		{[]Map{a, (*bpf.BPFMap)(nil)}, []string{"map 1", "no map given"}},
		{[]Map{a, b, counts}, []string{"map 2", `"plan"`, "array"}},
		{[]Map{a, b, FD(-1)}, []string{"map 2", "descriptor -1"}},
		{[]Map{a, b, FD(twice)}, []string{"maps 0 and 2", `the same ring buffer "events"`}},
		{[]Map{a, corrupt, b}, []string{`map 1, "events"`, "check positions"}},
	} {
		r, err := NewMultiReader(tt.maps)
		if err == nil {
			r.Close()
			t.Errorf("NewMultiReader did not fail, want %q", tt.parts)
			continue
		}
		for _, part := range tt.parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("the error is %q, without %q", err, part)
			}
		}
	}
	moveConsumer(t, corrupt, -4)
}
