package ship_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
)

// These tests ship from rings of this kernel. The shippers and the nats-servers are processes
// of their own.

var long = flag.Bool("long", false, "kill often, and run the tests that take minutes")

// The environment of a shipper process.
const (
	envRing    = "RINGBUF_SHIP_RING"    // id of the map
	envCounter = "RINGBUF_SHIP_COUNTER" // id of its loss counter
	envURL     = "RINGBUF_SHIP_URL"
	envHost    = "RINGBUF_SHIP_HOST"
	envSingle  = "RINGBUF_SHIP_SINGLE"
)

const stream = "EVENTS"

func TestMain(m *testing.M) {
	if os.Getenv(envRing) != "" {
		fmt.Fprintln(os.Stderr, "shipper:", shipForEver())
		os.Exit(1)
	}
	status := bpftest.Status()
	fmt.Println(status)
	code := m.Run()
	if binaries.dir != "" {
		os.RemoveAll(binaries.dir)
	}
	fmt.Println(status)
	os.Exit(code)
}

// shipForEver is the main function of a shipper process.
func shipForEver() error {
	var maps [2]*ringbuf.MapHandle
	for i, env := range []string{envRing, envCounter} {
		id, err := strconv.ParseUint(os.Getenv(env), 10, 32)
		if err != nil {
			return err
		}
		if maps[i], err = ringbuf.OpenMapID(uint32(id)); err != nil {
			return err
		}
	}
	r, err := ringbuf.NewReader(maps[0], ringbuf.WithLossCounter(maps[1]))
	if err != nil {
		return err
	}
	nc, err := connect(os.Getenv(envURL))
	if err != nil {
		return err
	}
	sink, err := jet.New(nc, stream, jet.Options{Single: os.Getenv(envSingle) != "",
		Create: jet.NewStream(stream, jet.DefaultPrefix)})
	if err != nil {
		return err
	}
	return ship.Run(context.Background(), r, sink, ship.Options{Host: os.Getenv(envHost),
		OnError: func(_ ship.Ring, err error) {
			if errors.Is(err, ship.ErrPermanent) {
				fmt.Fprintln(os.Stderr, "shipper:", err)
			}
		}})
}

// connect connects to servers that come and go.
func connect(url string) (*nats.Conn, error) {
	return nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
}

// binaries holds the nats-server of the version in this module's go.mod.
var binaries struct {
	once sync.Once
	dir  string
	err  error
}

func natsServer(t testing.TB) string {
	t.Helper()
	b := &binaries
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", ""); b.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", b.dir, "github.com/nats-io/nats-server/v2")
		if out, err := build.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("go build nats-server: %w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, "nats-server")
}
