package data

import (
	"bytes"
	"fmt"
	"math"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
)

const (
	// MaxPiece is the largest piece in bytes.
	MaxPiece = 16 << 10
	// MaxPieces is the most pieces a dataset may have.
	MaxPieces = 16384
	// MaxRecord is the largest record in bytes.
	MaxRecord = 1 << 20
	// RecordVersion is the only version of the record there is.
	RecordVersion = 1

	// KindPieces and KindGenerator are the two kinds of dataset.
	KindPieces    = "pieces"
	KindGenerator = "generator"

	maxName = 64
	// maxGeneratorHeldOut bounds how far a walk for a train piece can go.
	maxGeneratorHeldOut = 500
)

// Record describes a dataset. Two datasets with equal records give the same
// samples for the same seeds.
type Record struct {
	Name    string
	Kind    string // KindPieces or KindGenerator
	HeldOut int    // permille of pieces held out, 0 to 1000 (generators: 1 to 500)

	// Of KindPieces.
	Bytes  int64      // total size of the pieces
	Pieces [][32]byte // SHA-256 of each piece, strictly ascending

	// Of KindGenerator.
	Generator GeneratorRef
}

// GeneratorRef names a generator of pieces.
type GeneratorRef struct {
	Name    string
	Version uint64
	Seed    [32]byte
}

type wireRecord struct {
	Kind      string         `cbor:"kind"`
	Name      string         `cbor:"name"`
	Bytes     uint64         `cbor:"bytes,omitempty"`
	Pieces    []wireLink     `cbor:"pieces,omitempty"`
	HeldOut   uint64         `cbor:"heldOut"`
	Version   uint64         `cbor:"version"`
	Generator *wireGenerator `cbor:"generator,omitempty"`
}

type wireGenerator struct {
	Name    string `cbor:"name"`
	Seed    []byte `cbor:"seed"`
	Version uint64 `cbor:"version"`
}

// wireLink is a dag-cbor link to a raw sha2-256 CIDv1, given by its digest.
type wireLink [32]byte

// linkPrefix is tag 42, a 37-byte string, the identity multibase byte, then
// CIDv1, raw, sha2-256, 32 bytes.
var linkPrefix = []byte{0xd8, 0x2a, 0x58, 0x25, 0x00, 0x01, 0x55, 0x12, 0x20}

func (l wireLink) MarshalCBOR() ([]byte, error) {
	return append(bytes.Clone(linkPrefix), l[:]...), nil
}

func (l *wireLink) UnmarshalCBOR(b []byte) error {
	if len(b) != len(linkPrefix)+32 || !bytes.HasPrefix(b, linkPrefix) {
		return &RecordError{"pieces", "an entry is not a link (tag 42) to a CIDv1 raw sha2-256"}
	}
	copy(l[:], b[len(linkPrefix):])
	return nil
}

func encMode() (cbor.EncMode, error) {
	return cbor.EncOptions{Sort: cbor.SortLengthFirst, IndefLength: cbor.IndefLengthForbidden}.EncMode()
}

func decMode() (cbor.DecMode, error) {
	return cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		MaxNestedLevels:   4,
		MaxArrayElements:  MaxPieces,
		MaxMapPairs:       16,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
}

// Validate reports the first field that is out of bounds.
func (r *Record) Validate() error {
	if why := badName(r.Name); why != "" {
		return &RecordError{"name", why}
	}
	if r.HeldOut < 0 || r.HeldOut > 1000 {
		return &RecordError{"heldOut", fmt.Sprintf("%d is not a permille", r.HeldOut)}
	}
	switch r.Kind {
	case KindPieces:
		return r.validatePieces()
	case KindGenerator:
		if r.Bytes != 0 || len(r.Pieces) != 0 {
			return &RecordError{"pieces", "a generator has none"}
		}
		if why := badName(r.Generator.Name); why != "" {
			return &RecordError{"generator.name", why}
		}
		if r.HeldOut < 1 || r.HeldOut > maxGeneratorHeldOut {
			return &RecordError{"heldOut", fmt.Sprintf("%d is not within 1 to %d, as a generator needs", r.HeldOut, maxGeneratorHeldOut)}
		}
		return nil
	}
	return &RecordError{"kind", fmt.Sprintf("%q is neither %q nor %q", clip(r.Kind), KindPieces, KindGenerator)}
}

