package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/tooltest"
)

// These tests run "ringbuf ship" and "ringbuf subscribe" as their users do.

func TestMain(m *testing.M) { tooltest.Main(m) }

func launch(t *testing.T, args ...string) *tooltest.Process {
	t.Helper()
	return tooltest.Start(t, tooltest.Path, args...)
}

// TestSubscribePrintsWhatShipHasShipped kills the shipper, and the server in it, after each round.
func TestSubscribePrintsWhatShipHasShipped(t *testing.T) {
	for _, flags := range [][]string{nil, {"--single"}} {
		const n = 3000
		s := kinds.New(t, 1<<20)
		dir := t.TempDir()
		object := filepath.Join(dir, "kinds.bpf.o")
		if err := os.WriteFile(object, kinds.Object(), 0o600); err != nil {
			t.Fatal(err)
		}
		addr, err := freeAddr()
		if err != nil {
			t.Fatal(err)
		}
		subscriber := launch(t, "subscribe", "--from", "nats://"+addr, "-o", "json", "-c", fmt.Sprint(n),
			"--host", "my.host", "--btf", object, "-t", "struct numbered",
			"--filter", "number >= 0", "events")
		args := append([]string{"ship", "--store", filepath.Join(dir, "store"), "--listen", addr,
			"--host", "my.host"}, flags...)
		args = append(args, s.MAP()...)
		for round := range 3 {
			shipper := launch(t, args...)
			s.Flood(round*n/3, n/3)
			for i := range n / 3 {
				var line struct {
					Time, Host, Ring string
					Fields           struct{ Number int }
				}
				text, err := subscriber.Out.ReadBytes('\n')
				if err == nil {
					err = json.Unmarshal(text, &line)
				}
				if err != nil || line.Host != "my.host" || line.Ring != "events" ||
					line.Fields.Number != round*n/3+i {
					t.Fatalf("sample %d of round %d is %s: %v; %s", i, round, text, err, subscriber.Messages())
				}
			}
			shipper.Kill()
		}
		if _, stderr, code := subscriber.End(); code != 0 || !strings.HasSuffix(stderr,
			fmt.Sprintf("%d records seen, 0 bytes missed, %d written\n", n, n)) {
			t.Errorf("it ended with %d: %s", code, stderr)
		}
	}
}

// TestShipToAFile kills ship. When it is started again, it must continue in the file.
func TestShipToAFile(t *testing.T) {
	s := kinds.New(t, 1<<16)
	path := filepath.Join(t.TempDir(), "events.jsonl")
	args := append([]string{"ship", "--to", "file:" + path}, s.MAP()...)
	total := 0
	for round := range 3 {
		shipper := launch(t, args...)
		s.Flood(total, 100)
		total += 100
		var lines []string
		for deadline := time.Now().Add(time.Minute); len(lines) < total; {
			content, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
				t.Fatalf("the file has %d lines: %v, %s", len(lines), err, shipper.Messages())
			}
			if i := bytes.LastIndexByte(content, '\n'); i >= 0 {
				lines = strings.Split(string(content[:i]), "\n")
			}
		}
		for i, text := range lines {
			var line struct{ Data string }
			if err := json.Unmarshal([]byte(text), &line); err != nil ||
				line.Data != hex.EncodeToString(kinds.Numbered(i)) {
				t.Fatalf("round %d: line %d is %s: %v", round, i, text, err)
			}
		}
		if round < 2 {
			shipper.Kill()
			continue
		}
		shipper.Interrupt()
		if _, stderr, code := shipper.End(); code != 0 ||
			!strings.Contains(stderr, " 100 records shipped, 0 sent again, 0 lost,") {
			t.Errorf("it ended with %d: %s", code, stderr)
		}
	}
}

