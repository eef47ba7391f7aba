package main

import "github.com/spf13/cobra"

// newTailCommand is still to come.
func newTailCommand() *cobra.Command { return &cobra.Command{Use: "tail MAP...", Hidden: true} }
