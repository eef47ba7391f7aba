module github.com/libbpfgo/ringbuf

go 1.24

require github.com/aquasecurity/libbpfgo v0.9.2-libbpf-1.5.1
