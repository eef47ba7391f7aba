package ringbuf

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"unsafe"
)

// memoryRing returns a ring in ordinary memory, to which the test writes records.
func memoryRing(size uint64) (g ring, data []uint32, consumer, producer *atomic.Uint64) {
	memory := make([]uint64, size/8)
	data = unsafe.Slice((*uint32)(unsafe.Pointer(&memory[0])), size/4)
	// In two cache lines, as in a real ring, so that loading both positions takes a while.
	positions := new([256]atomic.Uint64)
	consumer, producer = &positions[64], &positions[192]
	g = ring{
		size: size, data: unsafe.Pointer(&memory[0]),
		consumerPos: (*uint64)(unsafe.Pointer(consumer)),
		producerPos: (*uint64)(unsafe.Pointer(producer)),
	}
	return g, data, consumer, producer
}

// TestPositionsOfOneMoment moves both positions while they are loaded. So two positions that
// are loaded one after the other are often more than the ring apart.
func TestPositionsOfOneMoment(t *testing.T) {
	g, _, consumer, producer := memoryRing(4096)
	var stop atomic.Bool
	var moving group
	moving.Go(func() {
		for !stop.Load() {
			producer.Add(4096)
			consumer.Add(4096)
		}
	})
	for range 1_000_000 {
		if c, p, sound := g.positions(); !sound {
			t.Errorf("positions %d and %d", c, p)
			break
		}
	}
	stop.Store(true)
	moving.Wait()
}

// TestLook compares look with a model of it, in rings with all kinds of records.
func TestLook(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		const size = 4096
		g, data, _, producer := memoryRing(2 * size) // look does not go round the end here
		g.size = size
		type record struct {
			end    uint64
			header uint32
		}
		var records []record
		pos := uint64(0)
		for range rng.IntN(8) {
			header := uint32(rng.IntN(40))
			if rng.IntN(10) == 0 {
				header = uint32(600 + rng.IntN(100))
			}
			switch rng.IntN(5) {
			case 0:
				header |= discardBit
			case 1:
				header |= busyBit
			}
			data[pos/4] = header
			pos = recordEnd(pos, header)
			records = append(records, record{pos, header})
		}
		producer.Store(pos)
		until, limit, leave := rng.Uint64N(pos+100), rng.Uint64N(300), rng.IntN(2) == 0

		want := window{producer: pos}
		start, discards := uint64(0), 0
		for i, r := range records {
			if start >= min(until, pos) || r.header&busyBit != 0 {
				break
			}
			if r.header&discardBit != 0 {
				discards++
				start = r.end
				if want.samples == 0 {
					want.end, want.discards = r.end, discards
				}
				continue
			}
			if want.samples > 0 && r.end > min(limit, until) {
				want.cut = true
				break
			}
			followed := i+1 < len(records) && records[i+1].header&busyBit == 0
			if leave && !followed && r.end-start <= size/8 {
				break // and nothing behind it is committed
			}
			want.samples++
			want.bytes += uint64(r.header)
			want.end, want.discards = r.end, discards
			start = r.end
		}
		if want.samples == 0 && leave && discards > 0 {
			want.end, want.discards = start, discards
		}
		var got window
		g.look(&got, 0, until, limit, leave)
		got.start = 0
		if want.samples == 0 && got.samples == 0 && leave {
			continue // a tick looks again without leave
		}
		if got != want {
			t.Fatalf("records %v, until %d, limit %d, leave %v:\nlook finds %+v,\nwant %+v",
				records, until, limit, leave, got, want)
		}
	}
}
