package protocol

import (
	"crypto/ed25519"
	"crypto/sha256"
)

// VoteType is the step of a vote.
type VoteType uint8

// The steps that are voted in.
const (
	VotePrepare VoteType = 1
	VoteCommit  VoteType = 2
)

func (f faults) voteType(t VoteType) {
	if t != VotePrepare && t != VoteCommit {
		f.add("type", "%d is not prepare (1) or commit (2)", uint8(t))
	}
}

// Vote is one validator's PREPARE or COMMIT-V.
type Vote struct {
	Version   uint32   `cbor:"version"`
	Network   Link     `cbor:"network"` // dag-cbor: the genesis document
	Cycle     uint64   `cbor:"cycle"`
	Instance  Instance `cbor:"instance"`
	Round     uint32   `cbor:"round"` // below 64
	Type      VoteType `cbor:"type"`
	Parent    Hash     `cbor:"parent"` // as in the proposal
	Digest    Hash     `cbor:"digest"` // [Proposal.Decision], or [NullDecision]
	Validator ID       `cbor:"validator"`
	Sig       Sig      `cbor:"sig"`
}

// NullDecision is what votes are over that would have an instance decide nothing.
func NullDecision(network Link, cycle uint64, i Instance, parent Hash) Hash {
	null := StatusVote{Version: Version, Network: network, Cycle: cycle, Instance: i, Type: StatusNull, Parent: parent}
	b := null.SigningBytes()
	if b == nil {
		return Hash{}
	}
	return sha256.Sum256(b)
}

// DecodeVote decodes and checks a vote; the signature is not verified.
func DecodeVote(b []byte) (Vote, error) { return decode[Vote]("vote", maxSmall, b) }

// SigningBytes implements [Signed].
func (v Vote) SigningBytes() []byte {
	v.Sig = Sig{}
	return signingBytes("vote", v)
}

// Sign signs the vote. The error is not nil if the key has a wrong length or the record has no encoding.
func (v *Vote) Sign(key ed25519.PrivateKey) error { return sign(key, v.SigningBytes(), &v.Sig) }

// VerifySig implements [Signed].
func (v Vote) VerifySig(key Key) bool { return verify(key, v.SigningBytes(), v.Sig) }

// Signer implements [Signed].
func (v Vote) Signer() ID { return v.Validator }

// Validate implements [Record].
func (v Vote) Validate() error { return validate("vote", v) }

func (v Vote) faults(f faults) {
	f.version(v.Version)
	f.link("network", v.Network, DagCBOR)
	f.instance(v.Instance)
	f.round("round", v.Round)
	f.voteType(v.Type)
	if v.Digest.IsZero() {
		f.add("digest", "a vote is for something")
	}
	f.signed(v.Sig)
}

// StatusType is what a validator says at an instance's deadline.
type StatusType uint8

// The two things to say.
const (
	StatusNull StatusType = 1 // it knows of no lock, and signed no COMMIT-V in an earlier round and never will
	StatusLock StatusType = 2 // it knows of a lock
)

// StatusVote is one validator's STATUS: with it a validator leaves the rounds before Round behind and begins that round,
// one of those after the deadline, in which only what is locked, or nothing, can be voted for.
type StatusVote struct {
	Version    uint32     `cbor:"version"`
	Network    Link       `cbor:"network"` // dag-cbor: the genesis document
	Cycle      uint64     `cbor:"cycle"`
	Instance   Instance   `cbor:"instance"`
	Round      uint32     `cbor:"round"` // that begins, below 64
	Type       StatusType `cbor:"type"`
	Parent     Hash       `cbor:"parent"`     // as in the proposals; zero in the first cycle
	LockRound  uint32     `cbor:"lockround"`  // of the highest lock, below Round; 0 in a null
	LockDigest Hash       `cbor:"lockdigest"` // [Lock.Digest] of that lock; zero in a null
	Validator  ID         `cbor:"validator"`
	Sig        Sig        `cbor:"sig"`
}

// DecodeStatusVote decodes and checks a status vote; the signature is not verified.
func DecodeStatusVote(b []byte) (StatusVote, error) {
	return decode[StatusVote]("status vote", maxSmall, b)
}

// SigningBytes implements [Signed].
func (v StatusVote) SigningBytes() []byte {
	v.Sig = Sig{}
	return signingBytes("status-vote", v)
}

// Sign signs the status vote. The error is not nil if the key has a wrong length or the record has no encoding.
func (v *StatusVote) Sign(key ed25519.PrivateKey) error { return sign(key, v.SigningBytes(), &v.Sig) }

// VerifySig implements [Signed].
func (v StatusVote) VerifySig(key Key) bool { return verify(key, v.SigningBytes(), v.Sig) }

// Signer implements [Signed].
func (v StatusVote) Signer() ID { return v.Validator }

// Validate implements [Record].
func (v StatusVote) Validate() error { return validate("status", v) }

func (v StatusVote) faults(f faults) {
	f.version(v.Version)
	f.link("network", v.Network, DagCBOR)
	f.instance(v.Instance)
	f.round("round", v.Round)
	f.round("lockround", v.LockRound)
	switch v.Type {
	case StatusNull:
		if v.LockRound != 0 || !v.LockDigest.IsZero() {
			f.add("lockdigest", "a null names no lock")
		}
	case StatusLock:
		if v.LockDigest.IsZero() {
			f.add("lockdigest", "a lock is on something")
		}
		if v.LockRound >= v.Round {
			f.add("lockround", "%d is not below the round %d that begins", v.LockRound, v.Round)
		}
	default:
		f.add("type", "%d is not null (1) or lock (2)", uint8(v.Type))
	}
	f.signed(v.Sig)
}
