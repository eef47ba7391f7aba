package ringbuf

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// These tests need no kernel. The ring is a fake, and the test answers each of its fetches. So
// events happen in an order that cannot be forced with a kernel.

// A fakeRing hands each call of fetch to the test.
type fakeRing struct {
	fetches  chan *fakeFetch
	wakes    atomic.Int32
	fetching atomic.Int32
	closed   atomic.Bool

	consumer, producer atomic.Uint64
}

// A fakeFetch is a call of fetch that waits for its answer.
type fakeFetch struct {
	deadline time.Time
	answer   chan fakeAnswer
}

type fakeAnswer struct {
	samples []string
	err     error
}

func newFakeRing() *fakeRing { return &fakeRing{fetches: make(chan *fakeFetch)} }

func (f *fakeRing) fetch(b *batch, q request) error {
	if f.fetching.Add(1) != 1 || f.closed.Load() {
		panic("fetch overlaps with fetch or close")
	}
	defer f.fetching.Add(-1)
	p := &fakeFetch{q.deadline, make(chan fakeAnswer)}
	f.fetches <- p
	answer := <-p.answer
	var buf []byte // new each time: the race detector would report a reuse, which only C may do
	for _, s := range answer.samples {
		size := uint64(len(s)+15) &^ 7
		buf = appendEntry(buf, f.consumer.Add(size), uint32(size), []byte(s))
	}
	b.set(buf)
	b.producer, b.last = f.producer.Load(), f.consumer.Load()
	return answer.err
}

func (f *fakeRing) wake()               { f.wakes.Add(1) }
func (f *fakeRing) lookedTo(int) uint64 { return f.consumer.Load() }
func (f *fakeRing) view(int) *ring      { panic("there is nothing to lend") }
func (f *fakeRing) allConsumed(int)     {}

func (f *fakeRing) consume(int, int, int, uint64) error { panic("nothing was lent") }

func (f *fakeRing) consumerPos(int) uint64 { return f.consumer.Load() }
func (f *fakeRing) producerPos(int) uint64 { return f.producer.Load() }
func (f *fakeRing) sizes() []int           { return []int{4096} }
func (f *fakeRing) stats() Stats           { return Stats{Rings: make([]RingStats, 1)} }

func (f *fakeRing) close() error {
	if f.fetching.Load() != 0 || f.closed.Swap(true) {
		panic("close overlaps with fetch, or comes twice")
	}
	return nil
}

// nextFetch returns the next call of fetch.
func (f *fakeRing) nextFetch(t *testing.T) *fakeFetch {
	t.Helper()
	select {
	case p := <-f.fetches:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nobody fetches")
		return nil
	}
}

// reply makes fetch return these samples.
func (p *fakeFetch) reply(samples ...string) { p.answer <- fakeAnswer{samples: samples} }

func (p *fakeFetch) fail(err error) { p.answer <- fakeAnswer{err: err} }

// waits reports whether the fetch may wait.
func (p *fakeFetch) waits() bool { return p.deadline.IsZero() || time.Until(p.deadline) > 0 }

// readFake calls Read in a goroutine, and does not wait until that fetches.
func readFake(r *Reader) <-chan readResult {
	result := make(chan readResult, 1)
	readFakeTo(r, result)
	return result
}

func readFakeTo(r *Reader, result chan<- readResult) {
	go func() {
		rec, err := r.Read()
		result <- readResult{rec, err}
	}()
}

func wantNoFetch(t *testing.T, f *fakeRing) {
	t.Helper()
	select {
	case <-f.fetches:
		t.Fatal("fetch was called")
	case <-time.After(10 * time.Millisecond):
	}
}

