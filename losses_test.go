package ringbuf

import (
	"errors"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

func mustOpenLossCounter(t *testing.T, m Map) *lossCounter {
	t.Helper()
	c, err := openLossCounter(m)
	return opened(t, c, err, (*lossCounter).close)
}

func wantLook(t *testing.T, c *lossCounter, lost, position uint64) {
	t.Helper()
	if n, p := c.newLosses(math.MaxUint64); n != lost || p != position {
		t.Errorf("look returned %d lost at %d, want %d at %d", n, p, lost, position)
	}
}

func wantLost(t *testing.T, c *lossCounter, want uint64) {
	t.Helper()
	if got := c.lost(); got != want {
		t.Errorf("%d were lost, want %d", got, want)
	}
}

const numberedRecord = bpftest.HeaderSize + bpftest.NumberedSize

// numberedCapacity returns how many records of LossRing.Try a ring has room for. The kernel
// leaves the last 8 bytes of a ring unused.
func numberedCapacity(size int) int { return (size - 8) / numberedRecord }

func TestLossIsPlacedWhereTheReaderIsNotYet(t *testing.T) {
	size := os.Getpagesize()
	n := numberedCapacity(size)
	ring := bpftest.NewLoss(t, size, 0)
	c := mustOpenLossCounter(t, ring.Counter())
	consumer := consumerPosition(t, ring)
	wantLook(t, c, 0, 0)
	// All numbers are in records.
	total := 0
	for _, step := range []struct {
		name                         string
		consumed                     int
		tried, accepted, lost, place int
	}{
		{"the first, of a ring from which nothing was read", 0, n + 5, n, 5, n},
		{"another one there", 0, 1, 0, 1, n},
		{"after some were read", 10, 17, 10, 7, n},
		{"when the reader is where the first is missing", n, n - 10 + 4, n - 10, 4, 2 * n},
		{"before it gets to where the next is", n + 1, 3, 1, 2, 2 * n},
		{"when it is past that", 2*n + 1, n + 3, n, 3, 3*n + 1},
	} {
		*consumer = uint64(step.consumed * numberedRecord)
		if got := ring.Try(0, 0, 0, step.tried); got != step.accepted {
			t.Fatalf("%s: %d were accepted, want %d", step.name, got, step.accepted)
		}
		t.Log(step.name)
		wantLook(t, c, uint64(step.lost), uint64(step.place*numberedRecord))
		wantLook(t, c, 0, 0)
		total += step.lost
		wantLost(t, c, uint64(total))
	}
}

func TestLossCounterCountsFromWhenItWasOpened(t *testing.T) {
	size := os.Getpagesize()
	n := numberedCapacity(size)
	ring := bpftest.NewLoss(t, size, 0)
	ring.SetSlot(0, 3, 1<<40, 1<<40) // from another ring, which had the counter before
	c := mustOpenLossCounter(t, ring.Counter())
	wantLost(t, c, 0)
	wantLook(t, c, 0, 0)
	ring.Try(0, 0, 0, n+2)
	wantLost(t, c, 2)
	wantLook(t, c, 2, uint64(n*numberedRecord))
}

func TestLookReturnsTheFirstPlaceOfAllCPUs(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	c := mustOpenLossCounter(t, ring.Counter())
	if len(c.slots) == 1 {
		c.slots = c.slots[:2] // the mapping has both
		c.seen = make([]seenSlot, 2)
	}
	ring.SetSlot(0, 1, 400, 0)
	ring.SetSlot(len(c.slots)-1, 2, 300, 0)
	wantLook(t, c, 3, 300)
	ring.SetSlot(0, 5, 500, 0)
	wantLook(t, c, 4, 500)
	ring.SetSlot(0, 6, 600, 0)
	ring.SetSlot(len(c.slots)-1, 3, 700, 0)
	wantLook(t, c, 2, 600)
	wantLook(t, c, 0, 0)
}

// lossProducers write concurrently. There are several for each of two CPUs, and they interrupt
// each other there.
type lossProducers struct {
	ring  *bpftest.LossRing
	tried int // by each

	sync.WaitGroup
	accepted [4]int
}

func (p *lossProducers) cpu(producer int) int { return producer % 2 * (runtime.NumCPU() - 1) }

func (p *lossProducers) start() {
	for producer := range p.accepted {
		p.Add(1)
		go func() {
			defer p.Done()
			for done := 0; done < p.tried; done += 20 {
				p.accepted[producer] += p.ring.Try(p.cpu(producer), producer, uint64(done), 20)
				runtime.Gosched() // otherwise a reader has a turn only every 10 ms
			}
		}()
	}
}

// lost returns how many were lost on each CPU.
func (p *lossProducers) lost() map[int]uint64 {
	lost := make(map[int]uint64)
	for producer, accepted := range p.accepted {
		lost[p.cpu(producer)] += uint64(p.tried - accepted)
	}
	return lost
}

// wantCounted compares the counter, and the sum of what look returned, with what the producers
// know.
func (p *lossProducers) wantCounted(t *testing.T, c *lossCounter, looked uint64) {
	t.Helper()
	var total uint64
	for cpu, want := range p.lost() {
		if got := c.slots[cpu].lost.Load(); got != want {
			t.Errorf("%d were lost on CPU %d, want %d", got, cpu, want)
		}
		total += want
	}
	wantLost(t, c, total)
	if looked != total {
		t.Errorf("looks found %d, want %d", looked, total)
	}
}

// TestLookKnowsWhichPositionToTrust has losses before and after the consumer gets to the first
// one.
func TestLookKnowsWhichPositionToTrust(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	c := mustOpenLossCounter(t, ring.Counter())
	for _, step := range []struct {
		lost, position, consumer, want uint64
	}{
		{1, 400, 0, 400},
		{2, 400, 300, 0},     // the consumer was before the first loss
		{3, 900, 300, 0},     // it got there meanwhile
		{4, 900, 899, 0},     // as before
		{5, 1500, 900, 1500}, // it was at the last one already
	} {
		ring.SetSlot(0, step.lost, step.position, 0)
		if lost, position := c.newLosses(step.consumer); lost != 1 || position != step.want {
			t.Errorf("%+v: look returned %d lost at %d", step, lost, position)
		}
	}
}

func TestEachRefusedRecordIsCountedOnce(t *testing.T) {
	size := os.Getpagesize()
	ring := bpftest.NewLoss(t, size, 0)
	c := mustOpenLossCounter(t, ring.Counter())
	p := lossProducers{ring: ring, tried: 100_000}
	p.start()
	p.Wait()
	accepted := 0
	for _, n := range p.accepted {
		accepted += n
	}
	if want := numberedCapacity(size); accepted != want {
		t.Errorf("%d were accepted, want %d", accepted, want)
	}
	looked, position := c.newLosses(math.MaxUint64)
	if want := uint64(numberedCapacity(size) * numberedRecord); position != want {
		t.Errorf("the position is %d, want %d", position, want)
	}
	p.wantCounted(t, c, looked)
}

func TestEachRecordIsReadOrCountedAsLost(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	c := mustOpenLossCounter(t, ring.Counter())
	r := mustNewReader(t, ring)
	p := lossProducers{ring: ring, tried: 50_000}
	p.start()

	stop := make(chan struct{})
	looks := make(chan uint64)
	go func() {
		var looked uint64
		for {
			lost, position := c.newLosses(math.MaxUint64)
			if produced := r.queue.rings.producerPos(0); position > produced {
				t.Errorf("a loss at %d, beyond the producer position, %d", position, produced)
			}
			looked += lost
			select {
			case <-stop:
				lost, _ = c.newLosses(math.MaxUint64)
				looks <- looked + lost
				return
			default:
			}
			if counted := c.lost(); counted < looked {
				t.Errorf("%d were lost, %d of them found", counted, looked)
			}
			runtime.Gosched()
		}
	}()
	go func() {
		p.Wait()
		r.SetDeadline(time.Unix(0, 1))
	}()
	var read [len(p.accepted)]int
	var rec Record
	err := r.ReadInto(&rec)
	for ; err == nil; err = r.ReadInto(&rec) {
		read[bpftest.DecodeNumbered(rec.RawSample).Producer]++
	}
	close(stop)
	looked := <-looks
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if read != p.accepted {
		t.Errorf("%d of the producers' records were read, %d accepted", read, p.accepted)
	}
	p.wantCounted(t, c, looked)
	t.Logf("%d were read, %d lost", read, p.lost())
}

func TestWhatIsNoLossCounterIsRefused(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	create := func(name string, kind bpf.MapType, valueSize int, flags uint32) Map {
		m, err := bpf.CreateMap(kind, name, 4, valueSize, 4, &bpf.BPFMapCreateOpts{MapFlags: flags})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(m.FileDescriptor()) })
		return m
	}
	withFlags := func(flags uint32) Map {
		fd := mapByID(t, ring.Counter(), flags)
		t.Cleanup(func() { syscall.Close(fd) })
		return FD(fd)
	}
	const readOnly, writeOnly = 1 << 3, 1 << 4 // BPF_F_RDONLY, BPF_F_WRONLY
	const no = "is not a RINGBUF_LOSS_COUNTER of bpf/ringbuf.bpf.h"
	for _, tt := range []struct {
		name  string
		m     Map
		errno syscall.Errno
		want  []string
	}{
		{"none", nil, 0, []string{"no map"}},
		{"closed descriptor", FD(1 << 20), syscall.EBADF, []string{"descriptor 1048576"}},
		{"file", FD(0), 0, []string{"is not a BPF map"}},
		{"ring buffer", ring, 0, []string{no, `"events"`, "type ringbuf"}},
		{"per-CPU array", create("percpu", bpf.MapTypePerCPUArray, 64, 0), 0,
			[]string{no, `"percpu"`, "type percpu_array"}},
		{"other values", create("narrow", bpf.MapTypeArray, 8, flagMmapable), 0,
			[]string{no, `"narrow"`, "values of 8 bytes"}},
		{"not to be mapped", create("unmapped", bpf.MapTypeArray, 64, 0), 0,
			[]string{no, `"unmapped"`, "flags 0x0"}},
		{"read-only descriptor", withFlags(readOnly), syscall.EINVAL,
			[]string{`"losses"`, "for reading and writing"}},
		{"write-only descriptor", withFlags(writeOnly), syscall.EACCES,
			[]string{`"losses"`, "for reading and writing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := resources()
			c, err := openLossCounter(tt.m)
			if err == nil {
				c.close()
				t.Fatal("openLossCounter succeeded")
			}
			t.Log(err)
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error %q does not mention %q", err, want)
				}
			}
			if tt.errno != 0 && !errors.Is(err, tt.errno) {
				t.Errorf("the error %q does not wrap %v", err, tt.errno)
			}
			if err := awaitResources(before); err != nil {
				t.Errorf("it left behind: %v", err)
			}
		})
	}
}

