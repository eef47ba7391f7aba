package ship_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
)

// patience is the timeout for everything that must happen.
const patience = 2 * time.Minute

// A process can be killed and started again.
type process struct {
	t    testing.TB
	make func() *exec.Cmd
	cmd  *exec.Cmd
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = p.make()
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill returns when the process is gone.
func (p *process) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}

// newServer returns a nats-server that is not yet started, and its URL. more is added to the
// configuration.
func newServer(t testing.TB, name, more string) (*process, string) {
	t.Helper()
	binary, dir, addr := natsServer(t), t.TempDir(), freeAddr(t)
	config := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("listen: %q\nserver_name: %s\njetstream { store_dir: %q, "+
		"sync_interval: always }\n%s",
		addr, name, dir, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, make: func() *exec.Cmd {
		return exec.Command(binary, "-c", config, "-l", filepath.Join(dir, "log"))
	}}
	t.Cleanup(p.kill)
	return p, "nats://" + addr
}

// freeAddr returns a free address on loopback.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A host is a ring with a loss counter, a producer, and a shipper.
type host struct {
	t       testing.TB
	name    string
	cpu     int
	ring    *bpftest.LossRing
	shipper *process

	tried, accepted uint64
	halt            func()

	// What was received.
	mu             sync.Mutex
	received, lost uint64
	next           uint64 // number of a record
	last           atomic.Uint64
	news           chan struct{}
	broken         chan struct{} // closed when nothing more is received
}

func mapID(t testing.TB, fd int) string {
	t.Helper()
	info, err := bpf.GetMapInfoByFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(info.ID)
}

// newHost returns a host whose shipper is not yet started.
func newHost(t testing.TB, name string, cpu, size int, url string, env ...string) *host {
	t.Helper()
	h := &host{t: t, name: name, cpu: cpu, ring: bpftest.NewLoss(t, size, 0),
		news: make(chan struct{}, 1), broken: make(chan struct{})}
	env = append(env, envRing+"="+mapID(t, h.ring.FileDescriptor()),
		envCounter+"="+mapID(t, h.ring.Counter().FileDescriptor()), envURL+"="+url, envHost+"="+name)
	h.shipper = &process{t: t, make: func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "-test.run=^$")
		cmd.Env = append(os.Environ(), env...)
		return cmd
	}}
	t.Cleanup(h.shipper.kill)
	return h
}

// produce submits rate records a second, until halt.
func (h *host) produce(rate int) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	h.halt = sync.OnceFunc(func() { close(stop); <-stopped })
	h.t.Cleanup(h.halt)
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		begin := time.Now()
		before := h.tried
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
			due := int(time.Since(begin).Seconds()*float64(rate)) - int(h.tried-before)
			h.try(min(due, rate)) // do not add to the load of a busy machine
		}
	}()
}

func (h *host) try(n int) {
	if n > 0 {
		h.accepted += uint64(h.ring.Try(h.cpu, 0, h.tried, n))
		h.tried += uint64(n)
	}
}

// take checks that r continues what was received before.
func (h *host) take(r *ship.Received) error {
	if r.Missed > 0 || r.Again > 0 {
		return fmt.Errorf("%d bytes are missing in the stream, and %d records are there again", r.Missed,
			r.Again)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, rec := range r.Records {
		seq := bpftest.DecodeNumbered(rec.Sample).Seq
		h.lost += rec.Lost
		if seq < h.next || h.received+h.lost < seq {
			return fmt.Errorf("record %d of %s where %d was next, after %d records and %d that are told "+
				"to be lost",
				seq, h.name, h.next, h.received, h.lost)
		}
		h.next = seq + 1
		h.received++
	}
	h.last.Store(h.next)
	select {
	case h.news <- struct{}{}:
	default:
	}
	return nil
}

// awaitNews waits until more was received.
func (h *host) awaitNews() {
	h.t.Helper()
	select {
	case <-h.news:
	default:
	}
	select {
	case <-h.news:
	case <-h.broken:
		h.t.FailNow()
	case <-time.After(patience):
		h.t.Fatalf("nothing comes from %s after record %d", h.name, h.last.Load())
	}
}

// finish submits a last record, waits for it, and checks the totals. No process may be killed
// any more.
func (h *host) finish() {
	h.t.Helper()
	eventually(h.t, func() error {
		before := h.accepted
		if h.try(1); h.accepted == before {
			return fmt.Errorf("the ring of %s stays full", h.name)
		}
		return nil
	})
	for h.last.Load() < h.tried {
		h.awaitNewsOr(h.tried)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.received != h.accepted || h.received+h.lost != h.tried {
		h.t.Errorf("%s: %d records were received and %d told to be lost; the kernel accepted %d of %d",
			h.name, h.received, h.lost, h.accepted, h.tried)
	}
	h.t.Logf("%s: %d records produced, %d received, %d lost and told", h.name, h.tried, h.received,
		h.lost)
}

// awaitNewsOr is like awaitNews, but returns if everything up to last has arrived.
func (h *host) awaitNewsOr(last uint64) {
	h.t.Helper()
	select {
	case <-h.news:
	case <-h.broken:
		h.t.FailNow()
	case <-time.After(patience):
		if h.last.Load() < last {
			h.t.Fatalf("nothing comes from %s after record %d of %d", h.name, h.last.Load(), last)
		}
	}
}

// mustConnect returns a connection that stays open until the test ends.
func mustConnect(t testing.TB, url string) *nats.Conn {
	t.Helper()
	nc, err := connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// receive passes the messages of the stream to the hosts, until the test ends.
func receive(t testing.TB, url string, hosts ...*host) {
	t.Helper()
	byName := map[string]*host{}
	for _, h := range hosts {
		byName[h.name] = h
	}
	nc := mustConnect(t, url)
	js := mustJetStream(t, nc)
	eventually(t, func() error { // a shipper creates the stream
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Stream(ctx, stream)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, h := range hosts {
				close(h.broken)
			}
		}()
		for r, err := range jet.Receive(ctx, nc, stream, jet.ReceiveOptions{}) {
			if err == nil {
				err = byName[r.Ring.Host].take(r)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// eventually polls until try succeeds, because a server does not say when it is ready.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// makeStream creates a stream once there is a server.
func makeStream(t testing.TB, js jetstream.JetStream, config *jetstream.StreamConfig) (
	s jetstream.Stream) {
	t.Helper()
	eventually(t, func() (err error) {
		s, err = js.CreateStream(t.Context(), *config)
		return err
	})
	return s
}

// mustJetStream returns the JetStream of a connection.
func mustJetStream(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}
