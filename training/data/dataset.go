package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
	"sync"

	"github.com/ipfs/go-cid"
)

// Pool is one of the two parts of a dataset.
type Pool uint8

// Train is what miners learn from, HeldOut what validators measure with.
const (
	Train Pool = iota
	HeldOut
)

func (p Pool) String() string {
	if p == HeldOut {
		return "held-out"
	}
	return "train"
}

// PoolOf is the pool of the piece with this SHA-256 when heldOut permille of
// the pieces are held out.
func PoolOf(hash [32]byte, heldOut int) Pool {
	if binary.BigEndian.Uint64(hash[:8])%1000 < uint64(heldOut) {
		return HeldOut
	}
	return Train
}

// piece is a document: at most MaxPiece bytes and their SHA-256.
type piece struct {
	hash [32]byte
	text []byte
}

// Dataset is one domain. It is immutable and safe for concurrent use.
type Dataset struct {
	rec    Record
	raw    []byte
	digest [32]byte // SHA-256 of raw
	pieces []piece  // ascending by hash; nil when endless
	gen    generator

	mu    sync.Mutex
	plans map[int]*plan // by window
}

// newDataset takes pieces ascending by hash without repeats.
func newDataset(name string, heldOut int, pieces []piece) (*Dataset, error) {
	r := Record{Name: name, Kind: KindPieces, HeldOut: heldOut}
	for _, p := range pieces {
		r.Pieces = append(r.Pieces, p.hash)
		r.Bytes += int64(len(p.text))
	}
	return fromRecord(r, pieces)
}

func fromRecord(r Record, pieces []piece) (*Dataset, error) {
	raw, err := r.Encode()
	if err != nil {
		return nil, err
	}
	d := &Dataset{rec: r, raw: raw, digest: sha256.Sum256(raw), pieces: pieces, plans: map[int]*plan{}}
	if r.Kind == KindGenerator {
		if d.gen, err = openGenerator(r.Generator); err != nil {
			return nil, fmt.Errorf("data: domain %q: %w", r.Name, err)
		}
	}
	return d, nil
}

// Name is the domain's name.
func (d *Dataset) Name() string { return d.rec.Name }

// CID names the dataset: CIDv1, dag-cbor, sha2-256 of [Dataset.Record].
func (d *Dataset) CID() cid.Cid { return sha256CID(cid.DagCBOR, d.digest) }

// Record returns the canonical dag-cbor description of the dataset. The caller
// owns the copy.
func (d *Dataset) Record() []byte { return bytes.Clone(d.raw) }

// HeldOutPermille is the share of pieces that are held out.
func (d *Dataset) HeldOutPermille() int { return d.rec.HeldOut }

// Endless says that the dataset is a generator: its pools have no size.
func (d *Dataset) Endless() bool { return d.gen != nil }

// Pieces yields every piece with its CID, for publishing; nothing when
// endless. The bytes are the dataset's own and must not be modified.
func (d *Dataset) Pieces() iter.Seq2[cid.Cid, []byte] {
	return func(yield func(cid.Cid, []byte) bool) {
		for _, p := range d.pieces {
			if !yield(PieceCID(p.hash), slices.Clip(p.text)) {
				return
			}
		}
	}
}

// Bytes is the size of a pool, -1 when endless.
func (d *Dataset) Bytes(p Pool) int64 {
	if d.Endless() {
		return -1
	}
	var n int64
	for i := range d.pieces {
		if PoolOf(d.pieces[i].hash, d.rec.HeldOut) == p {
			n += int64(len(d.pieces[i].text))
		}
	}
	return n
}

// Documents is the number of pieces in a pool, -1 when endless: the clusters
// there are for standard errors.
func (d *Dataset) Documents(p Pool) int64 {
	if d.Endless() {
		return -1
	}
	var n int64
	for i := range d.pieces {
		if PoolOf(d.pieces[i].hash, d.rec.HeldOut) == p {
			n++
		}
	}
	return n
}

