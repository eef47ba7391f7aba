package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// mapHelp explains MAP. It is a part of the help of each command that takes one.
const mapHelp = `
MAP names a ring buffer as bpftool does:

  id N          the map with this id
  name NAME     all ring buffers of this name (of which the kernel keeps 15 bytes)
  pinned PATH   the map that is pinned there, in a BPF file system
  pid PID       all ring buffers that the process holds or writes into

A number, a path with a slash, or a name alone will do if it can mean only one ring
buffer.`

// newRootCommand returns the command ringbuf with all its subcommands.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ringbuf",
		Short: "Show the BPF ring buffers of this machine",
		Long: `Ringbuf shows the BPF ring buffers of this machine: which there are, which processes use
them, how full they are, how fast they fill, and what is in them. It only looks, and takes nothing
from their readers. Two commands can read instead: tail --consume and ship.`,
		Example: `  ringbuf list                     which ring buffers are there?
  ringbuf top name events          how full are those named "events", and how fast do they fill?
  ringbuf top -n 1 -o json         the same for a script, once
  ringbuf list pid 4242            which ones does this process use?`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "see ringbuf --help"
			if similar := cmd.SuggestionsFor(args[0]); len(similar) > 0 {
				hint = fmt.Sprintf("did you mean %q?", similar[0])
			}
			return usageErrorf("there is no command %q: %s", args[0], hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var number *strconv.NumError
		if errors.As(err, &number) {
			problem := "it must be a number"
			switch {
			case number.Err == strconv.ErrRange:
				problem = "the number is too large"
			case number.Func == "ParseUint" && strings.HasPrefix(number.Num, "-"):
				problem = "it must not be negative"
			}
			// pflag's text precedes that of strconv, which is replaced.
			before, _, _ := strings.Cut(err.Error(), number.Error())
			err = errors.New(before + problem)
		}
		return usageErrorf("%w: see %s --help", err, cmd.CommandPath())
	})
	root.PersistentFlags().Bool("no-color", os.Getenv("NO_COLOR") != "",
		"no colors; also if NO_COLOR is set")
	root.AddCommand(newListCommand(), newTopCommand(), newTailCommand(), newShipCommand(),
		newSubscribeCommand(), newManCommand())
	root.AddCommand(&cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `0  success
1  something failed, or a ring buffer that was asked for does not exist
2  the command line is wrong
3  a privilege is missing

With any code but 0, one line on standard error says what to do.`,
	})
	return root
}

// version returns the version of the module, which go install records in the binary.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
