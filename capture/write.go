package capture

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"
)

// bufferSize is large enough to write to a file with few system calls, and small enough that the
// buffer stays in the processor's cache.
const bufferSize = 256 << 10

// A Writer writes a recording. One goroutine at a time may use it.
type Writer struct {
	buf   *bufio.Writer // shared with ng
	ng    *pcapgo.NgWriter
	count *counter
	rings []writerRing
	err   error
}

type writerRing struct {
	snaplen           int
	received, dropped uint64
	first, last       time.Time
}

// counter counts the bytes that are written to the file.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// NewWriter starts a recording of these rings in w. The comment is free text about the recording.
// The Writer buffers: w may receive nothing before Flush or Close. It does not keep rings.
func NewWriter(w io.Writer, rings []Ring, comment string) (*Writer, error) {
	if len(rings) == 0 {
		return nil, errors.New("capture: a recording needs a ring")
	}
	wr := &Writer{count: &counter{w: w}}
	// pcapgo uses a writer that is already a bufio.Writer as its own buffer.
	wr.buf = bufio.NewWriterSize(wr.count, bufferSize)
	options := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Hardware:    runtime.GOARCH,
		OS:          runtime.GOOS,
		Application: "ringbuf",
		Comment:     comment,
	}}
	for i, ring := range rings {
		if err := ring.check(); err != nil {
			return nil, fmt.Errorf("capture: ring %d (%q): %w", i, ring.Name, err)
		}
		intf := pcapgo.NgInterface{
			Name:        ring.Name,
			Description: ring.description(),
			Comment:     ring.Comment,
			LinkType:    linkTypeUser0,
			SnapLength:  uint32(ring.Snaplen),
		}
		var err error
		if i == 0 {
			wr.ng, err = pcapgo.NewNgWriterInterface(wr.buf, intf, options)
		} else {
			_, err = wr.ng.AddInterface(intf)
		}
		if err != nil {
			return nil, fmt.Errorf("capture: %w", err)
		}
		wr.rings = append(wr.rings, writerRing{snaplen: ring.Snaplen})
	}
	if err := wr.writeBTF(rings); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return wr, nil
}

const (
	// An option of pcapng has a length of 16 bits.
	maxOption = 1<<16 - 1
	// The result of time.UnixNano has 63 bits.
	maxSeconds = (1<<63-1)/1_000_000_000 - 1
)

func (r Ring) check() error {
	switch {
	case len(r.Name) > maxOption || len(r.Comment) > maxOption:
		return fmt.Errorf("a name or a comment has more than %d bytes", maxOption)
	case r.Size < 0 || r.Snaplen < 0 || int64(r.Snaplen) > 1<<31-1:
		return fmt.Errorf("the size %d or the snaplen %d is out of range", r.Size, r.Snaplen)
	case len(r.BTF) > maxBlock/2:
		return fmt.Errorf("%d bytes of BTF are too many", len(r.BTF))
	}
	return nil
}

func (r Ring) description() string {
	switch {
	case r.ID == 0 && r.Size == 0:
		return ""
	case r.Size == 0:
		return fmt.Sprintf(idFormat, r.ID)
	}
	return fmt.Sprintf(sizeFormat, r.ID, r.Size)
}

