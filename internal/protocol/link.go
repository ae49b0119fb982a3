package protocol

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Codecs a [Link] may name.
const (
	DagCBOR uint64 = cid.DagCBOR     // a record
	DagPB   uint64 = cid.DagProtobuf // a UnixFS file or directory
	Raw     uint64 = cid.Raw         // a leaf block
)

// Link is a CIDv1 with a 32-byte sha2-256 hash and one of the three codecs. The zero Link names nothing and cannot be
// encoded. Links compare with ==.
type Link struct{ c cid.Cid }

// linkBytes is the length of a Link in dag-cbor: tag 42, a byte string head, the multibase prefix 0x00, the CID.
const (
	cidBytes  = 4 + sha256.Size
	linkBytes = 5 + cidBytes
)

// NewLink refuses every CID but those a Link may hold; identity hashes in particular, which would carry data instead of
// naming it.
func NewLink(c cid.Cid) (Link, error) {
	if !c.Defined() {
		return Link{}, fmt.Errorf("%w: no CID given", ErrInvalid)
	}
	p := c.Prefix()
	if p.Version != 1 || p.MhType != multihash.SHA2_256 || p.MhLength != sha256.Size {
		return Link{}, fmt.Errorf("%w: CID %s is not CIDv1 with a 32-byte sha2-256 hash", ErrInvalid, c)
	}
	switch p.Codec {
	case DagCBOR, DagPB, Raw:
		return Link{c}, nil
	}
	return Link{}, fmt.Errorf("%w: CID %s has codec 0x%x; dag-cbor, dag-pb and raw are allowed", ErrInvalid, c, p.Codec)
}

// ParseLink reads the text form of a CID.
func ParseLink(s string) (Link, error) {
	c, err := cid.Decode(s)
	if err != nil {
		return Link{}, fmt.Errorf("%w: %q is not a CID: %w", ErrInvalid, s, err)
	}
	return NewLink(c)
}

// LinkTo names data by its hash. codec must be one of the three; any other gives the zero Link.
func LinkTo(codec uint64, data []byte) Link {
	switch codec {
	case DagCBOR, DagPB, Raw:
	default:
		return Link{}
	}
	hash, err := multihash.Sum(data, multihash.SHA2_256, sha256.Size)
	if err != nil { // sha2-256 is always registered
		return Link{}
	}
	return Link{cid.NewCidV1(codec, hash)}
}

// Cid returns the CID, cid.Undef for the zero Link.
func (l Link) Cid() cid.Cid { return l.c }

// Compare orders links by the bytes of their CIDs.
func (l Link) Compare(other Link) int { return strings.Compare(l.c.KeyString(), other.c.KeyString()) }

// Defined reports whether l names anything.
func (l Link) Defined() bool { return l.c.Defined() }

// String returns the CID's text form, "" for the zero Link.
func (l Link) String() string {
	if !l.Defined() {
		return ""
	}
	return l.c.String()
}

// MarshalText implements encoding.TextMarshaler, for JSON and flags.
func (l Link) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Link) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLink(string(b))
	return err
}

// MarshalCBOR implements cbor.Marshaler: tag 42 around 0x00 ‖ CID.
func (l Link) MarshalCBOR() ([]byte, error) {
	if !l.Defined() {
		return nil, errors.New("link names nothing")
	}
	return append([]byte{0xd8, 42, 0x58, 1 + cidBytes, 0}, l.c.Bytes()...), nil
}

// UnmarshalCBOR implements cbor.Unmarshaler. It accepts the one form MarshalCBOR writes.
func (l *Link) UnmarshalCBOR(b []byte) error {
	if len(b) != linkBytes || b[0] != 0xd8 || b[1] != 42 || b[2] != 0x58 || b[3] != 1+cidBytes || b[4] != 0 {
		return fmt.Errorf("%w: not a link", ErrInvalid)
	}
	c, err := cid.Cast(b[5:])
	if err != nil {
		return fmt.Errorf("%w: link: %w", ErrInvalid, err)
	}
	*l, err = NewLink(c)
	return err
}

// link adds a fault unless l names a block of the codec.
func (f faults) link(field string, l Link, codec uint64) {
	switch {
	case !l.Defined():
		f.add(field, "no CID given")
	case l.c.Prefix().Codec != codec:
		f.add(field, "CID %s has codec %s, want %s", l, codecName(l.c.Prefix().Codec), codecName(codec))
	}
}

func codecName(codec uint64) string {
	switch codec {
	case DagCBOR:
		return "dag-cbor"
	case DagPB:
		return "dag-pb"
	case Raw:
		return "raw"
	}
	return fmt.Sprintf("0x%x", codec)
}
