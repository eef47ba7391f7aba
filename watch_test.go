package ringbuf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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

// These tests watch rings that BPF programs write to. watch_ring_test.go has tests that need no
// kernel.

func mustWatch(t testing.TB, m Map, opts ...WatchOption) *Watcher {
	t.Helper()
	w, err := NewWatcher(m, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// wantSeen drains a Watcher. It fails unless the Watcher yields exactly these samples.
func wantSeen(t testing.TB, w *Watcher, want ...string) {
	t.Helper()
	var got []string
	drain(t, w, func(rec Record, missed uint64) {
		if missed > 0 {
			t.Fatalf("%d bytes were missed", missed)
		}
		got = append(got, string(rec.RawSample))
	})
	if !slices.Equal(got, want) {
		t.Fatalf("the Watcher yielded %q, want %q", got, want)
	}
}

func wantSnapshot(t testing.TB, w *Watcher, want ...string) {
	t.Helper()
	records, err := w.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, rec := range records {
		got = append(got, string(rec.RawSample))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the snapshot has %q, want %q", got, want)
	}
}

func TestWatcherTakesNothing(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	ring.Emit(text("before"))
	w, old := mustWatch(t, ring), mustWatch(t, ring, FromOldest())
	ring.Emit(text("first"), bpftest.Sample{Data: make([]byte, 24), Discard: true}, text(""),
		quiet("quiet"))
	for range 2 {
		wantSnapshot(t, w, "before", "first", "", "quiet")
	}
	wantSeen(t, w, "first", "", "quiet")
	wantSeen(t, w)
	wantSeen(t, old, "before", "first", "", "quiet")
	submit := ring.Busy([8]byte{'b', 'u', 's', 'y', ' ', 'o', 'n', 'e'})
	ring.Emit(text("behind"))
	wantSeen(t, w)
	wantSnapshot(t, w, "before", "first", "", "quiet")
	submit()
	wantSeen(t, w, "busy one", "behind")

	r := mustNewReader(t, ring)
	wantSample(t, r, "before") // drains all
	want := WatchStats{Name: "events", ID: mapID(t, ring), Size: os.Getpagesize(), Samples: 5,
		Bytes: 5 + 0 + 5 + 8 + 6, Discarded: 1}
	want.Producer = 16 + 16 + 32 + 8 + 16 + 16 + 16
	want.Consumer = want.Producer
	if got := w.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
	// nothing was overwritten yet
	wantSnapshot(t, w, "before", "first", "", "quiet", "busy one", "behind")
	for _, sample := range []string{"first", "", "quiet", "busy one", "behind"} {
		wantSample(t, r, sample)
	}
}

func TestPositionsOfAWatcherAreThoseOfALease(t *testing.T) {
	ring, r := newRingAndReader(t, os.Getpagesize())
	w := mustWatch(t, ring)
	var leased, watched []uint64
	for i := range 300 {
		ring.Emit(bpftest.Sample{Data: make([]byte, i)}, bpftest.Sample{Data: make([]byte, 8),
			Discard: true})
		l, err := r.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for rec := range l.Records() {
			leased = append(leased, l.Position(rec))
		}
		if err := l.Commit(); err != nil {
			t.Fatal(err)
		}
		drain(t, w, func(Record, uint64) { watched = append(watched, w.Position()) })
	}
	if len(watched) != 300 || !slices.Equal(leased, watched) {
		t.Errorf("%d positions are %v, want %v", len(watched), watched, leased)
	}
}

// TestWatchersDoNotConcernTheReader compares a Reader with and without Watchers, in turn: how
// often it is notified, what it loses, and how fast it is.
func TestWatchersDoNotConcernTheReader(t *testing.T) {
	const rounds, pings, flood = 10, 200, 20_000
	ring, r := newRingAndReader(t, 4<<20, WithMaxDelay(0))
	var seq uint64
	ping := func() (wakeups uint64, took time.Duration) {
		before, begin := r.Stats().Wakeups, time.Now()
		for range pings {
			result := goRead(t, r)
			ring.Count(0, seq, 1, 0)
			if got := <-result; got.err != nil || bpftest.DecodeNumbered(got.rec.RawSample).Seq != seq {
				t.Fatalf("Read returned %v, %v, want sample %d", got.rec, got.err, seq)
			}
			seq++
		}
		return r.Stats().Wakeups - before, time.Since(begin)
	}
	flooded := func() time.Duration {
		begin := time.Now()
		if n := ring.Count(0, seq, flood, 0); n != flood {
			t.Fatalf("the kernel refused %d of %d samples", flood-n, flood)
		}
		wantNumbered(t, r, seq, flood)
		seq += flood
		return time.Since(begin)
	}
	var wakeups [2]uint64
	fastest := [2][2]time.Duration{{time.Hour, time.Hour}, {time.Hour, time.Hour}}
	for range rounds {
		for i := range 2 {
			stop := func() {}
			if i == 1 {
				stop = watchAlong(t, ring, 8)
			}
			n, pinged := ping()
			wakeups[i] += n
			fastest[i][0] = min(fastest[i][0], pinged)
			fastest[i][1] = min(fastest[i][1], flooded())
			stop()
		}
	}
	t.Logf("wakeups %v; fastest without Watchers %v, and with %v", wakeups, fastest[0], fastest[1])
	// A Read that comes late finds the sample without a wakeup.
	if wakeups[1] > rounds*pings || wakeups[1] < wakeups[0]*9/10 {
		t.Errorf("beside Watchers there are %d wakeups, and else %d, of %d samples", wakeups[1],
			wakeups[0], rounds*pings)
	}
	for i, what := range []string{"pings", "a flood"} {
		if fastest[1][i] > 3*fastest[0][i] {
			t.Errorf("beside Watchers %s took %v, and else %v", what, fastest[1][i], fastest[0][i])
		}
	}
}

// watchAlong starts n Watchers. stop waits until they have seen or missed all that was
// produced, and closes them.
func watchAlong(t *testing.T, ring *bpftest.Ring, n int) (stop func()) {
	watchers := make([]*Watcher, n)
	for i := range watchers {
		watchers[i] = mustWatch(t, ring)
	}
	begin := watchers[0].Position()
	var watching group
	for _, w := range watchers {
		watching.Go(func() {
			seen := uint64(0)
			for rec, err := range w.Records(context.Background()) {
				var missed *MissedError
				switch {
				case errors.As(err, &missed):
					seen += missed.Bytes
				case err != nil:
					t.Error(err)
				default:
					seen += recordEnd(0, uint32(len(rec.RawSample)))
				}
			}
			if w.Position() != begin+seen {
				t.Errorf("a Watcher saw, or missed, %d bytes, and is at %d, from %d on", seen, w.Position(),
					begin)
			}
		})
	}
	return func() {
		end := watchers[0].view.producer()
		for _, w := range watchers {
			await(t, "a Watcher", func() bool { return w.Position() == end })
			w.Close()
		}
		watching.Wait()
	}
}

// TestWatchersThatAreLappedYieldWhatWasSubmitted has producers that write as fast as they can,
// a Reader, and Watchers that are slower, for as long as -stress says.
func TestWatchersThatAreLappedYieldWhatWasSubmitted(t *testing.T) {
	ring := bpftest.NewStress(t, 64<<10, *stressSeed)
	// The Reader must not depend on notifications. The kernel does not notify of some of these
	// records, and may refuse all that come after them, because they are too large for the room
	// that is left.
	r := mustNewReader(t, ring, WithMaxDelay(10*time.Millisecond))
	stop := make(chan struct{})
	var working group
	defer working.Wait()
	for producer := range ring.Producers {
		working.Go(func() { ring.Produce(producer, stop) })
	}
	var read atomic.Uint64
	working.Go(func() {
		for _, err := range r.Records(context.Background()) {
			if err != nil {
				t.Error(err)
			}
			read.Add(1)
		}
	})
	defer r.Close()
	defer close(stop)
	defer watch(t, "the Reader", &read)()
	watchStress(t, ring, *stressFor)
}

// TestNoScribblingMakesAWatcherYieldGarbage has no Reader. The test sets the consumer position
// to the producer position and to wrong values, by turns. A wrong value that stays for longer than
// settleTime may deceive a Watcher: see settled. That happens when the scribbling goroutine is not
// scheduled. Then failures prove nothing, and the test tries again.
func TestNoScribblingMakesAWatcherYieldGarbage(t *testing.T) {
	for range 5 {
		f := &collectedFailures{TB: t}
		stayed := watchBesideScribbling(t, f)
		if len(f.messages) == 0 {
			return
		}
		if stayed < settleTime/2 {
			t.Fatal(strings.Join(f.messages, "\n"))
		}
		t.Logf("a wrong position stayed for %v: %s", stayed, f.messages[0])
	}
	t.Error("a wrong position stayed for too long in each try")
}

// collectedFailures is a testing.TB that collects failures.
type collectedFailures struct {
	testing.TB
	mu       sync.Mutex
	messages []string
}

func (f *collectedFailures) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages = append(f.messages, fmt.Sprintf(format, args...))
}

func (f *collectedFailures) Error(args ...any) { f.Errorf("%s", fmt.Sprint(args...)) }

func (f *collectedFailures) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.messages) > 0 || f.TB.Failed()
}

