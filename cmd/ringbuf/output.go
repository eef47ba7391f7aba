package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// An output is the value of -o.
type output string

const (
	outputTable output = "table"
	outputJSON  output = "json"
)

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "format" }

func (o *output) Set(s string) error {
	switch output(s) {
	case outputTable, outputJSON:
		*o = output(s)
		return nil
	}
	return usageErrorf("it is table or json")
}

// outputFlag adds -o to a command.
func outputFlag(cmd *cobra.Command) *output {
	o := outputTable
	cmd.Flags().VarP(&o, "output", "o", "table, or json: one object a line")
	cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{string(outputTable), string(outputJSON)}, cobra.ShellCompDirectiveNoFileComp))
	return &o
}

// completeMap completes a MAP: with file names where a path may stand, and not at all elsewhere.
func completeMap(_ *cobra.Command, args []string, toComplete string) ([]string,
	cobra.ShellCompDirective) {
	keyword := ""
	if len(args) > 0 {
		keyword = args[len(args)-1]
	}
	if keyword == "pinned" || strings.Contains(toComplete, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
