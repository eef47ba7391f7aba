// Package ringbuf reads BPF ring buffers (BPF_MAP_TYPE_RINGBUF) in programs that use
// github.com/aquasecurity/libbpfgo. It is built on the ring_buffer API of libbpf.
//
// A [Reader] returns the records of a ring in order, each exactly once. It replaces libbpfgo's
// Module.InitRingBuf and its channel. Any number of goroutines may read. Deadlines, [Reader.Flush]
// and [Reader.Close] interrupt a call that is waiting. Choose how to read:
//
//   - [Reader.Records] is a loop over samples in the ring's own memory, without a copy. A process
//     that is killed loses nothing. [Samples] is the same loop over values of a type.
//   - [Reader.Merged] is a loop over the records of several rings in the order of a key, such as
//     time.
//   - [Reader.Lease] lends records in the ring's own memory, until the caller commits them.
//   - [Reader.Read] and [Reader.ReadContext] return a copy that the caller may keep.
//     [Reader.ReadInto] and [Reader.TryReadInto] copy into the caller's memory.
//
// Lent memory can only be read: a program that writes to it crashes.
//
// While samples flow, a Reader drains the ring on a timer, and the kernel sends no notifications.
// So reading costs the traced workload almost nothing. See [WithMaxDelay].
//
// [NewMultiReader] reads several rings, for example one for each CPU. [WithLossCounter] reports
// records that the kernel refused. [Reader.Stats] says what a Reader has done. [As] views a sample
// as a Go struct.
//
// A [Watcher] looks at a ring beside its reader and consumes nothing. A [Writer] writes into a user
// ring buffer (BPF_MAP_TYPE_USER_RINGBUF), which a BPF program drains.
//
// # Building
//
// The package needs cgo and libbpf 1.3 or newer, static or shared. Like libbpfgo, it finds libbpf
// through CGO_CFLAGS and CGO_LDFLAGS, or through pkg-config with the build tag libbpf_pkgconfig. In
// a checkout of this package
//
//	eval "$(make -s env)"
//
// builds a static libbpf and sets both variables, for libbpfgo too.
//
// Programs that import the package compile without cgo, and on other systems than Linux. There
// NewReader, NewMultiReader and NewWriter return an error that wraps errors.ErrUnsupported.
// OpenMap, OpenMapID, As and NewWatcher work on Linux without cgo.
package ringbuf
