package ship_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/libbpfgo/ringbuf/ship/jet"
)

// TestTheServerIsAway stops the server until a ring is full. The consumer learns how many
// records the kernel refused, and nothing else is missing.
func TestTheServerIsAway(t *testing.T) {
	server, url := newServer(t, "one", "")
	server.start()
	h := newHost(t, "host", 0, smallRing, url)
	h.shipper.start()
	receive(t, url, h)
	h.produce(50_000)
	h.awaitNews()
	server.kill()
	if *long {
		time.Sleep(30 * time.Second)
	}
	waitUntilRefused(h)
	server.start()
	h.awaitNews()
	h.halt()
	h.finish()
	if h.lost == 0 {
		t.Error("nothing was lost: the test has not tested what it is for")
	}
}

// waitUntilRefused waits until the ring is full.
func waitUntilRefused(h *host) {
	h.t.Helper()
	h.halt()
	for deadline := time.Now().Add(patience); h.tried-h.accepted < 1000; {
		h.try(1000)
		if time.Now().After(deadline) {
			h.t.Fatal("the ring does not get full")
		}
	}
	h.produce(50_000)
}

// TestTheServerIsSlow delays every byte.
func TestTheServerIsSlow(t *testing.T) {
	server, url := newServer(t, "one", "")
	server.start()
	h := newHost(t, "host", 0, largeRing, "nats://"+delayed(t, strings.TrimPrefix(url, "nats://"),
		50*time.Millisecond))
	h.shipper.start()
	receive(t, url, h)
	h.produce(50_000)
	for range 20 { // messages
		h.awaitNews()
	}
	h.halt()
	h.finish()
}

// delayed returns the address of a proxy that delays everything, in both directions.
func delayed(t *testing.T, to string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			all.Go(func() { forward(client, server, delay) })
			all.Go(func() { forward(server, client, delay) })
		}
	})
	return l.Addr().String()
}

// forward copies with a delay, until one end is closed.
func forward(to io.WriteCloser, from io.Reader, delay time.Duration) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer to.Close()
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				for range pieces {
				}
				return
			}
		}
	}()
	defer close(pieces)
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			pieces <- piece{time.Now().Add(delay), buf[:n]}
		}
		if err != nil {
			return
		}
	}
}

// TestTheStreamIsFull makes the server refuse messages because of the stream's limits, large
// ones before small ones, until there is room.
func TestTheStreamIsFull(t *testing.T) {
	for name, env := range map[string][]string{"batched": nil, "single": {envSingle + "=1"}} {
		t.Run(name, func(t *testing.T) {
			server, url := newServer(t, "one", "")
			server.start()
			js := mustJetStream(t, mustConnect(t, url))
			config := jet.NewStream(stream, jet.DefaultPrefix)
			config.MaxBytes, config.Discard = 200<<10, jetstream.DiscardNew
			makeStream(t, js, config)
			h := newHost(t, "host", 0, smallRing, url, env...)
			h.shipper.start()
			receive(t, url, h)
			h.produce(50_000)
			h.awaitNews()
			waitUntilRefused(h)
			config.MaxBytes = -1
			if _, err := js.UpdateStream(t.Context(), *config); err != nil {
				t.Fatal(err)
			}
			h.awaitNews()
			h.halt()
			h.finish()
			if h.lost == 0 {
				t.Error("nothing was lost: the test has not tested what it is for")
			}
		})
	}
}
