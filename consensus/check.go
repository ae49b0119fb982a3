package consensus

import (
	"crypto/sha256"
	"errors"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Checker checks what of a message rests on its bytes and one snapshot alone: the form, who signed, and for locks,
// certificates and proofs every signature. It is safe for concurrent use.
type Checker struct {
	network  protocol.Link
	snapshot protocol.Snapshot
	digest   protocol.Hash
}

// NewChecker returns a checker of one network's messages under a snapshot, which must not be changed.
func NewChecker(network protocol.Link, snapshot protocol.Snapshot) Checker {
	return Checker{network: network, snapshot: snapshot, digest: snapshot.Digest()}
}

// Valid is a message that a [Checker] has passed, for [Machine.StepValid].
type Valid struct {
	message  Message
	record   protocol.Record
	name     protocol.Hash // of a proposal or certificate the decision, of a vector, list or proof the digest
	opens    protocol.Hash // of a score vector: the commit
	offence  protocol.Offence
	network  protocol.Link
	snapshot protocol.Hash
}

// Message returns what was checked.
func (v Valid) Message() Message { return v.message }

// Signer returns whose statement it is; ok is false for what many signed.
func (v Valid) Signer() (id protocol.ID, ok bool) {
	s, ok := v.record.(protocol.Signed)
	if !ok {
		return id, false
	}
	return s.Signer(), true
}

// Cycle returns the cycle that it is about.
func (v Valid) Cycle() uint64 {
	if cycle, ok := v.message.Cycle(); ok {
		return cycle
	}
	return v.offence.Cycle
}

// Check returns the token, or an [ErrPeer], or an [ErrIgnore] for a signer or snapshot that is not this one.
func (c Checker) Check(message Message) (Valid, error) {
	v, err := open(message)
	if err != nil {
		return Valid{}, err
	}
	if err := c.verify(&v); err != nil {
		return Valid{}, err
	}
	v.network, v.snapshot = c.network, c.digest
	return v, nil
}

// open decodes a message and names what is in it.
func open(message Message) (v Valid, err error) {
	v.message = message
	if v.record, err = message.Record(); err != nil {
		return v, err
	}
	switch r := v.record.(type) {
	case protocol.Proposal:
		v.name = r.Decision()
	case protocol.Certificate:
		v.name = r.Decision()
	case protocol.ScoreVector:
		v.name, v.opens = sha256.Sum256(message.Bytes), r.CommitDigest()
	case protocol.MergeVector, protocol.List, protocol.EquivocationProof:
		v.name = sha256.Sum256(message.Bytes) // a record has one encoding
	}
	return v, nil
}

// verify checks network and signatures.
func (c Checker) verify(v *Valid) error {
	var network protocol.Link
	var err error
	switch r := v.record.(type) {
	case protocol.ScoreCommit:
		network = r.Network
	case protocol.ScoreVector:
		network = r.Network
	case protocol.MergeVector:
		network = r.Network
	case protocol.List:
		network = r.Network
	case protocol.Proposal:
		network = r.Network
	case protocol.Vote:
		network = r.Network
	case protocol.StatusVote:
		network = r.Network
	case protocol.Certificate:
		network, err = r.Network, r.Verify(c.snapshot)
	case protocol.Lock:
		network, err = r.Network, r.Verify(c.snapshot)
	case protocol.EquivocationProof:
		v.offence, err = r.Verify(c.snapshot)
		network = v.offence.Network
	}
	if err == nil && network != c.network {
		return peer("of another network, %s", network)
	}
	switch r := v.record.(type) {
	case protocol.Proposal:
		err = r.Verify(c.snapshot)
	case protocol.Signed:
		err = c.snapshot.Check(r, protocol.RoleValidator)
	}
	// Who is registered is local knowledge while a snapshot is young.
	switch {
	case err == nil:
		return nil
	case errors.Is(err, protocol.ErrSigner), errors.Is(err, protocol.ErrSnapshot):
		return ignore("%w", err)
	}
	return peer("%w", err)
}
