package tail

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libbpfgo/ringbuf/capture"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/decode"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/filter"
	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/savefile"
)

// A Ring is a ring whose records a Tail passes on.
type Ring struct {
	capture.Ring
	Host  string          // the ring's machine, or empty for this one
	Label string          // a name that distinguishes the ring from the others
	Types []*decode.Types // of the programs that use the ring

	typ     *decode.Type // nil to show bytes
	filter  *filter.Filter
	none    bool   // pass on no record
	missed  uint64 // bytes since the last record that was passed on
	lost    uint64 // records since the last record that was passed on
	offered []int  // sizes of samples for which types were offered
}

// Use makes the ring decode its samples as a type and, if condition is not empty, filter them. If
// Use fails and there is a condition, no record of the ring is passed on.
func (r *Ring) Use(name, condition string) (err error) {
	r.none = condition != ""
	err = fmt.Errorf("type %q: %w", name, decode.ErrNotFound)
	for _, types := range r.Types {
		if r.typ, err = types.Type(name); !errors.Is(err, decode.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Label, err)
	}
	if condition != "" {
		if r.filter, err = filter.New(condition, r.typ); err != nil {
			return fmt.Errorf("the filter: %w", err)
		}
	}
	r.none = false
	return nil
}

// A Tail passes on the records of a Source to a Printer or a Saver.
type Tail struct {
	Rings   []*Ring         // by the index of their records
	Printer *Printer        // or nil
	Saver   *savefile.Saver // or nil
	Count   uint64          // stop after passing on so many records; 0 for no limit
	Snaplen int             // cut samples to so many bytes; 0 for no limit
	Live    bool            // flush the Printer whenever no more records are there
	Offer   func(string)    // receives the types that samples may have; or nil
	Tick    func(Totals)    // called every second; or nil

	mu     sync.Mutex // held while a record is passed on
	totals Totals
}

// Totals are the counts of a Tail.
type Totals struct {
	Seen       uint64 // records
	Missed     uint64 // bytes of records that were overwritten before they could be watched
	Lost       uint64 // records that the kernel refused, as far as the source knows
	Passed     uint64 // records that were printed or written because the condition was true
	Undecided  uint64 // records for which the condition could not be evaluated
	Bytes      int64  // size of all files that were written
	filterFail string // why the condition could not be evaluated, for the last such record
}

// String returns the totals as a line for the user.
func (t Totals) String() string {
	s := fmt.Sprintf("%d records seen, %d bytes missed", t.Seen, t.Missed)
	if t.Lost > 0 {
		s += fmt.Sprintf(", %d records lost", t.Lost)
	}
	s += fmt.Sprintf(", %d written", t.Passed)
	if t.Bytes > 0 {
		s += fmt.Sprintf(" (%d bytes)", t.Bytes)
	}
	if t.Undecided > 0 {
		s += fmt.Sprintf(", %d too short for the filter (%s)", t.Undecided, t.filterFail)
	}
	return s
}

// errStop ends a Source when enough records or files were passed on.
var errStop = errors.New("enough")

// Run passes on the records of source until source ends, ctx is done, or Count is reached. Then it
// closes the Saver.
func (t *Tail) Run(ctx context.Context, source Source) (Totals, error) {
	ticking := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(ticking)
		t.tick(done)
	}()
	err := source(ctx, t.record)
	close(done)
	<-ticking
	if errors.Is(err, errStop) {
		err = nil
	}
	return t.totals, errors.Join(err, t.finish())
}

// tick flushes the output every second, for readers of the file and for the user.
func (t *Tail) tick(done chan struct{}) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
		}
		t.mu.Lock()
		if t.Saver != nil {
			t.Saver.Flush() // the next record gets the error again
			t.totals.Bytes = t.Saver.Bytes()
		}
		if t.Printer != nil && t.Live {
			// The next record gets the error again. After a sample with only discarded records
			// behind it, nobody else flushes.
			t.Printer.Flush()
		}
		totals := t.totals
		t.mu.Unlock()
		if t.Tick != nil {
			t.Tick(totals)
		}
	}
}

