package ringbuf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// A script is an input of a fuzz test: operations of one byte each, followed by the bytes of
// their operands. Any bytes are a valid script. Missing bytes at the end are zero.
type script struct{ code []byte }

func (s *script) next() byte {
	if len(s.code) == 0 {
		return 0
	}
	b := s.code[0]
	s.code = s.code[1:]
	return b
}

// noise is the content of samples.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// noisySample returns a sample whose content differs from all others of a test, unless it is
// tiny.
func noisySample(number, size int) []byte {
	start := number * 61 % (len(noise) / 2)
	return noise[start:][:size:size]
}

// A keptSample is a sample that belongs to the caller, who has changed it.
type keptSample struct{ sample, want []byte }

// changeSample appends to a sample and overwrites it, as its owner may do.
func changeSample(sample []byte) keptSample {
	_ = append(sample, "behind the sample"...)
	for i := range sample {
		sample[i] = ^sample[i]
	}
	return keptSample{sample, slices.Clone(sample)}
}

func wantKept(t *testing.T, kept []keptSample) {
	t.Helper()
	for i, k := range kept {
		if !bytes.Equal(k.sample, k.want) {
			t.Fatalf("kept sample %d, of %d bytes, was changed", i, len(k.want))
		}
	}
}

// withinLimit runs an input and fails if it hangs. Go's fuzzing would give up on it without a
// message. When the input hangs, withinLimit calls interrupt, which may end it.
func withinLimit(t *testing.T, interrupt, run func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		run()
	}()
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		t.Error("the input hangs")
		interrupt()
		select {
		case <-done:
		case <-time.After(time.Second):
			t.Error("and cannot be interrupted")
		}
	}
}

// Operations of FuzzBatch, with their operands.
const (
	batchPut       = iota // room, number of samples; class and size of each
	batchTake             //
	batchTakeAll          //
	batchTakeStale        //
	batchClear            //
	batchReset            //
	batchOperations
)

// FuzzBatch puts samples into batches as C does, in memory of any size, and takes them
// as Read and Lease do.
func FuzzBatch(f *testing.F) {
	f.Add([]byte{
		batchPut, 8, 3, 0, 5, 0, 0, 0, 9,
		batchTake, batchTake, batchTake, batchTakeStale,
		batchPut, 8, 2, 0, 7, 0, 8,
		batchTake, batchTake, batchTake,
	})
	f.Add([]byte{
		batchPut, 1, 4, 0, 16, 0, 16, 0, 16, 0, 16, batchTake, batchTakeAll,
		batchTakeAll, batchTake, batchClear,
		batchPut, 8, 1, 0, 16, batchTakeAll, batchTakeStale,
	})
	// Samples that do not fit into the room.
	f.Add([]byte{
		batchPut, 0, 2, 0, 8, 1, 200, batchTake, batchTake,
		batchPut, 0, 3, 0, 8, 3, 255, 0, 8, batchTake, batchTake,
		batchPut, 0, 2, 0, 8, 0, 8, batchTake, batchReset, batchTakeAll, batchReset,
	})
	f.Add([]byte{
		batchPut, 1, 2, 0, 8, 0, 8, batchTake, batchTake, batchReset,
		batchPut, 1, 1, 0, 3, batchClear, batchTakeStale,
		batchPut, 1, 1, 0, 4, batchTakeStale, batchTake,
	})
	f.Fuzz(func(t *testing.T, code []byte) {
		m := batchModel{t: t, script: script{code[:min(len(code), 200)]}}
		withinLimit(t, func() {}, m.run)
	})
}

// A batchModel is the model of a batch: an ordinary queue.
type batchModel struct {
	t *testing.T
	script
	b batch
	u unread

	samples  [][]byte // in the queue
	ends     []uint64 // of their records
	end      uint64   // of the record before these
	produced uint64
	producer uint64 // at the last put
	number   int
	buf      []byte
	stale    []uint64 // results of peek for entries that are gone
}

func (m *batchModel) run() {
	for len(m.code) > 0 {
		switch m.next() % batchOperations {
		case batchPut:
			m.put()
		case batchTake:
			m.take()
		case batchTakeAll:
			m.takeAll()
		case batchTakeStale:
			for _, at := range m.stale {
				if at == m.u.taken.Load() {
					continue // not stale yet
				}
				if m.u.take(at, nil) {
					m.t.Fatal("an entry was taken that was no more")
				}
			}
		case batchClear:
			m.u.clear()
			m.drop(len(m.samples))
		case batchReset:
			if len(m.samples) == 0 {
				m.b.reset()
			}
		}
		m.check()
	}
}

