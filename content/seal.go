package content

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/blockzero-net/bzd/internal/protocol"
)

const (
	// SegmentPlain is the payload bytes of every segment but the last, which has at least one.
	SegmentPlain = protocol.MaxSegment - protocol.SegmentOverhead
	// SeedSize is the length of a seed.
	SeedSize = 16
)

// Seed is what opens a payload. It is drawn anew for every manifest and used for no other.
type Seed = [SeedSize]byte

// Slot is what a payload is sealed for.
type Slot struct {
	Version uint32 // of the protocol
	Network protocol.Link
	Cycle   uint64
	Base    protocol.Link // the checkpoint that the delta is relative to
	Group   string
	Miner   protocol.ID
}

// SlotOf returns the slot that a manifest names.
func SlotOf(m protocol.Manifest) Slot {
	return Slot{Version: m.Version, Network: m.Network, Cycle: m.Cycle, Base: m.Base, Group: m.Group, Miner: m.Miner}
}

// The associated data, as dag-cbor lists. keyInfo is what a segment's has before its index.
type (
	keyInfo struct {
		_       struct{} `cbor:",toarray"`
		Version uint32
		Network protocol.Link
		Cycle   uint64
		Base    protocol.Link
		Group   string
		Miner   protocol.ID
	}
	segmentInfo struct {
		_       struct{} `cbor:",toarray"`
		Version uint32
		Network protocol.Link
		Cycle   uint64
		Base    protocol.Link
		Group   string
		Miner   protocol.ID
		Index   uint64
	}
)

// sealer seals and opens the segments of one payload.
type sealer struct {
	slot Slot
	aead cipher.AEAD
}

func newSealer(slot Slot, seed Seed) (*sealer, error) {
	info, err := cbor.Marshal(keyInfo{Version: slot.Version, Network: slot.Network, Cycle: slot.Cycle, Base: slot.Base,
		Group: slot.Group, Miner: slot.Miner})
	if err != nil {
		return nil, fmt.Errorf("content: slot: %w", err)
	}
	key, err := hkdf.Key(sha256.New, seed[:], nil, string(info), chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("content: derive the key: %w", err)
	}
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("content: derive the key: %w", err)
	}
	return &sealer{slot: slot, aead: aead}, nil
}

// bind returns the nonce and the associated data of a segment.
func (s *sealer) bind(index int) (nonce, associated []byte, err error) {
	nonce = make([]byte, chacha20poly1305.NonceSize)
	binary.BigEndian.PutUint64(nonce[chacha20poly1305.NonceSize-8:], uint64(index))
	associated, err = cbor.Marshal(segmentInfo{Version: s.slot.Version, Network: s.slot.Network, Cycle: s.slot.Cycle,
		Base: s.slot.Base, Group: s.slot.Group, Miner: s.slot.Miner, Index: uint64(index)})
	if err != nil {
		return nil, nil, fmt.Errorf("content: slot: %w", err)
	}
	return nonce, associated, nil
}

func (s *sealer) seal(dst, plain []byte, index int) ([]byte, error) {
	nonce, associated, err := s.bind(index)
	if err != nil {
		return nil, err
	}
	return s.aead.Seal(dst, nonce, plain, associated), nil
}

// open appends the plaintext of a segment to dst.
func (s *sealer) open(dst, sealed []byte, index int) ([]byte, error) {
	nonce, associated, err := s.bind(index)
	if err != nil {
		return nil, err
	}
	plain, err := s.aead.Open(dst, nonce, sealed, associated)
	if err != nil {
		return nil, fmt.Errorf("%w with its slot and seed", ErrSealed)
	}
	return plain, nil
}

// Seal cuts a payload into segments of [SegmentPlain] bytes, the last one shorter, and encrypts each. The same payload,
// slot and seed give the same segments. A seed must not be used for a second payload.
func Seal(payload []byte, slot Slot, seed Seed) ([][]byte, error) {
	if len(payload) == 0 {
		return nil, errors.New("content: an empty payload cannot be sealed")
	}
	s, err := newSealer(slot, seed)
	if err != nil {
		return nil, err
	}
	var segments [][]byte
	for len(payload) > 0 {
		n := min(len(payload), SegmentPlain)
		sealed, err := s.seal(make([]byte, 0, n+protocol.SegmentOverhead), payload[:n], len(segments))
		if err != nil {
			return nil, err
		}
		segments = append(segments, sealed)
		payload = payload[n:]
	}
	return segments, nil
}
