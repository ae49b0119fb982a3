package protocol

import "fmt"

// VoteSig is one validator's signature of a vote whose other fields stand beside it.
type VoteSig struct {
	Validator ID  `cbor:"validator"`
	Sig       Sig `cbor:"sig"`
}

// Lock is a quorum of PREPAREs for one decision in one round.
type Lock struct {
	Version    uint32    `cbor:"version"`
	Network    Link      `cbor:"network"` // dag-cbor: the genesis document
	Cycle      uint64    `cbor:"cycle"`
	Instance   Instance  `cbor:"instance"`
	Round      uint32    `cbor:"round"` // below 64
	Parent     Hash      `cbor:"parent"`
	Digest     Hash      `cbor:"digest"`     // [Proposal.Decision], or [NullDecision]
	Snapshot   Hash      `cbor:"snapshot"`   // [Snapshot.Digest]
	Signatures []VoteSig `cbor:"signatures"` // sorted by validator, no duplicates
}

// DecodeLock decodes and checks a lock; signatures are not verified.
func DecodeLock(b []byte) (Lock, error) { return decode[Lock]("lock", maxLock, b) }

// Verify checks the lock against the snapshot it names: every signer is a validator, every signature is of its PREPARE,
// and together they have the stake of a quorum.
func (l Lock) Verify(s Snapshot) error {
	if err := l.Validate(); err != nil {
		return err
	}
	return verifyQuorum(s, l.Snapshot, l.Signatures, func(by VoteSig) Signed {
		return Vote{Version: l.Version, Network: l.Network, Cycle: l.Cycle, Instance: l.Instance, Round: l.Round, Type: VotePrepare,
			Parent: l.Parent, Digest: l.Digest, Validator: by.Validator, Sig: by.Sig}
	})
}

// Validate implements [Record].
func (l Lock) Validate() error { return validate("lock", l) }

func (l Lock) faults(f faults) {
	f.version(l.Version)
	f.link("network", l.Network, DagCBOR)
	f.instance(l.Instance)
	f.round("round", l.Round)
	if l.Digest.IsZero() {
		f.add("digest", "a lock is on something")
	}
	f.signatures(l.Signatures)
}

// Certificate proves what an instance decided: a quorum of COMMIT-Vs of one round for a proposal's decision or, without a
// proposal, for the null decision, which proves that nothing else was and will be certified.
type Certificate struct {
	Version    uint32    `cbor:"version"`
	Network    Link      `cbor:"network"` // dag-cbor: the genesis document
	Cycle      uint64    `cbor:"cycle"`
	Instance   Instance  `cbor:"instance"`
	Round      uint32    `cbor:"round"` // of the votes
	Parent     Hash      `cbor:"parent"`
	Proposal   *Proposal `cbor:"proposal"`   // nil (CBOR null) in a null certificate
	Snapshot   Hash      `cbor:"snapshot"`   // [Snapshot.Digest]
	Signatures []VoteSig `cbor:"signatures"` // sorted by validator, no duplicates
}

// DecodeCertificate decodes and checks a certificate; signatures are not verified.
func DecodeCertificate(b []byte) (Certificate, error) {
	return decode[Certificate]("certificate", maxDocument, b)
}

// Null reports whether c proves that nothing was certified.
func (c Certificate) Null() bool { return c.Proposal == nil }

// Decision returns what was decided: [Proposal.Decision], or in a null certificate [NullDecision]. It does not depend on who signed, so two certificates of one decision have one. The vectors and proposals
// that build on it name it as their parent.
func (c Certificate) Decision() Hash {
	if c.Proposal != nil {
		return c.Proposal.Decision()
	}
	return NullDecision(c.Network, c.Cycle, c.Instance, c.Parent)
}

// Digest returns the SHA-256 of the canonical encoding; as a [Hash.Link] it names the certificate's block.
func (c Certificate) Digest() Hash { return digest(c) }

// Verify checks the certificate against the snapshot it names: the proposal is a validator's, every signer is a
// validator, every signature is of its vote, and together they have the stake of a quorum. That the snapshot and the
// parent are the right ones is for the caller to say.
func (c Certificate) Verify(s Snapshot) error {
	if err := c.Validate(); err != nil {
		return err
	}
	decision := c.Decision()
	err := verifyQuorum(s, c.Snapshot, c.Signatures, func(by VoteSig) Signed {
		return Vote{Version: c.Version, Network: c.Network, Cycle: c.Cycle, Instance: c.Instance, Round: c.Round, Type: VoteCommit,
			Parent: c.Parent, Digest: decision, Validator: by.Validator, Sig: by.Sig}
	})
	if err != nil || c.Null() {
		return err
	}
	return c.Proposal.Verify(s)
}

// Validate implements [Record].
func (c Certificate) Validate() error { return validate("certificate", c) }

func (c Certificate) faults(f faults) {
	f.version(c.Version)
	f.link("network", c.Network, DagCBOR)
	f.instance(c.Instance)
	f.round("round", c.Round)
	f.signatures(c.Signatures)
	p := c.Proposal
	if p == nil {
		return
	}
	f.under("proposal", p)
	if p.Network != c.Network || p.Cycle != c.Cycle || p.Instance != c.Instance {
		f.add("proposal", "of another network, cycle or instance")
	}
	if p.Parent != c.Parent {
		f.add("parent", "%s, but the proposal's is %s", c.Parent, p.Parent)
	}
}

// signatures adds the faults of a list of signatures: at least one, sorted by validator, each once.
func (f faults) signatures(list []VoteSig) {
	if n := len(list); n == 0 || n > maxValidators {
		f.add("signatures", "%d signatures, want 1 to %d", n, maxValidators)
		return
	}
	for i, s := range list {
		if f.full() {
			return
		}
		faults{f.prefix + "." + index("signatures", i), f.errs}.signed(s.Sig)
		if i > 0 && list[i-1].Validator.Compare(s.Validator) >= 0 {
			f.add(index("signatures", i)+".validator", "%s is not above the one before it; sort them, each once", s.Validator)
		}
	}
}

// verifyQuorum checks that s is the snapshot named, that the signers are validators with a quorum of its stake, and
// that each signed its statement. Stake is counted first: it costs nothing, a signature does. list has no duplicates.
func verifyQuorum(s Snapshot, named Hash, list []VoteSig, statement func(VoteSig) Signed) error {
	if got := s.Digest(); got != named {
		return fmt.Errorf("%w: it names %s, not %s", ErrSnapshot, named, got)
	}
	var stake uint64
	for _, by := range list {
		p, ok := s.Find(by.Validator)
		if !ok || !p.Roles.Has(RoleValidator) {
			return fmt.Errorf("%w: %s", ErrSigner, by.Validator)
		}
		stake += p.Stake
	}
	if q := s.Quorum(); stake < q {
		return fmt.Errorf("%w: %d of the %d that certify", ErrQuorum, stake, q)
	}
	for _, by := range list {
		if err := s.Check(statement(by), RoleValidator); err != nil {
			return err
		}
	}
	return nil
}
