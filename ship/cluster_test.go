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

// TestThreeHostsAndThreeServers ships from three hosts into one stream with three replicas,
// while servers are killed one at a time.
func TestThreeHostsAndThreeServers(t *testing.T) {
	const n = 3
	kills := 1
	if *long {
		kills = 10
	}
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
	js := mustJetStream(t, mustConnect(t, url))
	config := jet.NewStream(stream, jet.DefaultPrefix)
	config.Replicas = n
	makeStream(t, js, config)
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
		atRandom(time.Second)
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

// awaitReplicas waits until all servers have the whole stream. Otherwise the next kill could
// take away the majority.
func awaitReplicas(t *testing.T, js jetstream.JetStream, n int) {
	t.Helper()
	eventually(t, func() error {
		s, err := js.Stream(t.Context(), stream)
		if err != nil {
			return err
		}
		current := 0
		if c := s.CachedInfo().Cluster; c != nil && c.Leader != "" {
			current = 1
			for _, peer := range c.Replicas {
				if peer.Current && !peer.Offline {
					current++
				}
			}
		}
		if current < n {
			return fmt.Errorf("%d of %d servers are current", current, n)
		}
		return nil
	})
}
