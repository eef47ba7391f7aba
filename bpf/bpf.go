// Package bpf has ringbuf.bpf.h, the header with which BPF programs count the records that they
// lose and notify of few of the others. See the comments there, and ringbuf.WithLossCounter.
//
// The compiler of the BPF programs finds the header in the directory of this package:
//
//	clang ... -I"$(go list -f '{{.Dir}}' github.com/libbpfgo/ringbuf/bpf)" ...
//
// That is true in a module, a workspace and a vendor directory, to which go mod vendor copies this
// package because package ringbuf imports it.
package bpf

import _ "embed"

//go:embed ringbuf.bpf.h
var header string

// Header returns the text of ringbuf.bpf.h, for programs that compile BPF programs themselves or
// write the header to where a build finds it.
func Header() string { return header }
