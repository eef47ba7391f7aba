module github.com/libbpfgo/ringbuf

go 1.24

require github.com/aquasecurity/libbpfgo v0.6.0-libbpf-1.3
