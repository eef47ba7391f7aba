package jet_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
	"github.com/libbpfgo/ringbuf/ship/natsd"
)

var ring = ship.Ring{Host: "web1.example", Boot: "0f-1", Name: "events", ID: 7}

const stream = "EVENTS"

// startServer returns a connection to a server in this process.
func startServer(t *testing.T, store string) (*nats.Conn, *natsd.Server) {
	t.Helper()
	server, err := natsd.Start(store, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	nc, err := nats.Connect(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, server
}

func newSink(t *testing.T, nc *nats.Conn, opts jet.Options) *jet.Sink {
	t.Helper()
	opts.Create = jet.NewStream(stream, jet.DefaultPrefix)
	opts.Timeout = time.Minute // for a busy machine
	s, err := jet.New(nc, stream, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// batch returns a batch with a record at each position from after + 1 to last.
func batch(after, last uint64) *ship.Batch {
	b := &ship.Batch{Ring: ring, After: ship.Mark{Position: after}, Time: time.Now()}
	for p := after + 1; p <= last; p++ {
		b.Records = append(b.Records, ship.Record{Sample: fmt.Append(nil, p),
			Mark: ship.Mark{Position: p}})
	}
	return b
}

func mustResume(t *testing.T, s *jet.Sink, want uint64) {
	t.Helper()
	got, err := s.Resume(t.Context(), ring)
	if err != nil || got.Position != want {
		t.Fatalf("the stream ends at %+v, %v; want position %d", got, err, want)
	}
}

// mustAppend appends all records, in as many attempts as necessary.
func mustAppend(t *testing.T, s *jet.Sink, b *ship.Batch) {
	t.Helper()
	for len(b.Records) > 0 {
		n, err := s.Append(t.Context(), b)
		if err != nil || n == 0 {
			t.Fatalf("%d of %d records were appended: %v", n, len(b.Records), err)
		}
		b.After, b.Records = b.Records[n-1].Mark, b.Records[n:]
	}
}

// wantStream checks that the stream has all records up to position last, once and in order.
func wantStream(t *testing.T, nc *nats.Conn, last uint64) {
	t.Helper()
	next := uint64(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for r, err := range jet.Receive(ctx, nc, stream, jet.ReceiveOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Ring != ring || r.Again > 0 || r.Missed > 0 {
			t.Errorf("received %+v", r)
		}
		for _, rec := range r.Records {
			if rec.Position != next || string(rec.Sample) != fmt.Sprint(next) {
				t.Fatalf("record %q at %d, want %d", rec.Sample, rec.Position, next)
			}
			next++
		}
		if next > last {
			return
		}
	}
	t.Fatalf("the stream ends before record %d", next)
}

func eachWay(t *testing.T, test func(t *testing.T, opts jet.Options)) {
	t.Run("batched", func(t *testing.T) { test(t, jet.Options{}) })
	t.Run("single", func(t *testing.T) { test(t, jet.Options{Single: true}) })
}

// TestWhatComesLateIsRefused continues with a shipper that was believed dead.
func TestWhatComesLateIsRefused(t *testing.T) {
	eachWay(t, func(t *testing.T, opts jet.Options) {
		nc, _ := startServer(t, t.TempDir())
		dead, next := newSink(t, nc, opts), newSink(t, nc, opts)
		mustResume(t, dead, 0)
		mustAppend(t, dead, batch(0, 3))
		mustResume(t, next, 3)
		mustAppend(t, next, batch(3, 6))
		for _, b := range []*ship.Batch{batch(3, 5), batch(3, 8)} {
			if _, err := dead.Append(t.Context(), b); err == nil {
				t.Error("what came late was appended")
			}
		}
		mustAppend(t, next, batch(6, 9))
		mustResume(t, dead, 9)
		mustAppend(t, dead, batch(9, 2500)) // several attempts if each message has one record
		wantStream(t, nc, 2500)
	})
}

// TestWhatIsAppendedTwiceIsThereOnce repeats an attempt whose acknowledgement was lost.
func TestWhatIsAppendedTwiceIsThereOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, opts jet.Options) {
		nc, _ := startServer(t, t.TempDir())
		a, b := newSink(t, nc, opts), newSink(t, nc, opts)
		mustResume(t, a, 0)
		mustResume(t, b, 0)
		mustAppend(t, a, batch(0, 3))
		// A message with the same end is a duplicate, which the server may acknowledge.
		if _, err := b.Append(t.Context(), batch(0, 3)); err != nil {
			mustResume(t, b, 3)
		}
		mustAppend(t, b, batch(3, 5))
		wantStream(t, nc, 5)
	})
}

// TestWhatWasDeletedMayComeAgain deletes the last message from the stream while the server
// remembers its id.
func TestWhatWasDeletedMayComeAgain(t *testing.T) {
	eachWay(t, func(t *testing.T, opts jet.Options) {
		nc, _ := startServer(t, t.TempDir())
		s := newSink(t, nc, opts)
		mustResume(t, s, 0)
		mustAppend(t, s, batch(0, 3))
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		of, err := js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := of.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustResume(t, s, 0)
		for _, b := range []*ship.Batch{batch(0, 3), batch(3, 6)} {
			for attempt := 0; ; attempt++ {
				_, err := s.Append(t.Context(), b)
				if err == nil {
					break
				}
				if attempt == 3 {
					t.Fatal(err)
				}
				if _, err := s.Resume(t.Context(), ring); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustResume(t, s, 6)
	})
}

// TestAStreamSurvivesItsServer also checks that only one server at a time can use a directory.
func TestAStreamSurvivesItsServer(t *testing.T) {
	dir := t.TempDir()
	nc, server := startServer(t, dir)
	s := newSink(t, nc, jet.Options{})
	mustResume(t, s, 0)
	mustAppend(t, s, batch(0, 10))
	if other, err := natsd.Start(dir, "127.0.0.1:0"); err == nil {
		other.Stop()
		t.Error("two servers use one directory")
	} else if !strings.Contains(err.Error(), "is used by another process") {
		t.Error(err)
	}
	server.Stop()
	nc, _ = startServer(t, dir)
	s = newSink(t, nc, jet.Options{})
	mustResume(t, s, 10)
	mustAppend(t, s, batch(10, 20))
	wantStream(t, nc, 20)
}

func TestErrorsThatStaySayWhatToDo(t *testing.T) {
	nc, _ := startServer(t, t.TempDir())
	want := func(err error, text string) {
		t.Helper()
		if !errors.Is(err, ship.ErrPermanent) || !strings.Contains(err.Error(), text) {
			t.Errorf("the error is %v, want %q", err, text)
		}
	}
	none, err := jet.New(nc, "NONE", jet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = none.Resume(t.Context(), ring)
	want(err, "there is no stream NONE")

	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER",
		Subjects: []string{"ringbuf.*.a", "ringbuf.*.other.*"}})
	if err != nil {
		t.Fatal(err)
	}
	other, err := jet.New(nc, "OTHER", jet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Resume(t.Context(), ring)
	want(err, "OTHER does not have the subject ringbuf.web1_example.events.0f-7: "+
		"let its subjects have ringbuf.>")
	_, err = newSink(t, nc, jet.Options{}).Resume(t.Context(), ring)
	want(err, "it cannot be made as another has its subjects, ringbuf.>: ship to that one")
	if err := js.DeleteStream(t.Context(), "OTHER"); err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: stream,
		Subjects: []string{"ringbuf.>"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = newSink(t, nc, jet.Options{Single: true}).Resume(t.Context(), ring)
	want(err, "set allow_atomic, or ship several records in a message")

	s := newSink(t, nc, jet.Options{MaxBytes: 100})
	mustResume(t, s, 0)
	b := batch(0, 2)
	b.Records[1].Sample = make([]byte, 100)
	if n, err := s.Append(t.Context(), b); n != 1 || err != nil {
		t.Errorf("%d records before the large one were appended: %v", n, err)
	}
	b.After, b.Records = b.Records[0].Mark, b.Records[1:]
	_, err = s.Append(t.Context(), b)
	want(err, "a sample of 100 bytes in ring events is too large for a message of 100 bytes")
	nc.Close()
	_, err = s.Resume(t.Context(), ring)
	want(err, "the connection to the server was closed")
}

func TestSubjectsHaveFourParts(t *testing.T) {
	for _, tt := range []struct {
		ring ship.Ring
		want string
	}{
		{ring, "ringbuf.web1_example.events.0f-7"},
		{ship.Ring{Host: "", Name: "a b*>.", Boot: "b", ID: 1}, "ringbuf._.a_b___.b-1"},
	} {
		if got := jet.Subject(jet.DefaultPrefix, tt.ring); got != tt.want {
			t.Errorf("the subject of %+v is %s, want %s", tt.ring, got, tt.want)
		}
	}
	for _, tt := range []struct{ host, name, want string }{
		{"", "", "ringbuf.*.*.*"}, {"web1.example", "events", "ringbuf.web1_example.events.*"},
	} {
		if got := jet.SubjectFilter(jet.DefaultPrefix, tt.host, tt.name); got != tt.want {
			t.Errorf("the filter is %s, want %s", got, tt.want)
		}
	}
}

// TestClonesAreTwoHosts ships from machines that differ only in the name of the host.
func TestClonesAreTwoHosts(t *testing.T) {
	eachWay(t, func(t *testing.T, opts jet.Options) {
		nc, _ := startServer(t, t.TempDir())
		s := newSink(t, nc, opts)
		clone := ring
		clone.Host = "web2"
		for _, r := range []ship.Ring{ring, clone} {
			mark, err := s.Resume(t.Context(), r)
			if err != nil || mark != (ship.Mark{}) {
				t.Fatalf("ring %+v ends at %+v: %v", r, mark, err)
			}
			for _, b := range []*ship.Batch{batch(0, 3), batch(3, 6)} {
				b.Ring = r
				mustAppend(t, s, b)
			}
			if mark, err = s.Resume(t.Context(), r); err != nil || mark.Position != 6 {
				t.Errorf("ring %+v ends at %+v: %v", r, mark, err)
			}
		}
	})
}
