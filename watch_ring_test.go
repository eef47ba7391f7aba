package ringbuf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// These tests need no kernel. A fake kernel writes to memory with the layout of a ring, at the
// moments that a test chooses. They cover watch_ring.go and watch_boundary.go.

// A fakeKernel does what kernel/bpf/ringbuf.c does.
type fakeKernel struct {
	mem       []byte
	ring      ring
	overwrite bool
	written   int // samples
	log       []logged
}

// newFakeKernel returns a fake kernel with a ring whose data is mapped twice in a row.
func newFakeKernel(t testing.TB, size int, overwrite bool) *fakeKernel {
	t.Helper()
	page := os.Getpagesize()
	file, err := os.CreateTemp(t.TempDir(), "ring")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(int64(2*page + size)); err != nil {
		t.Fatal(err)
	}
	length := uintptr(2*page + 2*size)
	at := func(addr, length uintptr, prot, flags, fd, offset int) uintptr {
		p, _, errno := syscall.Syscall6(syscall.SYS_MMAP, addr, length, uintptr(prot), uintptr(flags),
			uintptr(fd), uintptr(offset))
		if errno != 0 {
			t.Fatal(errno)
		}
		return p
	}
	// The page behind the ring cannot be accessed.
	reserved := length + uintptr(page)
	start := at(0, reserved, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS, -1, 0)
	t.Cleanup(func() { syscall.Syscall(syscall.SYS_MUNMAP, start, reserved, 0) })
	fd, both := int(file.Fd()), syscall.PROT_READ|syscall.PROT_WRITE
	at(start, uintptr(2*page+size), both, syscall.MAP_SHARED|syscall.MAP_FIXED, fd, 0)
	at(start+uintptr(2*page+size), uintptr(size), both, syscall.MAP_SHARED|syscall.MAP_FIXED, fd,
		2*page)

	// SAFETY: the memory is not Go's, and it is mapped until the end of the test.
	base := *(*unsafe.Pointer)(unsafe.Pointer(&start))
	return &fakeKernel{
		mem: unsafe.Slice((*byte)(base), length),
		ring: ring{
			size:        uint64(size),
			consumerPos: (*uint64)(base),
			producerPos: (*uint64)(unsafe.Add(base, page)),
			data:        unsafe.Add(base, 2*page),
		},
		overwrite: overwrite,
	}
}

func (f *fakeKernel) position(i int) *uint64 {
	return (*uint64)(unsafe.Add(unsafe.Pointer(f.ring.producerPos), 8*i))
}

func (f *fakeKernel) bytes(pos uint64, n int) []byte {
	return unsafe.Slice((*byte)(f.ring.at(pos)), n)
}

func (f *fakeKernel) setHeader(pos uint64, header uint32) {
	binary.NativeEndian.PutUint32(f.bytes(pos, 4), header)
}

// setPage writes the part of a header that names the page in which the header is.
func (f *fakeKernel) setPage(pos uint64) {
	page := pos & (f.ring.size - 1) / uint64(os.Getpagesize())
	binary.NativeEndian.PutUint32(f.bytes(pos+4, 4), uint32(3+page))
}

// reserve does what __bpf_ringbuf_reserve() does. If the ring is not in overwrite mode, it also
// moves the consumer position past the records that are in the way.
func (f *fakeKernel) reserve(size int) (pos uint64) {
	pos = f.ring.producer()
	end := recordEnd(pos, uint32(size))
	if end-pos >= f.ring.size {
		panic("a record that is larger than the ring")
	}
	oldest := f.ring.consumerPos
	if f.overwrite {
		pending := f.position(1)
		for *pending < pos && f.ring.header(*pending)&busyBit == 0 {
			*pending = recordEnd(*pending, f.ring.header(*pending))
		}
		if end-*pending >= f.ring.size {
			panic("the ring is full of what is not committed")
		}
		oldest = f.position(2)
	}
	f.makeRoom(oldest, end)
	f.setHeader(pos, uint32(size)|busyBit)
	f.setPage(pos)
	atomic.StoreUint64(f.ring.producerPos, end)
	return pos
}

// makeRoom moves the position of the oldest record until there is room up to end.
func (f *fakeKernel) makeRoom(oldest *uint64, end uint64) {
	for end-*oldest >= f.ring.size {
		atomic.StoreUint64(oldest, recordEnd(*oldest, f.ring.header(*oldest)))
	}
}

