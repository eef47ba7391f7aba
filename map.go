package ringbuf

// A Map is a BPF map: a ring buffer (BPF_MAP_TYPE_RINGBUF), or the loss counter of
// WithLossCounter. *libbpfgo.BPFMap, *libbpfgo.BPFMapLow, *MapHandle and FD are Maps. What
// is given one keeps it from being garbage until it has duplicated the descriptor.
type Map interface {
	FileDescriptor() int
}

// FD is a Map given by its bare file descriptor, for example one that was
// received from another process.
type FD int

// FileDescriptor returns fd.
func (fd FD) FileDescriptor() int { return int(fd) }
