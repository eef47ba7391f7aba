package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/libbpfgo/ringbuf"
)

// mustRecord returns a file with these records.
func mustRecord(tb testing.TB, rings []Ring, comment string, recs ...Record) []byte {
	tb.Helper()
	var file bytes.Buffer
	w, err := NewWriter(&file, rings, comment)
	if err != nil {
		tb.Fatal(err)
	}
	for _, rec := range recs {
		if err := w.Write(rec); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	if w.Size() != int64(file.Len()) {
		tb.Errorf("Size is %d, the file has %d bytes", w.Size(), file.Len())
	}
	return file.Bytes()
}

// readAll returns the rings and records of a file, up to the end or the first error. The samples
// are copies.
func readAll(file []byte) (rings []Ring, recs []Record, err error) {
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, nil, err
	}
	for rec, recErr := range r.All() {
		if recErr != nil {
			err = recErr
			break
		}
		rec.RawSample = bytes.Clone(rec.RawSample)
		recs = append(recs, rec)
	}
	return r.Rings(), recs, err
}

func wantRecords(tb testing.TB, got, want []Record) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Fatalf("%d records were read, want %d", len(got), len(want))
	}
	for i := range want {
		if !got[i].Time.Equal(want[i].Time) {
			tb.Errorf("record %d has time %v, want %v", i, got[i].Time, want[i].Time)
		}
		got, want := got[i], want[i]
		got.Time, want.Time = time.Time{}, time.Time{}
		if !bytes.Equal(got.RawSample, want.RawSample) {
			tb.Errorf("record %d has sample %x, want %x", i, got.RawSample, want.RawSample)
		}
		got.RawSample, want.RawSample = nil, nil
		if !reflect.DeepEqual(got, want) {
			tb.Errorf("record %d is %+v, want %+v", i, got, want)
		}
	}
}

// someBTF only looks like BTF: this package does not parse it.
var someBTF = append([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0}, "not a multiple of four"...)

var threeRings = []Ring{
	{Name: "events", ID: 17, Size: 1 << 20, BTF: someBTF, Comment: "all of it"},
	{Name: "other"},
	{Name: "third", ID: 1<<32 - 1, Size: 1 << 30, BTF: someBTF, Snaplen: 5},
}

// varied returns records with each property that a record can have, and with samples of many sizes
// and paddings.
func varied() (recs []Record) {
	at := time.Unix(1_700_000_000, 123_456_789)
	for size := range 70 {
		sample := make([]byte, size*size)
		for i := range sample {
			sample[i] = byte(size + i)
		}
		rec := Record{
			Record: ringbuf.Record{RawSample: sample, Ring: size % 2},
			Time:   at.Add(time.Duration(size) * 1_000_000_001),
			Length: len(sample),
		}
		if size%3 == 0 {
			rec.Lost = uint64(size)
		}
		if size%5 == 0 {
			rec.Missed = uint64(size) * 8
		}
		if size%7 == 0 {
			rec.Comment = strings.Repeat("ü", size)
		}
		recs = append(recs, rec)
	}
	recs[9].Lost = 1<<64 - 2
	recs[0].Time = time.Unix(0, 0)
	recs[69].Time = time.Unix(9_000_000_000, 999_999_999)
	return recs
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	want := varied()
	file := mustRecord(t, threeRings, "ü", want...)
	rings, got, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(rings, threeRings) {
		t.Errorf("the rings are %+v, want %+v", rings, threeRings)
	}
	wantRecords(t, got, want)
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if r.Comment() != "ü" {
		t.Errorf("the comment is %q", r.Comment())
	}
}

func TestSamplesAreCutToTheSnaplen(t *testing.T) {
	at := time.Unix(1, 0)
	rec := func(sample string, length int) Record {
		return Record{Record: ringbuf.Record{RawSample: []byte(sample), Ring: 2}, Time: at,
			Length: length}
	}
	file := mustRecord(t, threeRings, "", rec("1234", 0), rec("12345", 5), rec("123456", 0),
		rec("12", 1000))
	_, got, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, got, []Record{rec("1234", 4), rec("12345", 5), rec("12345", 6), rec("12", 1000)})
}

// TestALoopGoesOnWhereTheLastWasLeft also checks that Rings is complete before the first loop.
func TestALoopGoesOnWhereTheLastWasLeft(t *testing.T) {
	file := mustRecord(t, threeRings, "", varied()...)
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.Rings()); n != 3 {
		t.Errorf("%d rings are known at first, want 3", n)
	}
	var got []Record
	var missed *ringbuf.MissedError
	for done := false; !done; {
		done = true
		for rec, err := range r.Records() {
			if errors.As(err, &missed) {
				done = false
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, Record{Record: rec})
			got[len(got)-1].RawSample = bytes.Clone(rec.RawSample)
			if missed != nil {
				got[len(got)-1].Missed = missed.Bytes
				missed = nil
			}
			done = false
			break
		}
	}
	want := varied()
	for i := range want {
		want[i] = Record{Record: want[i].Record, Missed: want[i].Missed}
	}
	wantRecords(t, got, want)
}