// beginReserve does the part of reserve that comes before others see the new producer position.
func (f *fakeKernel) beginReserve(size int) {
	pos := f.ring.producer()
	if f.overwrite {
		f.makeRoom(f.position(2), recordEnd(pos, uint32(size)))
	}
	f.setHeader(pos, uint32(size)|busyBit)
	f.setPage(pos)
}

func (f *fakeKernel) commit(pos uint64, bits uint32) {
	f.setHeader(pos, f.ring.header(pos)&^busyBit|bits)
}

func (f *fakeKernel) submit(sample []byte) {
	pos := f.reserve(len(sample))
	copy(f.bytes(pos+recordHeaderSize, len(sample)), sample)
	f.commit(pos, 0)
	f.log = append(f.log, logged{pos, f.ring.producer(), f.written, len(sample)})
	f.written++
}

func (f *fakeKernel) discard(size int) {
	pos := f.reserve(size)
	f.commit(pos, discardBit)
	f.log = append(f.log, logged{pos, f.ring.producer(), -1, size})
}

// writeSome writes samples and discarded records of all sizes, at least n bytes of the ring in
// all.
func (f *fakeKernel) writeSome(rng *rand.Rand, n int) {
	for end := f.ring.producer() + uint64(n); f.ring.producer() < end; {
		switch rng.IntN(8) {
		case 0:
			f.discard(rng.IntN(200))
		case 1:
			f.submit(selfChecked(f.written, rng.IntN(int(f.ring.size/2)-recordHeaderSize)))
		default:
			f.submit(selfChecked(f.written, rng.IntN(200)))
		}
	}
}

// selfChecked returns a sample of at least the given size. Its beginning tells what the whole
// sample must be.
func selfChecked(number, size int) []byte {
	sample := binary.NativeEndian.AppendUint32(nil, uint32(number))
	sample = binary.NativeEndian.AppendUint32(sample, uint32(max(size, 8)))
	return append(sample, noisySample(number, max(size, 8)-8)...)
}

// check returns the number of a sample from selfChecked, and fails if the content is wrong.
func check(t testing.TB, sample []byte) (number int) {
	t.Helper()
	if len(sample) < 8 {
		t.Fatalf("a sample has %d bytes", len(sample))
	}
	number = int(binary.NativeEndian.Uint32(sample))
	if want := selfChecked(number, int(binary.NativeEndian.Uint32(sample[4:]))); !bytes.Equal(sample,
		want) {
		t.Fatalf("a sample of %d bytes is not number %d, as it says", len(sample), number)
	}
	return number
}

func (f *fakeKernel) watcher(t testing.TB, o watchOptions) *Watcher {
	t.Helper()
	w := newWatcher(watched{name: "fake", overwrite: f.overwrite, mem: f.mem, ring: f.ring}, o)
	t.Cleanup(func() { w.Close() })
	return w
}

// untilIdle is a context that is done as soon as a loop over Records pauses. The loop calls
// Done when it begins and at each pause.
type untilIdle struct {
	context.Context
	cancel context.CancelFunc
	begun  bool
}

func newUntilIdle() *untilIdle {
	ctx, cancel := context.WithCancel(context.Background())
	return &untilIdle{Context: ctx, cancel: cancel}
}

func (c *untilIdle) Done() <-chan struct{} {
	if c.begun {
		c.cancel()
	}
	c.begun = true
	return c.Context.Done()
}

// drain calls each for all that Records yields, until the loop pauses.
func drain(t testing.TB, w *Watcher, each func(rec Record, missed uint64)) {
	t.Helper()
	ctx := newUntilIdle()
	defer ctx.cancel()
	for rec, err := range w.Records(ctx) {
		var missed *MissedError
		switch {
		case err == nil:
			each(rec, 0)
		case errors.As(err, &missed):
			each(Record{}, missed.Bytes)
		case err != context.Canceled:
			t.Fatal(err)
		}
	}
}

func eachMode(t *testing.T, test func(t *testing.T, overwrite bool)) {
	for _, overwrite := range []bool{false, true} {
		t.Run(fmt.Sprintf("overwrite=%v", overwrite), func(t *testing.T) { test(t, overwrite) })
	}
}

// A logged is a record that a fakeKernel has written.
type logged struct {
	start, end uint64
	number     int // of the sample, or negative: it was discarded
	size       int
}