func (m *batchModel) drop(n int) {
	if n > 0 {
		m.end = m.ends[n-1]
		m.samples, m.ends = m.samples[n:], m.ends[n:]
	}
}

func (m *batchModel) put() {
	roomFor, n := int(m.next()), 1+int(m.next()-1)%8
	var entries []byte
	minimum := entryHeaderSize + 8*roomFor
	if len(m.samples) > 0 {
		return // a put needs an empty batch
	}
	m.b.reset()
	room := m.b.room(minimum)
	if len(room) < minimum {
		m.t.Fatalf("there is room for %d bytes, want %d", len(room), minimum)
	}
	for i := range room {
		room[i] = 0xaa // as C may
	}
	m.end = m.produced
	for range n {
		size := m.sampleSize()
		m.number++
		gap := uint32(recordHeaderSize+(size+7)&^7) + 8*uint32(m.number%3) // with discarded ones
		m.produced += uint64(gap)
		sample := noisySample(m.number, size)
		m.samples, m.ends = append(m.samples, sample), append(m.ends, m.produced)
		entries = append(entries, appendEntry(nil, m.produced, gap, sample)...)
	}
	m.produced += 8 * uint64(m.number%2) // not yet drained
	m.b.last, m.b.producer = m.ends[len(m.ends)-1], m.produced
	if len(entries) > len(room) {
		m.b.set(entries)
	} else {
		writeAsC(room, entries)
		m.b.entries = room[:len(entries)]
	}
	m.u.add(&m.b)
	m.producer = m.produced
}

func (m *batchModel) sampleSize() int {
	class, v := m.next(), int(m.next())
	switch class % 4 {
	case 1:
		return 8 * v
	case 2:
		return 2048 - 128 + v
	case 3:
		return 300 * v // more than keptMemory
	}
	return v
}

func (m *batchModel) take() {
	sample, remaining, at, ok := m.u.peek()
	if ok != (len(m.samples) > 0) {
		m.t.Fatalf("peek reports %v, want %d samples", ok, len(m.samples))
	}
	if !ok {
		return
	}
	if want := int(m.producer - m.ends[0]); remaining != want {
		m.t.Fatalf("%d bytes remain, want %d", remaining, want)
	}
	if cap(sample) != len(sample) {
		m.t.Fatalf("an append to a sample of %d bytes reaches %d more", len(sample),
			cap(sample)-len(sample))
	}
	m.buf = append(m.buf[:0], sample...)
	if !m.u.take(at, sample) || m.u.take(at, sample) {
		m.t.Fatal("an entry was not taken once")
	}
	if !bytes.Equal(m.buf, m.samples[0]) {
		m.t.Fatalf("a sample of %d bytes came as one of %d bytes with other content",
			len(m.samples[0]), len(m.buf))
	}
	m.stale = append(m.stale, at)
	m.drop(1)
}

// takeAll takes the rest as a loan, which then owns the memory.
func (m *batchModel) takeAll() {
	l := &loan{}
	l.entries, l.producer, _, _, _ = m.u.takeAll()
	if (l.entries != nil) != (len(m.samples) > 0) {
		m.t.Fatalf("%d bytes of entries, want %d samples", len(l.entries), len(m.samples))
	}
	m.b.memory = nil
	n := 0
	if l.entries == nil {
		return
	}
	l.each(nil, stopper{}, new(uint64), func(rec Record, _ error) bool {
		if !bytes.Equal(rec.RawSample, m.samples[n]) || rec.Remaining != int(m.producer-m.ends[n]) {
			m.t.Fatalf("sample %d of a loan has %d bytes and %d remaining",
				n, len(rec.RawSample), rec.Remaining)
		}
		n++
		return true
	})
	if n != len(m.samples) {
		m.t.Fatalf("a loan has %d samples, want %d", n, len(m.samples))
	}
	m.drop(n)
}

// check compares the results of calls that change nothing.
func (m *batchModel) check() {
	m.t.Helper()
	if m.u.empty() != (len(m.samples) == 0) {
		m.t.Fatalf("empty is %v, want %d samples", m.u.empty(), len(m.samples))
	}
	pos, ok := m.u.before(0)
	if ok == m.u.empty() || ok && pos != m.end {
		m.t.Fatalf("before is %d, %v; want %d, %v", pos, ok, m.end, !m.u.empty())
	}
}

