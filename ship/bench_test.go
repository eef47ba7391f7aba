package ship_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpftest"
	"github.com/libbpfgo/ringbuf/ship"
	"github.com/libbpfgo/ringbuf/ship/jet"
	"github.com/libbpfgo/ringbuf/ship/natsd"
)

// Run these benchmarks with make ship-bench. Each runs once.

// A broker is a server for a benchmark.
type broker struct {
	url     string
	options []nats.Option
}

// brokers returns a server in this process, as ringbuf ship without --to uses, and nats-servers
// in processes of their own, with and without a sync for each message.
func brokers(b *testing.B) map[string]func(b *testing.B) broker {
	external := func(more string) func(b *testing.B) broker {
		return func(b *testing.B) broker {
			server, url := newServer(b, "one", more)
			server.start()
			return broker{url: url}
		}
	}
	return map[string]func(b *testing.B) broker{
		"embedded": func(b *testing.B) broker {
			server, err := natsd.Start(b.TempDir(), "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(server.Stop)
			return broker{server.URL(), []nats.Option{server.Option()}}
		},
		"server": external(""),
		// The last value counts.
		"server-nosync": external("jetstream { sync_interval: \"2m\" }\n"),
	}
}

func (k broker) connect(b *testing.B) *nats.Conn {
	b.Helper()
	var nc *nats.Conn
	eventually(b, func() (err error) {
		nc, err = nats.Connect(k.url, k.options...)
		return err
	})
	b.Cleanup(nc.Close)
	return nc
}

func (k broker) sink(b *testing.B, single bool) *jet.Sink {
	b.Helper()
	sink, err := jet.New(k.connect(b), stream, jet.Options{Single: single,
		Create: jet.NewStream(stream, jet.DefaultPrefix)})
	if err != nil {
		b.Fatal(err)
	}
	return sink
}

// fill submits n samples of 64 bytes.
func fill(ring *bpftest.Ring, n int) {
	samples := make([]bpftest.Sample, 256)
	for i := range samples {
		samples[i].Data = make([]byte, 64)
	}
	for n > 0 {
		k := min(n, len(samples))
		ring.Emit(samples[:k]...)
		n -= k
	}
}

func eachBroker(b *testing.B, bench func(b *testing.B, k broker)) {
	all := brokers(b)
	for _, name := range []string{"embedded", "server", "server-nosync"} {
		b.Run(name, func(b *testing.B) { bench(b, all[name](b)) })
	}
}

// BenchmarkShip ships a ring that was filled before.
func BenchmarkShip(b *testing.B) {
	for _, tt := range []struct {
		name   string
		single bool
		n      int
	}{{"batched", false, 900_000}, {"single", true, 100_000}} {
		b.Run(tt.name, func(b *testing.B) {
			eachBroker(b, func(b *testing.B, k broker) {
				for range b.N {
					ring := bpftest.New(b, 64<<20)
					fill(ring, tt.n)
					r, err := ringbuf.NewReader(ring)
					if err != nil {
						b.Fatal(err)
					}
					sink := k.sink(b, tt.single)
					r.Flush()
					begin, cpu := time.Now(), cpuTime()
					if err := ship.Run(b.Context(), r, sink, ship.Options{}); err != nil {
						b.Fatal(err)
					}
					report(b, tt.n, time.Since(begin), cpuTime()-cpu)
					r.Close()
				}
			})
		})
	}
}

// BenchmarkNaive does what agents do: it reads and publishes without a guarantee. It measures
// the time until the stream has all records.
func BenchmarkNaive(b *testing.B) {
	const n = 2000
	eachBroker(b, func(b *testing.B, k broker) {
		for range b.N {
			ring := bpftest.New(b, 64<<20)
			fill(ring, n)
			r, err := ringbuf.NewReader(ring)
			if err != nil {
				b.Fatal(err)
			}
			nc := k.connect(b)
			s := makeStream(b, mustJetStream(b, nc), jet.NewStream(stream, jet.DefaultPrefix))
			begin, cpu := time.Now(), cpuTime()
			var rec ringbuf.Record
			for range n {
				if err := r.ReadInto(&rec); err != nil {
					b.Fatal(err)
				}
				if err := nc.Publish("ringbuf.host.events", rec.RawSample); err != nil {
					b.Fatal(err)
				}
			}
			for has := uint64(0); has < n; time.Sleep(time.Millisecond) {
				info, err := s.Info(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				has = info.State.Msgs
			}
			report(b, n, time.Since(begin), cpuTime()-cpu)
			r.Close()
		}
	})
}

func report(b *testing.B, n int, took, cpu time.Duration) {
	b.ReportMetric(float64(n)/took.Seconds(), "records/s")
	b.ReportMetric(float64(cpu)/float64(n), "cpu-ns/record")
	b.ReportMetric(0, "ns/op")
}

// cpuTime returns the processor time of this process.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// A timedSink measures the time from before a record is reserved until the stream acknowledges
// it.
type timedSink struct {
	ship.Sink
	took []time.Duration
}

func (s *timedSink) Append(ctx context.Context, batch *ship.Batch) (int, error) {
	n, err := s.Sink.Append(ctx, batch)
	now := monotonic()
	for _, rec := range batch.Records[:n] {
		s.took = append(s.took, time.Duration(now-bpftest.DecodeStamped(rec.Sample).Time))
	}
	return n, err
}

// monotonic returns the time of bpf_ktime_get_ns().
func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return uint64(now.Nano())
}

// BenchmarkLatency ships 10,000 records a second, in groups of ten, for five seconds.
func BenchmarkLatency(b *testing.B) {
	const seconds, rate, group = 5, 10_000, 10
	for _, single := range []bool{false, true} {
		b.Run(map[bool]string{false: "batched", true: "single"}[single], func(b *testing.B) {
			eachBroker(b, func(b *testing.B, k broker) {
				for range b.N {
					ring := bpftest.New(b, 4<<20)
					r, err := ringbuf.NewReader(ring)
					if err != nil {
						b.Fatal(err)
					}
					sink := &timedSink{Sink: k.sink(b, single)}
					done := make(chan error, 1)
					go func() { done <- ship.Run(b.Context(), r, sink, ship.Options{}) }()
					cost := paced(b, ring, rate, group, seconds)
					r.Flush()
					if err := <-done; err != nil {
						b.Fatal(err)
					}
					r.Close()
					slices.Sort(sink.took)
					at := func(q float64) float64 {
						return float64(sink.took[int(q*float64(len(sink.took)-1))]) / 1e6
					}
					b.ReportMetric(at(0.5), "p50-ms")
					b.ReportMetric(at(0.99), "p99-ms")
					b.ReportMetric(at(1), "max-ms")
					b.ReportMetric(cost, "submit-ns/record")
					b.ReportMetric(0, "ns/op")
				}
			})
		})
	}
}

// paced submits records. It returns the time that a record costs its program, including the
// call that runs the program.
func paced(b *testing.B, ring *bpftest.Ring, rate, group, seconds int) float64 {
	var inside time.Duration
	n := 0
	for begin := time.Now(); n < rate*seconds; {
		due := min(int(time.Since(begin).Seconds()*float64(rate)), rate*seconds)
		if due-n < group && due < rate*seconds {
			time.Sleep(time.Duration(group) * time.Second / time.Duration(rate))
			continue
		}
		before := time.Now()
		if added := ring.Stamp(0, uint64(n), due-n); added != due-n {
			b.Fatal("the ring is full")
		}
		inside += time.Since(before)
		n = due
	}
	return float64(inside) / float64(n)
}

// BenchmarkSubmitNaive measures what records cost their program while an agent reads and
// publishes each one, for comparison with BenchmarkLatency.
func BenchmarkSubmitNaive(b *testing.B) {
	k := brokers(b)["server-nosync"](b)
	for range b.N {
		ring := bpftest.New(b, 4<<20)
		r, err := ringbuf.NewReader(ring)
		if err != nil {
			b.Fatal(err)
		}
		nc := k.connect(b)
		makeStream(b, mustJetStream(b, nc), jet.NewStream(stream, jet.DefaultPrefix))
		done := make(chan error, 1)
		go func() {
			var rec ringbuf.Record
			for {
				err := r.ReadInto(&rec)
				if err == nil {
					err = nc.Publish("ringbuf.host.events", rec.RawSample)
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
		cost := paced(b, ring, 10_000, 10, 5)
		r.Close()
		<-done
		b.ReportMetric(cost, "submit-ns/record")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkHosts measures how many messages a stream accepts. Each of many hosts always has a
// message of one record in flight.
func BenchmarkHosts(b *testing.B) {
	const hosts, duration = 100, 3 * time.Second
	eachBroker(b, func(b *testing.B, k broker) {
		for range b.N {
			sink := k.sink(b, false)
			ctx, cancel := context.WithCancel(b.Context())
			var all sync.WaitGroup
			var sent atomic.Int64
			makeStream(b, mustJetStream(b, k.connect(b)),
				jet.NewStream(stream, jet.DefaultPrefix))
			for i := range hosts {
				all.Go(func() {
					ring := ship.Ring{Host: fmt.Sprint("host", i), Boot: "0f-1", Name: "events", ID: 1}
					mark, err := sink.Resume(ctx, ring)
					for err == nil {
						batch := ship.Batch{Ring: ring, After: mark, Time: time.Now()}
						mark.Position += 72
						batch.Records = []ship.Record{{Sample: make([]byte, 64), Mark: mark}}
						if _, err = sink.Append(ctx, &batch); err == nil {
							sent.Add(1)
						}
					}
					if ctx.Err() == nil {
						b.Error(err)
					}
				})
			}
			begin := sent.Load()
			time.Sleep(duration)
			n := sent.Load() - begin
			cancel()
			all.Wait()
			b.ReportMetric(float64(n)/duration.Seconds(), "messages/s")
			b.ReportMetric(0, "ns/op")
		}
	})
}
