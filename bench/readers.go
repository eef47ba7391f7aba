// The readers under test. Each has a read loop of its own, so that the benchmark adds only one
// direct call of tally.take to each sample.

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"
	"github.com/cilium/ebpf"
	cilium "github.com/cilium/ebpf/ringbuf"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

// A reader reads one or more rings. read reads until the tally has all it wants.
type reader struct {
	read  func(t *tally) error
	close func() error
}

// The names of the readers.
const (
	ringbufRead          = "ringbuf.Read"
	ringbufReadInto      = "ringbuf.ReadInto"
	ringbufRecords       = "ringbuf.Records"
	ringbufLease         = "ringbuf.Lease"
	ringbufReadEager     = "ringbuf.Read eager"
	ringbufReadIntoEager = "ringbuf.ReadInto eager"
	ringbufSharded       = "ringbuf.Records sharded" // each producer has a ring of its own
	ringbufDelayed       = "ringbuf.ReadInto 200 ms"
	ringbufQuiet         = "ringbuf.ReadInto 200 ms, quiet" // the programs use ringbuf_quiet()
	ciliumRead           = "cilium Read"
	ciliumReadInto       = "cilium ReadInto"
	libbpfgoChannel      = "libbpfgo channel"
	libbpfFloor          = "libbpf C no-op"
	none                 = "none"
)

// allReaders are the readers of one ring, in the order of their turns and of the report.
var allReaders = []string{
	ringbufRead, ringbufReadInto, ringbufRecords, ringbufLease, ringbufReadEager, ringbufReadIntoEager,
	ciliumRead, ciliumReadInto, libbpfgoChannel, libbpfFloor,
}

// longDelay is the delay of ringbufDelayed and ringbufQuiet.
const longDelay = 200 * time.Millisecond

// quietThreshold returns how many bytes the ring must hold before the programs notify the named
// reader, or 0 if the kernel decides.
func quietThreshold(reader string, ring int) int {
	if reader == ringbufQuiet {
		return ring / 4
	}
	return 0
}

// openReader opens the named reader of the rings with these descriptors. The caller keeps the
// descriptors. Only this module's Reader can read several rings.
func openReader(name string, rings ...int) (reader, error) {
	ring := rings[0]
	switch name {
	case ringbufRead:
		return openRingbuf(read, rings)
	case ringbufReadInto:
		return openRingbuf(readInto, rings)
	case ringbufRecords, ringbufSharded:
		return openRingbuf(readRecords, rings)
	case ringbufLease:
		return openRingbuf(readLeases, rings)
	case ringbufReadEager:
		return openRingbuf(read, rings, ringbuf.WithMaxDelay(0))
	case ringbufReadIntoEager:
		return openRingbuf(readInto, rings, ringbuf.WithMaxDelay(0))
	case ringbufDelayed, ringbufQuiet:
		return openRingbuf(readInto, rings, ringbuf.WithMaxDelay(longDelay))
	case ciliumRead, ciliumReadInto:
		return openCilium(name == ciliumReadInto, ring)
	case libbpfgoChannel:
		return openChannel(ring)
	case libbpfFloor:
		return openFloor(ring)
	}
	return reader{}, errors.New("there is no reader " + name)
}

func openRingbuf(read func(*ringbuf.Reader, *tally) error, rings []int,
	options ...ringbuf.Option) (reader, error) {
	var maps []ringbuf.Map
	for _, ring := range rings {
		maps = append(maps, ringbuf.FD(ring))
	}
	r, err := ringbuf.NewMultiReader(maps, options...)
	if err != nil {
		return reader{}, err
	}
	return reader{func(t *tally) error { return read(r, t) }, r.Close}, nil
}

func read(r *ringbuf.Reader, t *tally) error {
	for {
		record, err := r.Read()
		if err != nil {
			return err
		}
		if !t.take(record.RawSample) {
			return t.err
		}
	}
}

func readInto(r *ringbuf.Reader, t *tally) error {
	var record ringbuf.Record
	for {
		if err := r.ReadInto(&record); err != nil {
			return err
		}
		if !t.take(record.RawSample) {
			return t.err
		}
	}
}

func readRecords(r *ringbuf.Reader, t *tally) error {
	for record, err := range r.Records(context.Background()) {
		if err != nil {
			return err
		}
		if !t.take(record.RawSample) {
			return t.err
		}
	}
	return ringbuf.ErrClosed
}

func readLeases(r *ringbuf.Reader, t *tally) error {
	for {
		l, err := r.Lease(context.Background())
		if err != nil {
			return err
		}
		more := true
		for record := range l.Records() {
			if more = t.take(record.RawSample); !more {
				break
			}
		}
		if err := l.Commit(); err != nil {
			return err
		}
		if !more {
			return t.err
		}
	}
}

func openCilium(into bool, ring int) (reader, error) {
	own, err := duplicate(ring) // closed by the Map
	if err != nil {
		return reader{}, err
	}
	m, err := ebpf.NewMapFromFD(own)
	if err != nil {
		return reader{}, err
	}
	r, err := cilium.NewReader(m)
	if err != nil {
		return reader{}, errors.Join(err, m.Close())
	}
	// The Reader uses the Map's descriptor. closeBoth keeps the Map reachable.
	closeBoth := func() error { return errors.Join(r.Close(), m.Close()) }
	if into {
		return reader{func(t *tally) error {
			var record cilium.Record
			for {
				if err := r.ReadInto(&record); err != nil {
					return err
				}
				if !t.take(record.RawSample) {
					return t.err
				}
			}
		}, closeBoth}, nil
	}
	return reader{func(t *tally) error {
		for {
			record, err := r.Read()
			if err != nil {
				return err
			}
			if !t.take(record.RawSample) {
				return t.err
			}
		}
	}, closeBoth}, nil
}

// openChannel opens libbpfgo's InitRingBuf. It starts to poll at the first read, and from then
// on reads ahead.
func openChannel(ring int) (reader, error) {
	module, err := bpfobj.Load(object, func(module *bpf.Module) error {
		return reuseRing(module, ring)
	})
	if err != nil {
		return reader{}, err
	}
	samples := make(chan []byte, 4096)
	buffer, err := module.InitRingBuf("events", samples)
	if err != nil {
		module.Close()
		return reader{}, err
	}
	poll := sync.OnceFunc(func() { buffer.Poll(300) })
	return reader{func(t *tally) error {
		poll()
		for sample := range samples {
			if !t.take(sample) {
				return t.err
			}
		}
		return errors.New("libbpfgo closed the channel")
	}, func() error {
		module.Close() // also frees the buffer
		return nil
	}}, nil
}

// reuseRing makes the module use the given ring, and load nothing else.
func reuseRing(module *bpf.Module, ring int) error {
	events, err := module.GetMap("events")
	if err != nil {
		return err
	}
	for _, name := range []string{"scratch", "losses"} {
		m, err := module.GetMap(name)
		if err == nil {
			err = m.SetAutocreate(false)
		}
		if err != nil {
			return err
		}
	}
	produce, err := module.GetProgram("produce")
	if err != nil {
		return err
	}
	return errors.Join(events.ReuseFD(ring), produce.SetAutoload(false))
}
