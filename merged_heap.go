package ringbuf

// The heap of a merger.

// A head is the next record of a loan.
type head struct {
	key    uint64
	number uint64 // of the loan
	held   *heldLoan
}

func (a *head) less(b *head) bool { return a.key < b.key || a.key == b.key && a.number < b.number }

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