// watchBesideScribbling watches a ring while wrong consumer positions are written. It returns the
// longest time for which one of them stayed.
func watchBesideScribbling(t *testing.T, failures testing.TB) (stayed time.Duration) {
	ring := bpftest.NewStress(t, 64<<10, *stressSeed)
	position := consumerPosition(t, ring)
	stop := make(chan struct{})
	var working group
	for producer := range ring.Producers {
		working.Go(func() { ring.Produce(producer, stop) })
	}
	producer := mustWatch(t, ring).view.producer
	working.Go(func() {
		rng := rand.New(rand.NewPCG(3, 3))
		for {
			select {
			case <-stop:
				return
			default:
			}
			sound := producer()
			atomic.StoreUint64(position, sound)
			for range rng.IntN(2000) {
				producer()
			}
			near := uint64(rng.IntN(64)) * 8
			// In the older half of the ring nothing is certain: see settled.
			wrong := [...]uint64{sound + near, sound - near, sound - 31<<10 + near, sound - 64<<10 - near,
				sound + 1, 0, 1<<64 - 8}
			began := time.Now()
			atomic.StoreUint64(position, wrong[rng.IntN(len(wrong))])
			for range rng.IntN(2000) {
				producer()
			}
			atomic.StoreUint64(position, producer())
			stayed = max(stayed, time.Since(began))
		}
	})
	watchStress(failures, ring, *stressFor)
	close(stop)
	working.Wait()
	return stayed
}