// writeBTF writes one block for each different BTF, with the numbers of all rings that have it.
func (w *Writer) writeBTF(rings []Ring) error {
	for i, ring := range rings {
		var of []uint32
		for j, other := range rings {
			if !bytes.Equal(other.BTF, ring.BTF) {
				continue
			}
			if j < i {
				of = nil // ring j has written this BTF
				break
			}
			of = append(of, uint32(j))
		}
		if len(ring.BTF) == 0 || len(of) == 0 {
			continue
		}
		le := binary.LittleEndian // like pcapgo
		padded := (len(ring.BTF) + 3) &^ 3
		length := uint32(4 + 4 + len(btfSignature) + 4 + 4*len(of) + 4 + padded + 4)
		block := le.AppendUint32(make([]byte, 0, length), blockBTF)
		block = le.AppendUint32(block, length)
		block = append(block, btfSignature...)
		block = le.AppendUint32(block, uint32(len(of)))
		for _, j := range of {
			block = le.AppendUint32(block, j)
		}
		block = le.AppendUint32(block, uint32(len(ring.BTF)))
		block = append(block, ring.BTF...)
		block = append(block, make([]byte, padded-len(ring.BTF))...)
		block = le.AppendUint32(block, length)
		if _, err := w.buf.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// Write writes a record. It cuts a sample that is longer than the ring's Snaplen. A Length of 0
// means the size of RawSample. Write does not keep RawSample.
//
// After an error of the file, every Write returns that error.
func (w *Writer) Write(rec Record) error {
	if w.err != nil {
		return w.err
	}
	if rec.Ring < 0 || rec.Ring >= len(w.rings) {
		return fmt.Errorf("capture: there is no ring %d: there are %d", rec.Ring, len(w.rings))
	}
	ring := &w.rings[rec.Ring]
	sample, length := rec.RawSample, max(rec.Length, len(rec.RawSample))
	if ring.snaplen > 0 && len(sample) > ring.snaplen {
		sample = sample[:ring.snaplen]
	}
	if seconds := rec.Time.Unix(); seconds < 0 || seconds > maxSeconds {
		return fmt.Errorf("capture: the time %v is out of range", rec.Time)
	}
	if length > maxBlock/2 || len(rec.Comment) > maxOption {
		return fmt.Errorf("capture: a sample of %d bytes, or a comment of %d, is too long", length,
			len(rec.Comment))
	}
	info := gopacket.CaptureInfo{
		Timestamp:      rec.Time,
		CaptureLength:  len(sample),
		Length:         length,
		InterfaceIndex: rec.Ring,
	}
	if rec.Lost == 0 && rec.Missed == 0 && rec.Comment == "" {
		w.err = w.ng.WritePacket(info, sample)
	} else {
		w.err = w.ng.WritePacketWithOptions(info, sample, rec.options())
		ring.dropped += rec.drops()
	}
	if w.err != nil {
		w.err = fmt.Errorf("capture: %w", w.err)
		return w.err
	}
	if ring.received == 0 {
		ring.first = rec.Time
	}
	ring.received++
	ring.last = rec.Time
	return nil
}

// drops returns the number of dropped packets before the record. A gap of missed records counts as
// one.
func (r *Record) drops() uint64 {
	if r.Missed > 0 {
		return r.Lost + 1
	}
	return r.Lost
}

func (r *Record) options() (o pcapgo.NgPacketOptions) {
	if n := r.drops(); n > 0 {
		o.DropCount = &n
	}
	if r.Missed > 0 {
		o.Comments = append(o.Comments, fmt.Sprintf(missedFormat, r.Missed))
	}
	if r.Comment != "" {
		o.Comments = append(o.Comments, r.Comment)
	}
	return o
}

// Drop adds n to the number of dropped records in the totals of a ring, which Close writes. Use it
// for records that were lost after the last record. Write has counted the earlier ones.
func (w *Writer) Drop(ring int, n uint64) { w.rings[ring].dropped += n }

// Size returns the size of the recording in bytes, buffered ones included.
func (w *Writer) Size() int64 { return w.count.n + int64(w.buf.Buffered()) }

// Flush writes the buffer to the file. The file then ends with a complete record.
func (w *Writer) Flush() error {
	if w.err == nil {
		if err := w.buf.Flush(); err != nil {
			w.err = fmt.Errorf("capture: %w", err)
		}
	}
	return w.err
}

// Close writes the totals of each ring, which end the recording, and flushes. It does not close the
// file. After Close, Write returns an error.
func (w *Writer) Close() error {
	for i, ring := range w.rings {
		if w.err != nil {
			break
		}
		stats := pcapgo.NgInterfaceStatistics{
			PacketsReceived: ring.received,
			PacketsDropped:  ring.dropped,
		}
		if ring.received > 0 {
			stats.LastUpdate, stats.StartTime, stats.EndTime = ring.last, ring.first, ring.last
		}
		if err := w.ng.WriteInterfaceStats(i, stats); err != nil {
			w.err = fmt.Errorf("capture: %w", err)
		}
	}
	err := w.Flush()
	if err == nil {
		w.err = errors.New("capture: the recording has ended")
	}
	return err
}
