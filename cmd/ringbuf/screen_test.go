package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// A terminal is a session of tmux in which the tool runs.
type terminal struct {
	t      *testing.T
	socket string
}

// startTerminal runs a command in a terminal of this size. When the command has ended, the terminal
// shows its exit code.
func startTerminal(t *testing.T, columns, lines int, command string) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		if os.Getenv("RINGBUF_KERNEL_TESTS") == "require" {
			t.Fatal("tmux is not installed, and make test-tool should have done so")
		}
		t.Skip("tmux is not installed: this test is of no use without it")
	}
	term := &terminal{t, t.TempDir() + "/tmux"}
	term.tmux("-f", "/dev/null", "new-session", "-d", "-x", fmt.Sprint(columns), "-y",
		fmt.Sprint(lines),
		"stty -echo; "+command+`; echo "ended with code $?"; exec sleep 600`)
	t.Cleanup(func() { exec.Command("tmux", "-S", term.socket, "kill-server").Run() })
	term.tmux("set", "-g", "status", "off")
	return term
}

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", term.socket}, args...)...).CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (term *terminal) press(keys ...string) {
	term.t.Helper()
	term.tmux(append([]string{"send-keys"}, keys...)...)
}

func (term *terminal) resize(columns, lines int) {
	term.t.Helper()
	term.tmux("resize-window", "-x", fmt.Sprint(columns), "-y", fmt.Sprint(lines))
}

// await waits until wanted accepts the lines of the terminal, and returns them.
func (term *terminal) await(what string, wanted func(lines []string) bool) []string {
	term.t.Helper()
	var screen string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(
		20 * time.Millisecond) {
		screen = term.tmux("capture-pane", "-p")
		if lines := strings.Split(strings.TrimRight(screen, "\n"), "\n"); wanted(lines) {
			return lines
		}
	}
	term.t.Fatalf("the terminal does not show %s:\n%s", what, screen)
	return nil
}

func (term *terminal) awaitText(text string) []string {
	term.t.Helper()
	return term.await(fmt.Sprintf("%q", text), func(lines []string) bool {
		return strings.Contains(strings.Join(lines, "\n"), text)
	})
}

func TestTopOnATerminal(t *testing.T) {
	r := newRing(t, "on_a_screen", 1<<16)
	other := newRing(t, "another", 1<<16)
	r.write(682) // 75 percent
	term := startTerminal(t, 120, 12, fmt.Sprintf("%s top -d 0.1 id %d id %d", tool, r.id, other.id))
	bar := strings.Repeat("█", 8)
	term.awaitText(bar)
	term.awaitText(" 75%")
	r.consume()
	term.await("an empty bar with the mark of the peak", func(lines []string) bool {
		screen := strings.Join(lines, "\n")
		return strings.Contains(screen, "│") && !strings.Contains(screen, bar) &&
			strings.Contains(screen, "75%")
	})

	// A narrow terminal shows fewer columns than a wide one.
	for _, columns := range []int{20, 40, 80, 200} {
		term.resize(columns, 8)
		lines := term.await(fmt.Sprintf("%d columns", columns), func(lines []string) bool {
			return len(lines) > 3 && strings.Contains(lines[1], "OWNER") == (columns >= 80) &&
				strings.Contains(lines[1], "TYPE") == (columns >= 120)
		})
		if !strings.Contains(lines[1], "NAME") {
			t.Errorf("%d columns have no names: %q", columns, lines[1])
		}
	}

	order := func(first string) func([]string) bool {
		return func(lines []string) bool { return len(lines) > 3 && strings.Contains(lines[2], first) }
	}
	term.press("n")
	term.await("names in order", order("another"))
	term.press("r")
	term.await("names in reverse order", order("on_a_sc"))
	term.press("p")
	term.awaitText("PAUSED")
	r.write(100)
	term.press("p")
	term.awaitText("every 100ms")
	term.awaitText("11%")
	term.press("+")
	term.awaitText("every 200ms")
	term.press("-")
	term.awaitText("every 100ms")
	term.resize(80, 30)
	term.press("?")
	term.awaitText("reverse the order")
	term.press("Escape")
	term.await("the table", order("on_a_sc"))
	term.resize(3, 1)
	term.resize(80, 24)
	term.await("the table again", order("on_a_sc"))
	term.press("q")
	term.awaitText("ended with code 0")
}

func TestTopEndsWithASignal(t *testing.T) {
	r := newRing(t, "interrupted", 4096)
	term := startTerminal(t, 80, 10, fmt.Sprintf("%s top id %d", tool, r.id))
	term.awaitText("interrup")
	term.press("C-c")
	term.awaitText("ended with code 0")
}

func TestTopHasNoColorsIfNotWanted(t *testing.T) {
	r := newRing(t, "colors", 4096)
	r.write(50) // 88 percent
	for _, tt := range []struct {
		command string
		colors  bool
	}{
		{"NO_COLOR= %s top id %d", true},
		{"NO_COLOR=yes %s top id %d", false},
		{"NO_COLOR= %s top --no-color id %d", false},
	} {
		term := startTerminal(t, 120, 10, fmt.Sprintf(tt.command, tool, r.id))
		term.awaitText("88%")
		if got := strings.Contains(term.tmux("capture-pane", "-ep"), "\x1b[31m") ||
			strings.Contains(term.tmux("capture-pane", "-ep"), "\x1b[1m\x1b[31m"); got != tt.colors {
			t.Errorf("%s: there are colors: %v", tt.command, got)
		}
		term.press("q")
		term.awaitText("ended with code 0")
	}
}

// TestTopScrolls scrolls through many rings, and closes them while top runs.
func TestTopScrolls(t *testing.T) {
	const many = 1000
	var rings []*ebpf.Map
	for range many {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "many", Type: ebpf.RingBuf,
			MaxEntries: uint32(os.Getpagesize())})
		if err != nil {
			kinds.SkipOrFail(t, err)
		}
		defer m.Close()
		rings = append(rings, m)
	}
	term := startTerminal(t, 90, 12, tool+" top -d 0.2 name many")
	term.awaitText("of 1000 ")
	term.press("i", "G")
	term.awaitText("-1000 of 1000")
	term.press("g")
	for _, m := range rings[many/2:] {
		m.Close()
	}
	term.awaitText("of 500 ")
	for _, m := range rings {
		m.Close()
	}
	term.awaitText("there is no ring buffer")
	term.press("q")
	term.awaitText("ended with code 0")
}
