module github.com/libbpfgo/ringbuf/examples/migration

go 1.25.0

require (
	github.com/aquasecurity/libbpfgo v0.6.0-libbpf-1.3
	github.com/cilium/ebpf v0.22.0
	github.com/libbpfgo/ringbuf v0.0.0
)

require golang.org/x/sys v0.43.0 // indirect

replace github.com/libbpfgo/ringbuf => ../../
