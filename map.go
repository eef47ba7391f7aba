package ringbuf

// A Map is a BPF map: a ring buffer (BPF_MAP_TYPE_RINGBUF), a user ring buffer
// (BPF_MAP_TYPE_USER_RINGBUF) or the loss counter of [WithLossCounter]. *libbpfgo.BPFMap,
// *libbpfgo.BPFMapLow, *MapHandle and FD implement Map. Functions that take a Map keep it alive
// until they have duplicated its descriptor.
type Map interface {
	FileDescriptor() int
}

// FD is a Map that is given by its file descriptor, for example one that another process has sent.
type FD int

// FileDescriptor returns fd.
func (fd FD) FileDescriptor() int { return int(fd) }
