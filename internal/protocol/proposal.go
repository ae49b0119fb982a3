package protocol

import (
	"crypto/ed25519"
	"crypto/sha256"
)

// Bounds of the agreement's records. A certificate holds a proposal and stays below a block.
const (
	maxProposal = 768 << 10
	maxLock     = 128 << 10
	maxProofs   = 256 // equivocation proofs that one proposal carries
)

// Proposal is what a proposer asks an instance to decide: the value, and the evidence from which everybody derives it.
type Proposal struct {
	Version  uint32   `cbor:"version"`
	Network  Link     `cbor:"network"` // dag-cbor: the genesis document
	Cycle    uint64   `cbor:"cycle"`
	Instance Instance `cbor:"instance"`
	Round    uint32   `cbor:"round"`  // below 64
	Parent   Hash     `cbor:"parent"` // the decision before this one, [Certificate.Decision]; zero in the first cycle
	Proposer ID       `cbor:"proposer"`
	Vectors  []Hash   `cbor:"vectors"` // digests of the score or merge vectors, sorted, no duplicates
	Lists    []Hash   `cbor:"lists"`   // digests of the lists, sorted, no duplicates
	Proofs   []Hash   `cbor:"proofs"`  // digests of the equivocation proofs, sorted, no duplicates
	Value    Value    `cbor:"value"`
	Lock     *Lock    `cbor:"lock"` // of an earlier round, on this decision; nil (CBOR null) if there is none
	Sig      Sig      `cbor:"sig"`
}

// DecodeProposal decodes and checks a proposal; signatures are not verified.
func DecodeProposal(b []byte) (Proposal, error) {
	return decode[Proposal]("proposal", maxProposal, b)
}

// Decision returns what votes are over: a digest of the proposal without round, proposer, lock and signature. A value
// proposed again in a later round, by somebody else, on the same evidence, is the same decision.
func (p Proposal) Decision() Hash {
	p.Round, p.Proposer, p.Lock, p.Sig = 0, ID{}, nil, Sig{}
	b := signingBytes("decision", p)
	if b == nil {
		return Hash{}
	}
	return sha256.Sum256(b)
}

// SigningBytes implements [Signed].
func (p Proposal) SigningBytes() []byte {
	p.Sig = Sig{}
	return signingBytes("proposal", p)
}

// Sign signs the proposal. The error is not nil if the key has a wrong length or the record has no encoding.
func (p *Proposal) Sign(key ed25519.PrivateKey) error { return sign(key, p.SigningBytes(), &p.Sig) }

// VerifySig implements [Signed].
func (p Proposal) VerifySig(key Key) bool { return verify(key, p.SigningBytes(), p.Sig) }

// Signer implements [Signed].
func (p Proposal) Signer() ID { return p.Proposer }

// Verify checks the proposer's role and signature and the lock, if there is one. Whose turn it is, and whether the value
// follows from the evidence, is for the agreement to say.
func (p Proposal) Verify(s Snapshot) error {
	if err := s.Check(p, RoleValidator); err != nil {
		return err
	}
	if p.Lock != nil {
		return p.Lock.Verify(s)
	}
	return nil
}

// Validate implements [Record].
func (p Proposal) Validate() error { return validate("proposal", p) }

func (p Proposal) faults(f faults) {
	f.version(p.Version)
	f.link("network", p.Network, DagCBOR)
	f.instance(p.Instance)
	f.round("round", p.Round)
	f.hashes("vectors", p.Vectors, 1, maxValidators)
	f.hashes("lists", p.Lists, 0, maxValidators)
	f.hashes("proofs", p.Proofs, 0, maxProofs)
	p.Value.of(p.Instance, faults{f.prefix + ".value", f.errs})
	if l := p.Lock; l != nil {
		f.under("lock", l)
		switch {
		case l.Network != p.Network || l.Cycle != p.Cycle || l.Instance != p.Instance || l.Parent != p.Parent:
			f.add("lock", "of another network, cycle, instance or parent")
		case l.Round >= p.Round:
			f.add("lock.round", "%d is not below the proposal's %d", l.Round, p.Round)
		case l.Digest != p.Decision():
			f.add("lock.digest", "the lock is on another decision")
		}
	}
	f.signed(p.Sig)
}

// round adds a fault unless r may be a round of an instance.
func (f faults) round(field string, r uint32) {
	if r >= maxRounds {
		f.add(field, "%d is not below %d", r, maxRounds)
	}
}
