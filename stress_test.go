package ringbuf

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// make stress gives these tests more time than go test does.
var (
	stressFor  = flag.Duration("stress", 3*time.Second, "how long to read under stress")
	stressSeed = flag.Uint64("seed", 0, "of what TestStress writes: to try one ring again")
	rallies    = flag.Uint64("rallies", 20_000, "samples of each test for lost wakeups")
)

// watch ends the process, with the stacks of all goroutines, if progress does not change for 20
// seconds. The caller must call stop at the end.
func watch(t *testing.T, what string, progress *atomic.Uint64) (stop func()) {
	const patience = 20 * time.Second
	done := make(chan struct{})
	var watching group
	watching.Go(func() {
		last := progress.Load()
		for {
			select {
			case <-done:
				return
			case <-time.After(patience):
			}
			now := progress.Load()
			if now == last {
				debug.SetTraceback("all")
				panic(fmt.Sprintf("%s %s: nothing happened for %v after %d samples", t.Name(), what, patience,
					now))
			}
			last = now
			t.Logf("%d samples so far", now)
		}
	})
	return func() {
		close(done)
		watching.Wait()
	}
}

// A recorder notes all samples that libbpf consumes from a ring.
type recorder struct {
	rings
	drained []uint64 // identities, from identify
	mu      sync.Mutex
	lent    []uint64 // of samples that are still in the ring
}

func (r *recorder) fetch(b *batch, q request) error {
	err := r.rings.fetch(b, q)
	for entries := b.entries; len(entries) > 0; {
		sample, _ := firstOf(entries)
		r.drained = append(r.drained, identify(sample))
		entries = entries[entrySize(len(sample)):]
	}
	if b.window.samples > 0 {
		// The queue does not call consume before fetch returns.
		r.view(0).each(b.window, func(_ uint64, sample []byte) { r.lentNow(identify(sample)) })
	}
	return err
}

func (r *recorder) lentNow(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lent = append(r.lent, id)
}

func (r *recorder) consume(i, samples, discards int, end uint64) error {
	err := r.rings.consume(i, samples, discards, end)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.drained = append(r.drained, r.lent[:samples]...)
		r.lent = r.lent[samples:]
	}
	return err
}

// anonymous is set in the identity of samples that are too small to have one. The other bits
// are their size.
const anonymous = 1 << 63

func identify(sample []byte) uint64 {
	if len(sample) < bpftest.IDSize {
		return anonymous | uint64(len(sample))
	}
	return uint64(bpftest.IDOf(sample))
}

// A stress is a ring to which producers write as fast as they can, and which one Reader after
// the other reads.
type stress struct {
	ring     *bpftest.StressRing
	rng      *rand.Rand
	options  []Option
	progress atomic.Uint64

	next   []uint64            // of each producer, the number of the next record to be drained
	missed [bpftest.IDSize]int // by size: samples too small to have an identity that were passed
	tiny   [bpftest.IDSize]int // by size: such samples that were drained
	counts stressCounts
	again  atomic.Int64 // samples that were seen and released
}

// stressCounts says what became of the records that the kernel accepted.
type stressCounts struct{ read, unread, discarded, again, readers int }

func (c *stressCounts) add(d stressCounts) {
	c.read += d.read
	c.unread += d.unread
	c.discarded += d.discarded
	c.again += d.again
	c.readers += d.readers
}

func (c stressCounts) accepted() int { return c.read + c.unread + c.discarded }

func (c stressCounts) String() string {
	return fmt.Sprintf("%d records accepted = %d read + %d drained and unread at Close + "+
		"%d discarded; %d of them seen and not committed, and read again; %d Readers",
		c.accepted(), c.read, c.unread, c.discarded, c.again, c.readers)
}