// watchStress watches a ring in several ways, and checks the samples.
func watchStress(t testing.TB, ring *bpftest.StressRing, during time.Duration) {
	end := time.Now().Add(during)
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	var samples, missedBytes, snapshots atomic.Uint64
	var watching group
	for i := range 3 {
		watching.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 4))
			for time.Now().Before(end) && !t.Failed() {
				w := mustWatch(t, ring, FromOldest())
				next := w.Position()
				order := newWatchedOrder(t, ring)
				for rec, err := range w.Records(ctx) {
					var missed *MissedError
					if errors.Is(err, context.DeadlineExceeded) {
						break
					}
					if errors.As(err, &missed) {
						missedBytes.Add(missed.Bytes)
						next += missed.Bytes
						order.gap = true
					} else if err != nil {
						t.Error(err)
					} else {
						samples.Add(1)
						order.see(rec.RawSample)
						next += recordEnd(0, uint32(len(rec.RawSample)))
					}
					if w.Position() < next {
						t.Errorf("it is at %d, and has seen or missed all up to %d", w.Position(), next)
					}
					next = w.Position()
					if i > 0 && rng.IntN(5000) == 0 {
						time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
					}
					if rng.IntN(100_000) == 0 || t.Failed() {
						break
					}
				}
				w.Close()
			}
		})
	}
	watching.Go(func() {
		w := mustWatch(t, ring)
		defer w.Close()
		for time.Now().Before(end) && !t.Failed() {
			records, err := w.Snapshot()
			if err != nil {
				t.Error(err)
			}
			order := newWatchedOrder(t, ring)
			for _, rec := range records {
				order.see(rec.RawSample)
			}
			snapshots.Add(uint64(len(records)))
			stats := w.Stats()
			if stats.Samples+stats.Discarded > stats.Producer/8 ||
				stats.Bytes+stats.Missed > stats.Producer {
				t.Errorf("Stats are %+v", stats)
			}
		}
	})
	watching.Wait()
	t.Logf("%d samples were seen, and %d bytes missed; snapshots had %d samples",
		samples.Load(), missedBytes.Load(), snapshots.Load())
	if samples.Load() < 1000 || missedBytes.Load() == 0 || snapshots.Load() < 1000 {
		t.Error("that is too little")
	}
}

