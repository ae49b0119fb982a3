package exchange

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// The bulk protocol's bytes; docs/spec/blocks.md has them as a table.

// BulkProtocol is the stream on which many blocks are asked for at once.
const BulkProtocol = "/bzd/blocks/1"

const (
	maxAsk    = 1024    // CIDs of one request
	maxAnswer = 8 << 20 // bytes of blocks in one answer, but for a first block

	cidBytes    = 36 // 0x01, codec, 0x12, 0x20, 32 bytes of hash
	headerBytes = 2 + 4
)

// The first byte of an answer.
const (
	answerBlocks byte = iota
	answerBusy
	answerRefused
)

// Lengths that are none.
const (
	lengthMissing = 0xffffffff // the block is not there
	lengthEnd     = 0xfffffffe // nor is anything said of the rest of the request
)

// request asks for blocks: as many, in their order, as have at most budget bytes together. The first that is there may
// have more.
type request struct {
	budget uint32
	cids   []cid.Cid
}

// encode returns the request's bytes. Its CIDs must be links of the protocol, 1 to maxAsk of them.
func (r request) encode() []byte {
	b := make([]byte, 0, headerBytes+cidBytes*len(r.cids))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.cids)))
	b = binary.LittleEndian.AppendUint32(b, r.budget)
	for _, c := range r.cids {
		b = append(b, c.Bytes()...)
	}
	return b
}

// readRequest reads a request, and nothing behind it. It allocates for what its count says, at most 36 KiB. Its errors
// are those of r, io.EOF only where there is no request, and ErrWire.
func readRequest(r io.Reader) (request, error) {
	var header [headerBytes]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return request{}, err
	}
	n := int(binary.LittleEndian.Uint16(header[:]))
	q := request{budget: binary.LittleEndian.Uint32(header[2:])}
	if n == 0 || n > maxAsk || q.budget > maxAnswer {
		return request{}, fmt.Errorf("%w: a request of %d blocks, %d bytes", ErrWire, n, q.budget)
	}
	body := make([]byte, n*cidBytes)
	if _, err := io.ReadFull(r, body); err != nil {
		return request{}, cut(err)
	}
	q.cids = make([]cid.Cid, n)
	for i := range q.cids {
		c, err := cid.Cast(body[i*cidBytes : (i+1)*cidBytes])
		if err == nil {
			_, err = protocol.NewLink(c)
		}
		if err != nil {
			return request{}, fmt.Errorf("%w: block %d: %w", ErrWire, i, err)
		}
		q.cids[i] = c
	}
	return q, nil
}

// answer reads the answer to a request.
type answer struct {
	r     io.Reader
	left  int // blocks of which nothing was said
	moved int // bytes of blocks
	limit int
}

// readAnswer reads the first byte.
func readAnswer(r io.Reader, q request) (*answer, error) {
	var first [1]byte
	if _, err := io.ReadFull(r, first[:]); err != nil {
		return nil, cut(err)
	}
	switch first[0] {
	case answerBlocks:
		return &answer{r: r, left: len(q.cids), limit: int(q.budget)}, nil
	case answerBusy:
		return nil, ErrBusy
	case answerRefused:
		return nil, ErrRefused
	}
	return nil, fmt.Errorf("%w: an answer that begins with %d", ErrWire, first[0])
}

// next returns the bytes of the next block of the request, not looked at, in memory that room gives for them; nil if the peer
// does not have it. After the last, and where the peer left the rest out, it returns io.EOF.
func (a *answer) next(room func(n int) []byte) ([]byte, error) {
	if a.left == 0 {
		return nil, io.EOF
	}
	var word [4]byte
	if _, err := io.ReadFull(a.r, word[:]); err != nil {
		return nil, cut(err)
	}
	n := binary.LittleEndian.Uint32(word[:])
	switch {
	case n == lengthEnd:
		a.left = 0
		return a.next(room)
	case n == lengthMissing:
		a.left--
		return nil, nil
	case n > MaxBlock:
		return nil, fmt.Errorf("%w: a block of %d bytes", ErrWire, n)
	case a.moved > 0 && a.moved+int(n) > a.limit:
		return nil, fmt.Errorf("%w: more than the %d bytes asked for", ErrWire, a.limit)
	}
	a.left--
	a.moved += int(n)
	data := room(int(n))
	if _, err := io.ReadFull(a.r, data); err != nil {
		return nil, cut(err)
	}
	return data, nil
}

// cut is the error of bytes that end too soon: with io.EOF one could take them for complete.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
