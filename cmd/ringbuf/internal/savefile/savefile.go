// Package savefile writes recordings to files, and to the next file when one is large or old
// enough, as tcpdump does.
package savefile

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/libbpfgo/ringbuf/capture"
)

// Options say what to write where.
type Options struct {
	Path   string    // of the file, or - for Stdout
	Stdout io.Writer // where - writes to
	Rings  []capture.Ring

	Size  int64         // begin another file when one has more bytes (-C), or 0
	Every time.Duration // begin another file after so long (-G), or 0
	// Count is -W: with Size alone, the number of files, of which the oldest is written anew when
	// there are as many; with Every alone, after how many files Write returns ErrEnough; with
	// both, nothing but the number of digits of names.
	Count int
}

// ErrEnough is returned by Write when -W files have been written.
var ErrEnough = fmt.Errorf("as many files as were asked for have been written")

// A Saver writes records. It may be used by one goroutine at a time.
type Saver struct {
	o       Options
	file    *os.File // or nil, of Stdout
	w       *capture.Writer
	number  int       // of the file with this start
	files   int       // that were begun
	start   time.Time // of the files with the same time, the first record
	written int64     // in files before
}

// New opens the first file, unless its name depends on the first record.
func New(o Options) (*Saver, error) {
	s := &Saver{o: o}
	if o.Path == "-" && (o.Size > 0 || o.Every > 0) {
		return nil, fmt.Errorf("standard output cannot be rotated: name a file")
	}
	if _, err := strftime(o.Path, time.Time{}); o.Every > 0 && err != nil {
		return nil, err
	}
	if o.Every > 0 {
		// The file begins with the first record; but say now if none can be written.
		info, err := os.Stat(filepath.Dir(o.Path))
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", filepath.Dir(o.Path))
		}
		return s, err
	}
	return s, s.open()
}

// name returns the name of the file that comes next.
func (s *Saver) name() (string, error) {
	name := s.o.Path
	if s.o.Every > 0 {
		var err error
		if name, err = strftime(s.o.Path, s.start); err != nil {
			return "", err
		}
	}
	digits := 0
	if s.o.Count > 0 && s.o.Size > 0 {
		digits = len(strconv.Itoa(s.o.Count - 1))
	}
	if s.number == 0 && digits == 0 {
		return name, nil
	}
	return fmt.Sprintf("%s%0*d", name, digits, s.number), nil
}

func (s *Saver) open() error {
	var out io.Writer = s.o.Stdout
	if s.o.Path != "-" {
		name, err := s.name()
		if err != nil {
			return err
		}
		// What is in samples may be nobody else's business.
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		s.file, out = file, file
	}
	w, err := capture.NewWriter(out, s.o.Rings, "")
	if err != nil {
		return err
	}
	s.w = w
	s.files++
	return nil
}

func (s *Saver) closeFile() error {
	if s.w == nil {
		return nil
	}
	err := s.w.Close()
	s.written += s.w.Size()
	s.w = nil
	if s.file != nil {
		if closeErr := s.file.Close(); err == nil {
			err = closeErr
		}
		s.file = nil
	}
	return err
}

// Write writes a record, in another file if it is time for one.
func (s *Saver) Write(rec capture.Record) error {
	if s.w == nil && s.o.Every > 0 && s.files == 0 {
		s.start = rec.Time
		if err := s.open(); err != nil {
			return err
		}
	}
	if s.w == nil {
		return ErrEnough
	}
	switch {
	case s.o.Every > 0 && rec.Time.Sub(s.start) >= s.o.Every:
		if err := s.closeFile(); err != nil {
			return err
		}
		if s.o.Size == 0 && s.o.Count > 0 && s.files >= s.o.Count {
			return ErrEnough
		}
		before, _ := strftime(s.o.Path, s.start)
		s.start = rec.Time
		if after, _ := strftime(s.o.Path, s.start); after != before {
			s.number = 0
		} else {
			s.number++
		}
		if err := s.open(); err != nil {
			return err
		}
	case s.o.Size > 0 && s.w.Size() > s.o.Size:
		if err := s.closeFile(); err != nil {
			return err
		}
		s.number++
		if s.o.Count > 0 && s.o.Every == 0 {
			s.number %= s.o.Count
		}
		if err := s.open(); err != nil {
			return err
		}
	}
	if err := s.w.Write(rec); err != nil {
		return err
	}
	return nil
}

// Drop tells of so many records of a ring that were lost after the last one.
func (s *Saver) Drop(ring int, n uint64) {
	if s.w != nil {
		s.w.Drop(ring, n)
	}
}

// Bytes returns how many bytes were written.
func (s *Saver) Bytes() int64 {
	if s.w == nil {
		return s.written
	}
	return s.written + s.w.Size()
}

// Flush writes what is buffered.
func (s *Saver) Flush() error {
	if s.w == nil {
		return nil
	}
	return s.w.Flush()
}

// Close ends the recording.
func (s *Saver) Close() error { return s.closeFile() }

// strftime replaces what strftime(3) has of numbers in a name.
func strftime(format string, t time.Time) (string, error) {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		if i == len(format) {
			return "", fmt.Errorf("the name %q ends with a %%: %%%% stands for one", format)
		}
		layout, ok := map[byte]string{
			'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'j': "002",
			'F': "2006-01-02", 'T': "15:04:05", 'b': "Jan", 'a': "Mon", 'Z': "MST", 'z': "-0700", '%': "%",
		}[format[i]]
		switch {
		case ok:
			b.WriteString(t.Format(layout))
		case format[i] == 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		default:
			return "", fmt.Errorf(
				"the name %q has %%%c, which is not known: of strftime there are %%Y %%y %%m %%d %%H %%M %%S "+
					"%%j %%F %%T %%b %%a %%Z %%z %%s %%%%", format, format[i])
		}
	}
	return b.String(), nil
}
