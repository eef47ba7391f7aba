// Package ringbuf reads BPF ring buffers (BPF_MAP_TYPE_RINGBUF) in programs that use
// github.com/aquasecurity/libbpfgo. It drives libbpf's own ring_buffer API.
//
// A Reader replaces libbpfgo's Module.InitRingBuf and its channel. Its reads return
// records in the order of the ring, each exactly once, to any number of goroutines, with
// deadlines that interrupt a waiting call, Flush and Close:
//
//   - Read returns a sample that the caller may keep,
//   - ReadContext does so until a context is done,
//   - ReadInto reuses the caller's memory,
//   - Records is a loop over samples that are not copied at all, and Samples one over values
//     of a type.
//
// What is said of Read is true of all of them, unless they say otherwise.
//
// Samples are drained in batches, one call of C for many samples, and only while
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
// has done. BPF programs get the other half of that from bpf/ringbuf.bpf.h, a header that
// they include from this module.
//
// # Building
//
// The package is built with cgo and, like libbpfgo, finds libbpf (1.3 or newer,
// static or shared) through CGO_CFLAGS and CGO_LDFLAGS. In a checkout of this package
//
//	eval "$(make -s env)"
//
// builds a static one and sets both, for libbpfgo too.
package ringbuf