func TestTheEndOfARecordingHasTotals(t *testing.T) {
	recs := varied()
	file := mustRecord(t, threeRings, "", recs...)
	var received, dropped [3]uint64
	for _, rec := range recs {
		received[rec.Ring]++
		dropped[rec.Ring] += rec.Lost
		if rec.Missed > 0 {
			dropped[rec.Ring]++
		}
	}
	got := map[int]pcapgo.NgInterfaceStatistics{}
	r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.NgReaderOptions{
		StatisticsCallback: func(i int, s pcapgo.NgInterfaceStatistics) { got[i] = s },
	})
	for err == nil {
		_, _, err = r.ReadPacketData()
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	for i := range received {
		if s := got[i]; s.PacketsReceived != received[i] || s.PacketsDropped != dropped[i] {
			t.Errorf("ring %d has %d records and %d drops, want %d and %d", i, s.PacketsReceived,
				s.PacketsDropped, received[i], dropped[i])
		}
	}
	if !got[1].StartTime.Equal(recs[1].Time) || !got[1].EndTime.Equal(recs[69].Time) {
		t.Errorf("ring 1 was recorded from %v to %v", got[1].StartTime, got[1].EndTime)
	}
}

func TestRecordingsOneAfterAnotherAreOne(t *testing.T) {
	first := varied()
	other := []Ring{{Name: "events", ID: 18, BTF: []byte("other BTF")}}
	rec := Record{Record: ringbuf.Record{RawSample: []byte("last")}, Time: time.Unix(5, 0), Length: 4}
	file := append(mustRecord(t, threeRings, "", first...), mustRecord(t, other, "", rec)...)
	file = append(file, mustRecord(t, threeRings, "")...)
	rings, got, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	rec.Ring = 3
	wantRecords(t, got, append(first, rec))
	want := append(append(append([]Ring{}, threeRings...), other...), threeRings...)
	if !reflect.DeepEqual(rings, want) {
		t.Errorf("the rings are %+v, want %+v", rings, want)
	}
}

// TestAFileThatEndsInTheMiddle cuts a file at each byte.
func TestAFileThatEndsInTheMiddle(t *testing.T) {
	want := varied()[:12]
	file := mustRecord(t, threeRings, "comment", want...)
	ends := map[int]int{} // the end of each block, and the number of records before it
	for at, records := 0, 0; at < len(file); {
		if binary.LittleEndian.Uint32(file[at:]) == blockEnhanced {
			records++
		}
		at += int(binary.LittleEndian.Uint32(file[at+4:]))
		ends[at] = records
	}
	whole := 0
	for n := range file {
		if records, ok := ends[n]; ok {
			whole = records
		}
		rings, got, err := readAll(file[:n])
		if _, ok := ends[n]; ok && len(rings) > 0 {
			if err != nil {
				t.Errorf("cut between two blocks, at byte %d: %v", n, err)
			}
		} else if _, ok := ends[n]; ok {
			if err == nil || err.Error() != "capture: there is no ring in the file" {
				t.Errorf("cut behind the section header, at byte %d: %v", n, err)
			}
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at byte %d: %v", n, err)
		}
		if len(got) != whole {
			t.Errorf("cut at byte %d: %d records were read, want %d", n, len(got), whole)
		} else {
			wantRecords(t, got, want[:whole])
		}
	}
}

// damaged returns a file with one ring and one record of 8 bytes, after change has modified it.
// block returns the bytes of the first block of a type.
func damaged(t *testing.T, change func(block func(kind uint32) []byte)) []byte {
	file := mustRecord(t, threeRings[:1], "", Record{
		Record: ringbuf.Record{RawSample: []byte("sample 1"), Lost: 1}, Time: time.Unix(1, 0), Length: 8})
	change(func(kind uint32) []byte {
		for at := 0; ; {
			length := binary.LittleEndian.Uint32(file[at+4:])
			if binary.LittleEndian.Uint32(file[at:]) == kind {
				return file[at : at+int(length)]
			}
			at += int(length)
		}
	})
	return file
}

