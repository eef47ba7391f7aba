// Writer sends messages to a BPF program, which sends each back: a million round trips through
// a Writer and a Reader. The first half goes one at a time. The second half comes from several
// goroutines, as many messages at once as fit. Writer checks each byte, the order, and that
// none is missing. It is skipped if the kernel has no user ring buffers.
package main

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf"
	"github.com/libbpfgo/ringbuf/internal/bpfobj"
)

//go:embed main.bpf.o
var object []byte

const (
	statusSkip = 4 // KSFT_SKIP in tools/testing/selftests/kselftest.h

	trips   = 1_000_000
	writers = 4

	// An emulated machine makes as many trips as it can in this time, but no fewer than
	// minTrips.
	patience = time.Minute
	minTrips = 20_000

	// MAX_SAMPLE of main.bpf.c, and the part of a message that the BPF program looks at.
	maxSample = 256
	header    = 16
)

var errSkip = errors.New("skipped: needs Linux 6.1, which has user ring buffers")

func main() {
	switch err := run(); {
	case errors.Is(err, errSkip):
		fmt.Println(err)
		os.Exit(statusSkip)
	case err != nil:
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func run() error {
	const userRingbuf = 31 // BPF_MAP_TYPE_USER_RINGBUF
	m, err := bpf.CreateMap(userRingbuf, "try", 0, 0, os.Getpagesize(), nil)
	if errors.Is(err, syscall.EINVAL) {
		return errSkip
	}
	if err != nil {
		return err
	}
	syscall.Close(m.FileDescriptor())

	module, err := bpfobj.Load(object, nil)
	if err != nil {
		return err
	}
	defer module.Close()
	commands, err := module.GetMap("commands")
	if err != nil {
		return err
	}
	replies, err := module.GetMap("replies")
	if err != nil {
		return err
	}
	drain, err := module.GetProgram("drain")
	if err != nil {
		return err
	}
	writer, err := ringbuf.NewWriter(commands, ringbuf.WithDrainProgram(drain))
	if err != nil {
		return err
	}
	defer writer.Close()
	reader, err := ringbuf.NewReader(replies, ringbuf.WithMaxDelay(0))
	if err != nil {
		return err
	}
	defer reader.Close()

	started := time.Now()
	n, err := oneByOne(writer, reader)
	if err != nil {
		return fmt.Errorf("one by one: %w", err)
	}
	took := time.Since(started)
	started = time.Now()
	many, err := manyAtOnce(writer, reader)
	if err != nil {
		return fmt.Errorf("many at once: %w", err)
	}
	fmt.Printf("%d round trips one by one, %v each; %d many at once, %v each\n",
		n, took/time.Duration(n), many, time.Since(started)/time.Duration(many))

	stats := writer.Stats()
	if want := uint64(n + many); stats.Samples != want || stats.Fill != 0 || stats.Discarded != 0 {
		return fmt.Errorf("the Stats are %+v, want %d samples", stats, want)
	}
	if err := writer.Close(); err != nil {
		return err
	}
	if err := reader.Flush(); err != nil {
		return err
	}
	if record, err := reader.Read(); !errors.Is(err, ringbuf.ErrFlushed) {
		return fmt.Errorf("after the last reply there came %x, %v", record.RawSample, err)
	}
	return nil
}

// fill fills buf with message seq, and returns the part of buf that it used.
func fill(buf []byte, writer int, seq uint64) []byte {
	size := header + int(seq*7+uint64(writer))%(maxSample-header+1)
	buf = buf[:size]
	binary.NativeEndian.PutUint64(buf, uint64(writer)<<56|seq)
	binary.NativeEndian.PutUint32(buf[8:], uint32(size))
	binary.NativeEndian.PutUint32(buf[12:], 0) // replies that were refused
	for i := header; i < size; i++ {
		buf[i] = byte(seq) ^ byte(i)
	}
	return buf
}

func check(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the reply is %x, want %x", got, want)
	}
	return nil
}

// oneByOne sends half of the messages, each after the reply to the previous one.
func oneByOne(writer *ringbuf.Writer, reader *ringbuf.Reader) (n int, err error) {
	var record ringbuf.Record
	buf := make([]byte, maxSample)
	for end := time.Now().Add(patience); n < trips/2 && (n < minTrips || time.Now().Before(end)); n++ {
		sent := fill(buf, 0, uint64(n))
		if _, err := writer.Write(sent); err != nil {
			return n, err
		}
		if err := reader.ReadInto(&record); err != nil {
			return n, err
		}
		if err := check(record.RawSample, sent); err != nil {
			return n, fmt.Errorf("message %d: %w", n, err)
		}
	}
	return n, nil
}

// manyAtOnce sends the other half from several goroutines. It never has more unread replies on
// the way than fit in the ring for replies.
func manyAtOnce(writer *ringbuf.Writer, reader *ringbuf.Reader) (n int, err error) {
	const (
		each  = trips / 2 / writers
		onWay = 1000 // for each goroutine, of up to 264 bytes
	)
	end := time.Now().Add(patience)
	var wg sync.WaitGroup
	var rooms [writers]chan struct{}
	var sent [writers]int
	failed := make([]error, writers)
	for i := range writers {
		rooms[i] = make(chan struct{}, onWay)
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, maxSample)
			for seq := 0; seq < each && (seq < minTrips/writers || time.Now().Before(end)); seq++ {
				rooms[i] <- struct{}{}
				if failed[i] = send(writer, fill(buf, i, uint64(seq)), seq%2 == 1); failed[i] != nil {
					return
				}
				sent[i]++
			}
		}()
	}
	go func() {
		wg.Wait()
		// A goroutine of the Writer may drain the last messages.
		for writer.Stats().Fill > 0 {
			time.Sleep(time.Millisecond)
		}
		reader.Flush() // ends the loop below when all replies are read
	}()
	var received [writers]int
	var record ringbuf.Record
	want := make([]byte, maxSample)
	for {
		err := reader.ReadInto(&record)
		if errors.Is(err, ringbuf.ErrFlushed) {
			break
		}
		if err != nil {
			return 0, err
		}
		if len(record.RawSample) < header {
			return 0, fmt.Errorf("a reply has %d bytes", len(record.RawSample))
		}
		i := binary.NativeEndian.Uint64(record.RawSample) >> 56
		if i >= writers {
			return 0, fmt.Errorf("the reply %x is to nobody", record.RawSample)
		}
		if err := check(record.RawSample, fill(want, int(i), uint64(received[i]))); err != nil {
			return 0, fmt.Errorf("writer %d, message %d: %w", i, received[i], err)
		}
		received[i]++
		<-rooms[i]
	}
	for _, count := range received {
		n += count
	}
	if sent != received {
		return n, fmt.Errorf("%v messages were sent, and %v came back", sent, received)
	}
	return n, errors.Join(failed...)
}

func send(writer *ringbuf.Writer, message []byte, inPlace bool) error {
	if !inPlace {
		_, err := writer.Write(message)
		return err
	}
	reservation, err := writer.Reserve(len(message))
	if err != nil {
		return err
	}
	copy(reservation.Bytes(), message)
	return reservation.Submit()
}