// A follower compares what a Watcher yields with what a fakeKernel has written.
type follower struct {
	t      testing.TB
	kernel *fakeKernel
	pos    uint64
	next   int // index in the kernel's log

	samples int
	missed  uint64
}

func (f *follower) see(w *Watcher, rec Record, missed uint64) {
	f.t.Helper()
	if missed > 0 {
		f.skipDiscards(w.Position() - missed)
		for f.next < len(f.log()) && f.log()[f.next].start < w.Position() {
			f.next++
		}
		f.missed += missed
		if f.pos = f.start(); f.pos != w.Position() {
			f.t.Fatalf("a gap ends at %d, and the next record begins at %d", w.Position(), f.pos)
		}
		return
	}
	number := check(f.t, rec.RawSample)
	f.skipDiscards(math.MaxUint64)
	if f.next == len(f.log()) {
		f.t.Fatalf("sample %d came, which was not written", number)
	}
	want := f.log()[f.next]
	f.next++
	f.pos = want.end
	f.samples++
	if number != want.number || w.Position() != want.end {
		f.t.Fatalf("sample %d came, which ends at %d, want %d, which ends at %d", number, w.Position(),
			want.number, want.end)
	}
	if left := f.kernel.ring.producer() - want.end; uint64(rec.Remaining) > left {
		f.t.Fatalf("%d bytes are said to remain, of %d", rec.Remaining, left)
	}
}

func (f *follower) log() []logged { return f.kernel.log }

// start returns where the next record begins, or will begin.
func (f *follower) start() uint64 {
	if f.next == len(f.log()) {
		return f.kernel.ring.producer()
	}
	return f.log()[f.next].start
}

// skipDiscards passes the discarded records up to a position, where a record must begin.
func (f *follower) skipDiscards(until uint64) {
	f.t.Helper()
	for f.next < len(f.log()) && f.log()[f.next].number < 0 && f.start() < until {
		f.next++
	}
	if f.start() > until || until < math.MaxUint64 && f.start() != until {
		f.t.Fatalf("a gap begins at %d, and the next record at %d", until, f.start())
	}
	f.pos = f.start()
}

// wantAll fails if a sample was neither seen nor missed.
func (f *follower) wantAll() {
	f.t.Helper()
	f.skipDiscards(math.MaxUint64)
	if f.next < len(f.log()) {
		f.t.Fatalf("sample %d was neither seen nor missed", f.log()[f.next].number)
	}
}

func TestWatcherYieldsAllThatIsSubmitted(t *testing.T) {
	eachMode(t, func(t *testing.T, overwrite bool) {
		f := newFakeKernel(t, 4*os.Getpagesize(), overwrite)
		w := f.watcher(t, watchOptions{})
		follow := &follower{t: t, kernel: f}
		rng := rand.New(rand.NewPCG(1, 1))
		for range 500 {
			f.writeSome(rng, rng.IntN(int(f.ring.size)/2))
			drain(t, w, func(rec Record, missed uint64) {
				follow.see(w, rec, missed)
				changeSample(rec.RawSample)
			})
			follow.wantAll()
			stats := WatchStats{Name: "fake", Size: int(f.ring.size), Producer: f.ring.producer()}
			for _, record := range f.log {
				if record.number < 0 {
					stats.Discarded++
				} else {
					stats.Samples++
					stats.Bytes += uint64(record.size)
				}
			}
			stats.Consumer = f.ring.consumer()
			stats.Fill = int(stats.Producer - max(stats.Consumer, *f.position(2)))
			if got := w.Stats(); got != stats {
				t.Fatalf("Stats returned %+v, want %+v", got, stats)
			}
		}
		if follow.samples != f.written || follow.missed != 0 {
			t.Errorf("%d of %d samples were seen, and %d bytes missed", follow.samples, f.written,
				follow.missed)
		}
	})
}