// finish writes the buffers and, in a recording, the losses after the last record.
func (t *Tail) finish() error {
	var errs []error
	if t.Printer != nil {
		errs = append(errs, t.Printer.Flush())
	}
	if t.Saver != nil {
		for i, r := range t.Rings {
			if r.missed > 0 {
				t.Saver.Drop(i, 1)
			}
			t.Saver.Drop(i, r.lost)
		}
		errs = append(errs, t.Saver.Close())
		t.totals.Bytes = t.Saver.Bytes()
	}
	return errors.Join(errs...)
}

// record counts a record, and passes it on if the filter matches it.
func (t *Tail) record(rec *capture.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.Count > 0 && t.totals.Passed >= t.Count {
		return errStop
	}
	if rec.Ring >= len(t.Rings) {
		return fmt.Errorf("ring %d begins behind the first record: such a file cannot be shown", rec.Ring)
	}
	r := t.Rings[rec.Ring]
	if rec.Time.IsZero() {
		t.totals.Missed += rec.Missed
		r.missed += rec.Missed
		if t.Printer != nil {
			if err := t.Printer.missed(r, rec.Missed); err != nil {
				return err
			}
		}
		return t.flush(0)
	}
	t.totals.Seen++
	t.totals.Lost += rec.Lost
	r.lost += rec.Lost
	if r.none {
		return nil
	}
	if r.filter != nil {
		sample := r.typ.Decode(rec.RawSample)
		match, err := r.filter.Match(&sample)
		if err != nil {
			t.totals.Undecided++
			t.totals.filterFail = err.Error()
		}
		if !match {
			return t.flush(rec.Remaining)
		}
	}
	if err := t.pass(r, rec); err != nil {
		return err
	}
	if t.totals.Passed++; t.totals.Passed == t.Count {
		return errStop
	}
	return t.flush(rec.Remaining)
}

// pass prints or writes a record, with the losses since the last one.
func (t *Tail) pass(r *Ring, rec *capture.Record) error {
	if t.Snaplen > 0 && len(rec.RawSample) > t.Snaplen {
		rec.RawSample = rec.RawSample[:t.Snaplen]
	}
	rec.Lost, rec.Missed = r.lost, r.missed
	r.lost, r.missed = 0, 0
	if t.Saver != nil {
		if err := t.Saver.Write(*rec); errors.Is(err, savefile.ErrEnough) {
			return errStop
		} else if err != nil {
			return err
		}
	}
	if t.Printer == nil {
		return nil
	}
	if r.typ != nil {
		sample := r.typ.Decode(rec.RawSample)
		return t.Printer.record(r, rec, &sample)
	}
	if t.Offer != nil {
		t.offer(r, len(rec.RawSample))
	}
	return t.Printer.record(r, rec, nil)
}

// flush flushes the Printer if no more records are there.
func (t *Tail) flush(remaining int) error {
	if t.Printer != nil && t.Live && remaining == 0 {
		return t.Printer.Flush()
	}
	return nil
}

const (
	maxOffers = 3 // sizes of samples of a ring
	maxFits   = 5 // types for a size
)

// offer tells the user which types a sample of this size may have.
func (t *Tail) offer(r *Ring, size int) {
	if len(r.offered) >= maxOffers || slices.Contains(r.offered, size) {
		return
	}
	r.offered = append(r.offered, size)
	var names []string
	for _, types := range r.Types {
		for _, typ := range types.Fitting(size) {
			if name := fmt.Sprintf("-t '%s'", typ); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) > maxFits {
		names = append(names[:maxFits], fmt.Sprintf("and %d more", len(names)-maxFits))
	}
	if len(names) > 0 {
		t.Offer(fmt.Sprintf("%s: of %d bytes are: %s", r.Label, size, strings.Join(names, ", ")))
	}
}
