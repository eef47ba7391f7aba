// Package bpf has ringbuf.bpf.h, a header for BPF programs. With it they count the records that
// they lose, and make the kernel send fewer notifications. See the comments in the header, and
// ringbuf.WithLossCounter.
//
// Tell the compiler of the BPF programs to look in the directory of this package:
//
//	clang ... -I"$(go list -f '{{.Dir}}' github.com/libbpfgo/ringbuf/bpf)" ...
//
// This works in a module, in a workspace and with a vendor directory. go mod vendor copies this
// package because package ringbuf imports it.
package bpf

import _ "embed"

//go:embed ringbuf.bpf.h
var header string

// Header returns the text of ringbuf.bpf.h. It is for programs that compile BPF programs
// themselves, or that write the header to a file for a build.
func Header() string { return header }