func TestLossCounterOutlivesItsDescriptor(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	fd := mapByID(t, ring.Counter(), 0)
	c := mustOpenLossCounter(t, FD(fd))
	syscall.Close(fd)
	ring.SetSlot(0, 7, 0, 0)
	wantLost(t, c, 7)
}

func TestLossCounterMayHaveFewerSlotsThanThereAreCPUs(t *testing.T) {
	bpftest.NewLoss(t, os.Getpagesize(), 0) // skips where there is no BPF
	m, err := bpf.CreateMap(bpf.MapTypeArray, "small", 4, lossSlotSize, 1,
		&bpf.BPFMapCreateOpts{MapFlags: flagMmapable})
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(m.FileDescriptor())
	c := mustOpenLossCounter(t, m)
	if len(c.slots) != 1 {
		t.Errorf("there are %d slots, want 1", len(c.slots))
	}
}

func TestPossibleCPUsMayHaveGaps(t *testing.T) {
	for list, want := range map[string]int{"0\n": 1, "0-3\n": 4, "0,2\n": 3, "0-3,8-11\n": 12,
		"": 0, "\n": 0} {
		if got := afterLastCPU(list); got != want {
			t.Errorf("the CPUs %q end before %d, want %d", list, got, want)
		}
	}
}

// readIn returns a function that reads the next record in the given way.
func readIn(t *testing.T, way string, r *Reader) (next func() Record) {
	if way == "Read" {
		return func() Record { return mustRead(t, r) }
	}
	var rec Record
	return func() Record {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		return rec
	}
}