// A watchedOrder checks that samples are those that were submitted, in order, and that none is
// left out except at a gap.
type watchedOrder struct {
	t    testing.TB
	ring *bpftest.StressRing
	last []uint64 // number of each producer's next record, or 0
	gap  bool
}

func newWatchedOrder(t testing.TB, ring *bpftest.StressRing) *watchedOrder {
	return &watchedOrder{t: t, ring: ring, last: make([]uint64, ring.Producers)}
}

func (o *watchedOrder) see(sample []byte) {
	if err := o.ring.Check(sample); err != nil {
		o.t.Error(err)
		return
	}
	if len(sample) < bpftest.IDSize {
		return
	}
	if o.gap {
		clear(o.last)
		o.gap = false
	}
	id := bpftest.IDOf(sample)
	last := &o.last[id.Producer()]
	if *last > id.Seq() {
		o.t.Errorf("%v came after a later one", id)
	}
	for seq := *last; *last > 0 && seq < id.Seq(); seq++ {
		// Only samples that are too small to tell apart, and discarded ones, may be missing.
		if size, discarded := o.ring.Planned(bpftest.ID(id.Producer(), seq)); !discarded &&
			size >= bpftest.IDSize {
			o.t.Errorf("%v came, and %d did not", id, seq)
		}
	}
	*last = id.Seq() + 1
}

func TestSnapshotOfAnOverwritingRingHasTheNewest(t *testing.T) {
	ring := bpftest.NewOverwriting(t, os.Getpagesize())
	w := mustWatch(t, ring)
	const n = 10_000
	for seq := uint64(0); seq < n; seq += 10 {
		if added := ring.Count(0, seq, 10, 0); added != 10 {
			t.Fatalf("%d of 10 samples were accepted", added)
		}
		records, err := w.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		// Each record has 24 bytes, and at least 8 bytes of the ring are free.
		want := min(int(seq)+10, (os.Getpagesize()-8)/24)
		if len(records) != want {
			t.Fatalf("after %d samples a snapshot has %d, want %d", seq+10, len(records), want)
		}
		for i, rec := range records {
			if got := bpftest.DecodeNumbered(rec.RawSample).Seq; got != seq+10-uint64(want-i) {
				t.Fatalf("sample %d of a snapshot is %d", i, got)
			}
		}
	}
	stats := w.Stats()
	if stats.Producer != n*24 || stats.Fill != (os.Getpagesize()-8)/24*24 {
		t.Errorf("Stats are %+v", stats)
	}
}

func TestAnOverwritingRingIsWatchedFlatOut(t *testing.T) {
	ring := bpftest.NewOverwriting(t, 1<<20)
	w := mustWatch(t, ring)
	var writing group
	defer writing.Wait()
	var stopped atomic.Bool
	defer stopped.Store(true)
	writing.Go(func() {
		for seq := uint64(0); !stopped.Load(); seq += 256 {
			ring.Count(0, seq, 256, 0)
		}
	})
	end := time.Now().Add(*stressFor)
	var seen, missed, next uint64
	inOrder := func(rec Record, exact bool) {
		seq := bpftest.DecodeNumbered(rec.RawSample).Seq
		if seq < next || exact && seq != next {
			t.Errorf("sample %d came, want %d", seq, next)
		}
		next = seq + 1
	}
	for rec, err := range w.Records(t.Context()) {
		var gap *MissedError
		if errors.As(err, &gap) {
			missed += gap.Bytes
			next += gap.Bytes / 24
		} else if err != nil {
			t.Fatal(err)
		} else {
			inOrder(rec, true)
			seen++
		}
		if w.Position() != 24*seen+missed {
			t.Fatalf("it is at %d, and saw %d records and missed %d bytes", w.Position(), seen, missed)
		}
		if seen%1000 == 0 {
			time.Sleep(time.Millisecond)
		}
		if time.Now().After(end) {
			break
		}
	}
	snapshots := 0
	for range 100 {
		records, err := w.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		next = 0
		for i, rec := range records {
			inOrder(rec, i > 0)
		}
		snapshots += len(records)
	}
	t.Logf("%d samples were seen, %d bytes missed, and %d samples in a snapshot", seen, missed,
		snapshots/100)
	if seen < 1000 || snapshots < 1000 {
		t.Error("that is too little")
	}
}

