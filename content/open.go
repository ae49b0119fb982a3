package content

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Get returns the bytes of a block, which are only read. Its error reaches the caller as [ErrUnavailable].
type Get func(cid.Cid) ([]byte, error)

// Check refuses a manifest whose segments are not cut as [Seal] cuts them, or whose payload has more than limit bytes.
// It looks at nothing but the manifest.
func Check(m protocol.Manifest, limit uint64) error {
	if err := m.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if m.Size > limit {
		return fmt.Errorf("%w: %d bytes, allowed are %d", ErrTooLarge, m.Size, limit)
	}
	for i, s := range m.Segments[:len(m.Segments)-1] {
		if s.Size != protocol.MaxSegment {
			return &SegmentError{Index: i, Block: s.Block,
				Err: fmt.Errorf("%w: %d bytes; all but the last have %d", ErrManifest, s.Size, protocol.MaxSegment)}
		}
	}
	return nil
}

// Open fetches, verifies and decrypts the whole payload. m may be anybody's; limit bounds the payload. The first segment
// that fails ends it, with a [*SegmentError].
func Open(m protocol.Manifest, seed Seed, limit uint64, get Get) ([]byte, error) {
	if err := Check(m, limit); err != nil {
		return nil, err
	}
	return open(m, seed, 0, m.Size, get)
}

// OpenTensor returns the bytes of one tensor, fetching only the segments that hold them. limit bounds the payload, not
// the tensor.
func OpenTensor(m protocol.Manifest, seed Seed, limit uint64, name string, get Get) ([]byte, error) {
	if err := Check(m, limit); err != nil {
		return nil, err
	}
	for _, t := range m.Tensors {
		if t.Name == name {
			return open(m, seed, t.Offset, t.Offset+t.Size, get)
		}
	}
	return nil, fmt.Errorf("%w: %.100q", ErrNoTensor, name)
}

// open returns bytes [from, to) of the payload of a manifest that passed Check; from < to.
func open(m protocol.Manifest, seed Seed, from, to uint64, get Get) ([]byte, error) {
	s, err := newSealer(SlotOf(m), seed)
	if err != nil {
		return nil, err
	}
	first, end := int(from/SegmentPlain), int((to+SegmentPlain-1)/SegmentPlain)
	start := uint64(first) * SegmentPlain
	var payload []byte
	for i := first; i < end; i++ {
		sealed, err := fetch(m.Segments[i], get)
		if err == nil {
			if payload == nil { // only now: whoever has no blocks costs no memory
				payload = make([]byte, 0, min(uint64(end)*SegmentPlain, m.Size)-start)
			}
			payload, err = s.open(payload, sealed, i)
		}
		if err != nil {
			return nil, &SegmentError{Index: i, Block: m.Segments[i].Block, Err: err}
		}
	}
	return payload[from-start : to-start], nil
}

func fetch(segment protocol.Segment, get Get) ([]byte, error) {
	sealed, err := get(segment.Block.Cid())
	switch {
	case err != nil:
		return nil, errors.Join(ErrUnavailable, err)
	case protocol.LinkTo(protocol.Raw, sealed) != segment.Block:
		return nil, fmt.Errorf("%w: %d bytes with another hash", ErrBlock, len(sealed))
	case len(sealed) != int(segment.Size):
		return nil, fmt.Errorf("%w: the block has %d bytes, not %d", ErrManifest, len(sealed), segment.Size)
	}
	return sealed, nil
}
