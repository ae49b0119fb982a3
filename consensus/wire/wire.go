package wire

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// ErrPacked: not the packing of a message that is not too long, by the same dictionary.
var ErrPacked = errors.New("wire: not a packed message")

// window is how far back DEFLATE looks.
const window = 32 << 10

// level is where DEFLATE begins to find ids in the dictionary.
const level = 6

// The first byte of what is packed.
const (
	plain   = 0
	deflate = 1
)

// Codec packs the messages of one cycle. Its methods may be called concurrently.
type Codec struct {
	dictionary []byte
	writers    sync.Pool
	readers    sync.Pool
}

// New returns the codec of a network in a cycle with that snapshot. Codecs of different snapshots do not understand each
// other.
func New(network protocol.Link, s protocol.Snapshot) *Codec {
	c := &Codec{dictionary: dictionary(network, s)}
	c.writers.New = func() any {
		w, err := flate.NewWriterDict(io.Discard, level, c.dictionary)
		if err != nil { // the level is valid
			return nil
		}
		return w
	}
	c.readers.New = func() any { return flate.NewReaderDict(bytes.NewReader(nil), c.dictionary) }
	return c
}

// Pack returns the packing of an encoded message.
func (c *Codec) Pack(message []byte) []byte {
	var b bytes.Buffer
	b.WriteByte(deflate)
	w := c.writers.Get().(*flate.Writer)
	defer c.writers.Put(w)
	w.Reset(&b)
	_, err := w.Write(message)
	if err = errors.Join(err, w.Close()); err != nil || b.Len() > len(message) {
		return append([]byte{plain}, message...)
	}
	return b.Bytes()
}

// Unpack returns the encoded message, at most consensus.MaxMessage bytes. The error is an [ErrPacked].
func (c *Codec) Unpack(packed []byte) ([]byte, error) {
	if len(packed) == 0 || len(packed) > consensus.MaxMessage+1 {
		return nil, fmt.Errorf("%w: %d bytes", ErrPacked, len(packed))
	}
	switch packed[0] {
	case plain:
		return packed[1:], nil
	case deflate:
	default:
		return nil, fmt.Errorf("%w: form %d", ErrPacked, packed[0])
	}
	in := bytes.NewReader(packed[1:])
	r := c.readers.Get().(io.ReadCloser)
	defer c.readers.Put(r)
	if err := r.(flate.Resetter).Reset(in, c.dictionary); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPacked, err)
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, consensus.MaxMessage+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrPacked, err)
	case n > consensus.MaxMessage:
		return nil, fmt.Errorf("%w: more than %d bytes", ErrPacked, consensus.MaxMessage)
	case in.Len() > 0:
		return nil, fmt.Errorf("%w: %d bytes behind it", ErrPacked, in.Len())
	}
	return out.Bytes(), nil
}

// dictionary is what messages have in common: the ids of the snapshot, as many as the window holds beside the rest, and the
// records with nothing in them, which hold the names of their fields.
func dictionary(network protocol.Link, s protocol.Snapshot) []byte {
	var forms []byte
	for _, r := range []protocol.Signed{
		protocol.MergeVector{Network: network, Measure: protocol.MergeMeasure{Groups: []string{"", ""}}},
		protocol.ScoreVector{Network: network, Groups: []protocol.GroupRows{{Rows: []protocol.Row{{Status: 1}, {Status: 1}}}}},
		protocol.List{Network: network, Entries: []protocol.ListEntry{{Manifest: network, State: 1}, {Manifest: network, State: 1}}},
		protocol.Proposal{Network: network, Value: protocol.Value{
			Weights: &protocol.WeightsValue{Weights: []protocol.MinerWeight{{Status: 1}, {Status: 1}}},
			Merge:   &protocol.MergeValue{Next: network},
		}},
		protocol.ScoreCommit{Network: network},
		protocol.StatusVote{Network: network},
		protocol.Vote{Network: network},
	} {
		forms = append(forms, r.SigningBytes()...)
	}
	var ids []byte
	for _, p := range s.Participants {
		ids = append(ids, p.ID[:]...)
	}
	return append(ids[max(0, len(ids)+len(forms)-window):], forms...)
}
