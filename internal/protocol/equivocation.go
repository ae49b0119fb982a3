package protocol

import (
	"bytes"
	"fmt"
)

// maxEquivocation is above two of the longest statements.
const maxEquivocation = 2*maxProposal + maxSmall

// Equivocation is a kind of conflict between two statements of one participant. On the wire it is its number; numbers
// are never reused.
type Equivocation uint8

// The kinds.
const (
	EquivocationCommitment  Equivocation = 1 // two [Commitment]s of one (cycle, group, miner)
	EquivocationVote        Equivocation = 2 // two [Vote]s of one (cycle, instance, round, type)
	EquivocationProposal    Equivocation = 3 // two [Proposal]s of one (cycle, instance, round)
	EquivocationNull        Equivocation = 4 // a commit [Vote] and a null [StatusVote] of a later round of one (cycle, instance)
	EquivocationScoreCommit Equivocation = 5 // two [ScoreCommit]s of one cycle
	EquivocationList        Equivocation = 6 // two [List]s of one cycle
)

var equivocationNames = [...]string{
	EquivocationCommitment: "two commitments", EquivocationVote: "two votes", EquivocationProposal: "two proposals",
	EquivocationNull: "commit and null", EquivocationScoreCommit: "two score commits", EquivocationList: "two lists",
}

// Known reports whether k is one of the kinds.
func (k Equivocation) Known() bool { return k > 0 && int(k) < len(equivocationNames) }

// String returns what was said twice.
func (k Equivocation) String() string {
	if !k.Known() {
		return fmt.Sprintf("equivocation(%d)", uint8(k))
	}
	return equivocationNames[k]
}

// EquivocationProof is two signed statements that no honest participant signs both.
type EquivocationProof struct {
	Version uint32       `cbor:"version"`
	Kind    Equivocation `cbor:"kind"`
	First   []byte       `cbor:"first"`  // the encoding of a statement: the lower one, but the vote in a null
	Second  []byte       `cbor:"second"` // of the other
}

// Offence is what an [EquivocationProof] proves.
type Offence struct {
	Kind     Equivocation
	Offender ID
	Network  Link
	Cycle    uint64
	Group    string // of two commitments, both void; "" for the other kinds
}

// DecodeEquivocationProof decodes and checks a proof: the statements decode and conflict. Signatures are not verified.
func DecodeEquivocationProof(b []byte) (EquivocationProof, error) {
	return decode[EquivocationProof]("equivocation proof", maxEquivocation, b)
}

// NewEquivocationProof puts two statements in order. The error is that of Validate: [ErrInvalid] if they do not
// conflict. Signatures are not verified.
func NewEquivocationProof(a, b Signed) (EquivocationProof, error) {
	var kind Equivocation
	switch a.(type) {
	case Commitment:
		kind = EquivocationCommitment
	case Vote:
		kind = EquivocationVote
		if _, null := b.(StatusVote); null {
			kind = EquivocationNull
		}
	case StatusVote:
		kind, a, b = EquivocationNull, b, a
	case Proposal:
		kind = EquivocationProposal
	case ScoreCommit:
		kind = EquivocationScoreCommit
	case List:
		kind = EquivocationList
	default:
		return EquivocationProof{}, fmt.Errorf("%w: a %T conflicts with nothing", ErrInvalid, a)
	}
	first, err := Encode(a)
	if err != nil {
		return EquivocationProof{}, err
	}
	second, err := Encode(b)
	if err != nil {
		return EquivocationProof{}, err
	}
	if kind != EquivocationNull && bytes.Compare(first, second) > 0 {
		first, second = second, first
	}
	p := EquivocationProof{Version: Version, Kind: kind, First: first, Second: second}
	return p, p.Validate()
}

// Digest returns the SHA-256 of the canonical encoding; as a [Hash.Link] it names the proof's block.
func (p EquivocationProof) Digest() Hash { return digest(p) }

// Cycle returns the cycle that the statements are of, whoever signed them. The error is that of Validate.
func (p EquivocationProof) Cycle() (uint64, error) {
	_, _, o, err := p.statements()
	if err != nil {
		return 0, err
	}
	return o.Cycle, nil
}

