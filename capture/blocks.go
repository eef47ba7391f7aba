package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// blocks is the io.Reader through which pcapgo reads a pcapng file. It passes on complete blocks,
// and keeps the BTF blocks, which pcapgo does not know. pcapgo trusts the lengths of the parts of a
// block, so blocks refuses a part that is longer than its block.
type blocks struct {
	r     io.Reader // buffered
	limit io.LimitedReader
	block bytes.Buffer
	rest  []byte // the part of block that Read has not returned yet
	order binary.ByteOrder
	// at is the position of the block in the file, end the position behind it.
	at, end int64
	// interfaces is their number in this section, before their number in earlier sections.
	interfaces, before int
	btf                map[int][]byte // by interface, numbered over all sections
	err                error
}

func (b *blocks) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if b.err == nil {
			b.err = b.next()
		}
		if b.err != nil {
			return 0, b.err
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// next loads the next block. It sets rest if pcapgo needs the block.
func (b *blocks) next() error {
	b.at = b.end
	b.block.Reset()
	if err := b.load(8); err != nil {
		if b.block.Len() == 0 && b.at > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF // the file ends between two blocks
		}
		return err
	}
	kind := b.uint32(0)
	switch {
	case kind == blockSection:
		if err := b.load(4); err != nil {
			return err
		}
		head, before := b.block.Bytes(), b.order
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			b.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			b.order = binary.BigEndian
		default:
			return b.errorf("its byte-order magic is %#x", head[8:12])
		}
		if before != nil && before != b.order {
			return b.errorf("it changes the byte order: two recordings of different machines are in one " +
				"file")
		}
	case b.at == 0:
		return errNotPcapng
	}
	length := b.uint32(4)
	if length%4 != 0 || length < 12 || length > maxBlock {
		return b.errorf("its length is %d bytes", length)
	}
	if err := b.load(int(length) - b.block.Len()); err != nil {
		return err
	}
	if again := b.uint32(length - 4); again != length {
		return b.errorf("it has %d bytes at its beginning, and %d at its end", length, again)
	}
	b.end = b.at + int64(length)
	if kind == blockBTF {
		return b.takeBTF()
	}
	return b.check(kind)
}

var errNotPcapng = errors.New("not a pcapng file")

// load appends n bytes of the file to the block. It allocates memory for the bytes that it has
// read, not for the length that the block claims to have.
func (b *blocks) load(n int) error {
	if n < 0 {
		return b.errorf("it is too short")
	}
	b.limit = io.LimitedReader{R: b.r, N: int64(n)}
	_, err := b.block.ReadFrom(&b.limit)
	if err == nil && b.limit.N > 0 {
		if b.end == 0 && b.block.Len() == 0 {
			return fmt.Errorf("the file is empty: %w", io.ErrUnexpectedEOF)
		}
		return fmt.Errorf("the file ends in the block at byte %d: %w", b.at, io.ErrUnexpectedEOF)
	}
	return err
}

func (b *blocks) uint32(offset uint32) uint32 {
	if b.order == nil { // the type of the first block, which is the same in both byte orders
		return binary.LittleEndian.Uint32(b.block.Bytes()[offset:])
	}
	return b.order.Uint32(b.block.Bytes()[offset:])
}

func (b *blocks) errorf(format string, args ...any) error {
	return fmt.Errorf("the block at byte %d is damaged: %s", b.at, fmt.Sprintf(format, args...))
}

// check checks the lengths that pcapgo trusts, and passes the block on to pcapgo. It drops blocks
// of types that say nothing about records.
func (b *blocks) check(kind uint32) error {
	body := b.block.Bytes()[8 : b.block.Len()-4]
	var fixed, captured int // bytes
	options := true
	switch kind {
	case blockSection:
		fixed = 16
		b.before += b.interfaces
		b.interfaces = 0
	case blockInterface:
		fixed = 8
		b.interfaces++
	case blockEnhanced, blockPacket:
		fixed = 20
		if len(body) >= fixed {
			captured = int(b.order.Uint32(body[12:]))
		}
		options = kind == blockEnhanced
	case blockSimple:
		return b.errorf("a record without a time (simple packet block) is none of a ring")
	case blockStatistics:
		fixed = 12
	default:
		return nil
	}
	if len(body) < fixed {
		return b.errorf("%d bytes are too short for its type %d", len(body), kind)
	}
	body = body[fixed:]
	if padded := (captured + 3) &^ 3; padded > len(body) {
		return b.errorf("%d captured bytes are longer than it", captured)
	} else {
		body = body[padded:]
	}
	for options && len(body) >= 4 {
		code, length := b.order.Uint16(body), int(b.order.Uint16(body[2:]))
		if code == 0 {
			if length != 0 {
				return b.errorf("the end of its options has a length of %d", length)
			}
			break
		}
		body = body[4:]
		if padded := (length + 3) &^ 3; padded > len(body) {
			return b.errorf("an option of %d bytes is longer than it", length)
		} else {
			body = body[padded:]
		}
	}
	b.rest = b.block.Bytes()
	return nil
}

// takeBTF keeps the BTF of a block. It ignores a block with another signature, which another
// program wrote.
func (b *blocks) takeBTF() error {
	body := b.block.Bytes()[8 : b.block.Len()-4]
	if len(body) < len(btfSignature)+8 || string(body[:len(btfSignature)]) != btfSignature {
		return nil
	}
	body = body[len(btfSignature):]
	count := uint64(b.order.Uint32(body))
	body = body[4:]
	if 4*count+4 > uint64(len(body)) {
		return b.errorf("%d interfaces are longer than it", count)
	}
	size := uint64(b.order.Uint32(body[4*count:]))
	if size > uint64(len(body))-4*count-4 {
		return b.errorf("%d bytes of BTF are longer than it", size)
	}
	btf := bytes.Clone(body[4*count+4:][:size])
	for i := range count {
		of := b.order.Uint32(body[4*i:])
		if of >= uint32(b.interfaces) {
			return b.errorf("it has BTF of interface %d, of %d", of, b.interfaces)
		}
		b.btf[b.before+int(of)] = btf
	}
	return nil
}