func TestLostIsWithTheRecordAfterTheLoss(t *testing.T) {
	const size = 1 << 16
	n := numberedCapacity(size)
	for _, way := range []string{"Read", "ReadInto"} {
		t.Run(way, func(t *testing.T) {
			ring := bpftest.NewLoss(t, size, 0)
			ring.Try(0, 0, 0, n+3) // not counted, because there is no Reader yet
			r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), WithMaxDelay(0))
			next := readIn(t, way, r)
			want := map[int]uint64{} // by number of the record
			written, read := n, 0
			write := func(accepted, lost int) {
				t.Helper()
				if got := ring.Try(0, 0, 0, accepted+lost); got != accepted {
					t.Fatalf("%d records were accepted, want %d", got, accepted)
				}
				written += accepted
			}
			readTo := func(end int) {
				t.Helper()
				for ; read < end; read++ {
					if got := next().Lost; got != want[read] {
						t.Errorf("%d were lost before record %d, want %d", got, read, want[read])
					}
				}
			}
			drained := func() int { return int(r.queue.rings.consumerPos(0)) / numberedRecord }

			write(0, 5)
			want[n] = 5
			readTo(1)
			write(drained(), 4) // full again: this loss gets the place of the first one
			want[n] += 4
			readTo(n)
			write(n-(written-drained()), 3) // full after the Reader got there
			want[written] = 3
			readTo(written)
			write(n, 2) // full after it was empty
			want[written] = 2
			readTo(written)
			write(1, 0)
			readTo(written)
			if got := r.Stats().Lost; got != 5+4+3+2 {
				t.Errorf("Stats tell of %d", got)
			}
			before := r.Stats().LostBefore
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := NewReader(ring, WithLossCounter(ring.Counter()))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if s := again.Stats(); s.Lost != 0 || s.LostBefore != before+5+4+3+2 {
				t.Errorf("Stats of the next Reader tell of %d, and of %d before", s.Lost, s.LostBefore)
			}
		})
	}
}

