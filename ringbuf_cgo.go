package ringbuf

// From C to Go: the one file that imports "C". It wraps ringbuf_cgo.c and adds
// the wait that needs Go's runtime.

/*
#cgo CFLAGS: -O2 -Wall
#cgo LDFLAGS: -lelf -lz
#cgo noescape cgo_ringbuf_poll
#cgo nocallback cgo_ringbuf_poll
#cgo noescape cgo_ringbuf_tick
#cgo nocallback cgo_ringbuf_tick
#cgo nocallback cgo_ringbuf_wake
#cgo nocallback cgo_ringbuf_arm
#cgo nocallback cgo_ringbuf_filled
#cgo nocallback cgo_ringbuf_consumer
#cgo nocallback cgo_ringbuf_producer
#cgo noescape cgo_ringbuf_ring_counters
#cgo nocallback cgo_ringbuf_ring_counters
#cgo noescape cgo_ringbuf_counters
#cgo nocallback cgo_ringbuf_counters
#include "ringbuf_cgo.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	// A batch starts small, for the many Readers that see few samples, and grows
	// to what a prototype found best for 64-byte samples under load.
	minBatchSize = 4 << 10
	maxBatchSize = 64 << 10

	// Memory for batches of which callers keep samples.
	keptSize = 32 << 10

	// How long a wait that follows a sample blocks its OS thread, which answers
	// faster than parking the goroutine does.
	blockFor = 100 * time.Millisecond

	// The netpoller waits in milliseconds, so the end of any wait blocks.
	netpollGrain = 1500 * time.Microsecond

	// How often a goroutine yields that spends its time in C. Of one that was not
	// scheduled for 10 ms (forcePreemptNS in Go's runtime/proc.go) the runtime takes
	// the processor away as soon as it is in C, which wakes two other threads each
	// time: half of the processor time of a Reader that ticks.
	yieldAfter = 5 * time.Millisecond

	// A longer pause between two ticks parks the goroutine, all but the end of it.
	longPause = 10 * time.Millisecond
)

// blocked counts the threads of this process that poll blocks. As many as can run
// at once are worth it. Go keeps its threads once it has them, so without a limit
// many Readers would leave many threads behind.
var blocked atomic.Int32

// libbpfRings are the rings of BPF maps, read through libbpf's ring_buffer.
type libbpfRings struct {
	c    *C.struct_cgo_ringbuf
	maps []mapInfo

	pace     moderator
	losses   *lossCounter // or nil
	lookedAt struct {     // when losses were looked at: positions of the only ring
		consumer, producer uint64
	}

	blockFor time.Duration

	active  time.Time // when poll was called after it had found samples
	found   bool      // the last poll found samples
	yielded time.Time

	limit   int // about how many bytes of a batch to fill
	largest int // room beyond limit: no entry so far was larger

	parkFile *os.File // duplicate of c.park_fd
	parked   syscall.RawConn
	woken    atomic.Bool // wake was called; poll resets it when it returns

	// Made once, because a new closure for each wait would be an allocation.
	onReady   func(uintptr) bool
	onFilled  func(uintptr) bool
	readies   int // calls of onReady or onFilled
	readyInto *batch
	readyErr  error

	parkedWakeups atomic.Uint64 // not counted in C
}

func errnoOf(retC C.int) error {
	if retC >= 0 {
		return nil
	}
	return syscall.Errno(-retC)
}

// openRings opens the rings of maps, of which it needs the descriptors no longer than
// that.
func openRings(maps []Map, o options) (*libbpfRings, error) {
	if len(maps) == 0 {
		return nil, errors.New("no map given")
	}
	r := &libbpfRings{blockFor: blockFor, limit: minBatchSize}
	var fdsC []C.int
	closeMaps := func() {
		for _, fdC := range fdsC {
			syscall.Close(int(fdC))
		}
		fdsC = nil
	}
	defer closeMaps()
	for _, m := range maps {
		fd, info, err := dupMap(m, mapInfo.check)
		if err != nil && len(maps) > 1 {
			err = fmt.Errorf("map %d: %w", len(r.maps), err)
		}
		if err != nil {
			return nil, err
		}
		fdsC = append(fdsC, C.int(fd))
		for i, other := range r.maps {
			if other.id == info.id {
				return nil, fmt.Errorf("maps %d and %d are the same ring buffer %q", i, len(r.maps), info.name)
			}
		}
		r.maps = append(r.maps, info)
	}
	r.pace = newModerator(o, r.sizes()...)
	if n := len(o.lossCounters); n > 1 {
		return nil, fmt.Errorf("%d loss counters, and a Reader has one", n)
	}
	for _, m := range o.lossCounters {
		var err error
		if r.losses, err = openLossCounter(m); err != nil {
			return nil, fmt.Errorf("loss counter: %w", err)
		}
	}

	sizesC := make([]C.__u64, len(r.maps))
	for i, info := range r.maps {
		sizesC[i] = C.__u64(info.size)
	}
	var stepC *C.char
	var failedC C.int
	if err := errnoOf(C.cgo_ringbuf_open(&fdsC[0], &sizesC[0], C.int(len(fdsC)), &r.c, &failedC, &stepC)); err != nil {
		r.closeLosses()
		return nil, fmt.Errorf("%s of type ringbuf: %s: %w", r.label(int(max(failedC, 0))), C.GoString(stepC), err)
	}
	closeMaps() // the mappings hold them
	if err := r.openParkFile(); err != nil {
		r.close()
		return nil, fmt.Errorf("%s of type ringbuf: add to netpoller: %w", r.label(0), err)
	}
	r.onReady = func(uintptr) bool {
		r.readies++
		r.readyErr = r.fill(r.readyInto, 0)
		// Not to wait behind a drain that stopped for whatever reason but the end.
		return r.readyErr != nil || len(r.readyInto.entries) > 0 || bool(r.c.full)
	}
	r.onFilled = func(uintptr) bool {
		r.readies++
		return bool(C.cgo_ringbuf_filled(r.c))
	}
	return r, nil
}

// openParkFile hands a duplicate of c.park_fd to Go. Who is parked hears no more of
// an epoll instance when its last descriptor is closed, nor that it was. So of the two
// on which that depends there are two each, in case that somebody closes one by mistake.
func (r *libbpfRings) openParkFile() error {
	fdC := C.cgo_ringbuf_dup(r.c.park_fd)
	if err := errnoOf(fdC); err != nil {
		return err
	}
	r.parkFile = os.NewFile(uintptr(fdC), "ringbuf")
	var err error
	r.parked, err = r.parkFile.SyscallConn()
	if err != nil {
		return err
	}
	// The only sign that os.NewFile could not add it to the netpoller.
	return r.parkFile.SetReadDeadline(time.Time{})
}

// dupMap returns a descriptor of m for the caller to close, if check has nothing against
// that map.
func dupMap(m Map, check func(mapInfo) error) (fd int, info mapInfo, err error) {
	if m == nil {
		return -1, info, errors.New("no map given")
	}
	given := m.FileDescriptor()
	fdC := C.cgo_ringbuf_dup(C.int(given))
	runtime.KeepAlive(m) // whose descriptor may be closed as soon as it is garbage
	if err := errnoOf(fdC); err != nil {
		return -1, info, fmt.Errorf("descriptor %d: %w", given, err)
	}
	info, err = infoOf(fdC)
	if err == nil {
		err = check(info)
	}
	if err != nil {
		syscall.Close(int(fdC))
		return -1, info, fmt.Errorf("descriptor %d: %w", given, err)
	}
	return int(fdC), info, nil
}

func infoOf(fdC C.int) (mapInfo, error) {
	if err := checkIsMap(int(fdC)); err != nil {
		return mapInfo{}, err
	}
	var infoC C.struct_bpf_map_info
	if err := errnoOf(C.cgo_ringbuf_map_info(fdC, &infoC)); err != nil {
		return mapInfo{}, fmt.Errorf("get map info: %w", err)
	}
	info := mapInfo{
		name:      C.GoString(&infoC.name[0]),
		kind:      uint32(infoC._type),
		kindName:  fmt.Sprintf("%d", infoC._type),
		id:        uint32(infoC.id),
		flags:     uint32(infoC.map_flags),
		size:      uint32(infoC.max_entries),
		valueSize: uint32(infoC.value_size),
	}
	if nameC := C.libbpf_bpf_map_type_str(uint32(infoC._type)); nameC != nil {
		info.kindName = C.GoString(nameC)
	}
	return info, nil
}

// poll implements rings.
func (r *libbpfRings) poll(b *batch, deadline time.Time) error {
	now := time.Now()
	if r.found {
		r.active = now
	}
	if now.Sub(r.yielded) > yieldAfter {
		runtime.Gosched()
		now = time.Now() // others may have run for long
		r.yielded = now
	}
	left := time.Duration(math.MaxInt64)
	if !deadline.IsZero() {
		left = deadline.Sub(now)
	}
	if r.pace.long() && left > r.pace.max {
		left, deadline = r.pace.max, now.Add(r.pace.max)
	}
	pause, tick := r.pace.next(now)
	pause = min(pause, left)
	var err error
	switch {
	case !tick || left <= 0:
		err = r.fillOrWait(b, now, left, deadline)
	case pause <= 0:
		err = r.tick(b, 0)
	case pause > longPause:
		err = r.pauseParked(b, now.Add(pause-netpollGrain))
	case block():
		err = r.tick(b, max(pause-timerSlack, 1))
		unblock()
	default: // the netpoller's ticks would come late
		err = r.fillOrWait(b, now, left, deadline)
	}
	r.found = len(b.entries) > 0
	if r.losses != nil {
		r.lookForLosses(b)
	}
	// Whoever called wake until now did so for what the queue looks at next.
	r.woken.Store(false)
	return err
}

// lookForLosses notes in b what was lost since the last time.
func (r *libbpfRings) lookForLosses(b *batch) {
	before := r.lookedAt
	if len(r.maps) == 1 {
		ringC := r.ring(0)
		r.lookedAt.consumer, r.lookedAt.producer = uint64(ringC.consumer), uint64(ringC.producer)
	}
	lost, position := r.losses.look(before.consumer)
	if lost > 0 {
		// It happened when what was produced until the last time was there already. And
		// who writes to the map may write anything.
		position = min(max(position, before.producer), r.lookedAt.producer)
		if n := len(b.refused); n > 0 && len(b.entries) == 0 {
			b.refused[n-1].records += lost // not to grow while no sample comes
		} else {
			b.refused = append(b.refused, refused{position, lost})
		}
	}
}

// fillOrWait drains all that is there, or when the kernel notifies.
func (r *libbpfRings) fillOrWait(b *batch, now time.Time, left time.Duration, deadline time.Time) error {
	wait := min(left, r.blockFor-now.Sub(r.active))
	if left <= netpollGrain {
		wait = left
	}
	if wait > 0 && !block() {
		wait = 0
	}
	err := r.fill(b, wait)
	if wait > 0 {
		unblock()
	}
	if err == nil && len(b.entries) == 0 && left > 0 && !bool(r.c.woken) && !bool(r.c.full) && (wait <= 0 || bool(r.c.busy)) {
		if left > netpollGrain && !deadline.IsZero() {
			deadline = deadline.Add(-netpollGrain)
		}
		err = r.waitParked(b, deadline)
	}
	return err
}

// block reserves one of the threads that may be blocked, if there is one.
func block() bool {
	if blocked.Add(1) > int32(runtime.GOMAXPROCS(0)) {
		blocked.Add(-1)
		return false
	}
	return true
}

func unblock() { blocked.Add(-1) }

// fill drains into b, after a wait of at most the given duration if there is
// nothing to drain at first.
func (r *libbpfRings) fill(b *batch, wait time.Duration) error {
	buf, limit := r.room(b)
	// SAFETY: C keeps the pointer to buf, which holds no pointers, in *r.c, for the
	// duration of the call only. Goroutines that are about to find out that their
	// sample was taken may read buf meanwhile.
	return r.collect(b, C.cgo_ringbuf_poll(r.c, unsafe.Pointer(&buf[0]), C.size_t(len(buf)), C.size_t(limit), C.__s64(wait)))
}

// tick drains into b after a pause, and leaves the newest record in the ring unless
// it is the only one.
func (r *libbpfRings) tick(b *batch, pause time.Duration) error {
	buf, limit := r.room(b)
	// SAFETY: as in fill.
	return r.collect(b, C.cgo_ringbuf_tick(r.c, unsafe.Pointer(&buf[0]), C.size_t(len(buf)), C.size_t(limit), C.__s64(pause), C.bool(r.pace.long())))
}

// room returns memory of b to drain into, and about how much of it to fill.
func (r *libbpfRings) room(b *batch) (buf []byte, limit int) {
	if r.c.full {
		r.limit = min(2*r.limit, maxBatchSize)
	}
	if b.keeping {
		buf = b.room(minBatchSize, keptSize)
		return buf, min(r.limit, len(buf)-maxKept)
	}
	buf = b.room(r.limit+r.largest, r.limit+r.largest)
	return buf, r.limit
}

// collect completes b with what C drained into its memory.
func (r *libbpfRings) collect(b *batch, retC C.int) error {
	err := errnoOf(retC)
	if errors.Is(err, syscall.EUCLEAN) {
		ringC := r.c.at
		return fmt.Errorf("%s: consumer position is %d, expected %d (producer position %d): "+
			"the ring has another reader or is corrupt: %w",
			r.label(r.indexOf(ringC)), ringC.bad_consumer, ringC.consumer, ringC.producer, err)
	}
	if err != nil {
		return r.waitError(err)
	}
	if r.c.drained {
		ringC := r.c.at
		b.ring, b.producer, b.last = r.indexOf(ringC), uint64(ringC.producer), uint64(ringC.last)
		samples := uint64(r.c.samples)
		r.pace.note(time.Now(), drained{
			ring:    b.ring,
			moved:   uint64(r.c.moved),
			samples: samples,
			bytes:   uint64(r.c.filled+r.c.spilled) - samples*(entryHeaderSize-recordHeaderSize),
			more:    bool(r.c.full) || r.c.unticked > 0,
			idle:    bool(r.c.idle),
		})
	}
	b.entries = b.memory.bytes[b.used:][:r.c.filled]
	if r.c.spilled > 0 {
		// SAFETY: spill is valid for spilled bytes until the next call, and copied
		// here.
		spill := unsafe.Slice((*byte)(r.c.spill), r.c.spilled)
		all := slices.Concat(b.entries, spill)
		b.set(all, len(all))
		// From now on there is room for such a sample. Powers of two, so that this
		// does not happen often.
		r.largest = 1 << bits.Len(uint(len(spill)))
	}
	return nil
}

func (r *libbpfRings) waitError(err error) error {
	if errors.Is(err, syscall.EBADF) {
		return fmt.Errorf("%s: wait for samples: somebody closed a descriptor of this Reader, "+
			"or put another file in its place: %w", r.label(0), err)
	}
	return fmt.Errorf("%s: wait for samples: %w", r.label(0), err)
}

// waitParked drains into b as soon as there are samples. It waits in Go's
// netpoller, without an OS thread, until the deadline or wake. The netpoller is
// edge-triggered: a record that is reserved but not committed does not make it
// spin.
func (r *libbpfRings) waitParked(b *batch, deadline time.Time) error {
	// The netpoller is told of notifications only now: while poll blocks they
	// would wake a second thread each time, for nothing.
	if err := errnoOf(C.cgo_ringbuf_arm(r.c, true)); err != nil {
		return r.waitError(err)
	}
	defer C.cgo_ringbuf_arm(r.c, false)
	r.readyInto, r.readyErr = b, nil
	if err := r.park(deadline, r.onReady); err != nil {
		return err
	}
	return r.readyErr
}

// pauseParked waits in Go's netpoller until the given time or wake. If the kernel notifies
// before that while a ring fills up, it drains into b.
func (r *libbpfRings) pauseParked(b *batch, until time.Time) error {
	if !r.pace.long() {
		return r.park(until, func(uintptr) bool { return false })
	}
	if err := errnoOf(C.cgo_ringbuf_arm(r.c, true)); err != nil {
		return r.waitError(err)
	}
	err := r.park(until, r.onFilled)
	C.cgo_ringbuf_arm(r.c, false)
	if err == nil && bool(C.cgo_ringbuf_filled(r.c)) {
		err = r.tick(b, 0)
	}
	return err
}

// park waits in Go's netpoller until ready reports true, the deadline or wake.
func (r *libbpfRings) park(deadline time.Time, ready func(uintptr) bool) error {
	err := r.parkFile.SetReadDeadline(deadline)
	// In this order: if wake comes later, its deadline is the one that counts.
	if err == nil && !r.woken.Load() {
		r.readies = 0
		err = r.parked.Read(ready)
		// The first was before the wait.
		if err == nil && r.readies > 1 {
			r.parkedWakeups.Add(1)
		}
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return r.waitError(err)
	}
	return nil
}

// wake implements rings. To end a parked wait it needs no descriptor, since anybody in
// this process may close one by mistake.
func (r *libbpfRings) wake() {
	r.woken.Store(true)
	// It fails only when the eventfd is closed or no eventfd. Then the wait that blocks
	// ends by itself, after blockFor at most.
	C.cgo_ringbuf_wake(r.c)
	r.parkFile.SetReadDeadline(time.Unix(0, 1)) // ends one that is parked
}

// label names a map in an error.
func (r *libbpfRings) label(i int) string {
	if len(r.maps) > 1 {
		return fmt.Sprintf("map %d, %q", i, r.maps[i].name)
	}
	return fmt.Sprintf("map %q", r.maps[i].name)
}

// indexOf returns the index of a ring that C knows.
func (r *libbpfRings) indexOf(ringC *C.struct_cgo_ring) int {
	// SAFETY: both point into the array of len(r.maps) rings, which is there until close.
	return int((uintptr(unsafe.Pointer(ringC)) - uintptr(unsafe.Pointer(r.c.rings))) / unsafe.Sizeof(*ringC))
}

// ring returns the ring of an index.
func (r *libbpfRings) ring(i int) *C.struct_cgo_ring {
	// SAFETY: as in indexOf.
	return &unsafe.Slice(r.c.rings, len(r.maps))[i]
}

func (r *libbpfRings) drainedTo(i int) uint64 {
	if ringC := r.ring(i); bool(ringC.begun) {
		return uint64(ringC.consumer)
	}
	return r.consumerPos(i)
}

func (r *libbpfRings) consumerPos(i int) uint64 { return uint64(C.cgo_ringbuf_consumer(r.c, C.int(i))) }
func (r *libbpfRings) producerPos(i int) uint64 { return uint64(C.cgo_ringbuf_producer(r.c, C.int(i))) }

func (r *libbpfRings) sizes() (sizes []int) {
	for _, info := range r.maps {
		sizes = append(sizes, int(info.size))
	}
	return sizes
}

// stats implements rings.
func (r *libbpfRings) stats() Stats {
	var drainsC, wakeupsC, ticksC C.__u64
	C.cgo_ringbuf_counters(r.c, &drainsC, &wakeupsC, &ticksC)
	s := Stats{
		Rings:   make([]RingStats, len(r.maps)),
		Drains:  uint64(drainsC),
		Wakeups: uint64(wakeupsC) + r.parkedWakeups.Load(),
		Ticks:   uint64(ticksC),
	}
	if r.losses != nil {
		s.Lost = r.losses.lost()
	}
	for i, info := range r.maps {
		var c C.struct_cgo_ring_counters
		C.cgo_ringbuf_ring_counters(r.c, C.int(i), &c)
		s.Rings[i] = RingStats{
			Name:      info.name,
			Size:      int(info.size),
			Samples:   uint64(c.samples),
			Bytes:     uint64(c.bytes),
			Discarded: uint64(c.discarded),
			Highest:   int(c.highest),
		}
	}
	return s
}

// close implements rings.
func (r *libbpfRings) close() error {
	var err error
	if r.parkFile != nil {
		err = r.parkFile.Close()
	}
	C.cgo_ringbuf_free(r.c)
	return errors.Join(err, r.closeLosses())
}

func (r *libbpfRings) closeLosses() error {
	if r.losses == nil {
		return nil
	}
	return r.losses.close()
}

// openPinned returns a new descriptor of the ring buffer that is pinned at path.
func openPinned(path string) (fd int, err error) {
	pathC, err := syscall.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	// SAFETY: pathC ends with 0, and C and the kernel read it during the call only.
	return checked(C.cgo_ringbuf_open_pinned((*C.char)(unsafe.Pointer(pathC))))
}

// openID returns a new descriptor of the ring buffer with this id.
func openID(id uint32) (fd int, err error) { return checked(C.cgo_ringbuf_open_id(C.__u32(id))) }

// checked returns a descriptor that C opened if it is one of a ring buffer that can be
// read, or of a loss counter, and else closes it.
func checked(fdC C.int) (fd int, err error) {
	if err := errnoOf(fdC); err != nil {
		return -1, err
	}
	info, err := infoOf(fdC)
	if err == nil && info.checkCounter() != nil {
		err = info.check()
	}
	if err != nil {
		syscall.Close(int(fdC))
		return -1, err
	}
	return int(fdC), nil
}
