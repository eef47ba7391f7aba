//go:build !cgo

package ringbuf

// Go turns cgo off by itself where it finds no C compiler.
func openRings([]Map, options) (rings, error) { return ringbuf_needs_cgo_and_a_C_compiler() }
func openPinned(string) (int, error)          { return ringbuf_needs_cgo_and_a_C_compiler() }
func openID(uint32) (int, error)              { return ringbuf_needs_cgo_and_a_C_compiler() }
