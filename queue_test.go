package ringbuf

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// These tests need no kernel. The ring is a fake whose every poll is answered by
// the test, so that things happen in an order that a kernel cannot be made to.

// A fakeRing hands each call of poll to the test.
type fakeRing struct {
	polls   chan *fakePoll
	wakes   atomic.Int32
	polling atomic.Int32
	closed  atomic.Bool

	consumer, producer atomic.Uint64
}

// A fakePoll is a call of poll that waits for its answer.
type fakePoll struct {
	deadline time.Time
	answer   chan fakeAnswer
}

type fakeAnswer struct {
	samples []string
	err     error
}

func newFakeRing() *fakeRing { return &fakeRing{polls: make(chan *fakePoll)} }

func (f *fakeRing) poll(b *batch, q request) error {
	if f.polling.Add(1) != 1 || f.closed.Load() {
		panic("poll overlaps with poll or close")
	}
	defer f.polling.Add(-1)
	p := &fakePoll{q.deadline, make(chan fakeAnswer)}
	f.polls <- p
	answer := <-p.answer
	var buf []byte // new each time: the race detector does not like what only C may do
	for _, s := range answer.samples {
		size := uint64(len(s)+15) &^ 7
		buf = appendEntry(buf, f.consumer.Add(size), uint32(size), s)
	}
	b.set(buf)
	b.producer, b.last = f.producer.Load(), f.consumer.Load()
	return answer.err
}

func appendEntry(buf []byte, end uint64, gap uint32, sample string) []byte {
	buf = binary.NativeEndian.AppendUint64(buf, end)
	buf = binary.NativeEndian.AppendUint32(buf, uint32(len(sample)))
	buf = binary.NativeEndian.AppendUint32(buf, gap)
	buf = append(buf, sample...)
	return append(buf, make([]byte, -len(sample)&7)...)
}

func (f *fakeRing) wake()               { f.wakes.Add(1) }
func (f *fakeRing) lookedTo(int) uint64 { return f.consumer.Load() }
func (f *fakeRing) view(int) *ring      { panic("there is nothing to lend") }
func (f *fakeRing) caughtUp(int)        {}

func (f *fakeRing) consume(int, int, int, uint64) error { panic("nothing was lent") }

func (f *fakeRing) consumerPos(int) uint64 { return f.consumer.Load() }
func (f *fakeRing) producerPos(int) uint64 { return f.producer.Load() }
func (f *fakeRing) sizes() []int           { return []int{4096} }
func (f *fakeRing) stats() Stats           { return Stats{Rings: make([]RingStats, 1)} }

func (f *fakeRing) close() error {
	if f.polling.Load() != 0 || f.closed.Swap(true) {
		panic("close overlaps with poll, or comes twice")
	}
	return nil
}

// nextPoll returns the next call of poll.
func (f *fakeRing) nextPoll(t *testing.T) *fakePoll {
	t.Helper()
	select {
	case p := <-f.polls:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nobody polls")
		return nil
	}
}

// reply makes poll return these samples.
func (p *fakePoll) reply(samples ...string) { p.answer <- fakeAnswer{samples: samples} }

func (p *fakePoll) fail(err error) { p.answer <- fakeAnswer{err: err} }

// waits reports whether poll was called such that it may wait.
func (p *fakePoll) waits() bool { return p.deadline.IsZero() || time.Until(p.deadline) > 0 }

// readFake starts a Read.
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

func wantNoPoll(t *testing.T, f *fakeRing) {
	t.Helper()
	select {
	case <-f.polls:
		t.Fatal("poll was called")
	case <-time.After(10 * time.Millisecond):
	}
}