func (r *Record) validatePieces() error {
	if r.Generator != (GeneratorRef{}) {
		return &RecordError{"generator", "a dataset of pieces has none"}
	}
	n := int64(len(r.Pieces))
	if n == 0 || n > MaxPieces {
		return &RecordError{"pieces", fmt.Sprintf("%d pieces, want 1 to %d", n, MaxPieces)}
	}
	if r.Bytes < n || r.Bytes > n*MaxPiece {
		return &RecordError{"bytes", fmt.Sprintf("%d bytes cannot be in %d pieces of 1 to %d bytes", r.Bytes, n, MaxPiece)}
	}
	for i := 1; i < len(r.Pieces); i++ {
		if bytes.Compare(r.Pieces[i-1][:], r.Pieces[i][:]) >= 0 {
			return &RecordError{"pieces", fmt.Sprintf("entry %d is not above the one before it", i)}
		}
	}
	return nil
}

func badName(s string) string {
	if s == "" || len(s) > maxName {
		return fmt.Sprintf("%d bytes long, want 1 to %d", len(s), maxName)
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return fmt.Sprintf("%q has other characters than a-z, 0-9 and, inside, - _ .", s)
		}
	}
	return ""
}

func clip(s string) string {
	if len(s) > maxName {
		return s[:maxName] + "…"
	}
	return s
}

// Encode returns the one encoding of a valid record.
func (r *Record) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	w := wireRecord{Kind: r.Kind, Name: r.Name, HeldOut: uint64(r.HeldOut), Version: RecordVersion}
	if r.Kind == KindPieces {
		w.Bytes = uint64(r.Bytes)
		w.Pieces = make([]wireLink, len(r.Pieces))
		for i, h := range r.Pieces {
			w.Pieces[i] = wireLink(h)
		}
	} else {
		g := r.Generator
		w.Generator = &wireGenerator{Name: g.Name, Seed: g.Seed[:], Version: g.Version}
	}
	mode, err := encMode()
	if err != nil {
		return nil, fmt.Errorf("data: cbor options: %w", err)
	}
	return mode.Marshal(&w)
}

// ParseRecord decodes a record from anywhere. It accepts exactly the bytes
// that [Record.Encode] would produce; every error is a [RecordError].
func ParseRecord(b []byte) (*Record, error) {
	if len(b) > MaxRecord {
		return nil, &RecordError{"", fmt.Sprintf("%d bytes, at most %d are read", len(b), MaxRecord)}
	}
	mode, err := decMode()
	if err != nil {
		return nil, fmt.Errorf("data: cbor options: %w", err)
	}
	var w wireRecord
	if err := mode.Unmarshal(b, &w); err != nil {
		return nil, &RecordError{"", clipLong(err.Error())}
	}
	if w.Version != RecordVersion {
		return nil, &RecordError{"version", fmt.Sprintf("%d, this build reads %d", w.Version, RecordVersion)}
	}
	if w.Bytes > math.MaxInt64 {
		return nil, &RecordError{"bytes", "too large"}
	}
	r := &Record{Name: w.Name, Kind: w.Kind, HeldOut: int(min(w.HeldOut, 1001)), Bytes: int64(w.Bytes)}
	for _, l := range w.Pieces {
		r.Pieces = append(r.Pieces, l)
	}
	if g := w.Generator; g != nil {
		if len(g.Seed) != 32 {
			return nil, &RecordError{"generator.seed", fmt.Sprintf("%d bytes, want 32", len(g.Seed))}
		}
		r.Generator = GeneratorRef{Name: g.Name, Version: g.Version, Seed: [32]byte(g.Seed)}
	}
	again, err := r.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, &RecordError{"", "not the canonical encoding of its content"}
	}
	return r, nil
}

func clipLong(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// PieceCID is the CIDv1 (raw, sha2-256) of the piece with this hash.
func PieceCID(hash [32]byte) cid.Cid { return sha256CID(cid.Raw, hash) }

func sha256CID(codec uint64, digest [32]byte) cid.Cid {
	m := append([]byte{mh.SHA2_256, 32}, digest[:]...)
	return cid.NewCidV1(codec, m)
}
