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
	"strings"
	"sync"
	"syscall"
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
	undo func(error) error // what an Append that failed has written
	ends map[Ring]Mark
	buf  bytes.Buffer
}

// NewWriter returns a Sink that writes records to w as lines of JSON. They count as safe when w has
// returned. If w fails, so does Run: what w has written of them cannot be taken back. A process
// that goes on where another ended writes some again.
func NewWriter(w io.Writer) Sink {
	return &jsonSink{w: w, ends: map[Ring]Mark{}, sync: func() error { return nil },
		undo: func(err error) error { return fmt.Errorf("%w: %w", ErrPermanent, err) }}
}

// A FileSink is a Sink that appends lines of JSON to a file. It has each record once: it looks at
// what is in the file.
type FileSink struct {
	jsonSink
	file *os.File
}

// NewFile opens or creates a file, which one FileSink at a time may use. It reads all of the file.
// A line that was cut by a kill is removed; a file of anything but such lines is an error.
func NewFile(path string) (*FileSink, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	f := &FileSink{jsonSink: jsonSink{w: file, ends: map[Ring]Mark{}}, file: file}
	if err := f.open(); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// open makes the file ready for more lines.
func (f *FileSink) open() error {
	if err := syscall.Flock(int(f.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.New("it is used by another process: end that, or choose another file")
	}
	size, err := f.scan()
	if err != nil {
		return err
	}
	f.sync = func() error {
		if err := f.file.Sync(); err != nil {
			return err
		}
		now, err := f.file.Seek(0, io.SeekCurrent)
		if err == nil {
			size = now
		}
		return err
	}
	f.undo = func(err error) error { return errors.Join(err, f.cut(size)) }
	return f.cut(size)
}

// lineStart begins each line.
const lineStart = `{"time":"`

// scan finds where each ring ends, and how long all whole lines are.
func (f *FileSink) scan() (size int64, err error) {
	r := bufio.NewReaderSize(f.file, 1<<16)
	for {
		text, err := r.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !strings.HasPrefix(string(text), lineStart[:min(len(text), len(lineStart))]) {
			return 0, fmt.Errorf("it has other lines than records, at byte %d: choose another file",
				size)
		}
		if err != nil { // the last line has no end
			return size, nil
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
		err := encoder.Encode(line{b.Time.UTC(), b.Ring.Host, b.Ring.Boot, b.Ring.Name, b.Ring.ID,
			rec.Position,
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
		return 0, s.undo(err)
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
