package ship_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/ship"
)

// A memory is a Sink that can be made to fail. It accepts a limited number of records at a
// time.
type memory struct {
	mu       sync.Mutex
	most     int
	fail     func(attempt int) error // before it stores, or nil
	failLate func(attempt int) error // after it has stored
	attempts int
	ends     map[ship.Ring]ship.Mark
	records  map[ship.Ring][]string
}

func newMemory(most int) *memory {
	return &memory{most: most, ends: map[ship.Ring]ship.Mark{}, records: map[ship.Ring][]string{}}
}

func (m *memory) Append(_ context.Context, b *ship.Batch) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts++
	if m.fail != nil {
		if err := m.fail(m.attempts); err != nil {
			return 0, err
		}
	}
	if b.After.Position != m.ends[b.Ring].Position {
		return 0, fmt.Errorf("%w: after %+v comes %+v", ship.ErrPermanent, m.ends[b.Ring], b.After)
	}
	n := min(m.most, len(b.Records))
	for _, rec := range b.Records[:n] {
		m.records[b.Ring] = append(m.records[b.Ring], string(rec.Sample))
		m.ends[b.Ring] = rec.Mark
	}
	if m.failLate != nil {
		if err := m.failLate(m.attempts); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (m *memory) Resume(_ context.Context, ring ship.Ring) (ship.Mark, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ends[ring], nil
}

// newReader returns a Reader of rings, which is closed when the test ends.
func newReader(t *testing.T, rings ...*bpftest.Ring) *ringbuf.Reader {
	t.Helper()
	var maps []ringbuf.Map
	for _, r := range rings {
		maps = append(maps, r)
	}
	r, err := ringbuf.NewMultiReader(maps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// emit submits records with the numbers of a range, and returns their texts.
func emit(ring *bpftest.Ring, from, to int) (texts []string) {
	var samples []bpftest.Sample
	for i := from; i < to; i++ {
		texts = append(texts, fmt.Sprint("record ", i))
		samples = append(samples, bpftest.Sample{Data: []byte(texts[len(texts)-1])})
	}
	ring.Emit(samples...)
	return texts
}

var errFlaky = errors.New("the sink fails now and then")

// TestFailuresChangeNothing makes attempts fail before and after they take effect.
func TestFailuresChangeNothing(t *testing.T) {
	every := func(k int) func(int) error {
		return func(attempt int) error {
			if attempt%k == 0 {
				return errFlaky
			}
			return nil
		}
	}
	for _, most := range []int{1, 7, 1000} {
		rings := []*bpftest.Ring{bpftest.New(t, 1<<16), bpftest.New(t, 1<<16)}
		want := [][]string{emit(rings[0], 0, 20), emit(rings[1], 100, 150)}
		sink := newMemory(most)
		sink.fail, sink.failLate = every(3), every(2)
		var told, back int
		var mu sync.Mutex
		r := newReader(t, rings...)
		r.Flush()
		s, err := ship.New(r, sink, ship.Options{Host: "h", OnError: func(_ ship.Ring, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				back++
			} else if told++; !errors.Is(err, errFlaky) {
				t.Error(err)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		stats := s.Stats()
		for i, r := range stats.Rings {
			if got := sink.records[r.Ring]; !slices.Equal(got, want[i]) {
				t.Errorf("ring %d has %q, want %q", i, got, want[i])
			}
			if r.Ring.Name != "events" || r.Ring.Host != "h" || r.Ring.Boot == "" || r.Ring.ID == 0 {
				t.Errorf("the ring is %+v", r.Ring)
			}
			if r.Acknowledged != uint64(len(want[i])) || r.InFlight != 0 || r.InFlightBytes != 0 ||
				r.LagBytes != 0 || r.LagSeconds != 0 || r.Failing {
				t.Errorf("the stats are %+v", r)
			}
		}
		if failures := stats.Rings[0].Failures + stats.Rings[1].Failures; failures != uint64(told) ||
			most == 1 && back == 0 {
			t.Errorf("%d failures are counted, %d told, and %d times that it works again", failures, told,
				back)
		}
		if left := r.AvailableBytes(); left != 0 {
			t.Errorf("%d bytes are left", left)
		}
	}
}

// TestWhatIsNotAcknowledgedStays ends a Shipper whose sink stores records without acknowledging
// them.
func TestWhatIsNotAcknowledgedStays(t *testing.T) {
	ring := bpftest.New(t, 1<<16)
	want := emit(ring, 0, 10)
	sink := newMemory(4)
	ctx, cancel := context.WithCancel(t.Context())
	sink.failLate = func(attempt int) error {
		if attempt == 2 {
			cancel()
			return errFlaky
		}
		return nil
	}
	r := newReader(t, ring)
	if err := ship.Run(ctx, r, sink, ship.Options{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.Close()
	// The next Shipper finds the records in the ring, and finds that the sink has most of them.
	sink.failLate = nil
	r = newReader(t, ring)
	r.Flush()
	s, err := ship.New(r, sink, ship.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	stats := s.Stats().Rings[0]
	if got := sink.records[stats.Ring]; !slices.Equal(got, want) {
		t.Errorf("the sink has %q, want %q", got, want)
	}
	if stats.Acknowledged != 2 {
		t.Errorf("%d records were shipped by the second, want 2", stats.Acknowledged)
	}
}

// TestASinkThatTakesPartsIsNotGivenThemAgain has no failures.
func TestASinkThatTakesPartsIsNotGivenThemAgain(t *testing.T) {
	ring := bpftest.New(t, 1<<16)
	emit(ring, 0, 100)
	r := newReader(t, ring)
	r.Flush()
	s, err := ship.New(r, newMemory(7), ship.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stats := s.Stats().Rings[0]; stats.Acknowledged != 100 || stats.Redelivered != 0 {
		t.Errorf("%d records were shipped, and %d again; want 100 and 0", stats.Acknowledged,
			stats.Redelivered)
	}
}

// TestASinkThatRefusesHasPauses uses a sink that answers but accepts nothing for a while, like
// a full stream.
func TestASinkThatRefusesHasPauses(t *testing.T) {
	const refusals = 6
	ring := bpftest.New(t, 1<<16)
	emit(ring, 0, 10)
	sink := newMemory(1000)
	sink.fail = func(attempt int) error {
		if attempt <= refusals {
			return errFlaky
		}
		return nil
	}
	r := newReader(t, ring)
	r.Flush()
	var told []error
	begin := time.Now()
	err := ship.Run(t.Context(), r, sink, ship.Options{OnError: func(_ ship.Ring, err error) {
		told = append(told, err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	// None before the second attempt, then 20, 40, 80, 160 and 320 ms.
	if took := time.Since(begin); took < 620*time.Millisecond {
		t.Errorf("%d attempts in %v: there are no pauses", refusals+1, took)
	}
	want := append(slices.Repeat([]error{errFlaky}, refusals), nil)
	if !slices.Equal(told, want) {
		t.Errorf("told is %v, want %v", told, want)
	}
}

// TestCloseEndsRunWhileTheSinkIsAway covers a sink that is away from the start, and one that
// goes away later, when there is no room for more records.
func TestCloseEndsRunWhileTheSinkIsAway(t *testing.T) {
	for _, resumes := range []bool{false, true} {
		ring := bpftest.New(t, 1<<16)
		emit(ring, 0, 10)
		r := newReader(t, ring)
		sink := &absent{resumes: resumes, called: make(chan struct{}, 1)}
		done := make(chan error, 1)
		go func() { done <- ship.Run(t.Context(), r, sink, ship.Options{Window: 1}) }()
		<-sink.called
		emit(ring, 10, 20)
		r.Close()
		select {
		case err := <-done:
			if !errors.Is(err, ringbuf.ErrClosed) {
				t.Errorf("Run ends with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("Run does not end")
		}
		// All records are still in the ring.
		again := newReader(t, ring)
		again.Flush()
		stored := newMemory(1000)
		s, err := ship.New(again, stored, ship.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err != nil || s.Stats().Rings[0].Acknowledged != 20 {
			t.Errorf("the next one ships %d records: %v", s.Stats().Rings[0].Acknowledged, err)
		}
	}
}

// An absent Sink waits, like one whose server is away.
type absent struct {
	resumes bool
	called  chan struct{}
}

func (a *absent) wait(ctx context.Context) error {
	select {
	case a.called <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return ctx.Err()
}

func (a *absent) Append(ctx context.Context, _ *ship.Batch) (int, error) { return 0, a.wait(ctx) }

func (a *absent) Resume(ctx context.Context, _ ship.Ring) (ship.Mark, error) {
	if a.resumes {
		return ship.Mark{}, nil
	}
	return ship.Mark{}, a.wait(ctx)
}

func TestRunEndsWithWhatIsOfNoUse(t *testing.T) {
	ring := bpftest.New(t, 1<<16)
	emit(ring, 0, 10)
	sink := newMemory(4)
	broken := fmt.Errorf("%w: it is broken", ship.ErrPermanent)
	sink.fail = func(int) error { return broken }
	if err := ship.Run(t.Context(), newReader(t, ring), sink, ship.Options{}); err != broken {
		t.Errorf("Run ends with %v", err)
	}

	r := newReader(t, bpftest.New(t, 1<<16))
	s, err := ship.New(r, sink, ship.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := s.Run(t.Context()); !errors.Is(err, ringbuf.ErrClosed) {
		t.Errorf("Run ends with %v", err)
	}

	// The sink has a ring of another machine with the same names.
	other := bpftest.New(t, 1<<16)
	emit(other, 0, 10)
	r = newReader(t, other)
	if s, err = ship.New(r, sink, ship.Options{}); err != nil {
		t.Fatal(err)
	}
	sink.ends[s.Stats().Rings[0].Ring] = ship.Mark{Position: 1 << 30}
	if err := s.Run(t.Context()); !errors.Is(err, ship.ErrPermanent) {
		t.Errorf("Run ends with %v", err)
	}

	third := bpftest.New(t, 1<<16)
	emit(third, 0, 10)
	r = newReader(t, third)
	begin := sink.attempts
	sink.fail = func(attempt int) error { // somebody else reads
		if attempt > begin+1 {
			return nil
		}
		thief, err := ringbuf.NewReader(third)
		if err != nil {
			return err
		}
		defer thief.Close()
		_, err = thief.Read()
		return err
	}
	if err := ship.Run(t.Context(), r, sink, ship.Options{}); !errors.Is(err, syscall.EUCLEAN) {
		t.Errorf("Run ends with %v", err)
	}
}
