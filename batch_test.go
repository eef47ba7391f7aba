package ringbuf

import (
	"fmt"
	"testing"
)

func TestEntriesDecode(t *testing.T) {
	var buf entries
	var want []string
	for size := range 100 {
		s := string(make([]byte, size)) + "x"
		want = append(want, s)
		buf = appendEntry(buf, uint64(size)<<32, s)
	}
	for size, want := range want {
		sample, end := buf.next()
		if string(sample) != want || end != uint64(size)<<32 {
			t.Errorf("entry %d decodes to %q, %d", size, sample, end)
		}
		if cap(sample) != len(sample) {
			t.Errorf("an append to sample %d reaches the next", size)
		}
	}
	if len(buf) != 0 {
		t.Errorf("%d bytes are left", len(buf))
	}
}

func TestSlabClones(t *testing.T) {
	var s slab
	var clones [][]byte
	for size := range 5000 {
		p := []byte(fmt.Sprintf("%0*d", size, size))[:size]
		clones = append(clones, s.clone(p))
		clear(p)
	}
	for size, clone := range clones {
		if want := fmt.Sprintf("%0*d", size, size)[:size]; string(clone) != want {
			t.Fatalf("clone of %d bytes is %q", size, clone)
		}
		if clone == nil || cap(clone)-len(clone) > 0 && size <= slabSize/4 {
			t.Fatalf("clone of %d bytes has capacity %d", size, cap(clone))
		}
	}
}
