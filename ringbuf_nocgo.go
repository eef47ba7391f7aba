//go:build linux && !cgo

package ringbuf

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
)

func openRings([]Map, options) (rings, error) { return nil, errNoCgo("Reader") }
func errNoWriter() error                      { return errNoCgo("Writer") }

func errNoCgo(who string) error {
	if strconv.IntSize < 64 {
		return fmt.Errorf("a %s needs a 64-bit processor, as positions in a ring have 64 bits, "+
			"and this program was built for %s: %w", who, runtime.GOARCH, errors.ErrUnsupported)
	}
	// Go turns cgo off by itself where it finds no C compiler.
	return fmt.Errorf(
		"a %s needs cgo, and this program was built without: set CGO_ENABLED=1, "+
			"install a C compiler, and let CGO_CFLAGS and CGO_LDFLAGS name libbpf, as the README says: %w",
		who, errors.ErrUnsupported)
}
