package ringbuf

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

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

func TestATickLeavesTheNewestRecordOfEachRing(t *testing.T) {
	rings, r := newRings(t, []int{4096, 4096, 4096})
	a, b := text("a"), text("b")
	rings[0].Emit(a, b)
	rings[1].Emit(a)
	rings[2].Emit(b, b, a)
	lib := r.queue.rings.(*libbpfRings)
	for i, want := range []struct {
		ring      int
		samples   []string
		ringsLeft int // rings
		idle      bool
	}{
		{0, []string{"a"}, 2, false},
		{1, []string{"a"}, 1, false}, // the only one
		{2, []string{"b", "b"}, 0, false},
		{0, []string{"b"}, 2, false}, // what was left
		{2, []string{"a"}, 0, true},
		{2, nil, 0, true},
	} {
		var batch batch
		if err := lib.tick(&batch, &request{}); err != nil {
			t.Fatal(err)
		}
		var got []string
		var u unread
		u.add(&batch)
		for sample, ok := takeOne(&u); ok; sample, ok = takeOne(&u) {
			got = append(got, string(sample))
		}
		idle := lib.nothingNew && lib.ringsLeft == 0
		if !slices.Equal(got, want.samples) || len(got) > 0 && batch.ring != want.ring ||
			lib.ringsLeft != want.ringsLeft || idle != want.idle {
			t.Errorf("call %d: drained %q of ring %d, %d rings to go, idle %v; want %+v",
				i, got, batch.ring, lib.ringsLeft, idle, want)
		}
	}
	if ticks := r.Stats().Ticks; ticks != 3 {
		t.Errorf("that was %d ticks, want 3", ticks)
	}
}

// TestATickLendsUpToADiscardedRecord checks that a tick leaves the newest record behind, and
// the discarded records before it.
func TestATickLendsUpToADiscardedRecord(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	ring.Emit(text("a"), discarded(8), text("b"))
	lib := r.queue.rings.(*libbpfRings)
	var b batch
	if err := lib.tick(&b, &request{lend: true, hasLoans: []bool{false}}); err != nil {
		t.Fatal(err)
	}
	if w := b.window; w.samples != 1 || w.end-w.start != 16 || w.discards != 0 {
		t.Fatalf("a tick lends %+v, want one record of 16 bytes", w)
	}
	if err := lib.consume(0, b.window.samples, 0, b.window.end); err != nil {
		t.Error(err)
	}
}