// TestStress reads while producers on all CPUs write as fast as they can: records of all sizes,
// with all flags, some of them discarded. Readers come and go. Each has several goroutines,
// which call all methods. Each sample that the kernel accepted must be drained once and in
// order. Each drained sample must be read once, except for what is left of the last batch
// before a Close.
func TestStress(t *testing.T) {
	sizes := []int{os.Getpagesize(), 64 << 10, 1 << 20, 16 << 20}
	paces := []struct {
		name    string
		options []Option
	}{
		{"eager", []Option{WithMaxDelay(0)}},
		{"default", nil},
		{"moderated", []Option{WithMaxDelay(400 * time.Microsecond)}},
	}
	configurations := len(sizes) * len(paces)
	seed, each := *stressSeed, *stressFor
	if seed == 0 {
		seed = 1 + uint64(time.Now().UnixNano()%1e6)
		each = min(each/time.Duration(configurations), 5*time.Second)
	}
	var total stressCounts
	end := time.Now().Add(*stressFor)
	for i := 0; (i < configurations && *stressSeed == 0 || time.Now().Before(end)) &&
		!t.Failed(); i++ {
		n := int(seed % uint64(configurations))
		size, pace := sizes[n%len(sizes)], paces[n/len(sizes)]
		name := fmt.Sprintf("%s, %d KiB", pace.name, size>>10)
		t.Run(name, func(t *testing.T) {
			total.add(testStress(t, size, pace.options, seed, each))
			if t.Failed() {
				t.Logf("to try again, on %d CPUs: go test -v -race=%v -run TestStress . -stress 1m -seed %d",
					runtime.NumCPU(), raceEnabled(), seed)
			}
		})
		if *stressSeed == 0 {
			seed++
		}
	}
	if !t.Failed() {
		t.Log("altogether ", total)
	}
}

func testStress(t *testing.T, size int, options []Option, seed uint64,
	duration time.Duration) stressCounts {
	ring := bpftest.NewStress(t, size, seed)
	s := &stress{
		ring:    ring,
		rng:     rand.New(rand.NewPCG(seed, seed)),
		options: options,
		next:    make([]uint64, ring.Producers),
	}
	stopWatching := watch(t, fmt.Sprintf("-seed %d", seed), &s.progress)
	defer stopWatching()
	stop := make(chan struct{})
	var producing group
	for producer := range ring.Producers {
		producing.Go(func() { ring.Produce(producer, stop) })
	}
	for end := time.Now().Add(duration); time.Now().Before(end) && !t.Failed(); {
		s.live(t, false)
	}
	close(stop)
	producing.Wait()
	s.live(t, true)
	if t.Failed() {
		return s.counts
	}
	var accepted, refused uint64
	for producer, c := range ring.Counters() {
		if err := s.pass(producer, c.Accepted); err != nil {
			t.Error(err)
		}
		accepted += c.Accepted
		refused += c.Refused
	}
	if s.tiny != s.missed {
		t.Errorf("samples of 0, 1, ... 7 bytes: %d came, want %d", s.tiny, s.missed)
	}
	t.Logf("%v; %d refused", s.counts, refused)
	if got := s.counts.accepted(); uint64(got) != accepted {
		t.Errorf("%d records were accepted", accepted)
	}
	return s.counts
}

// pass notes the records of a producer before the given number that were not drained. They must
// be discarded or too small.
func (s *stress) pass(producer int, before uint64) error {
	for ; s.next[producer] < before; s.next[producer]++ {
		id := bpftest.ID(producer, s.next[producer])
		switch size, discarded := s.ring.Planned(id); {
		case discarded:
			s.counts.discarded++
		case size < bpftest.IDSize:
			s.missed[size]++
		default:
			return fmt.Errorf("%v was never drained", id)
		}
	}
	return nil
}

