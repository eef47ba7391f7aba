//go:build linux

package ringbuf

// The door to C is the one file that imports "C". It wraps ringbuf_cgo*.c and decides nothing. The
// #cgo line with pkg-config must be the last one: gazelle ignores that line and what follows it.

/*
#cgo CFLAGS: -O2 -Wall
#cgo LDFLAGS: -lelf -lz
#cgo noescape cgo_ringbuf_consume
#cgo nocallback cgo_ringbuf_consume
#cgo noescape cgo_ringbuf_skip
#cgo nocallback cgo_ringbuf_skip
#cgo noescape cgo_ringbuf_wait
#cgo nocallback cgo_ringbuf_wait
#cgo nocallback cgo_ringbuf_pause
#cgo nocallback cgo_ringbuf_ready
#cgo nocallback cgo_ringbuf_ready_ring
#cgo nocallback cgo_ringbuf_produced
#cgo nocallback cgo_ringbuf_wake
#cgo nocallback cgo_ringbuf_arm
#cgo nocallback cgo_ringbuf_wakeups
#cgo noescape cgo_writer_write
#cgo nocallback cgo_writer_write
#cgo noescape cgo_writer_reserve
#cgo nocallback cgo_writer_reserve
#cgo nocallback cgo_writer_submit
#cgo nocallback cgo_writer_discard
#cgo nocallback cgo_writer_arm
#cgo libbpf_pkgconfig pkg-config: libbpf libelf zlib
#include "ringbuf_cgo.h"
*/
import "C"

import (
	"syscall"
	"time"
	"unsafe"
)

// C and Go agree on the size of an entry's header.
var _ = [1]struct{}{}[C.sizeof_struct_cgo_ringbuf_entry-entryHeaderSize]

// A door is an open struct cgo_ringbuf. The comments in ringbuf_cgo.h say what the methods do and
// which calls may overlap.
type door struct {
	c     *C.struct_cgo_ringbuf
	rings []C.struct_cgo_ring
}

type listening uint32

const (
	deaf        listening = C.CGO_DEAF
	untilEighth listening = C.CGO_EIGHTH
	untilAny    listening = C.CGO_ANY
)

func errnoOf(retC C.int) error {
	if retC >= 0 {
		return nil
	}
	return syscall.Errno(-retC)
}

// openDoor opens the rings of maps. On failure it also returns the index of the map, or -1, and the
// step that failed.
func openDoor(fds []int, maps []mapInfo, own bool) (d door, failed int, step string, err error) {
	fdsC, sizesC := make([]C.int, len(fds)), make([]C.__u64, len(fds))
	for i, fd := range fds {
		fdsC[i], sizesC[i] = C.int(fd), C.__u64(maps[i].size)
	}
	var stepC *C.char
	var failedC C.int
	err = errnoOf(C.cgo_ringbuf_open(&fdsC[0], &sizesC[0], C.int(len(fds)), C.bool(own),
		&d.c, &failedC, &stepC))
	if err != nil {
		return d, int(failedC), C.GoString(stepC), err
	}
	// SAFETY: C has an array of that many rings, until free.
	d.rings = unsafe.Slice(d.c.rings, len(fds))
	return d, 0, "", nil
}

func (d door) free() { C.cgo_ringbuf_free(d.c) }

// view returns the mapping of ring i, which is valid until free.
func (d door) view(i int) ring {
	c := &d.rings[i]
	return ring{
		size:        uint64(c.size),
		data:        c.data,
		consumerPos: (*uint64)(unsafe.Pointer(c.consumer_pos)),
		producerPos: (*uint64)(unsafe.Pointer(c.producer_pos)),
	}
}

// consumed returns the position before which all records of ring i were consumed.
func (d door) consumed(i int) uint64         { return uint64(d.rings[i].consumer) }
func (d door) setConsumed(i int, pos uint64) { d.rings[i].consumer = C.__u64(pos) }

// setProducer tells C the producer position of ring i at the last look.
func (d door) setProducer(i int, producer uint64) { d.rings[i].producer = C.__u64(producer) }

func (d door) badPosition(i int) uint64 { return uint64(d.rings[i].bad) }
func (d door) samples(i int) uint64     { return uint64(d.rings[i].samples) }
func (d door) bytes(i int) uint64       { return uint64(d.rings[i].bytes) }
func (d door) discards(i int) uint64    { return uint64(d.rings[i].discards) }

// bufferC returns no unsafe.Pointer, because for one cgo checks at each call whether it points to
// pointers.
func bufferC(buf []byte) (*C.__u8, C.size_t) {
	return (*C.__u8)(unsafe.SliceData(buf)), C.size_t(len(buf))
}

// consume consumes the samples of a window, and copies them unless buf is nil.
//
// SAFETY, here and below: buf holds no pointers. C keeps the pointer to buf in *d.c, but uses it
// during the call only. Meanwhile other goroutines may read buf. They will find that their sample
// was taken.
func (d door) consume(i, samples int, end uint64, buf []byte) error {
	bufC, capC := bufferC(buf)
	return errnoOf(C.cgo_ringbuf_consume(d.c, C.int(i), C.__u64(samples), C.__u64(end), bufC, capC))
}

func (d door) skip(i, discards int, end uint64, buf []byte) error {
	bufC, capC := bufferC(buf)
	return errnoOf(C.cgo_ringbuf_skip(d.c, C.int(i), C.__u64(discards), C.__u64(end), bufC, capC))
}