func TestAUserRingBufferHasStatsOnly(t *testing.T) {
	bpftest.New(t, os.Getpagesize()) // skips where there is no BPF
	m, err := bpf.CreateMap(bpf.MapType(mapTypeUserRingbuf), "commands", 0, 0, 2*os.Getpagesize(), nil)
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("needs Linux 6.1")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(m.FileDescriptor())
	w := mustWatch(t, m, FromOldest())
	page := os.Getpagesize()
	mem, err := syscall.Mmap(m.FileDescriptor(), int64(page), page,
		syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	mem[0] = 24 // the producer position
	want := WatchStats{Name: "commands", ID: mapID(t, m), Size: 2 * page, Producer: 24, Fill: 24}
	if got := w.Stats(); got != want {
		t.Errorf("Stats are %+v, want %+v", got, want)
	}
	wantUnsupported := func(err error) {
		t.Helper()
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(),
			`"commands" is a user ring buffer`) {
			t.Errorf("the error is %v", err)
		}
	}
	_, err = w.Snapshot()
	wantUnsupported(err)
	ended := false
	for _, err := range w.Records(t.Context()) {
		wantUnsupported(err)
		ended = true
	}
	if !ended {
		t.Error("Records yields no error")
	}
	h, err := OpenMapID(mapID(t, m))
	mustOpen(t, h, err)
	mustWatch(t, h)
	wantOpenError(t, h, 0, `"commands" has type user_ringbuf, not ringbuf: NewWriter`)
}

