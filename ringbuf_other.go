//go:build !linux

package ringbuf

import (
	"errors"
	"fmt"
	"runtime"
)

var errNoLinux = fmt.Errorf("BPF maps need Linux, and this program was built for %s: %w",
	runtime.GOOS, errors.ErrUnsupported)

func openRings([]Map, options) (rings, error) { return nil, errNoLinux }
func errNoWriter() error                      { return errNoLinux }
func openPinned(string) (int, error)          { return -1, errNoLinux }
func openID(uint32) (int, error)              { return -1, errNoLinux }
func nameOthers(err error) error              { return err }
func closeFD(int) error                       { return errNoLinux } // nobody has one
