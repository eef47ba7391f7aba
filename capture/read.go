package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"
	"strings"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/libbpfgo/ringbuf"
)

// A Reader reads a recording. One goroutine at a time may use it.
type Reader struct {
	blocks  *blocks
	ng      *pcapgo.NgReader
	comment string
	rings   []Ring
	seen    int // number of the section's interfaces that are in rings
	first   int // index in rings of the section's first interface

	next Record // the record that was read last
	err  error  // the error of reading next
	held bool   // next or err is still to be returned
}

// NewReader returns a Reader of the file r. It reads up to the first record. Rings is then complete
// if all rings precede the records, as in the files of a Writer.
//
// NewReader also reads files of other programs, if each packet has link type USER0. It reads
// several recordings that follow each other in one file as one recording, with the rings of all.
//
// NewReader fails if it finds no ring. The error wraps io.ErrUnexpectedEOF if r is empty, or ends
// within a block before the first ring. Other errors say what is wrong with the file and, in most
// cases, where.
func NewReader(r io.Reader) (*Reader, error) {
	rd := &Reader{blocks: &blocks{r: bufio.NewReaderSize(r, bufferSize), btf: map[int][]byte{}}}
	ng, err := pcapgo.NewNgReader(rd.blocks, pcapgo.NgReaderOptions{
		WantMixedLinkType:  true, // otherwise pcapgo skips packets of another link type
		SectionEndCallback: func([]pcapgo.NgInterface, pcapgo.NgSectionInfo) { rd.endSection() },
	})
	if err != nil {
		return nil, wrap(err)
	}
	rd.ng = ng
	rd.comment = ng.SectionInfo().Comment
	rd.err = rd.read(&rd.next)
	rd.held = true
	if rd.err != nil && len(rd.rings) == 0 {
		if rd.err == io.EOF {
			return nil, errors.New("capture: there is no ring in the file")
		}
		return nil, rd.err
	}
	return rd, nil
}

// wrap adds the package's name to an error. It returns io.EOF as it is.
func wrap(err error) error {
	if err == io.EOF {
		return err
	}
	return fmt.Errorf("capture: %w", err)
}

// addRings adds a ring for each interface that pcapgo has found since the last call.
func (r *Reader) addRings() {
	for n := r.ng.NInterfaces(); r.seen < n; r.seen++ {
		intf, err := r.ng.Interface(r.seen)
		if err != nil {
			panic(err) // they are numbered from 0 on
		}
		ring := Ring{Name: intf.Name, Comment: intf.Comment, BTF: r.blocks.btf[len(r.rings)]}
		if intf.SnapLength <= math.MaxInt32 { // a larger one cuts no record
			ring.Snaplen = int(intf.SnapLength)
		}
		if n, _ := fmt.Sscanf(intf.Description, sizeFormat, &ring.ID, &ring.Size); n < 2 {
			ring.Size = 0
		}
		r.rings = append(r.rings, ring)
	}
}

// endSection is called when a new section begins, before pcapgo drops its interfaces.
func (r *Reader) endSection() {
	r.addRings()
	r.first, r.seen = len(r.rings), 0
}

// Rings returns the rings of the recording. Record.Ring is an index of this slice. Records and All
// may find more rings; Rings then returns them at the end.
func (r *Reader) Rings() []Ring { return r.rings }

// Comment returns the comment of the recording.
func (r *Reader) Comment() string { return r.comment }

// Records returns an iterator over the records, in the order of the file. Each is as a Reader of
// the ring returned it, except that Remaining is 0 and that RawSample may be cut to Snaplen.
//
// RawSample is valid until the next iteration: a body that keeps it must copy it. After a loop that
// was left early, the next call continues behind the last record of that loop.
//
// Before a record ahead of which others were missed, the iterator returns a *ringbuf.MissedError,
// and the loop continues, as with a Watcher. A recording of a ringbuf.Reader has no such error.
//
// Any other error comes in the last iteration, without a record. It wraps io.ErrUnexpectedEOF if
// the file ends within a block, as it does when the process that wrote it was killed. All records
// before that have been returned. Other errors say what is wrong with the file and, in most cases,
// where.
func (r *Reader) Records() iter.Seq2[ringbuf.Record, error] {
	return func(yield func(ringbuf.Record, error) bool) {
		for rec, err := range r.All() {
			if rec.Missed > 0 {
				missed := &ringbuf.MissedError{Bytes: rec.Missed}
				if !yield(ringbuf.Record{Ring: rec.Ring}, missed) {
					r.next.Missed, r.held = 0, true // the record itself comes next
					return
				}
			}
			if !yield(rec.Record, err) {
				return
			}
		}
	}
}

// All is like Records, but returns everything that the file has about each record. It returns no
// MissedError: see Record.Missed.
func (r *Reader) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			if !r.held {
				r.err = r.read(&r.next)
			}
			r.held = r.err != nil // all later calls return the error too
			if r.err == io.EOF {
				return
			}
			if r.err != nil {
				yield(Record{}, r.err)
				return
			}
			if !yield(r.next, nil) {
				return
			}
		}
	}
}

// read reads the next record into rec. It returns io.EOF at the end of the file. RawSample is valid
// until the next call.
func (r *Reader) read(rec *Record) error {
	sample, info, options, err := r.ng.ZeroCopyReadPacketDataWithOptions()
	r.addRings()
	if err != nil {
		return wrap(err)
	}
	ring := r.first + info.InterfaceIndex
	if t := info.AncillaryData[0]; t != layers.LinkType(linkTypeUser0) {
		return fmt.Errorf("capture: interface %d (%q) has link type %v, not USER0: it is not a ring",
			info.InterfaceIndex, r.rings[ring].Name, uint16(t.(layers.LinkType)))
	}
	*rec = Record{
		Record: ringbuf.Record{RawSample: sample, Ring: ring},
		Time:   info.Timestamp,
		Length: info.Length,
	}
	if options.DropCount != nil {
		rec.Lost = *options.DropCount
		if r.blocks.order == binary.BigEndian { // pcapgo always decodes it as little-endian
			rec.Lost = bits.ReverseBytes64(rec.Lost)
		}
	}
	comments := options.Comments
	if len(comments) > 0 && rec.Lost > 0 {
		_, err := fmt.Sscanf(comments[0], missedFormat, &rec.Missed)
		if err == nil && comments[0] == fmt.Sprintf(missedFormat, rec.Missed) {
			rec.Lost-- // see Record.drops
			comments = comments[1:]
		} else {
			rec.Missed = 0
		}
	}
	rec.Comment = strings.Join(comments, "\n")
	return nil
}
