// Package sysbpf has the system call number of bpf(2).
package sysbpf

import "runtime"

// Number returns the system call number of bpf(2). Package syscall does not have it for every
// processor: see the kernel's arch/*/kernel/syscalls/ and include/uapi/asm-generic/unistd.h.
func Number() uintptr {
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
