// Package ringbuf reads BPF ring buffers (BPF_MAP_TYPE_RINGBUF) in programs that use
// github.com/aquasecurity/libbpfgo. It is built on the ring_buffer API of libbpf.
//
// A [Reader] replaces libbpfgo's Module.InitRingBuf and its channel. It returns the records of a
// ring in order, each exactly once. Any number of goroutines may read. Deadlines,
// [Reader.Flush] and [Reader.Close] interrupt a call that is waiting.
//
// Choose how to read:
//
//   - [Reader.Records] is a loop over samples in the ring's own memory, without a copy. A process
//     that is killed loses nothing. [Samples] is the same loop over values of a type.
//   - [Reader.Merged] is a loop over the records of several rings, in the order of a key such as
//     time.
//   - [Reader.Lease] lends records in the ring's own memory. The caller commits them later, for
//     example when another machine has acknowledged them.
//   - [Reader.Read] returns a copy that the caller may keep. [Reader.ReadContext] does the same
//     until a context is done.
//   - [Reader.ReadInto] copies into the caller's memory. [Reader.TryReadInto] does the same without
//     waiting.
//
// The documentation of Read holds for all of these, unless theirs says otherwise. Lent memory can
// only be read: a program that writes to it crashes.
//
// While samples flow, a Reader drains the ring on a timer, in such a way that the kernel sends no
// notifications. So the traced workload pays almost nothing for being read. See [WithMaxDelay].
//
// A Reader takes samples in batches, with one call of C for many samples, and only while somebody
// reads. A Reader that waits holds no thread of the operating system, with two exceptions: the
// first tenth of a second of a wait that follows a sample, and the last moment before a deadline.
//
// [NewMultiReader] reads several rings, for example one for each CPU. [WithLossCounter] reports
// records that the kernel refused, together with ringbuf.bpf.h, a header for BPF programs in
// package bpf of this module. [Reader.Stats] says what a Reader has done.
//
// A [Watcher] looks at a ring beside its reader and consumes nothing. It needs neither libbpf nor
// cgo.
//
// A [Writer] works in the other direction: it writes into a user ring buffer
// (BPF_MAP_TYPE_USER_RINGBUF), which a BPF program drains.
//
// # Building
//
// The package needs cgo and libbpf 1.3 or newer, static or shared. Like libbpfgo, it finds libbpf
// through CGO_CFLAGS and CGO_LDFLAGS. In a checkout of this package
//
//	eval "$(make -s env)"
//
// builds a static libbpf and sets both variables, for libbpfgo too. With the build tag
// libbpf_pkgconfig the package takes the flags from pkg-config.
//
// Programs that import the package also compile without cgo, and on other systems than Linux. There
// NewReader, NewMultiReader and NewWriter return an error that wraps errors.ErrUnsupported and says
// what is missing. OpenMap, OpenMapID, As and NewWatcher work on Linux without cgo.
package ringbuf
