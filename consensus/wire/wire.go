package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Errors of Unpack.
var (
	// ErrPacked: the bytes are no packing. Everybody who has the codec that they name sees the same; whoever passed
	// them on had it.
	ErrPacked = errors.New("wire: not a packed message")
	// ErrCodec: whether they are one cannot be told here: they are packed by a codec of another cycle or snapshot, or not
	// packed although this node could have. Nobody is to blame.
	ErrCodec = errors.New("wire: not packed by a codec that is known here")
)

// UnknownError is an [ErrCodec]: a list refers to manifests that this codec does not know. Who sent it, and its signer
// if it is genuine, have it under Name.
type UnknownError struct {
	Name   consensus.Name
	Signer protocol.ID
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("wire: %s %s refers to manifests that are not known here", e.Name.Kind, e.Name.Hash)
}

func (e *UnknownError) Unwrap() error { return ErrCodec }

// packedBit, set in a message's byte of kind, says that it is packed.
const packedBit = 0x80

// tagBytes is how much of the hash of what a codec knows goes with every packed message. Below 8, somebody who may
// register many participants could make two codecs look like one.
const tagBytes = 8

// maxKnown is how many manifests of one miner are known: two void each other, more change nothing.
const maxKnown = 2

// Codec packs the messages of one cycle. Its methods may be called concurrently.
type Codec struct {
	network protocol.Link
	cycle   uint64
	ids     []protocol.ID
	places  map[protocol.ID]int
	tag     [tagBytes]byte

	mu        sync.RWMutex
	manifests map[protocol.ID][]protocol.Link
}

// New returns the codec of a network in a cycle with that snapshot, of which only the participants' ids matter.
func New(network protocol.Link, cycle uint64, s protocol.Snapshot) *Codec {
	c := &Codec{
		network: network, cycle: cycle, places: make(map[protocol.ID]int),
		manifests: make(map[protocol.ID][]protocol.Link),
	}
	h := sha256.New()
	h.Write([]byte("bzd/wire/1\x00"))
	h.Write([]byte(network.Cid().KeyString()))
	h.Write(binary.LittleEndian.AppendUint64(nil, cycle))
	for i, p := range s.Participants {
		h.Write(p.ID[:])
		c.ids = append(c.ids, p.ID)
		c.places[p.ID] = i
	}
	copy(c.tag[:], h.Sum(nil))
	return c
}

// Know tells of a commitment of this cycle that goes around: lists refer to its manifest from now on.
func (c *Codec) Know(miner protocol.ID, manifest protocol.Link) {
	if _, ok := c.places[miner]; !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.manifests[miner]; len(known) < maxKnown && !slices.Contains(known, manifest) {
		c.manifests[miner] = append(known, manifest)
	}
}

// known returns the manifests of a miner.
func (c *Codec) known(miner protocol.ID) []protocol.Link {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.manifests[miner]
}

// Pack returns the packing of an encoded message: the message itself if it is of another cycle or network, a proof, or
// no message.
func (c *Codec) Pack(message []byte) []byte {
	return Codecs{c}.Pack(message)
}

func (c *Codec) pack(message []byte, whole bool) (packed []byte, ok bool) {
	m, err := consensus.DecodeMessage(message)
	if err != nil || m.Kind == consensus.KindProof {
		return nil, false
	}
	r, err := m.Record()
	if err != nil {
		return nil, false
	}
	f := form{codec: c, last: -1, whole: whole, b: append([]byte{packedBit | byte(m.Kind)}, c.tag[:]...)}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		f.scoreCommit(&r)
	case protocol.ScoreVector:
		f.scoreVector(&r)
	case protocol.MergeVector:
		f.mergeVector(&r)
	case protocol.List:
		f.list(&r)
	case protocol.Proposal:
		f.proposal(&r)
	case protocol.Vote:
		f.vote(&r)
	case protocol.StatusVote:
		f.status(&r)
	case protocol.Certificate:
		f.certificate(&r)
	case protocol.Lock:
		f.lock(&r)
	}
	return f.b, f.err == nil
}

// Unpack returns the encoded message, at most consensus.MaxMessage bytes; whether its record keeps its own rules was
// checked, signatures were not. The error is an [ErrPacked] or [ErrCodec].
func (c *Codec) Unpack(packed []byte) ([]byte, error) { return Codecs{c}.Unpack(packed) }

func (c *Codec) unpack(kind consensus.Kind, body []byte) ([]byte, error) {
	f := form{codec: c, last: -1, reading: true, b: body, left: consensus.MaxMessage}
	r := f.record(kind)
	if f.err == nil && len(f.b) > 0 {
		f.fail("%d bytes behind it", len(f.b))
	}
	if f.err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPacked, kind, f.err)
	}
	m, err := consensus.NewMessage(r)
	if l, ok := r.(protocol.List); ok && f.referred && (f.unknown || err != nil || sha256.Sum256(m.Bytes) != f.digest) {
		// Unknown, or others that begin alike are meant; whatever else may be wrong, the list itself tells.
		return nil, &UnknownError{consensus.Name{Kind: kind, Hash: f.digest}, l.Validator}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPacked, kind, err)
	}
	if len(m.Bytes) >= consensus.MaxMessage {
		return nil, fmt.Errorf("%w: %s of %d bytes", ErrPacked, kind, len(m.Bytes))
	}
	return m.Encode(), nil
}

// Codecs are those of the cycle that is under way and of some before, the newest first.
type Codecs []*Codec

// Pack returns the packing of an encoded message by the codec of its cycle, the message itself if there is none.
func (cs Codecs) Pack(message []byte) []byte { return cs.pack(message, false) }

// PackWhole is Pack for whoever asked for the message because it knows less: nothing is referred to.
func (cs Codecs) PackWhole(message []byte) []byte { return cs.pack(message, true) }

// Know is [Codec.Know] for the codecs of the commitment's cycle.
func (cs Codecs) Know(commitment protocol.Commitment) {
	for _, c := range cs {
		if c.cycle == commitment.Cycle {
			c.Know(commitment.Miner, commitment.Manifest)
		}
	}
}

func (cs Codecs) pack(message []byte, whole bool) []byte {
	for _, c := range cs {
		if packed, ok := c.pack(message, whole); ok {
			return packed
		}
	}
	return message
}

// Unpack is [Codec.Unpack] by the codec that the message names.
func (cs Codecs) Unpack(packed []byte) ([]byte, error) {
	if len(packed) == 0 || len(packed) > consensus.MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes", ErrPacked, len(packed))
	}
	if packed[0]&packedBit == 0 {
		for _, c := range cs {
			if _, ok := c.pack(packed, false); ok {
				return nil, fmt.Errorf("%w: not packed", ErrCodec)
			}
		}
		return packed, nil
	}
	if len(packed) < 1+tagBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrPacked, len(packed))
	}
	for _, c := range cs {
		if [tagBytes]byte(packed[1:]) == c.tag {
			return c.unpack(consensus.Kind(packed[0]&^packedBit), packed[1+tagBytes:])
		}
	}
	return nil, fmt.Errorf("%w: %x", ErrCodec, packed[1:1+tagBytes])
}
