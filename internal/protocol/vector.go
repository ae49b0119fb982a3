package protocol

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
)

// ScoreCommit binds a validator to its scores before it has seen anybody else's.
type ScoreCommit struct {
	Version   uint32 `cbor:"version"`
	Network   Link   `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64 `cbor:"cycle"`
	Validator ID     `cbor:"validator"`
	Digest    Hash   `cbor:"digest"` // [ScoreVector.CommitDigest]
	Sig       Sig    `cbor:"sig"`
}

// DecodeScoreCommit decodes and checks a score commit; the signature is not verified.
func DecodeScoreCommit(b []byte) (ScoreCommit, error) {
	return decode[ScoreCommit]("score commit", maxSmall, b)
}

// SigningBytes implements [Signed].
func (c ScoreCommit) SigningBytes() []byte {
	c.Sig = Sig{}
	return signingBytes("score-commit", c)
}

// Sign signs the score commit. The error is not nil if the key has a wrong length or the record has no encoding.
func (c *ScoreCommit) Sign(key ed25519.PrivateKey) error { return sign(key, c.SigningBytes(), &c.Sig) }

// VerifySig implements [Signed].
func (c ScoreCommit) VerifySig(key Key) bool { return verify(key, c.SigningBytes(), c.Sig) }

// Signer implements [Signed].
func (c ScoreCommit) Signer() ID { return c.Validator }

// Validate implements [Record].
func (c ScoreCommit) Validate() error { return validate("scorecommit", c) }

func (c ScoreCommit) faults(f faults) {
	f.version(c.Version)
	f.link("network", c.Network, DagCBOR)
	f.signed(c.Sig)
}

// GroupRows are the rows of one group's miners.
type GroupRows struct {
	Group string `cbor:"group"`
	Rows  []Row  `cbor:"rows"` // sorted by (miner, shard), no duplicates
}

// ScoreVector is everything one validator measured in a cycle. It counts only if it opens a [ScoreCommit] and only under
// its parent.
type ScoreVector struct {
	Version   uint32      `cbor:"version"`
	Network   Link        `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64      `cbor:"cycle"`
	Parent    Hash        `cbor:"parent"` // the decision that Φ(cycle) rests on; zero in the first cycle
	Validator ID          `cbor:"validator"`
	List      Hash        `cbor:"list"`   // [List.Digest] of the validator's own list
	Groups    []GroupRows `cbor:"groups"` // sorted by name, no duplicates
	Salt      Hash        `cbor:"salt"`   // 32 random bytes, so that the commit hides the scores
	Sig       Sig         `cbor:"sig"`
}

// DecodeScoreVector decodes and checks a score vector; the signature is not verified.
func DecodeScoreVector(b []byte) (ScoreVector, error) {
	return decode[ScoreVector]("score vector", maxDocument, b)
}

// CommitDigest returns the SHA-256 of the signing bytes, salt included: what the [ScoreCommit] before it must name.
func (v ScoreVector) CommitDigest() Hash {
	b := v.SigningBytes()
	if b == nil {
		return Hash{}
	}
	return sha256.Sum256(b)
}

// Opens reports whether v is the vector that c committed to. Both signatures are for the caller to check.
func (v ScoreVector) Opens(c ScoreCommit) bool {
	return v.Network == c.Network && v.Cycle == c.Cycle && v.Validator == c.Validator &&
		!c.Digest.IsZero() && v.CommitDigest() == c.Digest
}

// Digest returns the SHA-256 of the canonical encoding, signature included; as a [Hash.Link] it names the vector's
// block.
func (v ScoreVector) Digest() Hash { return digest(v) }

// SigningBytes implements [Signed].
func (v ScoreVector) SigningBytes() []byte {
	v.Sig = Sig{}
	return signingBytes("score-vector", v)
}

