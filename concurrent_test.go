package ringbuf

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

// In these tests several goroutines use a Reader, or write to its ring, at the same time.

func TestConcurrentReadersShareTheSamples(t *testing.T) { eachPace(t, testConcurrentReaders) }

func testConcurrentReaders(t *testing.T, pace Option) {
	const (
		producers = 2
		readers   = 4
		each      = 20000
	)
	ring, r := newRingAndReader(t, 16<<10, pace)
	var producing group
	for p := range producers {
		producing.Go(func() {
			for seq := 0; seq < each; {
				seq += ring.Count(p, uint64(seq), min(each-seq, 1+seq%50), 0)
			}
		})
	}
	var (
		mu     sync.Mutex
		seen   [producers][]uint64
		total  int
		allIn  = make(chan struct{})
		failed atomic.Bool
	)
	var reading group
	for i := range readers {
		reading.Go(func() {
			var last [producers]int64
			for p := range last {
				last[p] = -1
			}
			var rec Record
			for {
				var err error
				if i%2 == 0 {
					rec, err = r.Read()
				} else {
					err = r.ReadInto(&rec)
				}
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err != nil {
					if !failed.Swap(true) {
						t.Error(err)
					}
					return
				}
				n := bpftest.DecodeNumbered(rec.RawSample)
				if int64(n.Seq) <= last[n.Producer] {
					t.Errorf("a goroutine read %d after %d", n.Seq, last[n.Producer])
				}
				last[n.Producer] = int64(n.Seq)
				clear(rec.RawSample) // it belongs to this goroutine
				mu.Lock()
				seen[n.Producer] = append(seen[n.Producer], n.Seq)
				if total++; total == producers*each {
					close(allIn)
				}
				mu.Unlock()
			}
		})
	}
	// Meanwhile, call the methods that do not read.
	stop := make(chan struct{})
	var others group
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r.SetDeadline(time.Now().Add(time.Minute))
				r.SetDeadline(time.Time{})
				if n := r.AvailableBytes(); n < 0 || n > r.BufferSize()+maxBatchSize {
					t.Errorf("AvailableBytes is %d", n)
				}
			}
		}
	})
	producing.Wait()
	select {
	case <-allIn:
	case <-time.After(30 * time.Second):
		t.Error("not all samples arrived")
	}
	close(stop)
	others.Wait()
	r.Close()
	reading.Wait()
	for p, seqs := range seen {
		slices.Sort(seqs)
		for i, seq := range seqs {
			if seq != uint64(i) {
				t.Fatalf("producer %d: sample %d is missing or came twice, next is %d", p, i, seq)
			}
		}
		if len(seqs) != each {
			t.Errorf("producer %d: %d samples, want %d", p, len(seqs), each)
		}
	}
}

func TestOrderOfOneReader(t *testing.T) { eachPace(t, testOrderOfOneReader) }

func testOrderOfOneReader(t *testing.T, pace Option) {
	ring, r := newRingAndReader(t, os.Getpagesize(), pace)
	const samples = 50000
	go func() {
		for seq := 0; seq < samples; {
			seq += ring.Count(0, uint64(seq), min(samples-seq, 1024), 0)
		}
	}()
	var rec Record
	for want := range uint64(samples) {
		if err := r.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		if got := bpftest.DecodeNumbered(rec.RawSample).Seq; got != want {
			t.Fatalf("sample %d came, want %d", got, want)
		}
	}
}

func TestCloseUnderLoad(t *testing.T) { eachPace(t, testCloseUnderLoad) }

func testCloseUnderLoad(t *testing.T, pace Option) {
	ring := bpftest.New(t, 64<<10)
	stop := make(chan struct{})
	var producing group
	producing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				ring.Count(0, 0, 100, 0)
			}
		}
	})
	defer producing.Wait()
	defer close(stop)
	for range 100 {
		r, err := NewReader(ring, pace)
		if err != nil {
			t.Fatal(err)
		}
		var users group
		started := make(chan struct{}, 4)
		for i := range 3 {
			users.Go(func() {
				started <- struct{}{}
				var rec Record
				for {
					var err error
					if i == 0 {
						_, err = r.Read()
					} else {
						err = r.ReadInto(&rec)
					}
					if errors.Is(err, os.ErrClosed) {
						return
					} else if err != nil && !errors.Is(err, ErrFlushed) &&
						!errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
						return
					}
				}
			})
		}
		users.Go(func() {
			started <- struct{}{}
			for r.Flush() == nil {
				r.SetDeadline(time.Now())
				r.SetDeadline(time.Time{})
				r.AvailableBytes()
				r.BufferSize()
			}
		})
		for range 4 {
			<-started
		}
		var closing group
		for range 2 {
			closing.Go(func() {
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				wantReadError(t, r, os.ErrClosed)
			})
		}
		closing.Wait()
		users.Wait()
	}
}
