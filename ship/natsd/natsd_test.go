package natsd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/ship/natsd"
)

// TestAStoreThatIsOfNoUseIsToldAtOnce has a file where the server needs a directory.
func TestAStoreThatIsOfNoUseIsToldAtOnce(t *testing.T) {
	store := t.TempDir()
	if err := os.WriteFile(filepath.Join(store, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s, err := natsd.Start(store, "127.0.0.1:0")
	if err == nil {
		s.Stop()
		t.Fatal("a server has started")
	}
	if took := time.Since(begin); took > 45*time.Second || !strings.Contains(err.Error(), store) {
		t.Errorf("after %v: %v", took, err)
	}
}