// FuzzPeek shows peek what it may see while another goroutine puts: any bytes, and positions
// that do not belong together. peek must not read beyond the memory, and must try again until
// it sees a possible sample.
func FuzzPeek(f *testing.F) {
	entry := appendEntry(nil, 100, 24, []byte("a sample"))
	f.Add(entry, uint64(1000), uint64(1000), uint64(1024))
	f.Add(entry, uint64(1000), uint64(1024), uint64(1024)) // none
	f.Add(entry, uint64(1000), uint64(1001), uint64(1024))
	f.Add(entry, uint64(1000), uint64(1016), uint64(1024)) // no room for a header
	f.Add(entry, uint64(1000), uint64(992), uint64(1024))  // before the memory
	f.Add(appendEntry(nil, 100, 24, []byte("a sample"))[:20], uint64(0), uint64(0), uint64(24))
	f.Fuzz(func(t *testing.T, bytes []byte, base, taken, put uint64) {
		if len(bytes) < entryHeaderSize {
			return // there is no such memory
		}
		var u unread
		u.memory.Store(&bytes)
		u.base.Store(base)
		u.taken.Store(taken)
		u.put.Store(put)
		offset := taken - base
		want := taken != put && offset <= uint64(len(bytes)-entryHeaderSize)
		var size uint64
		if want {
			size = uint64(binary.NativeEndian.Uint32(bytes[offset+8:]))
			want = size <= uint64(len(bytes))-offset-entryHeaderSize
		}
		withinLimit(t, func() { u.clear() }, func() {
			if taken != put && !want {
				// Another goroutine takes the rest, after peek has seen this state.
				go u.clear()
			}
			sample, _, at, ok := u.peek()
			if ok != want {
				t.Fatalf("peek reports %v, want %v", ok, want)
			}
			if !ok {
				return
			}
			if at != taken || uint64(len(sample)) != size || cap(sample) != len(sample) {
				t.Fatalf("peek returned %d bytes (capacity %d) at %d; want %d at %d", len(sample), cap(sample),
					at, size, taken)
			}
			if size > 0 && &sample[0] != &bytes[offset+entryHeaderSize] {
				t.Fatal("peek returned other bytes")
			}
		})
	})
}

// Operations of FuzzReader, with their operands.
const (
	readerEmit         = iota // class, size, flags and number of samples
	readerDiscard             // size
	readerFill                // class, size
	readerRead                // how many
	readerReadInto            // how many, and into what
	readerReadAll             //
	readerPingPong            // how often, size
	readerSetDeadline         // kind, how far
	readerFlush               //
	readerHandOver            // Flush, Read until ErrFlushed
	readerClose               //
	readerOpen                // options
	readerReadIfClosed        //
	readerOperations
)

const (
	noDeadline = iota
	pastDeadline
	nearDeadline
	farDeadline
	deadlineKinds
)

var fuzzedOptions = [][]Option{
	{WithMaxDelay(0)},
	nil,
	{WithMaxDelay(120 * time.Microsecond)},
	{WithMaxDelay(2 * time.Millisecond)},
}

// FuzzReader makes the calls that one goroutine may make, on rings of this kernel.
func FuzzReader(f *testing.F) {
	for _, seed := range readerSeeds {
		f.Add(seed)
	}
	// All inputs share these rings, because loading BPF programs takes long. For the larger
	// ring moderation is on by default, and a batch does not hold all of its records.
	rings := []*bpftest.Ring{bpftest.New(f, os.Getpagesize()), bpftest.New(f, 256<<10)}
	f.Fuzz(func(t *testing.T, code []byte) {
		m := readerModel{t: t, script: script{code[:min(len(code), 160)]}}
		options := m.next()
		m.ring = rings[options>>7].For(t)
		withinLimit(t, func() { m.reader.Close() }, func() {
			defer func() {
				if m.reader != nil {
					m.reader.Close()
				}
				if t.Failed() {
					t.Log(strings.Join(m.log, "\n"))
				}
			}()
			m.prepare(fuzzedOptions[int(options)%len(fuzzedOptions)])
			m.run()
		})
	})
}

const largeRing = 1 << 7 // in the byte of the options: the larger ring

