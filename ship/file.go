package ship

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A line is a record as JSON lines have it.
type line struct {
	Time      time.Time `json:"time"` // when the shipper found it, or an earlier one of its batch
	Host      string    `json:"host"`
	Boot      string    `json:"boot"`
	Ring      string    `json:"ring"`
	ID        uint32    `json:"id"`
	Position  uint64    `json:"position"` // at which it ends in the ring
	Lost      uint64    `json:"lost,omitempty"`
	LostTotal uint64    `json:"lost_total"`
	Data      hexBytes  `json:"data"`
}

// hexBytes are shown in hexadecimal.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", []byte(b)), nil }

// A jsonSink writes JSON lines.
type jsonSink struct {
	mu   sync.Mutex
	w    io.Writer
	sync func() error
	undo func() error // what an Append that failed has written
	ends map[Ring]Mark
	buf  bytes.Buffer
}

// NewWriter returns a Sink that writes records to w as lines of JSON. They count as safe when w has
// returned. A process that goes on where another was killed writes some again.
func NewWriter(w io.Writer) Sink {
	nothing := func() error { return nil }
	return &jsonSink{w: w, sync: nothing, undo: nothing, ends: map[Ring]Mark{}}
}

// A FileSink is a Sink that appends lines of JSON to a file. It has each record once: it looks at
// what is in the file.
type FileSink struct {
	jsonSink
	file *os.File
}

// NewFile opens or creates a file. One FileSink at a time may use it. A line that was cut by a kill
// is removed.
func NewFile(path string) (*FileSink, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	f := &FileSink{jsonSink: jsonSink{w: file, sync: file.Sync, ends: map[Ring]Mark{}}, file: file}
	size, err := f.scan()
	if err == nil {
		f.undo = func() error { return f.cut(size) }
		err = f.cut(size)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f.sync = func() error {
		if err := file.Sync(); err != nil {
			return err
		}
		size, err := file.Seek(0, io.SeekCurrent)
		f.undo = func() error { return f.cut(size) }
		return err
	}
	return f, nil
}

// scan finds where each ring ends, and how long all whole lines are.
func (f *FileSink) scan() (size int64, err error) {
	r := bufio.NewReaderSize(f.file, 1<<16)
	for {
		text, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
		var head struct {
			Host, Boot, Ring string
			ID               uint32
			Position         uint64
			LostTotal        uint64 `json:"lost_total"`
		}
		if err := json.Unmarshal(text, &head); err != nil || head.Position == 0 {
			return 0, fmt.Errorf("it has other lines than records, at byte %d: choose another file", size)
		}
		f.ends[Ring{head.Host, head.Boot, head.Ring, head.ID}] = Mark{head.Position, head.LostTotal}
		size += int64(len(text))
	}
}

func (f *FileSink) cut(size int64) error {
	if err := f.file.Truncate(size); err != nil {
		return err
	}
	_, err := f.file.Seek(size, io.SeekStart)
	return err
}

// Close closes the file.
func (f *FileSink) Close() error { return f.file.Close() }

// Append implements Sink.
func (s *jsonSink) Append(_ context.Context, b *Batch) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Reset()
	encoder := json.NewEncoder(&s.buf)
	end := b.After
	for _, rec := range b.Records {
		err := encoder.Encode(line{b.Time.UTC(), b.Ring.Host, b.Ring.Boot, b.Ring.Name, b.Ring.ID, rec.Position,
			rec.Lost - end.Lost, rec.Lost, rec.Sample})
		if err != nil {
			return 0, err
		}
		end = rec.Mark
	}
	_, err := s.w.Write(s.buf.Bytes())
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		return 0, errors.Join(err, s.undo())
	}
	s.ends[b.Ring] = end
	return len(b.Records), nil
}

// Resume implements Sink.
func (s *jsonSink) Resume(_ context.Context, ring Ring) (Mark, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ends[ring], nil
}
