package protocol

import (
	"cmp"
	"crypto/ed25519"
)

// Sizes of a sealed payload.
const (
	// SegmentOverhead is what sealing adds to a segment: the tag of ChaCha20-Poly1305.
	SegmentOverhead = 16
	// MaxSegment is the most bytes of one sealed segment, a leaf block.
	MaxSegment = 1 << 20
	// LockedSeedSize is the length of a timelocked seed.
	LockedSeedSize = 128

	maxSegments    = 16384
	maxSealed      = maxSegments * MaxSegment
	maxDatasets    = 1024
	maxListEntries = maxParticipants
	maxList        = 768 << 10
)

// Commitment is what a miner gossips before its deadline: the CID of the manifest of its sealed delta, signed. One per
// (cycle, group, miner); two different ones are an [EquivocationProof].
type Commitment struct {
	Version  uint32 `cbor:"version"`
	Network  Link   `cbor:"network"` // dag-cbor: the genesis document
	Cycle    uint64 `cbor:"cycle"`
	Group    string `cbor:"group"`
	Miner    ID     `cbor:"miner"`
	Manifest Link   `cbor:"manifest"` // dag-cbor
	Size     uint64 `cbor:"size"`     // bytes of all sealed segments
	Sig      Sig    `cbor:"sig"`
}

// DecodeCommitment decodes and checks a commitment; the signature is not verified.
func DecodeCommitment(b []byte) (Commitment, error) {
	return decode[Commitment]("commitment", maxSmall, b)
}

// SigningBytes implements [Signed].
func (c Commitment) SigningBytes() []byte {
	c.Sig = Sig{}
	return signingBytes("commitment", c)
}

// Sign signs the commitment. The error is not nil if the key has a wrong length or the record has no encoding.
func (c *Commitment) Sign(key ed25519.PrivateKey) error { return sign(key, c.SigningBytes(), &c.Sig) }

// VerifySig implements [Signed].
func (c Commitment) VerifySig(key Key) bool { return verify(key, c.SigningBytes(), c.Sig) }

// Signer implements [Signed].
func (c Commitment) Signer() ID { return c.Miner }

// Validate implements [Record].
func (c Commitment) Validate() error { return validate("commitment", c) }

func (c Commitment) faults(f faults) {
	f.version(c.Version)
	f.link("network", c.Network, DagCBOR)
	f.name("group", c.Group)
	f.link("manifest", c.Manifest, DagCBOR)
	if c.Size <= SegmentOverhead || c.Size > maxSealed {
		f.add("size", "%d bytes, want %d to %d", c.Size, SegmentOverhead+1, maxSealed)
	}
	f.signed(c.Sig)
}

// Segment is one sealed piece of a payload: a raw block.
type Segment struct {
	Block Link   `cbor:"block"` // raw
	Size  uint32 `cbor:"size"`  // bytes of the block, 16 more than it holds
}

func (s Segment) faults(f faults) {
	f.link("block", s.Block, Raw)
	if s.Size <= SegmentOverhead || s.Size > MaxSegment {
		f.add("size", "%d bytes, want %d to %d", s.Size, SegmentOverhead+1, MaxSegment)
	}
}

// Manifest describes a sealed delta. It is not signed: its CID is in the [Commitment], which is.
type Manifest struct {
	Version     uint32        `cbor:"version"`
	Network     Link          `cbor:"network"` // dag-cbor: the genesis document
	Cycle       uint64        `cbor:"cycle"`
	Base        Link          `cbor:"base"` // dag-pb: the checkpoint Φ(cycle)
	Group       string        `cbor:"group"`
	Miner       ID            `cbor:"miner"`
	Codec       string        `cbor:"codec"`
	Tensors     []TensorEntry `cbor:"tensors"`     // in payload order, without gaps
	Size        uint64        `cbor:"size"`        // bytes of the payload
	Segments    []Segment     `cbor:"segments"`    // in payload order
	Round       uint64        `cbor:"round"`       // the beacon round T_k that opens the seed
	LockedSeed  []byte        `cbor:"seed"`        // 128 bytes: the seed, timelocked
	Attestation *Link         `cbor:"attestation"` // dag-cbor: an [Attestation]; nil (CBOR null) if there is none
}

// DecodeManifest decodes and checks a manifest.
func DecodeManifest(b []byte) (Manifest, error) { return decode[Manifest]("manifest", maxDocument, b) }

// Header returns the part of the manifest that a delta's codec reads.
func (m Manifest) Header() DeltaHeader {
	return DeltaHeader{Version: m.Version, Base: m.Base, Group: m.Group, Codec: m.Codec, Tensors: m.Tensors, Size: m.Size}
}

// SealedSize returns the bytes of all segments, which the commitment names.
func (m Manifest) SealedSize() uint64 {
	var total uint64
	for _, s := range m.Segments {
		total += uint64(s.Size)
	}
	return total
}

// Validate implements [Record].
func (m Manifest) Validate() error { return validate("manifest", m) }