var readerSeeds = [][]byte{
	// Order, positions with discarded records, and memory.
	{
		1, readerEmit, 0, 5, 0, readerDiscard, 2, readerEmit, 0, 15, 0, readerDiscard, 3, readerEmit, 0,
		25, 4, readerDiscard, 0,
		readerRead, 0, readerReadInto, 0, readerReadAll, readerSetDeadline, pastDeadline, 0, readerRead,
		0,
		readerEmit, 0, 0, 1, readerEmit, 0, 1, 0, readerReadInto, 1, readerReadInto, 0, readerReadInto,
		0, readerDiscard, 5, readerRead, 0,
	},
	// Samples come before ErrFlushed. ErrFlushed comes once for each Flush, and before the
	// deadline.
	{
		0, readerEmit, 0, 5, 1, readerEmit, 0, 7, 5, readerFlush, readerFlush, readerSetDeadline,
		pastDeadline, 0,
		readerRead, 15, readerEmit, 0, 9, 1, readerRead, 15, readerSetDeadline, nearDeadline, 10,
		readerReadInto, 15,
		readerFlush, readerSetDeadline, nearDeadline, 255, readerRead, 0, readerRead, 0,
		readerSetDeadline, farDeadline, 0, readerFlush, readerEmit, 0, 9, 0, readerReadInto, 0,
		readerReadInto, 0,
	},
	// The largest samples, and samples that are larger than the memory of a batch.
	{
		largeRing | 1, readerEmit, 4, 0, 0, readerRead, 0, readerEmit, 4, 0, 0, readerReadInto, 0,
		readerEmit, 4, 1, 0, readerFill, 0, 9,
		readerReadAll, readerEmit, 0, 9, 0, readerEmit, 3, 140, 0, readerEmit, 0, 9, 0, readerRead, 2,
		readerHandOver,
	},
	{
		0, readerEmit, 4, 0, 0, readerEmit, 0, 0, 0, readerReadAll, readerEmit, 2, 128, 0, readerEmit, 5,
		0, 0, readerReadAll,
		readerFill, 0, 0, readerReadAll, readerEmit, 2, 129, 0, readerEmit, 5, 8, 0, readerEmit, 5, 8, 0,
		readerHandOver,
	},
	// A second sample that just fits into the memory of a batch, and one that is too large.
	{
		largeRing, readerEmit, 0, 5, 0, readerEmit, 6, 88, 0, readerReadAll, readerOpen, 0,
		readerEmit, 0, 5, 0, readerEmit, 6, 89, 0, readerEmit, 6, 90, 0, readerReadAll,
	},
	// Close loses the samples that were drained and not read, and no others.
	{
		largeRing, readerFill, 0, 200, readerRead, 5, readerEmit, 0, 8, 0, readerClose, readerClose,
		readerReadIfClosed, readerEmit, 0, 9, 0, readerOpen, 1,
		readerRead, 7, readerOpen, 2, readerRead, 0, readerHandOver, readerEmit, 0, 8, 0, readerOpen, 0,
		readerReadAll, readerClose,
	},
	{
		3, readerEmit, 0, 30, 60, readerRead, 0, readerEmit, 0, 30, 0, readerFlush, readerOpen, 3,
		readerReadInto, 0, readerClose,
		readerDiscard, 3, readerSetDeadline, pastDeadline, 0, readerFlush, readerReadIfClosed,
		readerOpen, 0, readerReadAll,
	},
	// A wait before the first sample, which parks, and one after it, which blocks.
	{
		0, readerSetDeadline, nearDeadline, 255, readerRead, 0, readerEmit, 0, 9, 1, readerReadInto, 0,
		readerSetDeadline, nearDeadline, 255, readerDiscard, 1, readerReadInto, 0, readerEmit, 0, 9, 0,
		readerRead, 1,
	},
	// Ticks.
	{
		3, readerPingPong, 31, 8, readerEmit, 0, 8, 44, readerRead, 3, readerDiscard, 4, readerReadAll,
		readerEmit, 0, 9, 0,
		readerSetDeadline, pastDeadline, 0, readerReadAll, readerFlush, readerRead, 1,
	},
	{
		largeRing | 1, readerPingPong, 31, 100, readerFill, 1, 30, readerRead, 15, readerSetDeadline,
		nearDeadline, 200, readerReadAll, readerRead, 0,
		readerPingPong, 9, 100, readerEmit, 0, 5, 8, readerRead, 0, readerOpen, 2, readerPingPong, 31, 1,
		readerHandOver, readerClose,
	},
}