// TestNoRecordIsTornThatIsOverwrittenMeanwhile writes while the Watcher copies records:
// nothing, a few records, or several times what the ring holds.
func TestNoRecordIsTornThatIsOverwrittenMeanwhile(t *testing.T) {
	eachMode(t, func(t *testing.T, overwrite bool) {
		for seed := range uint64(20) {
			f := newFakeKernel(t, 4*os.Getpagesize(), overwrite)
			w := f.watcher(t, watchOptions{oldest: seed%2 == 0})
			w.view.weak = seed%3 == 0
			follow := &follower{t: t, kernel: f}
			rng := rand.New(rand.NewPCG(seed, 2))
			size := int(f.ring.size)
			w.view.walked = func() {
				switch rng.IntN(4) {
				case 0:
					f.writeSome(rng, 2*size>>rng.IntN(10))
				case 1:
					f.beginReserve(rng.IntN(size / 2))
				}
			}
			for range 200 {
				f.writeSome(rng, 3*size>>rng.IntN(10))
				drain(t, w, func(rec Record, missed uint64) {
					follow.see(w, rec, missed)
					if rng.IntN(10) == 0 {
						f.writeSome(rng, size>>rng.IntN(10))
					}
				})
			}
			w.view.walked = nil
			drain(t, w, func(rec Record, missed uint64) { follow.see(w, rec, missed) })
			follow.wantAll()
			if w.records.pos != f.ring.producer() || w.records.missed != follow.missed {
				t.Errorf("the Watcher is at %d of %d, and missed %d bytes where %d were told",
					w.records.pos, f.ring.producer(), w.records.missed, follow.missed)
			}
			if follow.samples < 1000 || follow.missed == 0 {
				t.Errorf("it saw only %d samples, and missed %d bytes", follow.samples, follow.missed)
			}
		}
	})
}

// TestTheHeaderBeforeThePositionIsSeenToBeOverwritten has the kernel write a header over the
// first copied record, before it moves the producer position.
func TestTheHeaderBeforeThePositionIsSeenToBeOverwritten(t *testing.T) {
	f := newFakeKernel(t, os.Getpagesize(), false)
	for f.ring.producer() < f.ring.size-64 {
		f.submit(selfChecked(f.written, 56))
	}
	w := f.watcher(t, watchOptions{oldest: true})
	follow := &follower{t: t, kernel: f}
	w.view.walked = func() {
		w.view.walked = nil
		f.submit(selfChecked(f.written, 56))
		f.beginReserve(16)
	}
	drain(t, w, func(rec Record, missed uint64) { follow.see(w, rec, missed) })
	follow.wantAll()
	if follow.missed == 0 {
		t.Error("it missed nothing")
	}
}

// disguised returns a sample full of bytes that look like headers. Each of them seems to be of
// a record that ends where the sample ends.
func disguised(f *fakeKernel, size int) []byte {
	pos := f.ring.producer() + recordHeaderSize
	var sample []byte
	for left := size - recordHeaderSize; left >= 0; left -= recordHeaderSize {
		sample = binary.NativeEndian.AppendUint32(sample, uint32(left))
		sample = binary.NativeEndian.AppendUint32(sample,
			uint32(3+pos%f.ring.size/uint64(os.Getpagesize())))
		pos += recordHeaderSize
	}
	return sample
}

// TestNoScribblingMakesAWatcherBeginWithinARecord sets the consumer position to every value in
// reach, also within samples that look like records up to the producer position.
func TestNoScribblingMakesAWatcherBeginWithinARecord(t *testing.T) {
	f := newFakeKernel(t, 2*os.Getpagesize(), false)
	for f.ring.producer() < 3*f.ring.size {
		f.submit(disguised(f, 64))
		f.discard(24)
		clear(f.bytes(f.ring.producer()-24, 24)) // otherwise it has more that looks like headers
		f.submit(disguised(f, 8*(1+f.written%20)))
	}
	busy := f.reserve(16)
	producer := f.ring.producer()
	boundaries := map[uint64]bool{producer: true, busy: true}
	oldest := busy
	for _, record := range f.log {
		if producer-record.start < f.ring.size {
			boundaries[record.start] = true
			oldest = min(oldest, record.start)
		}
	}
	w := f.watcher(t, watchOptions{})
	for pos := producer - 2*f.ring.size; pos < producer+f.ring.size; pos++ {
		*f.ring.consumerPos = pos
		want := producer
		if boundaries[pos] {
			want = pos
		}
		// One record is half overwritten: nobody can tell what it was.
		if producer-pos < f.ring.size && pos < oldest {
			continue
		}
		if got := w.view.oldest(); got != want {
			t.Fatalf("with the consumer position %d, and producer position %d, the oldest record is said "+
				"to be at %d",
				pos, producer, got)
		}
		records, err := w.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		samples := 0
		for _, record := range f.log {
			if record.start >= want && record.number >= 0 {
				samples++
			}
		}
		if len(records) != samples {
			t.Fatalf("with the consumer position %d there are %d samples in a snapshot, want %d", pos,
				len(records), samples)
		}
	}
}