func TestNewWatcherRefusesWhatItCannotWatch(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	hash, err := bpf.CreateMap(bpf.MapTypeHash, "my_hash", 4, 4, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(hash.FileDescriptor())
	prog, err := ring.Module().GetProgram("emit")
	if err != nil {
		t.Fatal(err)
	}
	readOnly, writeOnly := mapByID(t, ring, 1<<3), mapByID(t, ring, 1<<4) // BPF_F_RDONLY, BPF_F_WRONLY
	defer syscall.Close(readOnly)
	defer syscall.Close(writeOnly)
	before := resources()
	for _, tt := range []struct {
		m     Map
		errno error
		want  string
	}{
		{nil, nil, "ringbuf: watch: no map given"},
		{hash, nil, `map "my_hash" has type hash, not ringbuf or user_ringbuf`},
		{FD(prog.FileDescriptor()), nil, "anon_inode:bpf-prog is not a BPF map"},
		{FD(-1), syscall.EBADF, "ringbuf: watch: descriptor -1: "},
		{FD(readOnly), syscall.EINVAL,
			`map "events": mmap, through a descriptor that must be for reading and writing: `},
		{FD(writeOnly), syscall.EACCES,
			`map "events": mmap, through a descriptor that must be for reading and writing: `},
	} {
		w, err := NewWatcher(tt.m)
		if err == nil {
			w.Close()
			t.Errorf("NewWatcher succeeded, want %q", tt.want)
		} else if !strings.Contains(err.Error(), tt.want) || tt.errno != nil &&
			!errors.Is(err, tt.errno) {
			t.Errorf("NewWatcher returned %q, want %q, and %v", err, tt.want, tt.errno)
		}
	}
	if err := awaitResources(before); err != nil {
		t.Error(err)
	}
}

func TestAWatchedRingOutlivesItsModule(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	path := filepath.Join(mountBPF(t), "events")
	if err := ring.BPFMap().Pin(path); err != nil {
		t.Fatal(err)
	}
	h, err := OpenMap(path)
	w := mustWatch(t, mustOpen(t, h, err))
	mustClose(t, h)
	ring.Emit(text("sample"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ring.Close()
	wantSeen(t, w, "sample")
	wantSnapshot(t, w, "sample")
}

func TestCloseEndsALoopOfAWatcher(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	w := mustWatch(t, ring)
	ring.Emit(text("first"), text("second"))
	bodies := make(chan string)
	ended := make(chan error, 1)
	go func() {
		for rec, err := range w.Records(context.Background()) {
			if err != nil {
				ended <- err
				return
			}
			bodies <- string(rec.RawSample)
		}
		ended <- nil
	}()
	if got := <-bodies; got != "first" {
		t.Fatalf("sample %q came", got)
	}
	refused := false
	for rec, err := range w.Records(context.Background()) {
		if err == nil || !strings.Contains(err.Error(), "another loop") {
			t.Fatalf("a second loop yields %q, %v", rec.RawSample, err)
		}
		refused = true
	}
	if !refused {
		t.Error("a second loop yields no error")
	}
	if got := <-bodies; got != "second" {
		t.Fatalf("sample %q came", got)
	}
	var closing group
	for range 4 {
		closing.Go(func() {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closing.Wait()
	if err := <-ended; err != nil {
		t.Errorf("the loop ended with %v", err)
	}
	if _, err := w.Snapshot(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close Snapshot returned %v", err)
	}
	if got := w.Stats(); got.Samples != 2 || got.Producer != 32 {
		t.Errorf("after Close Stats are %+v", got)
	}
	for rec, err := range w.Records(context.Background()) {
		t.Errorf("after Close a loop yielded %q, %v", rec.RawSample, err)
	}
	if err := awaitResources(before); err != nil {
		t.Errorf("Close left behind: %v", err)
	}
}

func TestCloseWhileEverybodyLooks(t *testing.T) {
	ring := bpftest.New(t, 1<<20)
	for range 100 {
		w := mustWatch(t, ring, FromOldest())
		var looking group
		looking.Go(func() {
			for range w.Records(context.Background()) {
			}
		})
		for range 2 {
			looking.Go(func() {
				for {
					if _, err := w.Snapshot(); err != nil {
						return
					}
					w.Stats()
				}
			})
		}
		ring.Count(0, 0, 1000, bpftest.NoWakeup)
		w.Close()
		looking.Wait()
	}
}

func TestADroppedWatcherIsUnmapped(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	before := resources()
	if _, err := NewWatcher(ring); err != nil {
		t.Fatal(err)
	}
	if err := awaitResources(before); err != nil { // which collects garbage
		t.Error(err)
	}
}

func TestALoopOfAWatcherGoesOnWhereTheLastOneWasLeft(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	w := mustWatch(t, ring)
	ring.Count(0, 0, 100, 0)
	for want := range uint64(100) {
		for rec, err := range w.Records(t.Context()) {
			if err != nil || bpftest.DecodeNumbered(rec.RawSample).Seq != want {
				t.Fatalf("%v, %v came, want sample %d", rec, err, want)
			}
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ring.Count(0, 100, 10, 0)
	bodies := 0
	for _, err := range w.Records(ctx) {
		if bodies++; bodies == 3 {
			cancel()
		}
		if bodies > 4 || (bodies == 4) != errors.Is(err, context.Canceled) {
			t.Fatalf("body %d has the error %v", bodies, err)
		}
	}
}

// watchProgram is built without cgo, and watches the ring that it inherits.
const watchProgram = `package main

import (
	"context"
	"fmt"

	"github.com/libbpfgo/ringbuf"
)

func main() {
	w, err := ringbuf.NewWatcher(ringbuf.FD(3))
	if err != nil {
		panic(err)
	}
	fmt.Println("watching", w.Stats().Name)
	n := 0
	for record, err := range w.Records(context.Background()) {
		if err != nil {
			panic(err)
		}
		fmt.Printf("%s\n", record.RawSample)
		if n++; n == 3 {
			break
		}
	}
	records, err := w.Snapshot()
	fmt.Println(len(records), err, w.Close())
}
`

func TestWatcherWorksWithoutCgo(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"main.go": watchProgram,
		"go.mod": "module example.com/watch\n\ngo 1.24\n\n" +
			"require github.com/libbpfgo/ringbuf v0.0.0\n\n" +
			"replace github.com/libbpfgo/ringbuf => " + here + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "watch", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	runtime.LockOSThread() // see runTests
	defer runtime.UnlockOSThread()
	cmd := exec.Command(filepath.Join(dir, "watch"))
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(mapByID(t, ring, 0)), "events")}
	defer cmd.ExtraFiles[0].Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var line string
	if _, err := fmt.Fscanf(stdout, "watching %s\n", &line); err != nil || line != "events" {
		t.Fatalf("it printed %q, %v", line, err)
	}
	ring.Emit(text("one"), text("two"), text("three"))
	for _, want := range []string{"one", "two", "three"} {
		if _, err := fmt.Fscanln(stdout, &line); err != nil || line != want {
			t.Fatalf("it printed %q, %v, want %q", line, err, want)
		}
	}
	var n int
	if _, err := fmt.Fscanf(stdout, "%d <nil> <nil>\n", &n); err != nil || n != 3 {
		t.Errorf("a snapshot has %d records, %v", n, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
