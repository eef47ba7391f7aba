package ship_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/libbpfgo/ringbuf/ship/jet"
)

// TestThreeHostsAndThreeServers has three hosts ship into one stream with three replicas, while
// servers are killed, one at a time.
func TestThreeHostsAndThreeServers(t *testing.T) {
	if !*long {
		t.Skip("it takes minutes: make ship-stress")
	}
	const n, kills = 3, 10
	var routes, urls []string
	for range n {
		routes = append(routes, freeAddr(t))
	}
	var servers []*process
	for i := range n {
		more := fmt.Sprintf("cluster { name: three, listen: %q, routes: [ \"nats://%s\" ] }\n", routes[i],
			strings.Join(routes, `", "nats://`))
		server, url := newServer(t, fmt.Sprintf("s%d", i), more)
		server.start()
		servers, urls = append(servers, server), append(urls, url)
	}
	url := strings.Join(urls, ",")
	nc := mustConnect(t, url)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	config := jet.NewStream(stream, jet.DefaultPrefix)
	config.Replicas = n
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if _, err = js.CreateStream(t.Context(), *config); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	var hosts []*host
	for i := range n {
		h := newHost(t, fmt.Sprintf("host%d", i), 0, smallRing, url)
		h.shipper.start()
		hosts = append(hosts, h)
	}
	receive(t, url, hosts...)
	for _, h := range hosts {
		h.produce(10_000)
	}
	for range kills {
		for _, h := range hosts {
			h.awaitNews()
		}
		time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
		victim := servers[rand.IntN(n)]
		victim.kill()
		hosts[rand.IntN(n)].shipper.kill()
		for _, h := range hosts {
			if h.shipper.cmd == nil {
				h.shipper.start()
			}
			h.awaitNews() // two of three servers suffice
		}
		victim.start()
		awaitReplicas(t, js, n)
	}
	for _, h := range hosts {
		h.halt()
		h.finish()
	}
}

// awaitReplicas waits until all servers have all of the stream: else the next kill takes the
// majority away.
func awaitReplicas(t *testing.T, js jetstream.JetStream, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		current := 0
		if s, err := js.Stream(t.Context(), stream); err == nil {
			info := s.CachedInfo()
			if info.Cluster != nil && info.Cluster.Leader != "" {
				current = 1
				for _, peer := range info.Cluster.Replicas {
					if peer.Current && !peer.Offline {
						current++
					}
				}
			}
		}
		if current == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d servers are current", current, n)
		}
	}
}
