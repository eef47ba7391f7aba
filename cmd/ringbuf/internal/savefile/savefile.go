// Package savefile writes recordings to files. Like tcpdump, it begins another file when one is
// large or old enough.
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

// Options say what a Saver writes, and to which files.
type Options struct {
	Path   string    // name of the file, or - for Stdout
	Stdout io.Writer // receives the recording if Path is -
	Rings  []capture.Ring

	Size  int64         // begin another file when one has more bytes (-C), or 0
	Every time.Duration // begin another file after this time (-G), or 0

	// Count is the value of -W, or 0. Its meaning depends on the other options:
	//
	//   - With Size alone, it is the maximum number of files. The next file replaces the oldest.
	//   - With Every alone, Write returns ErrEnough after that many files.
	//   - With both, it sets only the number of digits in names.
	Count int
}

// ErrEnough is returned by Write when -W files have been written.
var ErrEnough = fmt.Errorf("as many files as were asked for have been written")

// A Saver writes records to files. One goroutine at a time may use it.
type Saver struct {
	o       Options
	file    *os.File // nil for Stdout
	w       *capture.Writer
	number  int       // of the file, among those with the same name by time
	files   int       // number of files that were begun
	start   time.Time // with Every: time of the first record of the period
	written int64     // bytes in earlier files
}

// New returns a Saver. It opens the first file, except with Every: then Write opens it, because its
// name depends on the time of the first record.
func New(o Options) (*Saver, error) {
	s := &Saver{o: o}
	if o.Path == "-" && (o.Size > 0 || o.Every > 0) {
		return nil, fmt.Errorf("standard output cannot be rotated: name a file")
	}
	if _, err := strftime(o.Path, time.Time{}); o.Every > 0 && err != nil {
		return nil, err
	}
	if o.Every > 0 {
		// Write will open the file. Report now if it cannot.
		info, err := os.Stat(filepath.Dir(o.Path))
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", filepath.Dir(o.Path))
		}
		return s, err
	}
	return s, s.open()
}

// name returns the name of the next file.
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
		// Only the user may read the file: samples may be private.
		file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		s.file, out = file, file
	}
	w, err := capture.NewWriter(out, s.o.Rings, "")
	if err != nil {
		if s.file != nil {
			s.file.Close()
			s.file = nil
		}
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

// Write writes a record. It begins another file before if it is time for one. It returns ErrEnough
// if there must be no other file.
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

// Drop adds n records of a ring that were lost after the last one to the totals of the file.
func (s *Saver) Drop(ring int, n uint64) {
	if s.w != nil {
		s.w.Drop(ring, n)
	}
}

// Bytes returns the number of bytes in all files, buffered ones included.
func (s *Saver) Bytes() int64 {
	if s.w == nil {
		return s.written
	}
	return s.written + s.w.Size()
}

// Flush writes the buffer to the file.
func (s *Saver) Flush() error {
	if s.w == nil {
		return nil
	}
	return s.w.Flush()
}

// Close ends the recording and closes the file.
func (s *Saver) Close() error { return s.closeFile() }

// strftime replaces the conversions of strftime(3) in a name, and fails for those that it does not
// know.
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