// A readerModel is the model of a Reader: a list of records.
type readerModel struct {
	t *testing.T
	script
	ring   *bpftest.Ring
	reader *Reader
	size   int // of the ring

	pending []fuzzedRecord
	number  int // of records so far

	// In bytes since the start.
	produced int
	returned int // end of the last record that was returned or found discarded
	fetched  int // produced at the last Read; nothing beyond it was drained
	counted  int // produced at the drain that Remaining refers to

	flushes  []int // produced at each Flush
	kind     int   // of the deadline
	deadline time.Time
	drained  bool // the last read since SetDeadline, or since it failed, returned a record
	closed   bool

	kept []keptSample
	into Record
	log  []string
}

// logf notes a step. The notes are printed only for inputs that fail; t.Logf would print them
// for all inputs with go test -v.
func (m *readerModel) logf(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

type fuzzedRecord struct {
	sample    []byte
	discarded bool
	end       int
}

// prepare opens a Reader of an empty ring, with the positions at the start of the ring's
// memory.
func (m *readerModel) prepare(options []Option) {
	m.open(nil)
	m.size = m.reader.BufferSize()
	empty := func() {
		m.reader.SetDeadline(time.Unix(0, 1))
		for {
			if _, err := m.reader.Read(); errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} else if err != nil {
				m.t.Fatal(err)
			}
		}
	}
	empty()
	if rest := m.size - int(m.reader.queue.rings.producerPos(0))&(m.size-1); rest < m.size {
		m.ring.Emit(bpftest.Sample{Data: noise[:rest-bpftest.HeaderSize]})
		empty()
	}
	m.open(options)
}

