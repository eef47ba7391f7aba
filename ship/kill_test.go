package ship_test

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Sizes of rings: one that is full in a second, and one that is not.
const (
	smallRing = 1 << 20
	largeRing = 16 << 20
)

// TestKillsLoseNothing kills the shipper, the server, or both at random moments while records
// come. The stream then has each record that the kernel accepted, once and in order.
func TestKillsLoseNothing(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		env                    []string
		shippers, servers, all int // kills
		long                   [3]int
	}{
		{"batched", nil, 5, 2, 1, [3]int{50, 20, 10}},
		{"single", []string{envSingle + "=1"}, 3, 1, 1, [3]int{20, 10, 5}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, url := newServer(t, "one", "")
			server.start()
			h := newHost(t, "host", 0, smallRing, url, tt.env...)
			h.shipper.start()
			receive(t, url, h)
			h.produce(50_000)
			kills := [][]*process{{h.shipper}, {server}, {server, h.shipper}}
			counts := [3]int{tt.shippers, tt.servers, tt.all}
			if *long {
				counts = tt.long
			}
			var order []int
			for i, n := range counts {
				for range n {
					order = append(order, i)
				}
			}
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			for _, i := range order {
				h.awaitNews()
				atRandom(300 * time.Millisecond)
				for _, p := range kills[i] {
					p.kill()
				}
				for _, p := range kills[i] {
					p.start()
				}
			}
			h.awaitNews()
			h.halt()
			h.finish()
		})
	}
}

// atRandom returns at a random moment within a time. It is not a wait for an event: the test
// must hold whenever a process is killed.
func atRandom(within time.Duration) { time.Sleep(rand.N(within)) }
