package ringbuf

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"
)

func TestStatsSayWhatWasDone(t *testing.T) {
	rings, r := newRings(t, []int{8192, 4096}, WithMaxDelay(0))
	want := Stats{Rings: []RingStats{{Name: "events", Size: 8192}, {Name: "events", Size: 4096}}}
	for i, ring := range rings {
		info, err := bpf.GetMapInfoByFD(ring.FileDescriptor())
		if err != nil {
			t.Fatal(err)
		}
		want.Rings[i].ID = info.ID
	}
	check := func() {
		t.Helper()
		if got := r.Stats(); !reflect.DeepEqual(got, want) {
			t.Fatalf("Stats are\n%+v, want\n%+v", got, want)
		}
	}
	check()
	rings[0].Emit(text("12345"), discarded(8), discarded(80), text("123456789"), discarded(8))
	want.Rings[0].Available = 16 + 16 + 88 + 24 + 16
	want.Rings[0].Peak = want.Rings[0].Available
	check()
	mustRead(t, r)
	want.Drains = 1
	want.Rings[0].Samples, want.Rings[0].Bytes, want.Rings[0].Discarded = 2, 5+9, 2
	want.Rings[0].Available = 16 + 88 + 24 + 16
	check()
	mustRead(t, r)
	want.Rings[0].Available = 16
	check()
	for _, blockFor := range []time.Duration{time.Hour, 0} {
		r.queue.rings.(*libbpfRings).blockFor = blockFor
		result := goRead(t, r)
		wantWaiting(t, result)
		if want.Rings[0].Available > 0 { // past the last discarded record now
			want.Rings[0].Available, want.Rings[0].Discarded = 0, 3
			want.Drains++
		}
		check()
		rings[1].Emit(text("1"))
		wantResult(t, result, "1", nil)
		want.Drains++
		want.Wakeups++
		want.Rings[1].Samples++
		want.Rings[1].Bytes++
		want.Rings[1].Peak = 16
		check()
	}
	r.Close()
	check()
	r.Stats().Rings[0].Samples = 17 // the caller's copy
	check()

	encoded, err := json.Marshal(r.Stats())
	if err != nil {
		t.Fatal(err)
	}
	var decoded Stats
	if err := json.Unmarshal(encoded, &decoded); err != nil || !reflect.DeepEqual(decoded, want) {
		t.Errorf("as JSON it is %s, %v", encoded, err)
	}
}