// live opens a Reader, uses it for a while, and closes it. The last one reads
// everything first.
func (s *stress) live(t *testing.T, last bool) {
	opened, err := NewReader(s.ring, s.options...)
	if err != nil {
		t.Error(err)
		return
	}
	opened.cleanup.Stop()
	rec := &recorder{rings: opened.queue.rings}
	r := newReader(rec)
	if last {
		if err := r.Flush(); err != nil {
			t.Error(err)
		}
	}
	read := make([][]uint64, 1+s.rng.IntN(4))
	lending := s.rng.IntN(2) == 0
	var flushes, flushed atomic.Int64
	var reading group
	for i := range read {
		seed := s.rng.Uint64()
		rng := rand.New(rand.NewPCG(seed, 0))
		reading.Go(func() { read[i] = s.read(t, r, rng, last, lending, &flushed) })
	}
	if !last {
		s.disturb(t, r, &flushes)
		if flushed.Load() > flushes.Load() {
			t.Errorf("%d answers to %d flushes", flushed.Load(), flushes.Load())
		}
	} else {
		await(t, "the last sample", func() bool { return flushed.Load() > 0 })
		await(t, "the last commit", func() bool {
			r.queue.mu.Lock()
			defer r.queue.mu.Unlock()
			return len(r.queue.loans[0]) == 0 && len(r.queue.drained) == 0
		})
		// The last discarded records are passed only when nothing is lent any more.
		await(t, "all to be read", func() bool { return r.AvailableBytes() == 0 })
	}
	var closing group
	for range 1 + s.rng.IntN(2) {
		closing.Go(func() {
			if err := r.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	closing.Wait()
	reading.Wait()
	if err := s.settle(rec, slices.Concat(read...), last); err != nil {
		t.Error(err)
	}
	s.counts.again += int(s.again.Swap(0))
}

// disturb calls the methods that do not read, for a while.
func (s *stress) disturb(t *testing.T, r *Reader, flushes *atomic.Int64) {
	for range s.rng.IntN(1 << s.rng.IntN(10)) {
		pause := time.Duration(s.rng.Int64N(2e6)) >> s.rng.IntN(12)
		switch s.rng.IntN(6) {
		case 0:
			r.SetDeadline(time.Now().Add(-time.Second))
		case 1:
			r.SetDeadline(time.Now().Add(pause))
		case 2:
			r.SetDeadline(time.Time{})
		case 3:
			flushes.Add(1)
			if err := r.Flush(); err != nil {
				t.Error(err)
			}
		case 4:
			if n := r.AvailableBytes(); n < 0 || n > 2*r.BufferSize()+2*maxBatchSize {
				t.Errorf("AvailableBytes is %d", n)
			}
		case 5:
			<-time.After(pause)
		}
	}
}

// read reads in all ways until Close, and returns the identities of the samples that it read.
func (s *stress) read(t *testing.T, r *Reader, rng *rand.Rand, last, lending bool,
	flushed *atomic.Int64) (read []uint64) {
	next := make([]uint64, s.ring.Producers)
	note := func(rec Record, err error) (more bool) {
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			return false
		case err == ErrFlushed:
			flushed.Add(1)
			return true
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
			return true
		default:
			t.Error(err)
			return false
		}
		if err := s.ring.Check(rec.RawSample); err != nil {
			t.Error(err)
			return false
		}
		if n := rec.Remaining; n < 0 || n > 2*r.BufferSize()+2*maxBatchSize {
			t.Errorf("%d bytes remaining", n)
		}
		s.progress.Add(1)
		if len(rec.RawSample) >= bpftest.IDSize {
			id := bpftest.IDOf(rec.RawSample)
			if n := &next[id.Producer()]; id.Seq() < *n && !lending { // lent ones may come again
				t.Errorf("a goroutine read %v after %d", id, *n-1)
			} else {
				*n = id.Seq() + 1
			}
		}
		read = append(read, identify(rec.RawSample))
		return true
	}
	var into Record
	for more := true; more; {
		op := rng.IntN(8)
		if op >= 4 && !lending {
			op = 7
		}
		switch op {
		default:
			rec, err := r.Read()
			more = note(rec, err)
			clear(rec.RawSample) // it belongs to this goroutine
		case 5, 6:
			n := len(read)
			var committed bool
			more, committed = s.lease(t, r, rng, last, note)
			if !committed {
				s.again.Add(int64(len(read) - n))
				read = read[:n]
			}
		case 0, 1, 2:
			err := r.ReadInto(&into)
			more = note(into, err)
		case 3:
			ctx, cancel := context.WithCancel(t.Context())
			stop := time.AfterFunc(time.Duration(rng.Int64N(1e5)), cancel)
			more = note(r.ReadContext(ctx))
			stop.Stop()
			cancel()
		case 4:
			if !last {
				more = s.loop(t, r, rng, note)
			}
		}
	}
	return read
}

// loop reads some records. The last one may be in the middle of a batch, and mixed with records
// that do not come.
func (s *stress) loop(t *testing.T, r *Reader, rng *rand.Rand,
	note func(Record, error) bool) (more bool) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := rng.IntN(1 << rng.IntN(10))
	abrupt := rng.IntN(2) == 0
	records := r.Records(ctx)
	if rng.IntN(2) == 0 {
		// Some records are in the order of this key, others are not.
		key := func(rec Record) uint64 { return uint64(len(rec.RawSample)) }
		records = r.Merged(ctx, key, time.Duration(rng.Int64N(2e6))>>rng.IntN(12))
	}
	for rec, err := range records {
		if !note(rec, err) {
			return false
		}
		if n--; n < 0 && abrupt {
			return true
		} else if n < 0 {
			cancel()
		}
	}
	return true // also after Close: then the next Read says so
}

// lease reads a lease, and commits or releases it.
func (s *stress) lease(t *testing.T, r *Reader, rng *rand.Rand, last bool,
	note func(Record, error) bool) (more, committed bool) {
	l, err := r.Lease(t.Context())
	if err != nil {
		return note(Record{}, err), true
	}
	n := 0
	for rec := range l.Records() {
		if n++; !note(rec, nil) {
			break
		}
	}
	if n != l.Len() && !t.Failed() {
		t.Errorf("a lease of %d records has %d", l.Len(), n)
	}
	for range rng.IntN(3) {
		runtime.Gosched()
	}
	if !last && rng.IntN(4) == 0 {
		l.Release()
		return true, false
	}
	err = l.Commit()
	if err != nil && !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	return err == nil, err == nil
}

// settle checks what a closed Reader has drained, and which of these samples were read.
func (s *stress) settle(rec *recorder, read []uint64, all bool) error {
	for _, id := range rec.drained {
		if id&anonymous != 0 {
			s.tiny[id&^anonymous]++
			continue
		}
		id := bpftest.RecordID(id)
		if id.Producer() >= s.ring.Producers {
			return fmt.Errorf("%v was drained", id)
		}
		if err := s.pass(id.Producer(), id.Seq()); err != nil {
			return fmt.Errorf("%w, but %v was", err, id)
		}
		if s.next[id.Producer()] != id.Seq() {
			return fmt.Errorf("%v was drained twice, or late", id)
		}
		s.next[id.Producer()]++
	}
	slices.Sort(rec.drained)
	slices.Sort(read)
	unread, uncommitted := difference(rec.drained, read)
	if len(unread) > 0 && all {
		return fmt.Errorf("%d samples were drained and not read", len(unread))
	}
	// Samples that were seen and not drained are still in the ring.
	slices.Sort(rec.lent)
	if _, made := difference(rec.lent, uncommitted); len(made) > 0 {
		return fmt.Errorf("%d samples were read twice, or made up", len(made))
	}
	s.counts.again += len(uncommitted)
	s.counts.readers++
	s.counts.read += len(rec.drained) - len(unread)
	s.counts.unread += len(unread)
	return nil
}

// difference returns the elements that are only in a, and those that are only in b. Both must
// be sorted.
func difference(a, b []uint64) (onlyA, onlyB []uint64) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			onlyA, a = append(onlyA, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			onlyB, b = append(onlyB, b[0]), b[1:]
		default:
			a, b = a[1:], b[1:]
		}
	}
	return onlyA, onlyB
}