// TestNoLossIsToldOfTooLate has producers on two CPUs write to a ring that becomes full again
// and again: however slow they are, the reader waits until they have lost some records. When a
// record is read, as many as are missing so far must have been reported as lost.
func TestNoLossIsToldOfTooLate(t *testing.T) {
	eachPace(t, func(t *testing.T, pace Option) {
		for _, size := range []int{1 << 16, 1 << 19} {
			ring := bpftest.NewLoss(t, size, 0)
			r := mustNewReader(t, ring, WithLossCounter(ring.Counter()), pace)
			p := lossProducers{ring: ring, tried: 50_000}
			p.start()
			defer p.Wait()
			var ended atomic.Bool
			go func() {
				p.Wait()
				ended.Store(true)
				r.SetDeadline(time.Unix(0, 1))
			}()
			const atOnce = 20 // losses
			interval := numberedCapacity(size) / 8
			stalls := 0
			var read [len(p.accepted)]int
			var missing [len(p.accepted)]uint64
			var lost, missed uint64
			records := 0
			for rec, err := range r.Records(t.Context()) {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				lost += rec.Lost
				s := bpftest.DecodeNumbered(rec.RawSample)
				gap := s.Seq - uint64(read[s.Producer])
				read[s.Producer]++
				missed += gap - missing[s.Producer]
				missing[s.Producer] = gap
				if missed > lost {
					t.Fatalf("ring of %d bytes: %d records are missing, %d reported as lost", size, missed, lost)
				}
				if records++; records%interval == 0 && !ended.Load() {
					stalls++
					for want := r.Stats().Lost + atOnce; r.Stats().Lost < want && !ended.Load(); {
						runtime.Gosched()
					}
				}
			}
			if read != p.accepted {
				t.Errorf("ring of %d bytes: %d of the producers' records were read, %d accepted", size, read,
					p.accepted)
			}
			var total uint64
			for _, n := range p.lost() {
				total += n
			}
			if got := r.Stats().Lost; got != total || lost > total {
				t.Errorf("ring of %d bytes: %d were lost, Stats tell of %d, records of %d", size, total, got,
					lost)
			}
			if least := atOnce * uint64(stalls-1); total < least || stalls < 10 {
				t.Errorf("ring of %d bytes: only %d were lost while the reader waited %d times for %d", size,
					total, stalls, atOnce)
			}
			t.Logf("ring of %d bytes: %d were read, %d lost; the reader waited %d times", size, read, total,
				stalls)
		}
	})
}

func TestLossesOfSeveralRingsComeWithTheNextRecord(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	other := bpftest.New(t, os.Getpagesize())
	r, err := NewMultiReader([]Map{other, ring}, WithLossCounter(ring.Counter()))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ring.Try(0, 0, 0, numberedCapacity(os.Getpagesize())+3)
	other.Emit(text("x"), text("y"))
	for i, want := range []uint64{3, 0, 0} {
		if got := mustRead(t, r).Lost; got != want {
			t.Errorf("%d were lost before record %d, want %d", got, i, want)
		}
	}
}

func TestWithLossCounterRefusesOtherMaps(t *testing.T) {
	ring := bpftest.NewLoss(t, os.Getpagesize(), 0)
	counter := WithLossCounter(ring.Counter())
	if r, err := NewReader(ring, counter, counter); err == nil ||
		!strings.Contains(err.Error(), "2 loss counters") {
		t.Errorf("with two counters NewReader returned %v, %v", r, err)
	}
	for m, want := range map[Map]string{nil: "loss counter: no map",
		Map(ring): "loss counter: descriptor"} {
		before := resources()
		r, err := NewReader(ring, WithLossCounter(m))
		if err == nil {
			r.Close()
			t.Fatal("NewReader succeeded")
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %q, without %q", err, want)
		}
		if err := awaitResources(before); err != nil {
			t.Error(err)
		}
	}
}
