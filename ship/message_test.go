package ship_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/ship"
)

var testRing = ship.Ring{Host: "web1", Boot: "0f-1", Name: "events", ID: 7}

// testBatch has samples of 0 to n-1 bytes, at positions in steps of 1000, with a loss before
// every third.
func testBatch(n int) *ship.Batch {
	b := &ship.Batch{Ring: testRing, After: ship.Mark{Position: 1 << 40, Lost: 5},
		Time: time.Unix(1, 2)}
	end := b.After
	for i := range n {
		end.Position += 1000
		if i%3 == 2 {
			end.Lost += uint64(i)
		}
		b.Records = append(b.Records, ship.Record{Sample: bytes.Repeat([]byte{byte(i)}, i), Mark: end})
	}
	return b
}

func getter(m *ship.Message) func(string) string {
	return func(field string) string { return m.Header[field] }
}

func mustDecode(t *testing.T, d *ship.Decoder, m *ship.Message) *ship.Received {
	t.Helper()
	r, err := d.Decode(getter(m), m.Data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// cut makes messages of a batch: of up to limit bytes, or of one record each if limit is 0.
func cut(t *testing.T, b *ship.Batch, limit int) (all []*ship.Message) {
	t.Helper()
	if limit == 0 {
		for i := range b.Records {
			m, err := b.Single(i, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
		}
		return all
	}
	rest := *b
	for len(rest.Records) > 0 {
		m, err := rest.Pack(nil, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Data) > limit {
			t.Errorf("a message has %d bytes, limit %d", len(m.Data), limit)
		}
		all = append(all, m)
		rest.After, rest.Records = m.End, rest.Records[m.Records:]
	}
	return all
}

// wantAll checks that records were received once and in order.
func wantAll(t *testing.T, got []ship.ReceivedRecord, b *ship.Batch) {
	t.Helper()
	end := b.After
	for i, rec := range b.Records {
		if i >= len(got) {
			t.Fatalf("%d of %d records were received", len(got), len(b.Records))
		}
		if g := got[i]; !bytes.Equal(g.Sample, rec.Sample) || g.Position != rec.Position ||
			g.Lost != rec.Lost-end.Lost {
			t.Errorf("record %d is %+v, want %+v after %+v", i, g, rec, end)
		}
		end = rec.Mark
	}
	if len(got) > len(b.Records) {
		t.Errorf("%d records more were received", len(got)-len(b.Records))
	}
}

// TestEachRecordComesOnce cuts records into messages in one way, and again in another way from
// any record on, as successive shippers do.
func TestEachRecordComesOnce(t *testing.T) {
	const n = 50
	for _, limits := range [][2]int{{0, 0}, {300, 300}, {300, 777}, {777, 300}, {0, 300}, {300, 0}} {
		for from := range n {
			b := testBatch(n)
			var d ship.Decoder
			var got []ship.ReceivedRecord
			for _, m := range cut(t, b, limits[0]) {
				got = append(got, mustDecode(t, &d, m).Records...)
			}
			again := *b
			if from > 0 {
				again.After = b.Records[from-1].Mark
			}
			again.Records = b.Records[from:]
			for _, m := range cut(t, &again, limits[1]) {
				r := mustDecode(t, &d, m)
				if r.Again != m.Records || r.Missed > 0 {
					t.Errorf("of %d records %d came again, and %d bytes are missing", m.Records, r.Again, r.Missed)
				}
				got = append(got, r.Records...)
			}
			wantAll(t, got, b)
		}
	}
}

func TestWhatIsMissingIsTold(t *testing.T) {
	b := testBatch(30)
	all := cut(t, b, 200)
	var d ship.Decoder
	mustDecode(t, &d, all[0])
	r := mustDecode(t, &d, all[2])
	if want := all[1].End.Position - all[0].End.Position; r.Missed != want {
		t.Errorf("%d bytes are missing, want %d", r.Missed, want)
	}
	// The losses of the missing message are reported with the next record.
	if want := all[2].End.Lost - all[0].End.Lost; sumLost(r) != want {
		t.Errorf("%d are lost, want %d", sumLost(r), want)
	}
	// A decoder that begins in the middle reports only what it can know.
	d = ship.Decoder{}
	r = mustDecode(t, &d, all[2])
	if want := all[2].End.Lost - all[1].End.Lost; r.Missed != 0 || sumLost(r) != want {
		t.Errorf("%d bytes are missing and %d lost, want 0 and %d", r.Missed, sumLost(r), want)
	}
	// The same position in another ring is another record.
	b.Ring.Boot = "2"
	if r = mustDecode(t, &d, cut(t, b, 0)[0]); r.Again != 0 || r.Ring.Boot != "2" {
		t.Errorf("of another ring came %+v", r)
	}
}

func sumLost(r *ship.Received) (lost uint64) {
	for _, rec := range r.Records {
		lost += rec.Lost
	}
	return lost
}

func TestHeaderAndID(t *testing.T) {
	b := testBatch(3)
	m := cut(t, b, 1<<20)[0]
	want := map[string]string{
		"Ringbuf-Host": "web1", "Ringbuf-Boot": "0f-1", "Ringbuf-Ring": "events", "Ringbuf-Id": "7",
		"Ringbuf-After": "1099511627776", "Ringbuf-End": "1099511630776", "Ringbuf-Records": "3",
		"Ringbuf-Lost": "2", "Ringbuf-Lost-Total": "7", "Ringbuf-Time": "1970-01-01T00:00:01.000000002Z",
	}
	if !maps.Equal(m.Header, want) || m.ID != "web1/0f-1/7/1099511630776" {
		t.Errorf("message %s has the header %v", m.ID, m.Header)
	}
	if want := []byte{0xe8, 7, 0, 0, 0xe8, 7, 0, 1, 1, 0xe8, 7, 2, 2, 2, 2}; !slices.Equal(m.Data, want) {
		t.Errorf("the data is %x", m.Data)
	}
}

// TestNoMessageIsTrusted cuts and changes messages in all ways.
func TestNoMessageIsTrusted(t *testing.T) {
	m := cut(t, testBatch(5), 1<<20)[0]
	for n := range m.Data {
		if _, err := new(ship.Decoder).Decode(getter(m), m.Data[:n]); err == nil {
			t.Errorf("a message of %d bytes is taken for a whole one", n)
		}
	}
	if _, err := new(ship.Decoder).Decode(getter(m), append(slices.Clone(m.Data), 0)); err == nil {
		t.Error("a byte more is taken for nothing")
	}
	for field := range m.Header {
		if field == ship.HeaderHost || field == ship.HeaderBoot || field == ship.HeaderRing ||
			field == ship.HeaderTime {
			continue
		}
		changed := *m
		changed.Header = maps.Clone(m.Header)
		changed.Header[field] = "x"
		if _, err := new(ship.Decoder).Decode(getter(&changed), m.Data); err == nil {
			t.Errorf("%s may be anything", field)
		}
	}
	none := func(string) string { return "" }
	_, err := new(ship.Decoder).Decode(none, nil)
	if err == nil || !strings.Contains(err.Error(), "the message was not shipped by this package") {
		t.Errorf("the error is %v", err)
	}
	huge := getter(m)
	_, err = new(ship.Decoder).Decode(func(field string) string {
		if field == ship.HeaderRecords {
			return fmt.Sprint(uint64(1<<63 + 5))
		}
		return huge(field)
	}, m.Data)
	if err == nil {
		t.Error("a message says to have a negative number of records, and is taken")
	}
	if _, err := testBatch(200).Pack(nil, 10); !errors.Is(err, ship.ErrPermanent) {
		t.Errorf("the error is %v", err)
	}
}
