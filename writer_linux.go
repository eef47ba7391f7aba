//go:build linux && cgo

package ringbuf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libbpfgo/ringbuf/internal/testrun"
)

// maxDynptr is DYNPTR_MAX_SIZE in kernel/bpf/helpers.c. With a larger sample in the ring, every
// drain fails.
const maxDynptr = 1<<24 - 1

const (
	errFull  = syscall.ENOSPC
	errMoved = syscall.EUCLEAN
)

// A userRing is a user ring buffer that libbpf's user_ring_buffer writes to. Calls of its methods
// must not overlap, except where a comment says "at any time".
type userRing struct {
	door      writerDoor
	id        uint32
	name      string
	size      uint64
	maxSample int
	repaired  uint64

	// These are mapped until close.
	consumerPos, producerPos *uint64

	file   *os.File // epoll instance; readable when it is armed and the kernel notifies
	parked syscall.RawConn
	others func() string
}

func openUserRing(m Map, repair bool) (*userRing, error) {
	fd, info, err := dupMap(m, mapInfo.checkUser)
	if err != nil {
		return nil, err
	}
	r := &userRing{id: info.id, name: info.name, size: uint64(info.size)}
	r.maxSample = min(int(info.size)-recordHeaderSize, maxDynptr)
	r.others = sync.OnceValue(func() string { return otherHolders(r.id) })
	var step string
	r.door, step, err = openWriterDoor(fd, r.size, repair)
	switch {
	case errors.Is(err, syscall.EUCLEAN):
		syscall.Close(fd)
		return nil, fmt.Errorf("map %q of type user_ringbuf: %s: the ring is corrupt, and the kernel "+
			"drains nothing more of it: make the map anew: %w%s", r.name, step, err, r.others())
	case errors.Is(err, syscall.EBUSY):
		syscall.Close(fd)
		return nil, fmt.Errorf("map %q of type user_ringbuf: %s: somebody else is writing to the "+
			"ring, which only one Writer at a time may: %w%s", r.name, step, err, r.others())
	case err != nil:
		syscall.Close(fd)
		return nil, fmt.Errorf("map %q of type user_ringbuf: %s, through a descriptor that must be "+
			"for reading and writing: %w", r.name, step, err)
	}
	r.consumerPos, r.producerPos = r.door.positions()
	busy := r.door.busy()
	if repair {
		r.repaired = busy
	}
	err = r.openPark()
	if err == nil && busy > 0 && !repair {
		err = fmt.Errorf("map %q has %d records that another Writer has reserved and not submitted, "+
			"at which the kernel's drain stops: if that Writer's process is dead, WithRepair discards "+
			"them: %w%s", r.name, busy, syscall.EBUSY, r.others())
	}
	if err != nil {
		r.close()
		r.free()
		return nil, err
	}
	return r, nil
}

func (r *userRing) openPark() (err error) {
	r.file = os.NewFile(uintptr(r.door.parkFD()), "ringbuf")
	r.parked, err = r.file.SyscallConn()
	if err == nil {
		// An error of this is the only sign that os.NewFile could not add it to the netpoller.
		err = r.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return fmt.Errorf("map %q of type user_ringbuf: add to netpoller: %w", r.name, err)
	}
	return nil
}

// checkUser returns an error if a Writer cannot write to the map.
func (i mapInfo) checkUser() error {
	if i.kind == mapTypeUserRingbuf {
		return nil
	}
	err := fmt.Errorf("map %q has type %v, not user_ringbuf", i.name, i.kind)
	if i.kind == mapTypeRingbuf {
		err = fmt.Errorf("%w: a ringbuf is read, by a Reader", err)
	}
	if release, old := olderThan61(); old {
		err = fmt.Errorf("%w: user ring buffers need Linux 6.1, and this is %s: %w", err, release,
			errors.ErrUnsupported)
	}
	return err
}

// olderThan61 reports whether this kernel has no user ring buffers, by its version number.
func olderThan61() (release string, old bool) {
	var uts syscall.Utsname
	if err := syscall.Uname(&uts); err != nil {
		return "", false
	}
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		release += string(rune(byte(c)))
	}
	return release, releaseOlderThan61(release)
}

func releaseOlderThan61(release string) bool {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major < 6 || major == 6 && minor < 1
}

// otherHolders names other processes that have a descriptor of the map, as far as procfs shows
// them. This process has one in any case.
func otherHolders(id uint32) string {
	others, _ := findHolders([]uint32{id}, maxLooks)
	if len(others) == 0 {
		return ""
	}
	return "; the map is also open in " + strings.Join(atMost(maxHolders, others[id]), ", ")
}

// write writes a record with a copy of sample. It returns errFull if there is no room.
func (r *userRing) write(sample []byte) error { return r.door.write(sample) }

func (r *userRing) reserve(l *lent) (err error) {
	l.lib, l.offset, err = r.door.reserve(l.n)
	if err == syscall.ENOMEM {
		err = fmt.Errorf("mmap for reservations: %w", err)
	}
	return err
}