func TestQueueFlushDuringAPollDrainsOnceMore(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	p := f.nextPoll(t)
	if !p.waits() {
		t.Error("the first poll does not wait")
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if f.wakes.Load() != 1 {
		t.Error("Flush did not wake the poll")
	}
	p.reply() // it had found nothing before the flush
	p = f.nextPoll(t)
	if p.waits() {
		t.Error("the poll after a flush waits")
	}
	p.reply("came before the flush")
	wantResult(t, result, "came before the flush", nil)

	result = readFake(r)
	p = f.nextPoll(t)
	if p.waits() {
		t.Error("the flush was forgotten")
	}
	p.reply()
	wantResult(t, result, "", ErrFlushed)

	result = readFake(r)
	if p = f.nextPoll(t); !p.waits() {
		t.Error("the flush was not forgotten after ErrFlushed")
	}
	p.reply("next")
	wantResult(t, result, "next", nil)
}

func TestQueueDeadlineThatPassesDuringAPollDrainsOnceMore(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	r.SetDeadline(time.Now().Add(time.Hour))
	if f.wakes.Load() != 0 {
		t.Error("SetDeadline wakes though nobody polls")
	}
	result := readFake(r)
	p := f.nextPoll(t)
	r.SetDeadline(time.Unix(0, 1))
	p.reply()
	p = f.nextPoll(t)
	p.reply("came before the deadline")
	wantResult(t, result, "came before the deadline", nil)
	result = readFake(r)
	f.nextPoll(t).reply()
	wantResult(t, result, "", os.ErrDeadlineExceeded)
}

func TestQueueSetDeadlineReachesAPollThatWaits(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	p := f.nextPoll(t)
	if !p.deadline.IsZero() {
		t.Errorf("without a deadline poll is called with %v", p.deadline)
	}
	deadline := time.Now().Add(time.Hour)
	r.SetDeadline(deadline)
	if f.wakes.Load() != 1 {
		t.Error("SetDeadline did not wake the poll")
	}
	p.reply()
	p = f.nextPoll(t)
	if !p.deadline.Equal(deadline) {
		t.Errorf("poll is called with deadline %v, want %v", p.deadline, deadline)
	}
	r.SetDeadline(time.Time{})
	p.reply()
	p = f.nextPoll(t)
	if !p.deadline.IsZero() {
		t.Errorf("after the deadline was removed poll is called with %v", p.deadline)
	}
	p.reply("sample")
	wantResult(t, result, "sample", nil)
}

func TestQueuePollThatReturnsEarlyIsRepeated(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	result := readFake(r)
	for range 3 {
		f.nextPoll(t).reply()
	}
	f.nextPoll(t).reply("sample")
	wantResult(t, result, "sample", nil)
}

func TestQueueCloseWaitsForThePoll(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := readFake(r)
	p := f.nextPoll(t)
	var closing [2]chan error
	for i := range closing {
		closing[i] = make(chan error, 1)
		go func() { closing[i] <- r.Close() }()
	}
	await(t, "Close to wake the poll", func() bool { return f.wakes.Load() == 1 })
	for _, c := range closing {
		select {
		case <-c:
			t.Fatal("Close returned while poll was running")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if f.closed.Load() {
		t.Fatal("Close released the ring while poll was running")
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

func TestQueueSamplesOfAPollThatCloseInterrupts(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	result := readFake(r)
	p := f.nextPoll(t)
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	await(t, "Close to wake the poll", func() bool { return f.wakes.Load() == 1 })
	p.reply("first", "second")
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	// The Read that was waiting may still have its sample. None comes after Close.
	wantResult(t, result, "first", nil)
	wantReadError(t, r, ErrClosed)
	wantAvailable(t, r, 0)
}

func TestQueueWaitingReadsShareABatch(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	results := []<-chan readResult{readFake(r)}
	p := f.nextPoll(t)
	for range 3 {
		results = append(results, readFake(r))
	}
	wantNoPoll(t, f)
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
	wantNoPoll(t, f)
	r.Close()
}

func TestQueueAnotherReadTakesOverThePoll(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	// Of two Reads either may take the sample, for the later one may find it at once.
	result := make(chan readResult, 1)
	readFakeTo(r, result)
	p := f.nextPoll(t)
	readFakeTo(r, result)
	p.reply("1")
	wantResult(t, result, "1", nil)
	p = f.nextPoll(t)
	readFakeTo(r, result)
	p.reply("2")
	wantResult(t, result, "2", nil)
	f.nextPoll(t).reply("3")
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
	p := f.nextPoll(t)
	for range 2 {
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	p.reply()
	for range 2 {
		p = f.nextPoll(t)
		if p.waits() {
			t.Error("a poll waits although a flush is not answered")
		}
		p.reply()
		if err := <-results; err != ErrFlushed {
			t.Errorf("Read returned %v, want ErrFlushed", err)
		}
	}
	p = f.nextPoll(t)
	if !p.waits() {
		t.Error("there is a third answer to two flushes")
	}
	wakes := f.wakes.Load()
	go r.Close()
	await(t, "Close to wake the poll", func() bool { return f.wakes.Load() > wakes })
	p.reply()
	if err := <-results; !errors.Is(err, ErrClosed) {
		t.Errorf("the last Read returned %v, want ErrClosed", err)
	}
}

func TestQueueErrorOfAPollLosesNothing(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	results := []<-chan readResult{readFake(r)}
	p := f.nextPoll(t)
	results = append(results, readFake(r))
	p.fail(syscall.EUCLEAN)
	wantResult(t, results[0], "", syscall.EUCLEAN)
	f.nextPoll(t).reply("sample")
	wantResult(t, results[1], "sample", nil)
}

func TestQueueDeadlineEndsAllWaitingReads(t *testing.T) {
	f := newFakeRing()
	r := newReader(f)
	defer r.Close()
	results := []<-chan readResult{readFake(r)}
	p := f.nextPoll(t)
	for range 2 {
		results = append(results, readFake(r))
	}
	r.SetDeadline(time.Now())
	p.reply()
	for range results {
		p := f.nextPoll(t)
		if p.waits() {
			t.Error("a poll waits after the deadline")
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
	p := f.nextPoll(t)
	for range 3 {
		runtime.GC()
	}
	wantNoPoll(t, f)
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

func TestQueueAvailableBytesWhilePolling(t *testing.T) {
	f := newFakeRing()
	f.consumer.Store(160) // where another Reader stopped
	f.producer.Store(176)
	r := newReader(f)
	defer r.Close()
	wantAvailable(t, r, 16)
	result := readFake(r)
	p := f.nextPoll(t)
	wantAvailable(t, r, 16)
	f.consumer.Store(176) // drained, and not yet handed out
	wantAvailable(t, r, 16)
	p.reply() // it was discarded
	p = f.nextPoll(t)
	wantAvailable(t, r, 0)
	f.producer.Store(176 + 40)
	wantAvailable(t, r, 40)
	p.reply("12345678", "1")
	wantResult(t, result, "12345678", nil)
	wantAvailable(t, r, 24)
}