func (m Manifest) faults(f faults) {
	m.Header().faults(f)
	f.link("network", m.Network, DagCBOR)
	if n := len(m.Segments); n == 0 || n > maxSegments {
		f.add("segments", "%d segments, want 1 to %d", n, maxSegments)
		return
	}
	for i, s := range m.Segments {
		if f.full() {
			return
		}
		f.under(index("segments", i), s)
	}
	if holds := m.SealedSize() - SegmentOverhead*uint64(len(m.Segments)); holds != m.Size {
		f.add("segments", "they hold %d bytes, but the payload has %d", holds, m.Size)
	}
	if len(m.LockedSeed) != LockedSeedSize {
		f.add("seed", "%d bytes, want %d", len(m.LockedSeed), LockedSeedSize)
	}
	if m.Attestation != nil {
		f.link("attestation", *m.Attestation, DagCBOR)
	}
}

// Attestation says what a miner trained on. It is a record and an alarm for contamination; the loss alone pays.
type Attestation struct {
	Version  uint32 `cbor:"version"`
	Datasets []Link `cbor:"datasets"` // dag-cbor, sorted, no duplicates
	Root     Hash   `cbor:"root"`     // of the Merkle tree of the sample ids
	Samples  uint64 `cbor:"samples"`  // leaves of that tree
	Tokens   uint64 `cbor:"tokens"`
}

// DecodeAttestation decodes and checks an attestation.
func DecodeAttestation(b []byte) (Attestation, error) {
	return decode[Attestation]("attestation", maxAttestation, b)
}

// maxAttestation is above the encoding of maxDatasets links.
const maxAttestation = 64 << 10

// Validate implements [Record].
func (a Attestation) Validate() error { return validate("attestation", a) }

func (a Attestation) faults(f faults) {
	f.version(a.Version)
	if n := len(a.Datasets); n == 0 || n > maxDatasets {
		f.add("datasets", "%d datasets, want 1 to %d", n, maxDatasets)
	}
	for i, d := range a.Datasets {
		if f.full() {
			return
		}
		f.link(index("datasets", i), d, DagCBOR)
		if i > 0 && a.Datasets[i-1].Compare(d) >= 0 {
			f.add(index("datasets", i), "%s is not above the CID before it; sort them, each once", d)
		}
	}
	if a.Samples == 0 || a.Tokens < a.Samples {
		f.add("samples", "%d samples of %d tokens; there is at least one, and each has a token", a.Samples, a.Tokens)
	}
}

// ListState is how much of a commitment's content a validator held in time.
type ListState uint8

// The states. Zero is none of them.
const (
	ListHeld       ListState = 1 // the manifest and every block
	ListLate       ListState = 2 // the commitment came after its deadline
	ListIncomplete ListState = 3 // a block or the manifest was missing, or was not what was committed
)

// ListEntry is what one validator saw of one commitment.
type ListEntry struct {
	Miner    ID        `cbor:"miner"`
	Group    string    `cbor:"group"`
	Manifest Link      `cbor:"manifest"` // dag-cbor
	Bucket   uint32    `cbor:"bucket"`   // whole seconds from the anchor to the first sight of the commitment
	State    ListState `cbor:"state"`
}

// List is a validator's signed word on which commitments it holds, given before anything can be read.
type List struct {
	Version   uint32      `cbor:"version"`
	Network   Link        `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64      `cbor:"cycle"`
	Validator ID          `cbor:"validator"`
	Entries   []ListEntry `cbor:"entries"` // sorted by (miner, manifest), no duplicates
	Sig       Sig         `cbor:"sig"`
}

// DecodeList decodes and checks a list; the signature is not verified.
func DecodeList(b []byte) (List, error) { return decode[List]("list", maxList, b) }

// Digest returns the SHA-256 of the canonical encoding, signature included; as a [Hash.Link] it names the list's block.
func (l List) Digest() Hash { return digest(l) }

// SigningBytes implements [Signed].
func (l List) SigningBytes() []byte {
	l.Sig = Sig{}
	return signingBytes("list", l)
}

// Sign signs the list. The error is not nil if the key has a wrong length or the record has no encoding.
func (l *List) Sign(key ed25519.PrivateKey) error { return sign(key, l.SigningBytes(), &l.Sig) }

// VerifySig implements [Signed].
func (l List) VerifySig(key Key) bool { return verify(key, l.SigningBytes(), l.Sig) }

// Signer implements [Signed].
func (l List) Signer() ID { return l.Validator }

// Validate implements [Record].
func (l List) Validate() error { return validate("list", l) }

func (l List) faults(f faults) {
	f.version(l.Version)
	f.link("network", l.Network, DagCBOR)
	if n := len(l.Entries); n > maxListEntries {
		f.add("entries", "%d entries, at most %d", n, maxListEntries)
	}
	for i, e := range l.Entries {
		if f.full() {
			return
		}
		f.under(index("entries", i), e)
		if i > 0 && l.Entries[i-1].Compare(e) >= 0 {
			f.add(index("entries", i), "not above the entry before it; sort them by miner and manifest, each once")
		}
	}
	f.signed(l.Sig)
}

// Compare orders by miner, then manifest.
func (e ListEntry) Compare(other ListEntry) int {
	return cmp.Or(e.Miner.Compare(other.Miner), e.Manifest.Compare(other.Manifest))
}

func (e ListEntry) faults(f faults) {
	f.name("group", e.Group)
	f.link("manifest", e.Manifest, DagCBOR)
	if e.State < ListHeld || e.State > ListIncomplete {
		f.add("state", "%d is not held (1), late (2) or incomplete (3)", uint8(e.State))
	}
}