func TestQueueFlushDuringAFetchDrainsOnceMore(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	p := f.nextFetch(t)
	if !p.waits() {
		t.Error("the first fetch does not wait")
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if f.wakes.Load() != 1 {
		t.Error("Flush did not wake the fetch")
	}
	p.reply() // it had found nothing before the flush
	p = f.nextFetch(t)
	if p.waits() {
		t.Error("the fetch after a flush waits")
	}
	p.reply("came before the flush")
	wantResult(t, result, "came before the flush", nil)

	result = readFake(r)
	p = f.nextFetch(t)
	if p.waits() {
		t.Error("the flush was forgotten")
	}
	p.reply()
	wantResult(t, result, "", ErrFlushed)

	result = readFake(r)
	if p = f.nextFetch(t); !p.waits() {
		t.Error("the flush was not forgotten after ErrFlushed")
	}
	p.reply("next")
	wantResult(t, result, "next", nil)
}

func TestQueueDeadlineThatPassesDuringAFetchDrainsOnceMore(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	r.SetDeadline(time.Now().Add(time.Hour))
	if f.wakes.Load() != 0 {
		t.Error("SetDeadline wakes though nobody fetches")
	}
	result := readFake(r)
	p := f.nextFetch(t)
	r.SetDeadline(time.Unix(0, 1))
	p.reply()
	p = f.nextFetch(t)
	p.reply("came before the deadline")
	wantResult(t, result, "came before the deadline", nil)
	result = readFake(r)
	f.nextFetch(t).reply()
	wantResult(t, result, "", os.ErrDeadlineExceeded)
}

func TestQueueSetDeadlineReachesAFetchThatWaits(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	p := f.nextFetch(t)
	if !p.deadline.IsZero() {
		t.Errorf("without a deadline fetch is called with %v", p.deadline)
	}
	deadline := time.Now().Add(time.Hour)
	r.SetDeadline(deadline)
	if f.wakes.Load() != 1 {
		t.Error("SetDeadline did not wake the fetch")
	}
	p.reply()
	p = f.nextFetch(t)
	if !p.deadline.Equal(deadline) {
		t.Errorf("fetch is called with deadline %v, want %v", p.deadline, deadline)
	}
	r.SetDeadline(time.Time{})
	p.reply()
	p = f.nextFetch(t)
	if !p.deadline.IsZero() {
		t.Errorf("after the deadline was removed fetch is called with %v", p.deadline)
	}
	p.reply("sample")
	wantResult(t, result, "sample", nil)
}

func TestQueueFetchThatReturnsEarlyIsRepeated(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	for range 3 {
		f.nextFetch(t).reply()
	}
	f.nextFetch(t).reply("sample")
	wantResult(t, result, "sample", nil)
}

func TestQueueCloseWaitsForTheFetch(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := readFake(r)
	p := f.nextFetch(t)
	var closing [2]chan error
	for i := range closing {
		closing[i] = make(chan error, 1)
		go func() { closing[i] <- r.Close() }()
	}
	await(t, "Close to wake the fetch", func() bool { return f.wakes.Load() == 1 })
	for _, c := range closing {
		select {
		case <-c:
			t.Fatal("Close returned while fetch was running")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if f.closed.Load() {
		t.Fatal("Close released the ring while fetch was running")
	}
	p.reply()
	for _, c := range closing {
		if err := <-c; err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if !f.closed.Load() {
		t.Error("Close did not release the ring")
	}
	wantResult(t, result, "", ErrClosed)
}

func TestQueueSamplesOfAFetchThatCloseInterrupts(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := readFake(r)
	p := f.nextFetch(t)
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	await(t, "Close to wake the fetch", func() bool { return f.wakes.Load() == 1 })
	p.reply("first", "second")
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	// The Read that was waiting may still return its sample. None comes after Close.
	wantResult(t, result, "first", nil)
	wantReadError(t, r, ErrClosed)
	wantAvailable(t, r, 0)
}

func TestQueueWaitingReadsShareABatch(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	results := []<-chan readResult{readFake(r)}
	p := f.nextFetch(t)
	for range 3 {
		results = append(results, readFake(r))
	}
	wantNoFetch(t, f)
	p.reply("a", "b", "c", "d")
	got := make(map[string]bool)
	for _, result := range results {
		res := <-result
		if res.err != nil {
			t.Error(res.err)
		}
		got[string(res.rec.RawSample)] = true
	}
	if len(got) != 4 {
		t.Errorf("the samples read are %v, want each of a, b, c, d once", got)
	}
	wantNoFetch(t, f)
	r.Close()
}

func TestQueueAnotherReadTakesOverTheFetch(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	// Either of two Reads may take the sample, because the later one may find it at once.
	result := make(chan readResult, 1)
	readFakeTo(r, result)
	p := f.nextFetch(t)
	readFakeTo(r, result)
	p.reply("1")
	wantResult(t, result, "1", nil)
	p = f.nextFetch(t)
	readFakeTo(r, result)
	p.reply("2")
	wantResult(t, result, "2", nil)
	f.nextFetch(t).reply("3")
	wantResult(t, result, "3", nil)
}

func TestQueueEachFlushIsAnsweredToOneRead(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	results := make(chan error)
	for range 3 {
		go func() {
			_, err := r.Read()
			results <- err
		}()
	}
	p := f.nextFetch(t)
	for range 2 {
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	p.reply()
	for range 2 {
		p = f.nextFetch(t)
		if p.waits() {
			t.Error("a fetch waits although a flush is not answered")
		}
		p.reply()
		if err := <-results; err != ErrFlushed {
			t.Errorf("Read returned %v, want ErrFlushed", err)
		}
	}
	p = f.nextFetch(t)
	if !p.waits() {
		t.Error("there is a third answer to two flushes")
	}
	wakes := f.wakes.Load()
	go r.Close()
	await(t, "Close to wake the fetch", func() bool { return f.wakes.Load() > wakes })
	p.reply()
	if err := <-results; !errors.Is(err, ErrClosed) {
		t.Errorf("the last Read returned %v, want ErrClosed", err)
	}
}

func TestQueueErrorOfAFetchLosesNothing(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	results := []<-chan readResult{readFake(r)}
	p := f.nextFetch(t)
	results = append(results, readFake(r))
	p.fail(syscall.EUCLEAN)
	wantResult(t, results[0], "", syscall.EUCLEAN)
	f.nextFetch(t).reply("sample")
	wantResult(t, results[1], "sample", nil)
}

func TestQueueDeadlineEndsAllWaitingReads(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	results := []<-chan readResult{readFake(r)}
	p := f.nextFetch(t)
	for range 2 {
		results = append(results, readFake(r))
	}
	r.SetDeadline(time.Now())
	p.reply()
	for range results {
		p := f.nextFetch(t)
		if p.waits() {
			t.Error("a fetch waits after the deadline")
		}
		p.reply()
	}
	for _, result := range results {
		wantResult(t, result, "", os.ErrDeadlineExceeded)
	}
}

func TestQueueIsNotCleanedUpWhileAReadWaits(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := make(chan readResult, 1)
	go func() {
		var rec Record
		err := r.ReadInto(&rec) // the last use of r
		result <- readResult{rec, err}
	}()
	p := f.nextFetch(t)
	for range 3 {
		runtime.GC()
	}
	wantNoFetch(t, f)
	if f.closed.Load() {
		t.Fatal("the ring was closed while Read waits")
	}
	p.reply("sample")
	wantResult(t, result, "sample", nil)
	await(t, "the cleanup", func() bool {
		runtime.GC()
		return f.closed.Load()
	})
}

func TestQueueAvailableBytesWhileFetching(t *testing.T) {
	f := newFakeRing()
	f.consumer.Store(160) // where another Reader stopped
	f.producer.Store(176)
	r := newReader(f)
	defer r.Close()
	wantAvailable(t, r, 16)
	result := readFake(r)
	p := f.nextFetch(t)
	wantAvailable(t, r, 16)
	f.consumer.Store(176) // drained, and not yet handed out
	wantAvailable(t, r, 16)
	p.reply() // it was discarded
	p = f.nextFetch(t)
	wantAvailable(t, r, 0)
	f.producer.Store(176 + 40)
	wantAvailable(t, r, 40)
	p.reply("12345678", "1")
	wantResult(t, result, "12345678", nil)
	wantAvailable(t, r, 24)
}