// TestNoWakeupIsLost plays ping-pong. Each sample is written after the one before was drained,
// at any moment before or after Read begins to wait. So one lost wakeup stops the game. Records
// that are discarded meanwhile move the consumer position. There is no deadline, so nothing
// else wakes Read.
//
// On x86, without the fence in drain, one wakeup in a million is lost, and only if Read parks.
// The test in internal/tso does not depend on luck.
func TestNoWakeupIsLost(t *testing.T) {
	eachWaitUnderLoad(t, func(t *testing.T, opts ...Option) {
		ring := bpftest.NewStress(t, os.Getpagesize(), uint64(time.Now().UnixNano()))
		testNumbers(t, mustNewReader(t, ring, opts...), ring.Serve, *rallies)
	})
}

// TestNoWakeupIsLostBesideOtherRings reads the second of three rings. Nothing happens in the
// others.
func TestNoWakeupIsLostBesideOtherRings(t *testing.T) {
	eachWaitUnderLoad(t, func(t *testing.T, opts ...Option) {
		ring := bpftest.NewStress(t, os.Getpagesize(), uint64(time.Now().UnixNano()))
		r, err := NewMultiReader([]Map{bpftest.New(t, os.Getpagesize()), ring,
			bpftest.New(t, os.Getpagesize())}, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		testNumbers(t, r, ring.Serve, *rallies/5)
	})
}

// TestNoWakeupIsLostWhenEachSampleFillsTheRing has a producer that writes as fast as it can.
// Each batch is one sample.
func TestNoWakeupIsLostWhenEachSampleFillsTheRing(t *testing.T) {
	eachWaitUnderLoad(t, func(t *testing.T, opts ...Option) {
		ring := bpftest.NewStress(t, os.Getpagesize(), uint64(time.Now().UnixNano()))
		testNumbers(t, mustNewReader(t, ring, opts...), ring.Fill, *rallies/5)
	})
}

// eachWaitUnderLoad runs a test for each way in which a Reader that was busy recently waits for
// the next sample.
func eachWaitUnderLoad(t *testing.T, test func(t *testing.T, opts ...Option)) {
	t.Run("blocked", func(t *testing.T) { test(t, WithMaxDelay(0)) })
	t.Run("ticking", func(t *testing.T) { test(t, WithMaxDelay(2*minInterval)) })

	blocked.Add(1000) // from now on no thread may block
	defer blocked.Add(-1000)
	t.Run("parked", func(t *testing.T) { test(t, WithMaxDelay(0)) })
	t.Run("ticking without a thread", func(t *testing.T) { test(t, WithMaxDelay(2*minInterval)) })
}

func testNumbers(t *testing.T, r *Reader, write func(n uint64, stop <-chan struct{}), n uint64) {
	if runtime.GOMAXPROCS(0) == 1 {
		n /= 800 // producer and reader take turns, of 10 ms each
	}
	// Otherwise the Reader would park after a while, and find samples of which it was not
	// notified.
	r.queue.rings.(*libbpfRings).blockFor = time.Hour
	var progress atomic.Uint64
	stopWatching := watch(t, "", &progress)
	defer stopWatching()
	stop := make(chan struct{})
	var writing group
	defer writing.Wait()
	defer close(stop)
	writing.Go(func() { write(n, stop) })
	begin := time.Now()
	var rec Record
	for want := range n {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatalf("sample %d: %v", want, err)
		}
		if got := binary.NativeEndian.Uint64(rec.RawSample); got != want {
			t.Fatalf("sample %d came, want %d", got, want)
		}
		progress.Store(want)
	}
	t.Logf("%d samples, %v each", n, time.Since(begin)/time.Duration(n))
}