// Verify checks both signatures with the key that the snapshot has for the offender, and names it. Anybody can sign
// with a key of their own in another's name, so without the snapshot nothing is proven: [ErrSigner] if the offender is
// not in it.
func (p EquivocationProof) Verify(s Snapshot) (Offence, error) {
	if p.Version != Version {
		return Offence{}, p.Validate()
	}
	first, second, offence, err := p.statements()
	if err != nil {
		return Offence{}, err
	}
	for _, statement := range []Signed{first, second} {
		if err := s.Check(statement, 0); err != nil {
			return Offence{}, err
		}
	}
	return offence, nil
}

// Validate implements [Record].
func (p EquivocationProof) Validate() error { return validate("equivocation", p) }

func (p EquivocationProof) faults(f faults) {
	f.version(p.Version)
	if _, _, _, err := p.statements(); err != nil {
		f.add("", "%s: %v", p.Kind, err)
	}
}

// statements decodes both and finds the conflict. Its errors are those of the Decode functions, or [ErrInvalid].
func (p EquivocationProof) statements() (first, second Signed, o Offence, err error) {
	switch p.Kind {
	case EquivocationCommitment:
		return conflict(p, DecodeCommitment, DecodeCommitment, func(a, b Commitment) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle, Group: a.Group},
				a.Network == b.Network && a.Cycle == b.Cycle && a.Group == b.Group
		})
	case EquivocationVote:
		return conflict(p, DecodeVote, DecodeVote, func(a, b Vote) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle},
				a.Network == b.Network && a.Cycle == b.Cycle && a.Instance == b.Instance && a.Round == b.Round && a.Type == b.Type
		})
	case EquivocationProposal:
		return conflict(p, DecodeProposal, DecodeProposal, func(a, b Proposal) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle},
				a.Network == b.Network && a.Cycle == b.Cycle && a.Instance == b.Instance && a.Round == b.Round
		})
	case EquivocationNull:
		return conflict(p, DecodeVote, DecodeStatusVote, func(a Vote, b StatusVote) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle},
				a.Network == b.Network && a.Cycle == b.Cycle && a.Instance == b.Instance && a.Type == VoteCommit && b.Type == StatusNull && a.Round < b.Round
		})
	case EquivocationScoreCommit:
		return conflict(p, DecodeScoreCommit, DecodeScoreCommit, func(a, b ScoreCommit) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle}, a.Network == b.Network && a.Cycle == b.Cycle
		})
	case EquivocationList:
		return conflict(p, DecodeList, DecodeList, func(a, b List) (Offence, bool) {
			return Offence{Network: a.Network, Cycle: a.Cycle}, a.Network == b.Network && a.Cycle == b.Cycle
		})
	}
	return nil, nil, Offence{}, fmt.Errorf("%w: no kind of equivocation has that number", ErrInvalid)
}

// conflict decodes the two statements of p and checks that they are of one slot, as slot says, and of one signer, and
// that they say different things: two signatures of the same thing are not a conflict.
func conflict[A, B Signed](p EquivocationProof, decodeA func([]byte) (A, error), decodeB func([]byte) (B, error),
	slot func(a A, b B) (Offence, bool)) (Signed, Signed, Offence, error) {
	a, err := decodeA(p.First)
	if err != nil {
		return nil, nil, Offence{}, fmt.Errorf("first: %w", err)
	}
	b, err := decodeB(p.Second)
	if err != nil {
		return nil, nil, Offence{}, fmt.Errorf("second: %w", err)
	}
	o, same := slot(a, b)
	switch {
	case a.Signer() != b.Signer():
		return nil, nil, Offence{}, fmt.Errorf("%w: the statements are of two signers", ErrInvalid)
	case !same:
		return nil, nil, Offence{}, fmt.Errorf("%w: the statements are of two slots; one may sign both", ErrInvalid)
	case bytes.Equal(a.SigningBytes(), b.SigningBytes()):
		return nil, nil, Offence{}, fmt.Errorf("%w: the statements say the same", ErrInvalid)
	case p.Kind != EquivocationNull && bytes.Compare(p.First, p.Second) > 0:
		return nil, nil, Offence{}, fmt.Errorf("%w: the statements are not in order", ErrInvalid)
	}
	o.Kind, o.Offender = p.Kind, a.Signer()
	return a, b, o, nil
}