func (m *readerModel) open(options []Option) {
	if m.reader != nil {
		m.close()
	}
	r, err := NewReader(m.ring, options...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.reader, m.closed = r, false
	m.flushes, m.kind, m.drained = nil, noDeadline, false
}

func (m *readerModel) close() {
	if err := m.reader.Close(); err != nil {
		m.t.Fatalf("Close: %v", err)
	}
	m.closed = true
}

func (m *readerModel) run() {
	for len(m.code) > 0 {
		op := m.next() % readerOperations
		switch op {
		case readerEmit:
			class, v, how := m.next(), int(m.next()), m.next()
			size := m.sampleSize(class, v)
			m.emit(1+int(how>>2), bpftest.Sample{Data: noise[:size], Flags: uint32(how & 3)})
		case readerDiscard:
			v := int(m.next())
			size := 8 * (v % 17)
			if v >= 128 {
				size = min(256<<(v%8), m.size/4)
			}
			m.emit(1, bpftest.Sample{Data: noise[:size], Discard: true})
		case readerFill:
			class, v := m.next(), int(m.next())
			// Not too many samples, because that takes long.
			size := max(m.sampleSize(class, v), m.size/1024)
			m.emit(m.size/(size+bpftest.HeaderSize)+1, bpftest.Sample{Data: noise[:size]})
		case readerRead:
			for range 1 + m.next()%16 {
				m.read(false)
			}
		case readerReadInto:
			v := m.next()
			if v&1 != 0 {
				m.into = Record{}
			}
			for range 1 + v>>1%16 {
				m.read(true)
			}
		case readerReadAll:
			for i := 0; m.hasSample() && !m.closed; i++ {
				m.read(i%2 == 0)
			}
		case readerPingPong:
			rounds, size := 1+m.next()%32, int(m.next())
			for range rounds {
				m.emit(1, bpftest.Sample{Data: noise[:size]})
				m.read(true)
			}
		case readerSetDeadline:
			m.setDeadline(int(m.next()%deadlineKinds), time.Duration(m.next()))
		case readerFlush:
			m.flush()
		case readerHandOver:
			if m.closed {
				break
			}
			for m.flush(); len(m.flushes) > 0; {
				m.read(false)
			}
			m.wantAvailable(0)
		case readerClose:
			m.close()
		case readerOpen:
			m.reopen(fuzzedOptions[int(m.next())%len(fuzzedOptions)])
		case readerReadIfClosed:
			if m.closed {
				m.read(false)
				m.read(true)
			}
		}
		m.check()
	}
	wantKept(m.t, m.kept)
}

// sampleSize returns a size that may be a special case for some code.
func (m *readerModel) sampleSize(class byte, v int) int {
	largest := m.size - 8 - bpftest.HeaderSize
	size := v
	switch class % 8 {
	case 1:
		size = 8 * v
	case 2:
		size = 2048 - 128 + v
	case 3:
		size = m.size / 256 * v
	case 4:
		size = largest - v
	case 5: // there is room for at least this
		size = largest - (m.produced - m.returned) - v%32
	case 6:
		size = minBatchSize - 128 + v
	case 7:
		size = maxBatchSize - 128 + v
	}
	return max(0, min(size, largest+1))
}

// emit writes up to n samples that are like s, except that each has content of its own.
func (m *readerModel) emit(n int, s bpftest.Sample) {
	samples := make([]bpftest.Sample, n)
	for i := range samples {
		samples[i] = s
		samples[i].Data = noisySample(m.number+i, len(s.Data))
	}
	refused := m.ring.TryEmit(samples...)
	m.logf("emit %d of %d bytes, flags %d, discard %v: %d refused", n, len(s.Data), s.Flags,
		s.Discard, refused)
	for _, s := range samples[:n-refused] {
		m.number++
		m.produced += s.RecordSize()
		m.pending = append(m.pending, fuzzedRecord{s.Data, s.Discard, m.produced})
	}
	// One byte of a ring stays free. At least the records that were returned have made room.
	if refused > 0 && m.produced-m.returned+s.RecordSize() < m.size {
		m.t.Fatalf("the kernel refused a record of %d bytes, though only %d of %d were not returned",
			s.RecordSize(), m.produced-m.returned, m.size)
	}
}

func (m *readerModel) hasSample() bool {
	return slices.ContainsFunc(m.pending, func(r fuzzedRecord) bool { return !r.discarded })
}

// read calls Read or ReadInto, unless the call would wait forever.
func (m *readerModel) read(into bool) {
	var wantErr error
	expires := m.kind == pastDeadline || m.kind == nearDeadline
	switch {
	case m.closed:
		wantErr = os.ErrClosed
	case m.hasSample():
	case len(m.flushes) > 0:
		wantErr = ErrFlushed
	case expires:
		wantErr = os.ErrDeadlineExceeded
	default:
		return
	}
	var rec Record
	var err error
	buf, before := m.into.RawSample, slices.Clone(m.into.RawSample)
	if into {
		err = m.reader.ReadInto(&m.into)
		rec = m.into
	} else {
		rec, err = m.reader.Read()
	}
	m.logf("read (into %v): %d bytes, %d remain, %v", into, len(rec.RawSample), rec.Remaining, err)
	if m.endsEarly(err) {
		return
	}
	if !errors.Is(err, wantErr) || (wantErr == nil) != (err == nil) {
		m.t.Fatalf("Read returned %v, want %v", err, wantErr)
	}
	if errors.Is(err, os.ErrClosed) {
		return
	}
	m.fetched = m.produced
	if err != nil {
		if into && !bytes.Equal(m.into.RawSample, before) {
			m.t.Fatal("ReadInto changed the record and failed")
		}
		if err == ErrFlushed {
			m.flushes = m.flushes[1:]
		} else if time.Now().Before(m.deadline) {
			m.t.Fatal("Read returned before the deadline")
		}
		m.pending, m.returned, m.drained = nil, m.produced, false
		return
	}
	m.drained = true

	i := slices.IndexFunc(m.pending, func(r fuzzedRecord) bool { return !r.discarded })
	want := m.pending[i]
	m.pending, m.returned = m.pending[i+1:], want.end
	if !bytes.Equal(rec.RawSample, want.sample) {
		m.t.Fatalf("a sample of %d bytes came as one of %d bytes with other content", len(want.sample),
			len(rec.RawSample))
	}
	switch counted := want.end + rec.Remaining; counted {
	case m.counted, m.produced:
		m.counted = counted
	default:
		m.t.Fatalf("%d bytes remain, want %d or %d", rec.Remaining, m.counted-want.end,
			m.produced-want.end)
	}
	if rec.Remaining < 0 {
		m.t.Fatalf("%d bytes remain", rec.Remaining)
	}
	switch {
	case !into && rec.RawSample == nil:
		m.t.Fatal("RawSample is nil")
	case !into:
		m.kept = append(m.kept, changeSample(rec.RawSample))
	case cap(buf) > 0 && cap(buf) >= len(want.sample) && &rec.RawSample[:1][0] != &buf[:1][0]:
		m.t.Fatal("ReadInto did not reuse RawSample")
	}
}

// endsEarly reports whether err rightly ends a flush, or the drain of a deadline, although
// there are samples, because these came later.
func (m *readerModel) endsEarly(err error) bool {
	if !m.hasSample() || m.closed {
		return false
	}
	switch {
	case err == ErrFlushed && len(m.flushes) > 0:
		mark := m.flushes[0]
		m.flushes = m.flushes[1:]
		return !slices.ContainsFunc(m.pending, func(r fuzzedRecord) bool {
			return !r.discarded && r.end <= mark
		})
	case errors.Is(err, os.ErrDeadlineExceeded) && m.kind != noDeadline && m.drained:
		m.drained = false
		return true
	}
	return false
}

func (m *readerModel) setDeadline(kind int, v time.Duration) {
	m.kind, m.drained = kind, false
	now := time.Now()
	m.deadline = [deadlineKinds]time.Time{
		pastDeadline: now.Add(-v * time.Second),
		nearDeadline: now.Add(v * 10 * time.Microsecond), // some park, some do not
		farDeadline:  now.Add(time.Hour),
	}[kind]
	m.reader.SetDeadline(m.deadline)
	m.logf("SetDeadline: kind %d, %d", kind, v)
}

func (m *readerModel) flush() {
	err := m.reader.Flush()
	m.logf("Flush: %v", err)
	switch {
	case m.closed:
		if !errors.Is(err, os.ErrClosed) {
			m.t.Fatalf("Flush after Close returned %v", err)
		}
	case err != nil:
		m.t.Fatalf("Flush: %v", err)
	default:
		m.flushes = append(m.flushes, m.produced)
	}
}

// reopen closes the Reader and opens another. Samples that the first one drained and did not
// return are lost.
func (m *readerModel) reopen(options []Option) {
	m.open(options)
	from := m.produced - m.reader.AvailableBytes()
	if from < m.returned || from > max(m.returned, m.fetched) {
		m.t.Fatalf("the next Reader begins at %d; %d was returned, %d there to drain", from, m.returned,
			m.fetched)
	}
	lost, last := 0, 0
	for m.returned < from && len(m.pending) > 0 {
		if !m.pending[0].discarded {
			last = bpftest.Sample{Data: m.pending[0].sample}.RecordSize()
			lost += last
		}
		m.returned = m.pending[0].end
		m.pending = m.pending[1:]
	}
	m.logf("reopen: %d bytes lost", lost)
	if m.returned != from {
		m.t.Fatalf("the next Reader begins at %d, in the middle of a record that ends at %d", from,
			m.returned)
	}
	if lost-last > maxBatchSize {
		m.t.Fatalf("%d bytes were lost, the last %d of them with one record", lost, last)
	}
	m.counted = -1
}

// check compares the results of calls that change nothing.
func (m *readerModel) check() {
	if m.closed {
		m.wantAvailable(0)
	} else {
		m.wantAvailable(m.produced - m.returned)
	}
	if got := m.reader.BufferSize(); got != m.size {
		m.t.Fatalf("BufferSize is %d, want %d", got, m.size)
	}
}

func (m *readerModel) wantAvailable(want int) {
	if got := m.reader.AvailableBytes(); got != want {
		m.t.Fatalf("AvailableBytes is %d, want %d", got, want)
	}
}

// guarded returns a page of memory. The page after it cannot be read.
func guarded(tb testing.TB) (memory []byte) {
	page := os.Getpagesize()
	both, err := syscall.Mmap(-1, 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { syscall.Munmap(both) })
	if err := syscall.Mprotect(both[page:], syscall.PROT_NONE); err != nil {
		tb.Fatal(err)
	}
	return both[:page:page]
}

// FuzzAsFlex views samples of any size that end just before memory that cannot be read, or at a
// distance from it. The bytes behind a sample must not matter, not even to the padding of the
// result.
func FuzzAsFlex(f *testing.F) {
	for kind := range flexKinds {
		for size := range uint8(64) {
			f.Add(uint8(kind), size, uint8(0), noise[:size])
			f.Add(uint8(kind), size, -size&7, noise[:size])
		}
	}
	page := guarded(f)
	f.Fuzz(func(t *testing.T, kind, size, distance uint8, content []byte) {
		k := flexKinds[int(kind)%len(flexKinds)]
		start := len(page) - int(distance) - int(size)
		sample := page[start:][:size:size]
		var heads [2][]byte
		var errs [2]error
		for i := range heads {
			for j := range page[start:] {
				page[start+j] = byte(0x55 << i)
			}
			clear(sample)
			copy(sample, content)
			v, err := k.view(sample)
			errs[i], heads[i] = err, slices.Clone(v.memory)
			if err != nil {
				continue
			}
			if at := placeOf(v.memory, page); at >= 0 && (at != start || len(v.memory) > len(sample)) {
				t.Errorf("the head has %d bytes at %d, the sample %d at %d", len(v.memory), at, size, start)
			}
			if at := placeOf(v.array, sample); len(v.array) > 0 &&
				(at != int(k.c.Offset) || at+len(v.array) > len(sample)) {
				t.Errorf("the array has %d bytes at %d of the sample, which has %d", len(v.array), at, size)
			}
		}
		if !bytes.Equal(heads[0], heads[1]) || fmt.Sprint(errs[0]) != fmt.Sprint(errs[1]) {
			t.Errorf("%q: what is behind a sample of %d bytes made a difference: %x, %v and %x, %v",
				k.name, size, heads[0], errs[0], heads[1], errs[1])
		}
		aligned := start%int(k.c.Align) == 0
		whole := int(size) - int(k.c.Offset)
		padded := int(size) - int(k.c.Size)
		n := int(k.c.ElementSize)
		if valid := aligned && whole >= 0 && (whole%n == 0 || padded >= 0 &&
			padded%n == 0); valid != (errs[0] == nil) {
			t.Errorf("%q: a sample of %d bytes at %d: %v", k.name, size, start, errs[0])
		}
	})
}

// FuzzWatcher fills the memory of a ring at random, with bytes that look like records here and
// there, and changes some of it while the Watcher copies it. Only the producer and the
// overwrite position behave as in a kernel: they never go back. The Watcher must not panic or
// read behind the ring, and no sample may end beyond the producer position.
func FuzzWatcher(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 200, 3, 255, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
	f.Add([]byte{2, 3, 129, 0, 1, 255, 7, 64, 128, 0, 3, 0, 0, 5, 2, 2, 6, 200, 1, 1, 1, 0, 0})
	f.Add([]byte{3, 255, 255, 1, 0, 4, 0, 8, 0, 12, 0, 16, 0, 20, 0, 24, 0, 28, 0, 32})
	f.Fuzz(func(t *testing.T, code []byte) {
		withinLimit(t, func() {}, func() { fuzzWatcher(t, &script{code}) })
	})
}

func fuzzWatcher(t *testing.T, s *script) {
	mode := s.next()
	k := newFakeKernel(t, os.Getpagesize()<<(mode>>1&1), mode&1 == 1)
	size := k.ring.size
	number := func() uint64 { return uint64(s.next())<<8 | uint64(s.next()) }
	copy(k.bytes(0, int(size)), noise[number():])
	*k.ring.producerPos = 8 * number()
	change := func() {
		for range s.next() % 32 {
			pos := 8 * number()
			switch s.next() % 8 {
			case 0:
				*k.ring.consumerPos = *k.ring.producerPos - pos
			case 1:
				*k.ring.consumerPos = number()
			case 2:
				*k.ring.producerPos += pos % (2 * size)
			case 3:
				*k.position(1) = *k.ring.producerPos - min(pos%size, *k.ring.producerPos)
			case 4:
				*k.position(2) = max(*k.position(2), *k.ring.producerPos-min(pos%size, *k.ring.producerPos))
			case 5:
				k.setHeader(pos, uint32(number()))
				k.setPage(pos)
			default: // a record that ends at any place
				k.setHeader(pos, uint32(8*number()%size))
				k.setPage(pos)
			}
		}
	}
	change()
	w := k.watcher(t, watchOptions{oldest: s.next()%2 == 0})
	w.view.walked = change
	w.view.weak = s.next()%2 == 0
	for range 4 {
		before := w.Position()
		drain(t, w, func(rec Record, missed uint64) {
			end := before + missed
			if missed == 0 {
				end += recordEnd(0, uint32(len(rec.RawSample)))
			}
			if w.Position() < end || w.Position() > k.ring.producer() || rec.Remaining < 0 {
				t.Errorf("from %d on came a sample of %d bytes, or %d were missed, up to %d of %d", before,
					len(rec.RawSample), missed, w.Position(), k.ring.producer())
			}
			before = w.Position()
		})
		records, err := w.Snapshot()
		if err != nil {
			t.Error(err)
		}
		for _, rec := range records {
			if uint64(len(rec.RawSample)+rec.Remaining) > size || rec.Remaining < 0 {
				t.Errorf("a snapshot has a sample of %d bytes, %d bytes before the end", len(rec.RawSample),
					rec.Remaining)
			}
		}
		if stats := w.Stats(); stats.Bytes > stats.Producer || stats.Fill > int(size) {
			t.Errorf("Stats are %+v", stats)
		}
		change()
	}
}