func TestADamagedFileIsAnErrorThatSaysWhere(t *testing.T) {
	put16, put32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32
	type blockFunc = func(uint32) []byte
	for _, tt := range []struct {
		name   string
		change func(blockFunc)
		want   string
	}{
		{"no pcapng", func(b blockFunc) { copy(b(blockSection), "GIF89a") }, "not a pcapng file"},
		{"magic", func(b blockFunc) { b(blockSection)[8] = 0 },
			"the block at byte 0 is damaged: its byte-order magic is 0x003c2b1a"},
		{"version", func(b blockFunc) { b(blockSection)[12] = 2 }, "Unknown pcapng Version"},
		{"length", func(b blockFunc) { put32(b(blockEnhanced)[4:], 50) },
			"is damaged: its length is 50 bytes"},
		{"short", func(b blockFunc) { put32(b(blockSection)[4:], 12) },
			"the block at byte 0 is damaged: it has 12 bytes at its beginning, and 439041101 at its end"},
		{"trailer", func(b blockFunc) { c := b(blockEnhanced); c[len(c)-4]++ },
			"bytes at its beginning, and"},
		{"captured", func(b blockFunc) { put32(b(blockEnhanced)[20:], 1000) },
			"1000 captured bytes are longer than it"},
		{"option", func(b blockFunc) { put16(b(blockEnhanced)[38:], 1000) },
			"an option of 1000 bytes is longer than it"},
		{"end of options", func(b blockFunc) { put16(b(blockEnhanced)[50:], 4) },
			"the end of its options has a length of 4"},
		{"no interface", func(b blockFunc) { put32(b(blockEnhanced)[8:], 1) },
			"Interface id 1 not present"},
		{"link type", func(b blockFunc) { put16(b(blockInterface)[8:], 1) },
			`interface 0 ("events") has link type 1, not USER0: it is not a ring`},
		{"BTF of no interface", func(b blockFunc) { put32(b(blockBTF)[20:], 1) },
			"it has BTF of interface 1, of 1"},
		{"BTF of many interfaces", func(b blockFunc) { put32(b(blockBTF)[16:], 1<<31) },
			"2147483648 interfaces are longer than it"},
		{"size of BTF", func(b blockFunc) { put32(b(blockBTF)[24:], 33) },
			"33 bytes of BTF are longer than it"},
		{"simple packet", func(b blockFunc) { put32(b(blockEnhanced), blockSimple) },
			"a record without a time"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, recs, err := readAll(damaged(t, tt.change))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(),
				"capture: ") {
				t.Errorf("the error is %v, want %q", err, tt.want)
			}
			if len(recs) > 0 {
				t.Errorf("records were read: %+v", recs)
			}
		})
	}
	// A block of another program that chose the same type is skipped.
	rings, recs, err := readAll(damaged(t, func(b blockFunc) { b(blockBTF)[8] = 'R' }))
	if err != nil || len(recs) != 1 || len(rings) != 1 || rings[0].BTF != nil {
		t.Errorf("with somebody else's block: %+v, %+v, %v", rings, recs, err)
	}
}

func TestAnEmptyFileIsNoRecording(t *testing.T) {
	_, err := NewReader(strings.NewReader(""))
	if !errors.Is(err, io.ErrUnexpectedEOF) ||
		err.Error() != "capture: the file is empty: unexpected EOF" {
		t.Error(err)
	}
}

// TestAFileOfTheOtherByteOrder builds a big-endian file, because pcapgo writes only little-endian
// ones.
func TestAFileOfTheOtherByteOrder(t *testing.T) {
	be := binary.BigEndian
	block := func(kind uint32, body []byte) []byte {
		n := uint32(len(body) + 12)
		return be.AppendUint32(append(be.AppendUint32(be.AppendUint32(nil, kind), n), body...), n)
	}
	u32 := func(values ...uint32) (b []byte) {
		for _, v := range values {
			b = be.AppendUint32(b, v)
		}
		return b
	}
	file := block(blockSection, u32(byteOrderMagic, 1<<16, 0, 0))
	file = append(file, block(blockInterface,
		append(u32(linkTypeUser0<<16, 7, 9<<16|1, 9<<24, 2<<16|4),
			append([]byte("ring"), u32(0)...)...))...)
	file = append(file, block(blockBTF, append([]byte(btfSignature),
		append(u32(1, 0, 3), "btf\x00"...)...))...)
	file = append(file, block(blockEnhanced, append(u32(0, 0, 5_000_000_000&(1<<32-1), 3, 9),
		append([]byte("abc\x00"), u32(4<<16|8, 0, 77, 0)...)...))...)
	rings, recs, err := readAll(file)
	if err != nil {
		t.Fatal(err)
	}
	wantRecords(t, recs, []Record{{Record: ringbuf.Record{RawSample: []byte("abc"), Lost: 77},
		Time: time.Unix(0, 5_000_000_000&(1<<32-1)), Length: 9}})
	if want := []Ring{{Name: "ring", Snaplen: 7, BTF: []byte("btf")}}; !reflect.DeepEqual(rings,
		want) {
		t.Errorf("the rings are %+v, want %+v", rings, want)
	}
	if _, _, err := readAll(append(file, mustRecord(t, threeRings, "")...)); err == nil ||
		!strings.Contains(err.Error(), "byte order") {
		t.Errorf("two byte orders in one file: %v", err)
	}
}