func TestWatcherDoesNotFollowTooManySuspects(t *testing.T) {
	f := newFakeKernel(t, 16*os.Getpagesize(), false)
	f.submit(make([]byte, f.ring.size/2))
	f.submit(make([]byte, f.ring.size/4))
	// All suspects look like records that end behind the last one.
	last := f.ring.producer()
	f.submit(nil)
	f.submit(nil)
	f.submit(make([]byte, f.ring.size/4))
	producer := f.ring.producer()
	sample := producer - f.ring.size/4
	for _, suspects := range []uint64{maxSuspects, maxSuspects + 1} {
		for i := range suspects {
			pos := last - 8*(2+i)
			f.setHeader(pos, uint32(sample+8-pos-8))
			f.setPage(pos)
		}
		if got, want := newWatchedRing(f.ring, false).boundary(last,
			producer), suspects == maxSuspects; got != want {
			t.Errorf("with %d suspects it says %v", suspects, got)
		}
	}
}

// TestWatcherDoesNotFollowLongChains has suspects that each lead through a sample that looks
// like many empty records.
func TestWatcherDoesNotFollowLongChains(t *testing.T) {
	f := newFakeKernel(t, 16*os.Getpagesize(), false)
	f.submit(make([]byte, f.ring.size/2))
	f.submit(make([]byte, f.ring.size/4))
	last := f.ring.producer()
	f.submit(make([]byte, f.ring.size/4))
	sample := last + recordHeaderSize
	for pos := sample; pos < f.ring.producer()-8; pos += 8 {
		f.setHeader(pos, 0)
		f.setPage(pos)
	}
	// Each suspect leads size/32 steps far. The limit is maxSteps*size/8 steps.
	for suspects := range uint64(20) {
		pos := last - 8*(2+suspects)
		f.setHeader(pos, uint32(sample-pos-recordHeaderSize))
		f.setPage(pos)
		got := newWatchedRing(f.ring, false).boundary(last, f.ring.producer())
		if want := suspects+1 <= 4*maxSteps; got != want {
			t.Errorf("with %d suspects it says %v", suspects+1, got)
		}
	}
}

// TestAHeaderThatGrowsIsNotFollowed overwrites a header between the look at it and the copy.
// This can happen with a kernel that does not guard records from a forged consumer position.
func TestAHeaderThatGrowsIsNotFollowed(t *testing.T) {
	f := newFakeKernel(t, os.Getpagesize(), false)
	w := f.watcher(t, watchOptions{})
	f.submit(selfChecked(0, 56))
	pos := f.ring.producer()
	f.submit(selfChecked(1, 56))
	w.view.walked = func() { f.setHeader(pos, 1<<20) }
	samples := 0
	drain(t, w, func(rec Record, missed uint64) { samples++ })
	if samples != 1 || w.Position() != pos {
		t.Errorf("it saw %d samples, up to %d, want 1, up to %d", samples, w.Position(), pos)
	}
}

func TestWatcherPausesWhileLittleIsProduced(t *testing.T) {
	now := time.Now()
	p := watchPace{size: 8 << 20}
	producer := uint64(1 << 40)
	for i, tt := range []struct {
		after    time.Duration
		produced uint64
		want     time.Duration
	}{
		{0, 0, 10 * time.Millisecond}, // it knows no rate yet
		{10 * time.Millisecond, 0, 10 * time.Millisecond},
		{10 * time.Millisecond, 5 << 20, 2 * time.Millisecond},
		{2 * time.Millisecond, 8 << 20, time.Millisecond},
		{time.Millisecond, 0, time.Millisecond},     // half of 4 MiB/ms
		{time.Millisecond, 0, time.Millisecond},     // half of that
		{time.Millisecond, 0, 2 * time.Millisecond}, // and so on
		{2 * time.Millisecond, 0, 4 * time.Millisecond},
		{4 * time.Millisecond, 100, 8 * time.Millisecond},
		{8 * time.Millisecond, 0, 10 * time.Millisecond},
	} {
		now, producer = now.Add(tt.after), producer+tt.produced
		if got := p.next(producer, now); got != tt.want {
			t.Errorf("look %d: the pause is %v, want %v", i, got, tt.want)
		}
	}
}
