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

// A Reader reads a recording. It may be used by one goroutine at a time.
type Reader struct {
	blocks  *blocks
	ng      *pcapgo.NgReader
	comment string
	rings   []Ring
	seen    int // interfaces of the section, which are in rings
	first   int // ring of the section's first interface

	next Record // read, and not yet returned
	err  error  // of next
	held bool   // there is a next
}

// NewReader returns a Reader of the file r. It reads up to the first record, so that Rings is
// complete if all rings stand before it, as in what a Writer wrote.
//
// Files that others wrote can be read too, if each of their packets has link type USER0. Several
// recordings, one after another in one file, are read as one, with the rings of all.
//
// The error is io.ErrUnexpectedEOF, wrapped, if r ends before there is a ring, and otherwise says
// where in the file what is wrong.
func NewReader(r io.Reader) (*Reader, error) {
	rd := &Reader{blocks: &blocks{r: bufio.NewReaderSize(r, bufferSize), btf: map[int][]byte{}}}
	ng, err := pcapgo.NewNgReader(rd.blocks, pcapgo.NgReaderOptions{
		WantMixedLinkType:  true, // or what has another link type is skipped
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

// wrap adds the package's name to an error, but to io.EOF.
func wrap(err error) error {
	if err == io.EOF {
		return err
	}
	return fmt.Errorf("capture: %w", err)
}

// addRings adds the interfaces that pcapgo has met since the last call.
func (r *Reader) addRings() {
	for n := r.ng.NInterfaces(); r.seen < n; r.seen++ {
		intf, err := r.ng.Interface(r.seen)
		if err != nil {
			panic(err) // they are numbered from 0 on
		}
		ring := Ring{Name: intf.Name, Comment: intf.Comment, BTF: r.blocks.btf[len(r.rings)]}
		if intf.SnapLength <= math.MaxInt32 { // more is no limit for a record
			ring.Snaplen = int(intf.SnapLength)
		}
		if n, _ := fmt.Sscanf(intf.Description, sizeFormat, &ring.ID, &ring.Size); n < 2 {
			ring.Size = 0
		}
		r.rings = append(r.rings, ring)
	}
}

// endSection is called when pcapgo forgets its interfaces, since another section begins.
func (r *Reader) endSection() {
	r.addRings()
	r.first, r.seen = len(r.rings), 0
}

// Rings returns what the recording says of its rings. A Record's Ring is an index of them. More
// may be added, at the end, while Records or All read on.
func (r *Reader) Rings() []Ring { return r.rings }

// Comment returns the comment of the recording.
func (r *Reader) Comment() string { return r.comment }

// Records returns an iterator over the records, in the order of the file, each as a Reader of the
// ring returned it, but for Remaining, which is 0, and for what Snaplen has cut.
//
// RawSample is valid until the next iteration: a body that keeps it must copy it. A loop that is
// left goes on, with the next call, behind the record that it had last.
//
// Where the recording says that records were missed, a *ringbuf.MissedError comes first, and the
// loop goes on, as with a Watcher. A recording of what a Reader read has none.
//
// Any other error comes with a last iteration, without a record. It wraps io.ErrUnexpectedEOF if
// the file ends in the middle of a block, as it does when who wrote it was killed: all records
// before that have been returned. Others say where in the file what is wrong.
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

// All is like Records, with all that the recording has of each record, and no MissedError.
func (r *Reader) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			if !r.held {
				r.err = r.read(&r.next)
			}
			r.held = r.err != nil // an error is there for ever
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

// read reads the next record, or io.EOF.
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
		if r.blocks.order == binary.BigEndian { // pcapgo takes it for little-endian
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
