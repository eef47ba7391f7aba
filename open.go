package ringbuf

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
)

// A MapHandle is a Map that owns its descriptor. Any number of goroutines may call its methods at
// the same time.
type MapHandle struct {
	fd      atomic.Int64
	cleanup runtime.Cleanup
}

// OpenMap returns a handle of the ring buffer or loss counter that is pinned at path, in a BPF file
// system (bpffs). It needs permission to read and write the file, and the privileges that NewReader
// needs.
//
// The error names path and wraps the errno:
//
//   - ENOENT: there is no such file.
//   - EPERM: CAP_BPF is missing.
//   - EACCES: the file may not be read or written, a directory may not be searched, or path is not
//     a pinned object. The text says which.
//
// OpenMap also fails if the pinned object is not a map, or is a map that NewReader and NewWatcher
// refuse.
func OpenMap(path string) (*MapHandle, error) {
	fd, err := openPinned(path)
	if err != nil {
		return nil, fmt.Errorf("ringbuf: open %q: %w", path, err)
	}
	return newMapHandle(fd), nil
}

// OpenMapID returns a handle of the ring buffer or loss counter with this id, which bpftool map
// shows. It needs CAP_SYS_ADMIN (bpf_map_get_fd_by_id() in kernel/bpf/syscall.c), because it
// bypasses all file permissions.
//
// The error names the id and wraps the errno: ENOENT if there is no such map, EPERM if the
// capability is missing. OpenMapID also fails if NewReader and NewWatcher refuse the map.
func OpenMapID(id uint32) (*MapHandle, error) {
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

// FileDescriptor returns the descriptor of the map, or -1 after Close. The descriptor is
// close-on-exec. It is valid until Close, and only while h is reachable. Keep h alive while you use
// the bare descriptor.
func (h *MapHandle) FileDescriptor() int { return int(h.fd.Load()) }

// Close closes the descriptor. Readers of the map do not need it any more. Further calls do nothing
// and return nil. If the handle is dropped without Close, the descriptor is closed after a garbage
// collection.
func (h *MapHandle) Close() error {
	h.cleanup.Stop()
	if fd := h.fd.Swap(-1); fd >= 0 {
		return closeFD(int(fd))
	}
	return nil
}
