package bpf

import (
	"os"
	"testing"
)

func TestHeaderIsTheFile(t *testing.T) {
	want, err := os.ReadFile("ringbuf.bpf.h")
	if err != nil {
		t.Fatal(err)
	}
	if got := Header(); got != string(want) {
		t.Errorf("Header returned %q", got)
	}
}
