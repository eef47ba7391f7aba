package ringbuf

import (
	"runtime"
	"syscall"
	"unsafe"
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
	n, _, errno := syscall.Syscall(bpfNumber(), cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// bpfNumber returns the number of bpf(2), which package syscall does not have for every
// processor: see the kernel's arch/*/kernel/syscalls/ and include/uapi/asm-generic/unistd.h.
func bpfNumber() uintptr {
	switch runtime.GOARCH {
	case "386":
		return 357
	case "amd64":
		return 321
	case "arm":
		return 386
	case "mips", "mipsle":
		return 4355
	case "mips64", "mips64le":
		return 5315
	case "ppc64", "ppc64le":
		return 361
	case "s390x":
		return 351
	default: // arm64, loong64, riscv64
		return 280
	}
}

// dup returns a duplicate of a descriptor, which is close-on-exec.
func dup(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
