package capture

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestTsharkOpensARecording compares the output of tshark, which belongs to Wireshark, with the
// records of a file. make test-tool installs tshark.
func TestTsharkOpensARecording(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		if os.Getenv("RINGBUF_KERNEL_TESTS") == "require" {
			t.Fatal("tshark is not installed, and make test-tool should have done so")
		}
		t.Skip("tshark is not installed: this test is of no use without it")
	}
	recs := varied()
	recs[1].Length = 1000 // as if the sample had been cut
	file := filepath.Join(t.TempDir(), "recording.pcapng")
	if err := os.WriteFile(file, mustRecord(t, threeRings, "of a test", recs...), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|"}
	for _, field := range []string{"time_epoch", "interface_id", "interface_name",
		"interface_description", "len", "cap_len", "drop_count", "comment"} {
		args = append(args, "-e", "frame."+field)
	}
	cmd := exec.Command("tshark", append(args, "-e", "data.data")...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, &stderr)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(recs) {
		t.Fatalf("tshark finds %d packets, want %d", len(lines), len(recs))
	}
	for i, rec := range recs {
		ring := threeRings[rec.Ring]
		description := ""
		if ring.ID > 0 {
			description = fmt.Sprintf("BPF ring buffer, map id %d, %d bytes", ring.ID, ring.Size)
		}
		drops, comments := "", []string{}
		if n := rec.drops(); n > 0 {
			drops = strconv.FormatUint(n, 10)
		}
		if rec.Missed > 0 {
			comments = append(comments, fmt.Sprintf("missed %d bytes of records", rec.Missed))
		}
		if rec.Comment != "" {
			comments = append(comments, rec.Comment)
		}
		want := fmt.Sprintf("%d.%09d|%d|%s|%s|%d|%d|%s|%s|%s", rec.Time.Unix(), rec.Time.Nanosecond(),
			rec.Ring, ring.Name, description, rec.Length, len(rec.RawSample), drops,
			strings.Join(comments, ","), hex.EncodeToString(rec.RawSample))
		if lines[i] != want {
			t.Errorf("tshark says of packet %d\n%s\nwant\n%s", i, lines[i], want)
		}
	}
}