// Sign signs the vector. The error is not nil if the key has a wrong length or the record has no encoding.
func (v *ScoreVector) Sign(key ed25519.PrivateKey) error { return sign(key, v.SigningBytes(), &v.Sig) }

// VerifySig implements [Signed].
func (v ScoreVector) VerifySig(key Key) bool { return verify(key, v.SigningBytes(), v.Sig) }

// Signer implements [Signed].
func (v ScoreVector) Signer() ID { return v.Validator }

// Validate implements [Record].
func (v ScoreVector) Validate() error { return validate("scores", v) }

func (v ScoreVector) faults(f faults) {
	f.version(v.Version)
	f.link("network", v.Network, DagCBOR)
	if n := len(v.Groups); n > maxGroups {
		f.add("groups", "%d groups, at most %d", n, maxGroups)
	}
	for i, g := range v.Groups {
		if f.full() {
			return
		}
		f.under(index("groups", i), g)
		if i > 0 && v.Groups[i-1].Group >= g.Group {
			f.add(index("groups", i)+".group", "%.40q is not above %.40q before it; sort them, each once", g.Group, v.Groups[i-1].Group)
		}
	}
	f.signed(v.Sig)
}

func (g GroupRows) faults(f faults) {
	f.name("group", g.Group)
	if len(g.Rows) == 0 {
		f.add("rows", "a group without rows is left out")
	}
	for i, r := range g.Rows {
		if f.full() {
			return
		}
		f.under(index("rows", i), r)
		if i > 0 {
			before := g.Rows[i-1]
			if cmp.Or(before.Miner.Compare(r.Miner), cmp.Compare(before.Shard, r.Shard)) >= 0 {
				f.add(index("rows", i), "not above the row before it; sort them by miner and shard, each once")
			}
		}
	}
}

// MergeVector is one validator's line search, and the scale it would take.
type MergeVector struct {
	Version   uint32       `cbor:"version"`
	Network   Link         `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64       `cbor:"cycle"`
	Parent    Hash         `cbor:"parent"` // [Certificate.Decision] of the cycle's W
	Validator ID           `cbor:"validator"`
	Measure   MergeMeasure `cbor:"measure"`
	Alpha     uint32       `cbor:"alpha"` // index into Params.AlphaGrid of the best acceptable scale; 0 keeps Φ
	Sig       Sig          `cbor:"sig"`
}

// DecodeMergeVector decodes and checks a merge vector; the signature is not verified.
func DecodeMergeVector(b []byte) (MergeVector, error) {
	return decode[MergeVector]("merge vector", maxDocument, b)
}

// Digest returns the SHA-256 of the canonical encoding, signature included; as a [Hash.Link] it names the vector's
// block.
func (v MergeVector) Digest() Hash { return digest(v) }

// SigningBytes implements [Signed].
func (v MergeVector) SigningBytes() []byte {
	v.Sig = Sig{}
	return signingBytes("merge-vector", v)
}

// Sign signs the vector. The error is not nil if the key has a wrong length or the record has no encoding.
func (v *MergeVector) Sign(key ed25519.PrivateKey) error { return sign(key, v.SigningBytes(), &v.Sig) }

// VerifySig implements [Signed].
func (v MergeVector) VerifySig(key Key) bool { return verify(key, v.SigningBytes(), v.Sig) }

// Signer implements [Signed].
func (v MergeVector) Signer() ID { return v.Validator }

// Validate implements [Record].
func (v MergeVector) Validate() error { return validate("merge", v) }

func (v MergeVector) faults(f faults) {
	f.version(v.Version)
	f.link("network", v.Network, DagCBOR)
	f.under("measure", v.Measure)
	f.gridIndex("alpha", v.Alpha)
	f.signed(v.Sig)
}

// gridIndex adds a fault unless i may be an index into a grid of scales.
func (f faults) gridIndex(field string, i uint32) {
	if i >= maxAlphas {
		f.add(field, "%d is not a grid index from 0 to %d", i, maxAlphas-1)
	}
}
