package consensus

import (
	"fmt"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Kind says which record a message holds. On the wire it is its number; numbers are never reused.
type Kind uint8

// The kinds.
const (
	KindScoreCommit Kind = 1
	KindScoreVector Kind = 2
	KindMergeVector Kind = 3
	KindList        Kind = 4
	KindProposal    Kind = 5
	KindVote        Kind = 6
	KindStatus      Kind = 7
	KindCertificate Kind = 8
	KindProof       Kind = 9
	KindLock        Kind = 10
)

var kindNames = [...]string{
	KindScoreCommit: "scorecommit", KindScoreVector: "score", KindMergeVector: "alpha", KindList: "list",
	KindProposal: "propose", KindVote: "vote", KindStatus: "status", KindCertificate: "certificate", KindProof: "proof",
	KindLock: "lock",
}

// String returns the message's name in logs and transcripts.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return kindNames[k]
}

// MaxMessage bounds every encoded message, in bytes.
const MaxMessage = 2 << 20

// Message is the one envelope of the agreement: a kind, and the canonical encoding of a record of that kind.
type Message struct {
	Kind  Kind
	Bytes []byte
}

// Encode returns the wire form: one byte of kind, then the record.
func (m Message) Encode() []byte {
	return append([]byte{byte(m.Kind)}, m.Bytes...)
}

// DecodeMessage splits the envelope and bounds it; the record inside is not looked at. The message shares b's memory.
func DecodeMessage(b []byte) (Message, error) {
	if len(b) < 2 || len(b) > MaxMessage {
		return Message{}, peer("message of %d bytes, want 2 to %d", len(b), MaxMessage)
	}
	m := Message{Kind: Kind(b[0]), Bytes: b[1:]}
	if m.Kind == 0 || int(m.Kind) >= len(kindNames) {
		return Message{}, peer("message of unknown %s", m.Kind)
	}
	return m, nil
}

// Record decodes the record: a value, not a pointer, of the type that the kind says. Its form is checked, its signature
// is not. The error is an [ErrPeer].
func (m Message) Record() (protocol.Record, error) {
	var r protocol.Record
	var err error
	switch m.Kind {
	case KindScoreCommit:
		r, err = protocol.DecodeScoreCommit(m.Bytes)
	case KindScoreVector:
		r, err = protocol.DecodeScoreVector(m.Bytes)
	case KindMergeVector:
		r, err = protocol.DecodeMergeVector(m.Bytes)
	case KindList:
		r, err = protocol.DecodeList(m.Bytes)
	case KindProposal:
		r, err = protocol.DecodeProposal(m.Bytes)
	case KindVote:
		r, err = protocol.DecodeVote(m.Bytes)
	case KindStatus:
		r, err = protocol.DecodeStatusVote(m.Bytes)
	case KindCertificate:
		r, err = protocol.DecodeCertificate(m.Bytes)
	case KindProof:
		r, err = protocol.DecodeEquivocationProof(m.Bytes)
	case KindLock:
		r, err = protocol.DecodeLock(m.Bytes)
	default:
		return nil, peer("message of unknown %s", m.Kind)
	}
	if err != nil {
		return nil, wrap(ErrPeer, "%w", []any{err})
	}
	return r, nil
}

// Cycle returns the cycle that the record names; ok is false for a proof, which names none itself, and for what does not
// decode.
func (m Message) Cycle() (cycle uint64, ok bool) {
	r, err := m.Record()
	if err != nil {
		return 0, false
	}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		return r.Cycle, true
	case protocol.ScoreVector:
		return r.Cycle, true
	case protocol.MergeVector:
		return r.Cycle, true
	case protocol.List:
		return r.Cycle, true
	case protocol.Proposal:
		return r.Cycle, true
	case protocol.Vote:
		return r.Cycle, true
	case protocol.StatusVote:
		return r.Cycle, true
	case protocol.Certificate:
		return r.Cycle, true
	case protocol.Lock:
		return r.Cycle, true
	}
	return 0, false
}

// NewMessage encodes a record of the agreement. The error is an [ErrBug]: the record is invalid or of no kind.
func NewMessage(r protocol.Record) (Message, error) {
	var kind Kind
	switch r.(type) {
	case protocol.ScoreCommit:
		kind = KindScoreCommit
	case protocol.ScoreVector:
		kind = KindScoreVector
	case protocol.MergeVector:
		kind = KindMergeVector
	case protocol.List:
		kind = KindList
	case protocol.Proposal:
		kind = KindProposal
	case protocol.Vote:
		kind = KindVote
	case protocol.StatusVote:
		kind = KindStatus
	case protocol.Certificate:
		kind = KindCertificate
	case protocol.EquivocationProof:
		kind = KindProof
	case protocol.Lock:
		kind = KindLock
	default:
		return Message{}, bug("a %T is not a message of the agreement", r)
	}
	b, err := protocol.Encode(r)
	if err != nil {
		return Message{}, wrap(ErrBug, "%w", []any{err})
	}
	return Message{Kind: kind, Bytes: b}, nil
}
