package ringbuf

import (
	"strings"
	"testing"

	bpf "github.com/aquasecurity/libbpfgo"
)

func TestMapTypesHaveTheNamesOfLibbpf(t *testing.T) {
	known := 0
	for number := range mapType(len(mapTypes)) {
		name := bpf.MapType(number).Name()
		if name == "" {
			break // newer than this libbpf
		}
		known++
		if number.String() != name {
			t.Errorf("map type %d is named %v, want %v", uint32(number), number, name)
		}
	}
	if known <= int(mapTypeRingbuf) {
		t.Errorf("libbpf knows only %d types", known)
	}
	if got := mapType(1000).String(); got != "1000" {
		t.Errorf("an unknown type is named %v", got)
	}
}

func TestOverwriteModeIsRefused(t *testing.T) {
	info := mapInfo{name: "events", kind: mapTypeRingbuf, flags: flagOverwrite, size: 4096}
	if err := info.check(); err == nil || !strings.Contains(err.Error(), "overwrite") ||
		!strings.Contains(err.Error(), `"events"`) {
		t.Errorf("check returned %v", err)
	}
	info.flags = 0
	if err := info.check(); err != nil {
		t.Errorf("without the flag check returned %v", err)
	}

}