func (d door) wait(timeout time.Duration, buf []byte) error {
	bufC, capC := bufferC(buf)
	return errnoOf(C.cgo_ringbuf_wait(d.c, C.__s64(timeout), bufC, capC))
}

func (d door) pause(pause time.Duration, l listening) error {
	return errnoOf(C.cgo_ringbuf_pause(d.c, C.__s64(pause), uint32(l)))
}

// filled returns the number of bytes of its buffer that the last call filled.
func (d door) filled() int { return int(d.c.batch.filled) }

// large returns a copy of the only entry of the last call, if the buffer was too small for it.
func (d door) large() []byte {
	if d.c.batch.large == nil {
		return nil
	}
	defer C.cgo_ringbuf_drop(d.c)
	// SAFETY: it has that many bytes until cgo_ringbuf_drop, which comes after the copy.
	return append([]byte(nil), unsafe.Slice((*byte)(d.c.batch.large), d.c.batch.large_size)...)
}

func (d door) tooLarge() uint64 { return uint64(d.c.batch.too_large) }

// at returns the index of the ring whose sample the last wait put into the batch, or -1.
func (d door) at() int {
	if d.c.at == nil {
		return -1
	}
	// SAFETY: both point into the array of rings.
	offset := uintptr(unsafe.Pointer(d.c.at)) - uintptr(unsafe.Pointer(d.c.rings))
	return int(offset / unsafe.Sizeof(*d.c.at))
}

func (d door) woken() bool               { return bool(d.c.woken) }
func (d door) busy() bool                { return bool(d.c.busy) }
func (d door) ready() bool               { return bool(C.cgo_ringbuf_ready(d.c)) }
func (d door) readyRing(i int) bool      { return bool(C.cgo_ringbuf_ready_ring(d.c, C.int(i))) }
func (d door) produced(l listening) bool { return bool(C.cgo_ringbuf_produced(d.c, uint32(l))) }
func (d door) arm(armed bool) error      { return errnoOf(C.cgo_ringbuf_arm(d.c, C.bool(armed))) }
func (d door) wakeups() uint64           { return uint64(C.cgo_ringbuf_wakeups(d.c)) }

// wake fails only if the eventfd is closed or another file. Then a blocked wait ends by itself.
func (d door) wake() { C.cgo_ringbuf_wake(d.c) }

// dupParkFD returns a duplicate of the descriptor that becomes readable when it is armed and the
// kernel notifies.
func (d door) dupParkFD() (int, error) { return dup(int(d.c.park_fd)) }

// A writerDoor is an open struct cgo_writer. The comments in ringbuf_cgo.h say what the methods do
// and which calls may overlap.
type writerDoor struct{ c *C.struct_cgo_writer }

// openWriterDoor opens the user ring buffer fd. On success it owns fd. On failure it also returns
// the step that failed.
func openWriterDoor(fd int, size uint64, repair bool) (d writerDoor, step string, err error) {
	var stepC *C.char
	err = errnoOf(C.cgo_writer_open(C.int(fd), C.__u64(size), C.bool(repair), &d.c, &stepC))
	if err != nil {
		return d, C.GoString(stepC), err
	}
	return d, "", nil
}

func (d writerDoor) close()          { C.cgo_writer_close(d.c) }
func (d writerDoor) free()           { C.cgo_writer_free(d.c) }
func (d writerDoor) parkFD() int     { return int(d.c.park_fd) }
func (d writerDoor) busy() uint64    { return uint64(d.c.busy) }
func (d writerDoor) written() uint64 { return uint64(d.c.producer) }

// positions returns the mapping of the positions, which is valid until close.
func (d writerDoor) positions() (consumer, producer *uint64) {
	return (*uint64)(unsafe.Pointer(d.c.consumer_pos)), (*uint64)(unsafe.Pointer(d.c.producer_pos))
}

// write writes a sample.
//
// SAFETY: C reads sample during the call only. The pointer that is passed as a number is to memory
// of C.
func (d writerDoor) write(sample []byte) error {
	fromC, lenC := bufferC(sample)
	return errnoOf(C.cgo_writer_write(C.uintptr_t(uintptr(unsafe.Pointer(d.c))), fromC, lenC))
}

func (d writerDoor) reserve(n int) (lib uintptr, offset uint64, err error) {
	var libC C.uintptr_t
	var offsetC C.__u64
	err = errnoOf(C.cgo_writer_reserve(d.c, C.size_t(n), &libC, &offsetC))
	return uintptr(libC), uint64(offsetC), err
}

// lent returns the n bytes of a reservation.
//
// SAFETY: view has the data twice in a row, so all n bytes are in it. It stays until free.
func (d writerDoor) lent(offset uint64, n int) []byte {
	return unsafe.Slice((*byte)(unsafe.Add(d.c.view, offset)), n)
}

func (d writerDoor) submit(lib uintptr)   { C.cgo_writer_submit(d.c, C.uintptr_t(lib)) }
func (d writerDoor) discard(lib uintptr)  { C.cgo_writer_discard(d.c, C.uintptr_t(lib)) }
func (d writerDoor) detach() error        { return errnoOf(C.cgo_writer_detach(d.c)) }
func (d writerDoor) arm(armed bool) error { return errnoOf(C.cgo_writer_arm(d.c, C.bool(armed))) }
