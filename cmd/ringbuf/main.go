// Ringbuf shows the BPF ring buffers of a machine: which ones there are, who uses them, how full
// they are, how fast they are filled, and which records are in them. It also records these records
// to files and ships them to streams.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes. The command exit-codes documents them.
const (
	exitFailed       = 1 // also when a ring that was asked for does not exist
	exitUsage        = 2
	exitNotPermitted = 3
)

func main() {
	root := newRootCommand()
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "ringbuf:", oneLine(err))
		os.Exit(exitCode(err))
	}
}

// A usageError is an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageErrorf(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

func exitCode(err error) int {
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.Is(err, fs.ErrPermission):
		return exitNotPermitted
	default:
		return exitFailed
	}
}

// oneLine returns the message of err in one line. Joined errors have several lines.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// checkArgs wraps a check of cobra. The error is a usageError and says where to find help.
func checkArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageErrorf("%w: see %s --help", err, cmd.CommandPath())
		}
		return nil
	}
}
