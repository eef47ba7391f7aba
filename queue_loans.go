package ringbuf

import (
	"errors"
	"fmt"
	"slices"
)

var errReleased = errors.New("ringbuf: commit: the lease was released before")

// lendUnread lends the unread entries of b. It returns nil if there are none.
func (q *queue) lendUnread(b *batch) *loan {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.unread.empty() {
		return nil
	}
	l := &loan{}
	l.entries, l.producer, l.ring, l.lost, l.lostAt = q.unread.takeAll()
	if l.entries == nil {
		return nil
	}
	b.memory = nil // the loan has it now
	l.samples, _, _ = measure(l.entries)
	q.drained = append(q.drained, l)
	return l
}

// noteLoans reports whether any ring has loans, and notes in q.hasLoans which. libbpf cannot
// consume records behind a loan. The caller must hold q.mu.
func (q *queue) noteLoans() (any bool) {
	for i, loans := range q.loans {
		q.hasLoans[i] = len(loans) > 0
		any = any || q.hasLoans[i]
	}
	return any
}

// lendReleased lends the first loan that was released, if there is one. The caller must hold
// q.mu.
func (q *queue) lendReleased() (*loan, error) {
	for i, l := range q.drained {
		if l.state == loanReleased {
			again := *l // a copy, since the goroutine that released l may still have it
			again.state = loanOut
			q.drained[i] = &again
			return &again, nil
		}
	}
	for i, loans := range q.loans {
		for j, l := range loans {
			if l.state != loanReleased {
				continue
			}
			again := *l // a copy, as above
			again.state, again.reusable = loanOut, false
			loans[j] = &again
			q.windowsOut++
			return &again, nil
		}
		if err := q.settle(i); err != nil { // after an earlier error, loans may be left to consume
			return nil, err
		}
	}
	return nil, nil
}

// lendWindow makes a loan of the window that b has. The caller must hold q.mu.
func (q *queue) lendWindow(b *batch) *loan {
	l := q.spare
	if q.spare = nil; l == nil {
		l = new(loan)
	}
	*l = loan{window: b.window}
	l.lostAt, l.lost = b.lost(l.end)
	q.loans[l.ring] = append(q.loans[l.ring], l)
	q.windowsOut++
	return l
}

// giveBack ends a loan. The records of p have been read, the others have not.
func (q *queue) giveBack(l *loan, p part) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l.state != loanOut {
		if l.state == loanReleased && p.samples > 0 {
			return errReleased
		}
		return nil
	}
	l.state = loanReleased
	if p.samples > 0 {
		l.state = loanCommitted
	}
	q.noLongerLent(l)
	if q.closed {
		if p.samples > 0 {
			return errClosed
		}
		return nil
	}
	if p.samples < l.samples {
		q.wake() // a waiting goroutine may want the rest
	}
	if l.entries != nil {
		q.giveBackEntries(l, p)
		return nil
	}
	if p.samples > 0 && p.samples < l.samples {
		q.split(l, p)
	}
	return q.settle(l.ring)
}

// noLongerLent counts a loan that nobody uses any more. The caller must hold q.mu.
func (q *queue) noLongerLent(l *loan) {
	if l.entries != nil {
		return
	}
	q.windowsOut--
	if q.final != nil && q.windowsOut == 0 {
		q.rings.close()
	}
}

// giveBackAllBut ends a loan of which some samples, anywhere in it, were not read. unread has the
// offsets in the loan where these end, in order.
func (q *queue) giveBackAllBut(l *loan, unread []uint32) {
	pieces := l.carve(q.rings, unread)
	q.mu.Lock()
	defer q.mu.Unlock()
	if pieces == nil { // somebody moved the consumer position; consuming the loan will find that
		l.state = loanReleased
		pieces = []*loan{l}
	}
	q.noLongerLent(l)
	if q.closed {
		return
	}
	q.wake()
	if l.entries != nil {
		i := slices.Index(q.drained, l)
		q.drained = slices.Replace(q.drained, i, i+1, pieces...)
		return
	}
	loans := q.loans[l.ring]
	i := slices.Index(loans, l)
	q.loans[l.ring] = slices.Replace(loans, i, i+1, pieces...)
	q.settle(l.ring)
}

// giveBackEntries ends a loan of entries and keeps those behind p for others. The caller must hold
// q.mu.
func (q *queue) giveBackEntries(l *loan, p part) {
	i := slices.Index(q.drained, l)
	if p.samples == l.samples {
		q.drained = slices.Delete(q.drained, i, i+1)
		return
	}
	rest := *l
	rest.state = loanReleased
	rest.skipEntries(p)
	q.drained[i] = &rest
}

// split makes the records behind p a loan of their own, which is released. The caller must hold
// q.mu.
func (q *queue) split(l *loan, p part) {
	rest := *l
	rest.state, rest.reusable = loanReleased, false
	rest.start = p.end
	rest.samples -= p.samples
	rest.discards -= p.discards
	if p.lost {
		rest.lost = 0
	}
	l.end, l.samples, l.discards = p.end, p.samples, p.discards
	loans := q.loans[l.ring]
	q.loans[l.ring] = slices.Insert(loans, slices.Index(loans, l)+1, &rest)
}

// settle lets libbpf consume the loans of ring i that are committed, up to the first that is not.
// The caller must hold q.mu.
func (q *queue) settle(i int) error {
	loans := q.loans[i]
	var p part
	n := 0
	for ; n < len(loans) && loans[n].state == loanCommitted; n++ {
		p.samples += loans[n].samples
		p.discards += loans[n].discards
		p.end = loans[n].end
	}
	if n == 0 {
		return nil
	}
	if err := q.rings.consume(i, p.samples, p.discards, p.end); err != nil {
		return fmt.Errorf("ringbuf: %w", err)
	}
	for _, l := range loans[:n] {
		if l.reusable {
			q.spare = l
		}
	}
	q.loans[i] = slices.Delete(loans, 0, n)
	if n == len(loans) {
		q.rings.allConsumed(i)
	}
	return nil
}
