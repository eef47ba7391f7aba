// Selftest runs the end-to-end programs of the directory selftests beside it, or those that are
// named as arguments. It reports on each as go test does. As with the Linux kernel's own
// selftests, the exit status of a program says whether it passed (0), was skipped (4) or failed
// (any other).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	statusSkip = 4 // KSFT_SKIP in tools/testing/selftests/kselftest.h
	timeout    = 3 * time.Minute
)

func main() {
	failed, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "selftest:", err)
		os.Exit(1)
	}
	if failed > 0 {
		fmt.Println("FAIL")
		os.Exit(1)
	}
	fmt.Println("PASS")
}

func run(names []string) (failed int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(filepath.Dir(self), "selftests")
	if len(names) == 0 {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
	}
	if len(names) == 0 {
		return 0, fmt.Errorf("no programs in %s", dir)
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return failed, fmt.Errorf("usage: selftest [name]...: %w", err)
		}
		fmt.Println("=== RUN  ", name)
		start := time.Now()
		verdict := runOne(ctx, filepath.Join(dir, name))
		fmt.Printf("--- %s: %s (%.2fs)\n", verdict, name, time.Since(start).Seconds())
		if verdict == "FAIL" {
			failed++
		}
		if ctx.Err() != nil {
			return failed, errors.New("interrupted")
		}
	}
	return failed, nil
}

// runOne runs a program in a process group of its own, and returns its verdict.
func runOne(ctx context.Context, path string) (verdict string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		fmt.Println(ctx.Err())
		// On SIGQUIT, a Go program prints its stacks, which show what it waits for.
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT)
	}
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "PASS"
	case errors.As(err, &exit) && exit.ExitCode() == statusSkip:
		return "SKIP"
	}
	fmt.Println(err)
	return "FAIL"
}
