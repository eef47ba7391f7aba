// Package ringbuf reads BPF ring buffers (BPF_MAP_TYPE_RINGBUF) in programs that use
// github.com/aquasecurity/libbpfgo. It drives libbpf's own ring_buffer API.
//
// A Reader replaces libbpfgo's Module.InitRingBuf and its channel. Its reads return
// records in the order of the ring, each exactly once, to any number of goroutines, with
// deadlines that interrupt a waiting call, Flush and Close:
//
//   - [Reader.Records] is a loop over samples in the ring's own memory, and [Samples] one over
//     values of a type. Nothing is copied. A process that is killed loses nothing.
//   - [Reader.Merged] is a loop over the records of all rings in the order of a key, such as time.
//   - [Reader.Lease] lends records in the same way, for who commits them when it suits: in
//     another goroutine, or when somebody else has acknowledged them.
//   - [Reader.Read] returns a copy that the caller may keep, and ReadContext does so until a
//     context is done.
//   - [Reader.ReadInto] copies into the caller's memory, and TryReadInto does so without a wait.
//
// What is said of Read is true of all of them, unless they say otherwise. What is lent can
// only be read: a program that writes to it crashes.
//
// Samples are taken in batches, one call of C for many samples, and only while
// somebody reads. A Reader that waits holds no thread of the operating system, except
// in the first tenth of a second of a wait that follows a sample and in the last
// moment before a deadline.
//
// While samples flow, a Reader drains the ring at ticks of a timer, and in such a way
// that the kernel need not notify it of any: so the workload that is traced hardly
// notices that somebody reads. See WithMaxDelay.
//
// A Reader made with NewMultiReader reads several rings, such as one for each CPU.
// WithLossCounter tells of records for which there was no room, and Stats what the Reader
// has done. BPF programs get the other half of that from ringbuf.bpf.h, a header that
// they include from package bpf of this module.
//
// A [Watcher] looks at a ring beside its reader and takes nothing. It needs neither libbpf nor
// cgo.
//
// A [Writer] writes into a user ring buffer (BPF_MAP_TYPE_USER_RINGBUF), which a BPF program drains:
// the other direction.
//
// # Building
//
// The package is built with cgo and, like libbpfgo, finds libbpf (1.3 or newer,
// static or shared) through CGO_CFLAGS and CGO_LDFLAGS. In a checkout of this package
//
//	eval "$(make -s env)"
//
// builds a static one and sets both, for libbpfgo too. With build tag libbpf_pkgconfig the package
// takes what pkg-config says of libbpf.
//
// Without cgo, and elsewhere than on Linux, programs that import the package compile. There
// NewReader, NewMultiReader and NewWriter return an error that wraps errors.ErrUnsupported and says what is
// missing. Open, OpenID and As work on Linux without cgo.
package ringbuf
