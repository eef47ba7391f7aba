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

// A Ring is one whose records are passed on.
type Ring struct {
	capture.Ring
	Host  string // where it is, or empty: here
	Label string // the name, with what else it takes to tell it from the others
	Types []*decode.Types

	typ     *decode.Type // or nil
	filter  *filter.Filter
	none    bool   // pass on nothing
	missed  uint64 // bytes, since the record that was passed on last
	lost    uint64 // records, likewise
	offered []int  // sizes of samples for which types were offered
}

// Use makes the samples of the ring be decoded as a type and, if condition is not empty, filtered.
// With an error, it leaves all out where there is a condition.
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

// A Tail passes on records.
type Tail struct {
	Rings   []*Ring
	Printer *Printer        // or nil
	Saver   *savefile.Saver // or nil
	Count   uint64          // stop after so many that were passed on, or 0
	Snaplen int             // pass on no more bytes of a sample, or 0
	Live    bool            // print at once what is the last there is
	Offer   func(string)    // is told which types samples may have, or nil
	Tick    func(Totals)    // is called every second, or nil

	mu     sync.Mutex // held for all of a record
	totals Totals
}

// Totals count what a Tail did.
type Totals struct {
	Seen       uint64 // records
	Missed     uint64 // bytes of records that were overwritten before they could be watched
	Lost       uint64 // records that the kernel refused, as far as the source knows
	Passed     uint64 // records that the condition was true of, which were printed or written
	Undecided  uint64 // of which the condition could not be evaluated
	Bytes      int64  // of files that were written
	filterFail string
}

// String returns a line for people.
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

// errStop ends a Source when there is enough.
var errStop = errors.New("enough")

// Run passes on what source yields, until ctx is done, and closes the Saver.
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

// tick has readers of the file, and people, see something every second.
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
			t.Saver.Flush() // an error stays for the next record
			t.totals.Bytes = t.Saver.Bytes()
		}
		if t.Printer != nil && t.Live {
			t.Printer.Flush() // likewise; what is behind a sample in its ring may be discarded
		}
		totals := t.totals
		t.mu.Unlock()
		if t.Tick != nil {
			t.Tick(totals)
		}
	}
}

// finish writes what was held back.
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

// record passes on a record.
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

// pass prints or writes a record that is wanted.
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

// flush writes to the terminal what is the last there is.
func (t *Tail) flush(remaining int) error {
	if t.Printer != nil && t.Live && remaining == 0 {
		return t.Printer.Flush()
	}
	return nil
}

const (
	maxOffers = 3 // sizes of samples
	maxFits   = 5 // types
)

// offer says which types a sample of this size may have.
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
