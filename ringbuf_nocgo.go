//go:build !cgo

package ringbuf

// Go turns cgo off by itself where it finds no C compiler.
func openRing(Map) (ring, error) { return ringbuf_needs_cgo_and_a_C_compiler() }
