package content

import (
	"context"
	"fmt"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Store takes blocks. A block store is one, and so is an exchange, which also tells the peers that wait for them.
type Store interface {
	// PutMany stores blocks. They are the caller's again when it returns; after an error some may be stored.
	PutMany(ctx context.Context, blocks []blocks.Block) error
}

// Lock locks a seed to a beacon round: nobody opens the 128 bytes it returns before that round is public, and anybody
// does afterwards. The same seed may lock to different bytes.
type Lock func(round uint64, seed Seed) ([]byte, error)

// Payload is what a miner commits to: an encoded delta and what its manifest says about it.
type Payload struct {
	Slot
	Codec       string
	Tensors     []protocol.TensorEntry // in payload order, without gaps
	Bytes       []byte
	Round       uint64         // the beacon round that opens it
	Attestation *protocol.Link // nil if there is none
}

// Sealed is a payload ready to be published.
type Sealed struct {
	Manifest protocol.Manifest
	Link     protocol.Link // names the manifest: what is committed to

	blocks []blocks.Block // the segments, then the manifest
}

// Build seals a payload and describes it in a manifest. seed must be fresh from a cryptographic source.
func Build(p Payload, seed Seed, lock Lock) (*Sealed, error) {
	segments, err := Seal(p.Bytes, p.Slot, seed)
	if err != nil {
		return nil, err
	}
	locked, err := lock(p.Round, seed)
	if err != nil {
		return nil, fmt.Errorf("content: lock the seed to round %d: %w", p.Round, err)
	}
	s := &Sealed{Manifest: protocol.Manifest{
		Version: p.Version, Network: p.Network, Cycle: p.Cycle, Base: p.Base, Group: p.Group, Miner: p.Miner,
		Codec: p.Codec, Tensors: p.Tensors, Size: uint64(len(p.Bytes)),
		Round: p.Round, LockedSeed: locked, Attestation: p.Attestation,
	}}
	for _, sealed := range segments {
		link, err := s.add(protocol.Raw, sealed)
		if err != nil {
			return nil, err
		}
		s.Manifest.Segments = append(s.Manifest.Segments, protocol.Segment{Block: link, Size: uint32(len(sealed))})
	}
	record, err := protocol.Encode(s.Manifest)
	if err != nil {
		return nil, fmt.Errorf("content: manifest: %w", err)
	}
	// What others will refuse to read must not be committed to.
	if _, err := protocol.DecodeManifest(record); err != nil {
		return nil, fmt.Errorf("content: manifest: %w", err)
	}
	if s.Link, err = s.add(protocol.DagCBOR, record); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Sealed) add(codec uint64, data []byte) (protocol.Link, error) {
	link := protocol.LinkTo(codec, data)
	b, err := blocks.NewBlockWithCid(data, link.Cid())
	if err != nil {
		return protocol.Link{}, fmt.Errorf("content: %w", err)
	}
	s.blocks = append(s.blocks, b)
	return link, nil
}

// Commitment returns the commitment to the payload, not yet signed.
func (s *Sealed) Commitment() protocol.Commitment {
	m := s.Manifest
	return protocol.Commitment{Version: m.Version, Network: m.Network, Cycle: m.Cycle, Group: m.Group, Miner: m.Miner,
		Manifest: s.Link, Size: m.SealedSize()}
}

// publishBatch is how many segments, of 1 MiB, go to the store at once.
const publishBatch = 8

// Publish puts the sealed segments into store, and the manifest after them: who can read the manifest can have the rest.
func (s *Sealed) Publish(ctx context.Context, store Store) error {
	last := len(s.blocks) - 1
	for batch := range slices.Chunk(s.blocks[:last], publishBatch) {
		if err := store.PutMany(ctx, batch); err != nil {
			return fmt.Errorf("content: publish the segments of %s: %w", s.Link, err)
		}
	}
	if err := store.PutMany(ctx, s.blocks[last:]); err != nil {
		return fmt.Errorf("content: publish manifest %s: %w", s.Link, err)
	}
	return nil
}

// Segments lists the sealed blocks of a manifest, in order.
func Segments(m protocol.Manifest) []cid.Cid {
	cids := make([]cid.Cid, len(m.Segments))
	for i, s := range m.Segments {
		cids[i] = s.Block.Cid()
	}
	return cids
}

// Match reports whether manifest m is what commitment c promises, whose signature the caller has verified. A manifest
// that names somebody else, another slot or another size is [ErrManifest]: a miner can commit to the CID of another's
// manifest, but not make it its own.
func Match(c protocol.Commitment, m protocol.Manifest) error {
	refuse := func(field string, has, want any) error {
		return fmt.Errorf("%w: %s is %v, committed was %v", ErrManifest, field, has, want)
	}
	switch {
	case m.Version != c.Version:
		return refuse("version", m.Version, c.Version)
	case m.Network != c.Network:
		return refuse("network", m.Network, c.Network)
	case m.Cycle != c.Cycle:
		return refuse("cycle", m.Cycle, c.Cycle)
	case m.Group != c.Group:
		return refuse("group", m.Group, c.Group)
	case m.Miner != c.Miner:
		return refuse("miner", m.Miner, c.Miner)
	case m.SealedSize() != c.Size:
		return refuse("size", m.SealedSize(), c.Size)
	}
	return nil
}
