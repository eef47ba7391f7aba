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

// A line is a record in JSON lines.
type line struct {
	Time      time.Time `json:"time"` // when the shipper found it, or an earlier one of its batch
	Host      string    `json:"host"`
	Boot      string    `json:"boot"`
	Ring      string    `json:"ring"`
	ID        uint32    `json:"id"`
	Position  uint64    `json:"position"` // where the record ends in the ring
	Lost      uint64    `json:"lost,omitempty"`
	LostTotal uint64    `json:"lost_total"`
	Data      hexBytes  `json:"data"`
}

// hexBytes are written in hexadecimal.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", []byte(b)), nil }

// A jsonSink writes JSON lines.
type jsonSink struct {
	mu   sync.Mutex
	w    io.Writer
	sync func() error
	undo func(error) error // removes what a failed Append has written
	ends map[Ring]Mark
	buf  bytes.Buffer
}

// NewWriter returns a Sink that writes records to w as JSON lines. The records are acknowledged
// when w.Write returns. If w fails, Run returns an error that wraps ErrPermanent, because lines
// that were written cannot be taken back. A process that continues after another one may write
// some records again.
func NewWriter(w io.Writer) Sink {
	return &jsonSink{w: w, ends: map[Ring]Mark{}, sync: func() error { return nil },
		undo: func(err error) error { return fmt.Errorf("%w: %w", ErrPermanent, err) }}
}

// A FileSink is a Sink that appends JSON lines to a file. It syncs the file before it
// acknowledges records. The file has each record once, because Resume knows what is in the
// file.
type FileSink struct {
	jsonSink
	file *os.File
}

// NewFile opens the file at path, or creates it with mode 0600, and reads all of it. It removes
// an incomplete last line, which a killed process may have left. NewFile returns an error if
// the file has anything other than such lines, or if another FileSink has it open.
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

// open locks the file and prepares it for more lines.
func (f *FileSink) open() error {
	err := syscall.Flock(int(f.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == syscall.EWOULDBLOCK {
		return errors.New("it is used by another process: end that, or choose another file")
	}
	if err != nil {
		return fmt.Errorf("flock: %w", err)
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

// lineStart is the beginning of each line.
const lineStart = `{"time":"`

// scan finds the end of each ring, and the size of all complete lines.
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
		if err != nil { // the last line is incomplete
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

// Close closes the file, and so unlocks it.
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
