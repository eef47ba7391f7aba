package ringbuf

import (
	"syscall"
	"unsafe"

	"github.com/libbpfgo/ringbuf/internal/sysbpf"
)

// System calls that package syscall does not have.

// Commands of enum bpf_cmd in include/uapi/linux/bpf.h.
const (
	bpfObjGet         = 7
	bpfMapGetFDByID   = 14
	bpfObjGetInfoByFD = 15
)

// bpfCommand calls bpf(2), which takes what is missing at the end of attr for 0.
func bpfCommand(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	n, _, errno := syscall.Syscall(sysbpf.Number(), cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// dup returns a duplicate of a descriptor, which is close-on-exec.
func dup(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