func TestTheWriterRefusesWhatCannotBeRecorded(t *testing.T) {
	if _, err := NewWriter(io.Discard, nil, ""); err == nil {
		t.Error("a recording of no ring began")
	}
	for _, ring := range []Ring{{Name: strings.Repeat("x", 1<<16)}, {Snaplen: -1}, {Size: -1}} {
		if _, err := NewWriter(io.Discard, []Ring{{}, ring}, ""); err == nil ||
			!strings.HasPrefix(err.Error(), "capture: ring 1 (") {
			t.Errorf("a ring with Snaplen %d, Size %d: %v", ring.Snaplen, ring.Size, err)
		}
	}
	w, err := NewWriter(io.Discard, threeRings, "")
	if err != nil {
		t.Fatal(err)
	}
	before := w.Size()
	for _, rec := range []Record{
		{Record: ringbuf.Record{Ring: 3}},
		{Record: ringbuf.Record{Ring: -1}},
		{Time: time.Time{}},
		{Time: time.Unix(1<<40, 0)},
		{Length: maxBlock},
		{Comment: strings.Repeat("x", 1<<16)},
	} {
		if rec.Length == maxBlock || rec.Comment != "" || rec.Ring != 0 {
			rec.Time = time.Unix(1, 0)
		}
		if err := w.Write(rec); err == nil {
			t.Errorf("%+v was written", rec)
		}
	}
	if w.Size() != before {
		t.Error("what was refused is in the file")
	}
	if err := w.Write(Record{Time: time.Unix(1, 0)}); err != nil {
		t.Errorf("after what was refused: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Write(Record{Time: time.Unix(1, 0)}); err == nil {
		t.Error("a record was written after Close")
	}
}

func TestAFullDiskIsAnErrorThatStays(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	w, err := NewWriter(full, threeRings, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Flush: %v", err)
	}
	if err := w.Write(Record{Time: time.Unix(1, 0)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
}

func TestARecordCostsNoAllocation(t *testing.T) {
	w, err := NewWriter(io.Discard, threeRings, "")
	if err != nil {
		t.Fatal(err)
	}
	rec := Record{Record: ringbuf.Record{RawSample: make([]byte, 64)}, Time: time.Unix(1, 0)}
	if n := testing.AllocsPerRun(1000, func() { w.Write(rec) }); n != 0 {
		t.Errorf("Write allocates %v times", n)
	}
	var recs []Record
	for range 2000 {
		recs = append(recs, rec)
	}
	r, err := NewReader(bytes.NewReader(mustRecord(t, threeRings, "", recs...)))
	if err != nil {
		t.Fatal(err)
	}
	var into Record
	if n := testing.AllocsPerRun(1000, func() { err = r.read(&into) }); n != 0 || err != nil {
		t.Errorf("a read allocates %v times, %v", n, err)
	}
}

// FuzzReader reads any bytes. It writes the records that it has read, and must then read the same
// records.
func FuzzReader(f *testing.F) {
	f.Add(mustRecord(f, threeRings, "comment", varied()[:6]...))
	f.Add(mustRecord(f, threeRings[:1], ""))
	f.Add(damaged(&testing.T{}, func(func(uint32) []byte) {}))
	f.Fuzz(func(t *testing.T, file []byte) {
		rings, recs, err := readAll(file)
		if err != nil && !strings.HasPrefix(err.Error(), "capture: ") {
			t.Errorf("the error is %q", err)
		}
		var size int
		for i, rec := range recs {
			size += len(rec.RawSample)
			if rec.Ring >= len(rings) || rec.Length < 0 {
				t.Fatalf("record %d is %+v, of %d rings", i, rec, len(rings))
			}
		}
		if size > len(file) {
			t.Fatalf("%d bytes of samples in a file of %d bytes", size, len(file))
		}
		if len(rings) == 0 {
			return
		}
		var again bytes.Buffer
		w, err := NewWriter(&again, rings, "")
		if err != nil {
			t.Fatal(err)
		}
		var want []Record
		for _, rec := range recs {
			if snaplen := rings[rec.Ring].Snaplen; snaplen > 0 && len(rec.RawSample) > snaplen {
				continue // a Writer would cut it
			}
			rec.Length = max(rec.Length, len(rec.RawSample))
			if w.Write(rec) == nil { // it refuses out-of-range times and long comments
				want = append(want, rec)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		_, got, err := readAll(again.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		wantRecords(t, got, want)
	})
}
