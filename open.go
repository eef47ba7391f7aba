package ringbuf

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
)

// A MapHandle is a Map with a descriptor of its own, which it closes. All of its methods
// may be called by any number of goroutines at once.
type MapHandle struct {
	fd      atomic.Int64
	cleanup runtime.Cleanup
}

// Open returns a handle of the ring buffer, or loss counter, that is pinned at path, in a BPF
// file system (bpffs). That takes permission to read and write the file, and otherwise what
// NewReader takes.
//
// The error names path and wraps the errno: ENOENT if there is no file, EPERM where CAP_BPF is
// missing, and EACCES, with which of these it is, if permission to read or write the file is
// missing, a directory cannot be searched, or path is no pinned object. It is an error, too, if
// what is pinned there is no map, or one that NewReader and
// NewWatcher refuse.
func Open(path string) (*MapHandle, error) {
	fd, err := openPinned(path)
	if err != nil {
		return nil, fmt.Errorf("ringbuf: open %q: %w", path, err)
	}
	return newMapHandle(fd), nil
}

// OpenID returns a handle of the ring buffer, or loss counter, with this id, as bpftool shows
// it, for as long as the map exists. It takes CAP_SYS_ADMIN (bpf_map_get_fd_by_id() in
// kernel/bpf/syscall.c), since it passes by the permissions of all files.
//
// The error names the id and wraps the errno: ENOENT if there is no such map, EPERM where the
// capability is missing. It is an error, too, if the map is one that NewReader and NewWatcher
// refuse.
func OpenID(id uint32) (*MapHandle, error) {
	fd, err := openID(id)
	if errors.Is(err, syscall.EPERM) {
		err = fmt.Errorf("CAP_SYS_ADMIN is needed: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("ringbuf: open map with id %d: %w", id, err)
	}
	return newMapHandle(fd), nil
}

func newMapHandle(fd int) *MapHandle {
	h := &MapHandle{}
	h.fd.Store(int64(fd))
	h.cleanup = runtime.AddCleanup(h, func(fd int) { closeFD(fd) }, fd)
	return h
}

// FileDescriptor returns the descriptor of the map, which is close-on-exec, or -1 after
// Close. It is valid until Close, and until h is garbage: whoever passes it on bare, to
// something else than NewReader, keeps h for as long.
func (h *MapHandle) FileDescriptor() int { return int(h.fd.Load()) }

// Close closes the descriptor. A Reader that NewReader has returned goes on without it.
// Further calls do nothing and return nil. If the handle is dropped without a Close, the
// descriptor is closed after the garbage collector has found out.
func (h *MapHandle) Close() error {
	h.cleanup.Stop()
	if fd := h.fd.Swap(-1); fd >= 0 {
		return closeFD(int(fd))
	}
	return nil
}
