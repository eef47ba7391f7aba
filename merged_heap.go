package ringbuf

import "unsafe"

// A heldLoan is a loan with records that are held back.
type heldLoan struct {
	loan  *loan
	view  *ring   // of the loan; nil if it has entries
	keyed []keyedRecord // its records, in the order of their keys
	next  int     // index in keyed of the next one to yield
}

// A head is the next record of a loan.
type head struct {
	key    uint64
	number uint64 // of the loan
	held   *heldLoan
}

func (a *head) less(b *head) bool { return a.key < b.key || a.key == b.key && a.number < b.number }

// A keyedRecord is a record of a loan: its key, the offset in the loan where it ends, the size of its
// sample.
type keyedRecord struct {
	key       uint64
	end, size uint32
}

// record returns the record e of the loan.
func (a *heldLoan) record(e keyedRecord) Record {
	l := a.loan
	if l.entries != nil {
		sample, end := firstOf(l.entries[e.end-(e.size+7)&^7-entryHeaderSize:])
		return Record{sample, int(l.producer - end), l.ring, 0}
	}
	end := l.start + uint64(e.end)
	sample := unsafe.Add(a.view.at(end-recordEnd(0, e.size)), recordHeaderSize)
	// SAFETY: take found the record in the window. It is mapped while the loan is out.
	return Record{unsafe.Slice((*byte)(sample), e.size), int(l.producer - end), l.ring, 0}
}

// up and down move an element of the heap to its place.
func (m *merger) up(i int) {
	for h := m.heap; i > 0; {
		parent := (i - 1) / 2
		if !h[i].less(&h[parent]) {
			return
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

func (m *merger) down(i int) {
	for h := m.heap; ; {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1].less(&h[child]) {
			child++
		}
		if !h[child].less(&h[i]) {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

func (m *merger) pop() {
	last := len(m.heap) - 1
	m.heap[0] = m.heap[last]
	m.heap[last].held = nil
	m.heap = m.heap[:last]
	m.down(0)
}