// TestOnlyOneShips also checks that ship waits for a server that is not there.
func TestOnlyOneShips(t *testing.T) {
	s := kinds.New(t, 1<<16)
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	shipper := launch(t, append([]string{"ship", "--to", "nats://" + addr}, s.MAP()...)...)
	shipper.MustAwait("events: records wait in the ring: not connected to the server")
	_, stderr, code := launch(t, append([]string{"ship", "--to", "-"}, s.MAP()...)...).End()
	if code != 1 || !strings.Contains(stderr, "is read by ringbuf (pid ") {
		t.Errorf("a second one ended with %d: %s", code, stderr)
	}
	shipper.Interrupt()
	if _, stderr, code := shipper.End(); code != 0 ||
		!strings.Contains(stderr, " 0 records shipped, ") {
		t.Errorf("it ended with %d: %s", code, stderr)
	}
}

func TestErrorsAreOneLineThatSaysWhatToDo(t *testing.T) {
	s := kinds.New(t, 1<<12)
	id := s.MAP()
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ship"}, 2, "which ring buffer? Name a MAP: ringbuf list shows all"},
		{[]string{"ship", "--to", "x", "--store", "y", "id", "1"}, 2, "leave them out, or --to"},
		{[]string{"ship", "--to", "nats://x", "--tlscert", "x", "id", "1"}, 2, "give both, or none"},
		{[]string{"ship", "--tlsca", "x", "id", "1"}, 2, "leave them out, or name it with --to"},
		{[]string{"ship", "--to", "-", "--creds", "x", "id", "1"}, 2, "or name it with --to"},
		{[]string{"ship", "--to", "file:x", "--single", "id", "1"}, 2, "--max-size are about a stream"},
		{[]string{"ship", "--to", "-", "--stream", "x", "id", "1"}, 2, "--max-size are about a stream"},
		{[]string{"ship", "--stream", "", "id", "1"}, 2, "a stream has a name"},
		{[]string{"ship", "name", "no_such_ring"}, 1, `no ring buffer has the name "no_such_ring"`},
		{append([]string{"ship", "--to", "nats://a:1,b d"}, id...), 2,
			`"nats://b d" is no URL of a server`},
		{append([]string{"ship", "--to", "http://broker"}, id...), 2,
			`"http://broker" is no URL of a server`},
		{[]string{"ship", "--to", "http://broker", "id", "1"}, 2, "is no URL of a server"},
		{append([]string{"ship", "--stream", "a.b"}, id...), 2, "the name of a stream has no spaces"},
		{append([]string{"ship", "--to", "broker"}, id...), 2,
			`"broker" is no URL of a server, such as nats://`},
		{append([]string{"ship", "--to", "nats://127.0.0.1:1", "--creds", text + "none"}, id...), 1,
			"no such file or directory"},
		{append([]string{"ship", "--to", "file:" + text}, id...), 1, "it has other lines than records"},
		{append([]string{"ship", "--store", text}, id...), 1, "not a directory"},
		{append([]string{"ship", "--store", text + "d", "--listen", "x"}, id...), 1,
			"the address to listen on: address x: missing port"},
		{[]string{"subscribe", "-t", "struct x"}, 2, "-t and --btf belong together"},
		{[]string{"subscribe", "--filter", "x > 1"}, 2, "say with -t which type samples have"},
		{[]string{"subscribe", "--btf", text, "-t", "x"}, 1,
			"is neither BTF nor an object file with BTF"},
		{[]string{"subscribe", "--from", "x"}, 2, `"x" is no URL of a server`},
		{[]string{"subscribe", "--for", "-1s"}, 2, "--for takes no negative numbers"},
	} {
		_, stderr, code := launch(t, tt.args...).End()
		lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
		last := lines[len(lines)-1]
		if code != tt.code || !strings.HasPrefix(last, "ringbuf: ") || !strings.Contains(last, tt.want) {
			t.Errorf("%q ended with %d and %q; want %d and %q", tt.args, code, stderr, tt.code, tt.want)
		}
	}
	out, err := exec.Command(tooltest.WithoutCgo,
		append([]string{"ship", "--to", "-"}, id...)...).CombinedOutput()
	if err == nil ||
		!strings.Contains(string(out), "ship needs libbpf, and this ringbuf was built without cgo") {
		t.Errorf("without cgo: %v, %s", err, out)
	}
}
