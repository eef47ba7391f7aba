// Package ringbuf reads BPF ring buffers (BPF_MAP_TYPE_RINGBUF) in programs that use
// github.com/aquasecurity/libbpfgo. It drives libbpf's own ring_buffer API.
//
// A Reader replaces libbpfgo's Module.InitRingBuf and its channel. Its Read and
// ReadInto return records in the order of the ring, each exactly once, to any number
// of goroutines, with deadlines that interrupt a waiting call, Flush and Close.
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
// # Building
//
// The package is built with cgo and, like libbpfgo, finds libbpf (1.3 or newer,
// static or shared) through CGO_CFLAGS and CGO_LDFLAGS. In a checkout of this package
//
//	eval "$(make -s env)"
//
// builds a static one and sets both, for libbpfgo too.
package ringbuf