func (r *userRing) bytesOf(l *lent) []byte { return r.door.lent(l.offset, l.n)[:l.n:l.n] }
func (r *userRing) submit(l *lent)         { r.door.submit(l.lib) }
func (r *userRing) discard(l *lent)        { r.door.discard(l.lib) }
func (r *userRing) detach() error          { return r.door.detach() }

// fill, room and sound only look at the positions. They may be called at any time until close.

// fill returns the number of bytes that the kernel has not drained.
func (r *userRing) fill() int { return int(r.size - r.room()) }

// room returns the number of free bytes.
func (r *userRing) room() uint64 {
	// In this order, the real consumer position is never behind the one that is subtracted.
	consumer := atomic.LoadUint64(r.consumerPos)
	used := atomic.LoadUint64(r.producerPos) - consumer
	return r.size - min(used, r.size)
}

// sound reports whether the producer position is where this Writer left it.
func (r *userRing) sound() bool { return atomic.LoadUint64(r.producerPos) == r.door.written() }

// arm sets whether file becomes readable when the kernel notifies of a drain. At any time.
func (r *userRing) arm(armed bool) error { return r.door.arm(armed) }

func (r *userRing) close() {
	r.file.Close()
	r.door.close()
}

// free frees the memory of reservations. It must be called after close.
func (r *userRing) free() { r.door.free() }

func (r *userRing) tooLarge(n int) error {
	switch {
	case n < 0:
		return fmt.Errorf("ringbuf: writer: a sample of %d bytes: %w", n, syscall.EINVAL)
	case r.maxSample == maxDynptr:
		return fmt.Errorf("ringbuf: writer: a sample of %d bytes is too large: the kernel hands at most "+
			"%d to a program: %w", n, r.maxSample, syscall.E2BIG)
	}
	return fmt.Errorf("ringbuf: writer: a sample of %d bytes is too large: map %q, of %d bytes, has "+
		"room for %d, beside a header of %d: %w", n, r.name, r.size, r.maxSample, recordHeaderSize,
		syscall.E2BIG)
}

// explain returns err, of write, reserve or arm, with what it means.
func (r *userRing) explain(err error) error {
	switch {
	case errors.Is(err, syscall.EUCLEAN):
		return fmt.Errorf("map %q: the producer position is not where this Writer left it: somebody "+
			"else writes to the ring, which only one Writer at a time may: %w%s", r.name, err, r.others())
	case errors.Is(err, syscall.EBADF):
		return fmt.Errorf("map %q: wait for room: somebody closed a descriptor of this Writer, or put "+
			"another file in its place: %w", r.name, err)
	}
	return fmt.Errorf("map %q: %w", r.name, err)
}

// maxDrained is BPF_MAX_USER_RINGBUF_SAMPLES of include/linux/bpf.h: the most records that one call
// of bpf_user_ringbuf_drain takes.
const maxDrained = 128 << 10

func newProgramDrainer(prog Program) (*drainer, error) {
	if prog == nil {
		return nil, errors.New("WithDrainProgram without a program")
	}
	given := prog.FileDescriptor()
	fd, err := dup(given)
	runtime.KeepAlive(prog)
	if err != nil {
		return nil, fmt.Errorf("drain program: descriptor %d: %w", given, err)
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && target != "anon_inode:bpf-prog" {
		syscall.Close(fd)
		return nil, fmt.Errorf("drain program: descriptor %d: %s is not a BPF program", given, target)
	}
	attr := &testrun.Attr{ProgFD: uint32(fd)}
	d := &drainer{release: func() { syscall.Close(fd) }}
	d.call = func() error { return runDrainProgram(attr, d.ring) }
	return d, nil
}

// runDrainProgram runs the program of attr until it has drained everything that was submitted
// before.
func runDrainProgram(attr *testrun.Attr, ring *userRing) error {
	const patience = time.Second
	var busy time.Time // since when
	end := atomic.LoadUint64(ring.producerPos)
	for pause := 10 * time.Microsecond; ; {
		before := atomic.LoadUint64(ring.consumerPos)
		if err := attr.Run(); err != nil {
			return fmt.Errorf("ringbuf: writer: run drain program: %w", err)
		}
		switch n := int32(attr.Retval); {
		case n >= 0:
			// The program may not count discarded records, but the kernel's limit does.
			after := atomic.LoadUint64(ring.consumerPos)
			if after-before < maxDrained*recordHeaderSize || int64(end-after) <= 0 {
				return nil
			}
			busy = time.Time{}
			continue
		case syscall.Errno(-n) != syscall.EBUSY:
			return fmt.Errorf("ringbuf: writer: the drain program returned %d: %w", n, syscall.Errno(-n))
		}
		if busy.IsZero() {
			busy = time.Now()
		} else if time.Since(busy) > patience {
			return fmt.Errorf("ringbuf: writer: the drain program found for %v that the ring is being "+
				"drained elsewhere: %w", patience, syscall.EBUSY)
		}
		time.Sleep(pause)
		pause = min(2*pause, 10*time.Millisecond)
	}
}
