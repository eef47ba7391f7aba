package tail

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// ProgramBTF returns the BTF of a loaded program, or nil if the program has none or is gone. It
// needs CAP_SYS_ADMIN.
func ProgramBTF(id uint32) ([]byte, error) {
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // gone already
	}
	if err != nil {
		return nil, fmt.Errorf("open program %d: %w", id, err)
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	btfID, ok := info.BTFID()
	if !ok || btfID == 0 {
		return nil, nil
	}
	handle, err := btf.NewHandleFromID(btfID)
	if err != nil {
		return nil, fmt.Errorf("open the BTF of program %d: %w", id, err)
	}
	defer handle.Close()
	raw, err := rawBTF(handle.FD())
	if err != nil {
		return nil, fmt.Errorf("read the BTF of program %d: %w", id, err)
	}
	return raw, nil
}

// rawBTF returns the BTF of a descriptor.
func rawBTF(fd int) ([]byte, error) {
	// struct bpf_btf_info and, below, the part of union bpf_attr for BPF_OBJ_GET_INFO_BY_FD, of
	// include/uapi/linux/bpf.h.
	info := new(struct {
		btf       uint64
		size, id  uint32
		name      uint64
		nameLen   uint32
		kernelBTF uint32
	})
	var pin runtime.Pinner // a stack may move, and addresses in integers do not follow
	defer pin.Unpin()
	pin.Pin(info)
	attr := struct {
		fd, infoLen uint32
		info        uint64
	}{uint32(fd), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	get := func() error {
		// SAFETY: the kernel uses the addresses in attr and info during the call only. The memory
		// at these addresses stays where it is until Unpin.
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD,
			uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		if errno != 0 {
			return errno
		}
		return nil
	}
	if err := get(); err != nil { // gets the size
		return nil, err
	}
	raw := make([]byte, info.size)
	if len(raw) == 0 {
		return nil, nil
	}
	pin.Pin(&raw[0])
	info.btf, info.name, info.nameLen = uint64(uintptr(unsafe.Pointer(&raw[0]))), 0, 0
	err := get()
	return raw[:min(len(raw), int(info.size))], err
}