// Windows is the number of samples of window bytes in a pool, -1 when endless
// and 0 when no sample can have that many bytes.
func (d *Dataset) Windows(p Pool, window int) int64 {
	if d.checkWindow(window) != nil {
		return 0
	}
	if d.Endless() {
		return -1
	}
	pl := d.plan(window)
	if p == HeldOut {
		return int64(len(pl.held))
	}
	return pl.trainWindows()
}

// Assemble rebuilds a dataset from its record. fetch returns the block of a
// CID; it is called once per piece, in order of hash, from this goroutine, and
// what it returns is kept, so it must not be modified afterwards. Each block
// must have the CID's hash and the sizes must add up; otherwise the error
// wraps [ErrRecord], [ErrPiece] or what fetch returned.
func Assemble(record []byte, fetch func(cid.Cid) ([]byte, error)) (*Dataset, error) {
	r, err := ParseRecord(record)
	if err != nil {
		return nil, err
	}
	var pieces []piece
	var total int64
	for i, h := range r.Pieces {
		c := PieceCID(h)
		text, err := fetch(c)
		if err != nil {
			return nil, fmt.Errorf("data: domain %q: piece %d of %d (%s): %w", r.Name, i, len(r.Pieces), c, err)
		}
		if len(text) == 0 || len(text) > MaxPiece {
			return nil, fmt.Errorf("data: domain %q: piece %s: %w: %d bytes, want 1 to %d", r.Name, c, ErrPiece, len(text), MaxPiece)
		}
		if sha256.Sum256(text) != h {
			return nil, fmt.Errorf("data: domain %q: piece %s: %w: the bytes have another hash", r.Name, c, ErrPiece)
		}
		if total += int64(len(text)); total > r.Bytes {
			break
		}
		pieces = append(pieces, piece{h, text})
	}
	if total != r.Bytes {
		return nil, fmt.Errorf("data: domain %q: %w: the pieces do not add up to the %d bytes of the record", r.Name, ErrPiece, r.Bytes)
	}
	return fromRecord(*r, pieces)
}

// ErrNoSample is returned by [Dataset.Sample].
var ErrNoSample = errors.New("no such sample")

// Sample returns the sample of window bytes at offset in piece number n, and
// its pool, so that somebody else's claim to have used it can be checked. For
// an endless dataset n is the number given to the generator. It refuses
// offsets that are not multiples of window − 1. The held-out windows that
// [Dataset.Draw] never gives because their text is not unique are reported as
// HeldOut here.
func (d *Dataset) Sample(n int64, offset, window int) (Sample, Pool, error) {
	if err := d.checkWindow(window); err != nil {
		return Sample{}, 0, err
	}
	var p piece
	switch {
	case d.Endless() && n >= 0 && n < endlessPieces:
		p = d.gen.piece(uint64(n))
	case !d.Endless() && n >= 0 && n < int64(len(d.pieces)):
		p = d.pieces[n]
	default:
		return Sample{}, 0, fmt.Errorf("data: domain %q: %w: piece %d", d.Name(), ErrNoSample, n)
	}
	if offset < 0 || offset%(window-1) != 0 || offset > len(p.text)-window {
		return Sample{}, 0, fmt.Errorf("data: domain %q: %w: offset %d, window %d in piece %d of %d bytes", d.Name(), ErrNoSample, offset, window, n, len(p.text))
	}
	return cutSample(p, n, offset, window), PoolOf(p.hash, d.rec.HeldOut), nil
}

// PieceNumber finds the piece with this hash; false if there is none or the
// dataset is endless.
func (d *Dataset) PieceNumber(hash [32]byte) (int64, bool) {
	i := sort.Search(len(d.pieces), func(i int) bool { return bytes.Compare(d.pieces[i].hash[:], hash[:]) >= 0 })
	return int64(i), i < len(d.pieces) && d.pieces[i].hash == hash
}
