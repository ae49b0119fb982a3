package protocol

import (
	"fmt"
	"math"
	"slices"
)

// Bounds of a network's registry. Every list that has one entry per participant or validator has these bounds too.
const (
	maxParticipants = 4096
	maxValidators   = 1024
)

// Role is a set of roles, one bit each. On the wire it is its number; bits are never reused.
type Role uint8

// The roles.
const (
	RoleMiner     Role = 1
	RoleValidator Role = 2
	RoleBootstrap Role = 4
	RoleGateway   Role = 8

	allRoles = RoleMiner | RoleValidator | RoleBootstrap | RoleGateway
)

// Has reports whether r contains every role of other.
func (r Role) Has(other Role) bool { return r&other == other }

// Participant is one entry of the registry.
type Participant struct {
	ID    ID     `cbor:"id"`
	Key   Key    `cbor:"key"`
	Stake uint64 `cbor:"stake"` // the chain's smallest unit; counts in votes only for a validator
	Roles Role   `cbor:"roles"`
	Group string `cbor:"group"` // the expert group that a miner serves; "" for everybody else
}

// Snapshot is the registry at the finalised block that starts a cycle. It stands for the whole cycle: who may sign, with
// which key and with how much stake.
type Snapshot struct {
	Version      uint32        `cbor:"version"`
	Height       uint64        `cbor:"height"`       // of the block
	Hash         Hash          `cbor:"hash"`         // of the block
	Participants []Participant `cbor:"participants"` // sorted by id, no duplicates
}

// DecodeSnapshot decodes and checks a snapshot.
func DecodeSnapshot(b []byte) (Snapshot, error) { return decode[Snapshot]("snapshot", maxDocument, b) }

// Digest returns the SHA-256 of the canonical encoding.
func (s Snapshot) Digest() Hash { return digest(s) }

// Find returns the participant with that id.
func (s Snapshot) Find(id ID) (Participant, bool) {
	i, ok := slices.BinarySearchFunc(s.Participants, id, func(p Participant, id ID) int { return p.ID.Compare(id) })
	if !ok {
		return Participant{}, false
	}
	return s.Participants[i], true
}

// Validators returns the participants that hold the validator role, sorted by id.
func (s Snapshot) Validators() []Participant {
	var validators []Participant
	for _, p := range s.Participants {
		if p.Roles.Has(RoleValidator) {
			validators = append(validators, p)
		}
	}
	return validators
}

// TotalStake returns S, the stake of all validators. In a valid snapshot it is below 2⁶³.
func (s Snapshot) TotalStake() uint64 {
	var total uint64
	for _, p := range s.Participants {
		if p.Roles.Has(RoleValidator) {
			total += p.Stake
		}
	}
	return total
}

// Quorum returns q = ⌊2S/3⌋ + 1, the least stake that certifies. Without stake it is 1, which nobody has.
func (s Snapshot) Quorum() uint64 { return quorum(s.TotalStake()) }

func quorum(total uint64) uint64 {
	return total/3*2 + total%3*2/3 + 1
}

// Check reports whether r is signed by the participant that it names, who must hold the role: [ErrSigner] if the
// snapshot has no such participant, [ErrSignature] if its key did not sign.
func (s Snapshot) Check(r Signed, role Role) error {
	p, ok := s.Find(r.Signer())
	if !ok || !p.Roles.Has(role) {
		return fmt.Errorf("%w: %s", ErrSigner, r.Signer())
	}
	if !r.VerifySig(p.Key) {
		return fmt.Errorf("%w: of %s", ErrSignature, p.ID)
	}
	return nil
}

// Validate implements [Record].
func (s Snapshot) Validate() error { return validate("snapshot", s) }

func (s Snapshot) faults(f faults) {
	f.version(s.Version)
	if n := len(s.Participants); n > maxParticipants {
		f.add("participants", "%d participants, at most %d", n, maxParticipants)
	}
	validators, stake := 0, uint64(0)
	for i, p := range s.Participants {
		if f.full() {
			return
		}
		f.under(index("participants", i), p)
		if i > 0 && s.Participants[i-1].ID.Compare(p.ID) >= 0 {
			f.add(index("participants", i)+".id", "%s is not above the id before it; sort them, each once", p.ID)
		}
		if p.Roles.Has(RoleValidator) {
			validators++
			if stake+p.Stake < stake || stake+p.Stake > math.MaxInt64 {
				f.add(index("participants", i)+".stake", "the validators' stake sums past 2⁶³")
				return
			}
			stake += p.Stake
		}
	}
	if validators > maxValidators {
		f.add("participants", "%d validators, at most %d", validators, maxValidators)
	}
}

func (p Participant) faults(f faults) {
	if p.Roles == 0 || p.Roles&^allRoles != 0 {
		f.add("roles", "%d is not a set of the roles 1, 2, 4 and 8", uint8(p.Roles))
	}
	switch {
	case p.Roles.Has(RoleMiner):
		f.name("group", p.Group)
	case p.Group != "":
		f.add("group", "%.40q, but only a miner serves a group", p.Group)
	}
}
