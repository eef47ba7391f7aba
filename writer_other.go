//go:build !linux || !cgo

package ringbuf

import (
	"errors"
	"os"
	"syscall"
)

// Where there is no Writer.

var errFull, errMoved = errors.New("full"), errors.New("moved")

type userRing struct {
	name      string
	size      uint64
	maxSample int
	repaired  uint64
	file      *os.File
	parked    syscall.RawConn
}

func openUserRing(Map, bool) (*userRing, error)   { return nil, errNoWriter() }
func newProgramDrainer(Program) (*drainer, error) { return nil, errNoWriter() }
func (*userRing) write([]byte) error              { return errNoWriter() }
func (*userRing) reserve(*lent) error             { return errNoWriter() }
func (*userRing) arm(bool) error                  { return errNoWriter() }
func (*userRing) tooLarge(int) error              { return errNoWriter() }
func (*userRing) explain(err error) error         { return err }
func (*userRing) bytesOf(*lent) []byte            { return nil }
func (*userRing) room() uint64                    { return 0 }
func (*userRing) fill() int                       { return 0 }
func (*userRing) sound() bool                     { return false }
func (*userRing) submit(*lent)                    {}
func (*userRing) discard(*lent)                   {}
func (*userRing) detach() error                   { return errNoWriter() }
func (*userRing) close()                          {}
func (*userRing) free()                           {}
