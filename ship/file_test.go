package ship_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libbpfgo/ringbuf/ship"
)

func newFile(t *testing.T, path string) *ship.FileSink {
	t.Helper()
	f, err := ship.NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestAFileGoesOnWhereItWasCut cuts a file at each byte, as a kill may do, and continues.
func TestAFileGoesOnWhereItWasCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	b := testBatch(3)
	first := newFile(t, path)
	n, err := first.Append(t.Context(), b)
	if n != 3 || err != nil {
		t.Fatalf("%d records: %v", n, err)
	}
	first.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := range whole {
		if err := os.WriteFile(path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFile(t, path)
		mark, err := f.Resume(t.Context(), testRing)
		lines := bytes.Count(whole[:size], []byte("\n"))
		want := ship.Mark{}
		rest := *b
		if lines > 0 {
			want = b.Records[lines-1].Mark
			rest.After, rest.Records = want, b.Records[lines:]
		}
		if err != nil || mark != want {
			t.Fatalf("of %d bytes the end is %+v, %v; want %+v", size, mark, err, want)
		}
		if _, err := f.Append(t.Context(), &rest); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
			t.Fatalf("cut at byte %d the file is\n%s\nwant\n%s", size, now, whole)
		}
	}
	var last struct {
		Host, Ring, Data          string
		ID, Position, Lost, Total uint64
		LostTotal                 uint64 `json:"lost_total"`
	}
	lines := bytes.Split(bytes.TrimSpace(whole), []byte("\n"))
	if err := json.Unmarshal(lines[2], &last); err != nil {
		t.Fatal(err)
	}
	if last.Host != "web1" || last.Ring != "events" || last.Data != "0202" || last.ID != 7 ||
		last.Position != b.Records[2].Position || last.Lost != 2 || last.LostTotal != 7 {
		t.Errorf("the third line is %s", lines[2])
	}
}

// TestNoOtherFileIsWritten opens files with other content, and a file that is in use.
func TestNoOtherFileIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, content := range []string{"something else\n", "without an end", "{}\n", "\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ship.NewFile(path)
		if err == nil || !strings.Contains(err.Error(), "choose another file") {
			t.Errorf("of a file of %q is said %v", content, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != content {
			t.Errorf("a file of %q is %q now: %v", content, now, err)
		}
	}
	path += "2"
	first := newFile(t, path)
	_, err := ship.NewFile(path)
	if err == nil || !strings.Contains(err.Error(), "used by another process") {
		t.Errorf("two write to a file: %v", err)
	}
	first.Close()
	newFile(t, path)
}

// A full writer accepts some bytes, and then fails.
type full struct{ bytes.Buffer }

var errFull = errors.New("no space left")

func (f *full) Write(p []byte) (int, error) {
	n, _ := f.Buffer.Write(p[:10])
	return n, errFull
}

// TestNoLineFollowsHalfOfOne uses a writer that fails in the middle of a line, which cannot be
// undone.
func TestNoLineFollowsHalfOfOne(t *testing.T) {
	_, err := ship.NewWriter(new(full)).Append(t.Context(), testBatch(3))
	if !errors.Is(err, errFull) || !errors.Is(err, ship.ErrPermanent) {
		t.Errorf("the error is %v", err)
	}
}

// TestAWriterHasLines also checks that Resume knows where each ring ends.
func TestAWriterHasLines(t *testing.T) {
	var out bytes.Buffer
	s := ship.NewWriter(&out)
	b := testBatch(3)
	if n, err := s.Append(t.Context(), b); n != 3 || err != nil {
		t.Fatalf("%d records: %v", n, err)
	}
	if mark, err := s.Resume(t.Context(), testRing); mark != b.Records[2].Mark || err != nil {
		t.Errorf("the end is %+v, %v", mark, err)
	}
	if n := bytes.Count(out.Bytes(), []byte("\n")); n != 3 {
		t.Errorf("%d lines", n)
	}
}
