package ringbuf_test

import (
	"errors"
	"io/fs"
	"log"

	"github.com/libbpfgo/ringbuf"
)

// Another process has pinned the ring. It may still write to the ring, or may have ended.
func ExampleOpenMap() {
	events, err := ringbuf.OpenMap("/sys/fs/bpf/agent/events")
	if errors.Is(err, fs.ErrNotExist) {
		log.Fatal("the agent is not running: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		log.Fatal(err)
	}
	events.Close() // reader no longer needs it
	defer reader.Close()
}

// The id is the one that bpftool map shows.
func ExampleOpenMapID() {
	events, err := ringbuf.OpenMapID(42)
	if err != nil {
		log.Fatal(err)
	}
	reader, err := ringbuf.NewReader(events)
	if err != nil {
		log.Fatal(err)
	}
	events.Close() // reader no longer needs it
	defer reader.Close()
}
