//go:build linux && !cgo

package ringbuf

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
)

func openRings([]Map, options) (rings, error) {
	if strconv.IntSize < 64 {
		return nil, fmt.Errorf("a Reader needs a 64-bit processor, as positions in a ring have 64 bits, "+
			"and this program was built for %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	// Go turns cgo off by itself where it finds no C compiler.
	return nil, fmt.Errorf(
		"a Reader needs cgo, and this program was built without: set CGO_ENABLED=1, "+
			"install a C compiler, and let CGO_CFLAGS and CGO_LDFLAGS name libbpf, as the README says: %w",
		errors.ErrUnsupported)
}
