package consensus

import (
	"errors"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// state is what this node thinks of a proposal.
type state uint8

const (
	waiting     state = iota // something it names is not held
	unavailable              // Derive cannot tell yet
	valid
	invalid
)

type candidate struct {
	proposal protocol.Proposal
	decision protocol.Hash
	state    state
}

// turn is one proposer's round.
type turn struct {
	proposals []*candidate // in the order of arrival; the second shows that the proposer equivocates
	votes     map[protocol.ID]protocol.Vote
}

// add returns the new candidate, nil if the proposal is known or a third one.
func (t *turn) add(p protocol.Proposal) *candidate {
	c := &candidate{proposal: p, decision: p.Decision()}
	if len(t.proposals) > 1 || t.find(c.decision) != nil {
		return nil
	}
	t.proposals = append(t.proposals, c)
	return c
}

func (t *turn) find(decision protocol.Hash) *candidate {
	for _, c := range t.proposals {
		if c.decision == decision {
			return c
		}
	}
	return nil
}

// vote keeps a validator's first vote.
func (t *turn) vote(v protocol.Vote) {
	if t.votes == nil {
		t.votes = make(map[protocol.ID]protocol.Vote)
	}
	if _, ok := t.votes[v.Validator]; !ok {
		t.votes[v.Validator] = v
	}
}

// progress does everything that time and messages allow now. Calling it again changes nothing.
func (m *Machine) progress() {
	m.reveal()
	m.propose()
	m.vote()
	m.certify()
	m.finish()
}

// open reports whether this validator may still sign a vote.
func (m *Machine) open() bool {
	return m.key != nil && !m.voted && !m.nulled && m.certificate == nil && m.now < m.cfg.Deadline()
}

// reveal opens the commit of the scores at Start.
func (m *Machine) reveal() {
	if message := m.own[KindScoreVector]; !m.revealed && message.Kind != 0 && m.now >= m.cfg.Start {
		m.revealed = true
		m.send(message)
	}
}

// propose makes this validator's proposal once it is its turn and it holds enough.
func (m *Machine) propose() {
	rank := slices.Index(m.cfg.Proposers, m.cfg.Self)
	if rank < 0 || m.proposed || !m.open() || m.now < m.cfg.Turn(uint32(rank)) || m.tried == len(m.evidence.held) {
		return
	}
	m.tried = len(m.evidence.held)
	n, stake := m.collect()
	if stake < m.quorum {
		return
	}
	value, err := m.derive(n)
	if err != nil {
		return // nobody can propose from this set; another rank may hold more
	}
	p := protocol.Proposal{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: uint32(rank),
		Parent: m.cfg.Parent, Proposer: m.cfg.Self, Vectors: n.vectors, Lists: n.lists, Proofs: n.proofs, Value: value,
	}
	if p.Sign(m.key) != nil || m.emit(p, true) != nil {
		return // Derive gave a value that no proposal can hold
	}
	m.proposed = true
}

// derive is the value of what names stand for.
func (m *Machine) derive(n names) (protocol.Value, error) {
	set, err := m.gather(n)
	if err != nil {
		return protocol.Value{}, err
	}
	return m.cfg.Derive(set)
}

// judge finds out whether a proposal is valid. The error is its proposer's fault.
func (m *Machine) judge(c *candidate) error {
	if c.state != waiting || len(m.missing(c.proposal)) > 0 {
		return nil
	}
	p := c.proposal
	value, err := m.derive(names{p.Vectors, p.Lists, p.Proofs})
	switch {
	case errors.Is(err, ErrUnavailable):
		c.state = unavailable
		return nil
	case err != nil:
		c.state = invalid
		return peer("proposal of round %d: %w", p.Round, err)
	case value.Digest() != p.Value.Digest():
		c.state = invalid
		return peer("proposal of round %d: its value does not follow from what it names", p.Round)
	}
	c.state = valid
	return nil
}

// vote signs this validator's one vote: for the valid proposal of the lowest round whose turn has come.
func (m *Machine) vote() {
	for r := range m.turns {
		t := &m.turns[r]
		if !m.open() || m.now < m.cfg.Turn(uint32(r)) {
			return
		}
		if len(t.proposals) != 1 {
			continue // none, or a proposer that made two
		}
		c := t.proposals[0]
		// The error was for whoever sent the proposal; by now it may be known to be wrong, and that is all.
		if m.judge(c) != nil || c.state != valid || m.surprising(c.proposal) {
			continue
		}
		v := protocol.Vote{
			Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: uint32(r),
			Type: protocol.VoteCommit, Parent: m.cfg.Parent, Digest: c.decision, Validator: m.cfg.Self,
		}
		if v.Sign(m.key) != nil || m.emit(v, true) != nil {
			return
		}
		m.voted = true
	}
}

// certify looks for a quorum of votes for one proposal, or of nulls. Who equivocates counts for neither side.
func (m *Machine) certify() {
	if m.certificate != nil {
		return
	}
	c := protocol.Certificate{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance,
		Parent: m.cfg.Parent, Snapshot: m.snapshot,
	}
	for r := range m.turns {
		for _, candidate := range m.turns[r].proposals {
			sigs, stake := m.tally(func(id protocol.ID) (protocol.Sig, bool) {
				v, ok := m.turns[r].votes[id]
				return v.Sig, ok && v.Digest == candidate.decision
			})
			if stake >= m.quorum {
				proposal := candidate.proposal
				c.Round, c.Proposal, c.Signatures = uint32(r), &proposal, sigs
				m.decide(c)
				return
			}
		}
	}
	sigs, stake := m.tally(func(id protocol.ID) (protocol.Sig, bool) {
		v, ok := m.nulls[id]
		return v.Sig, ok
	})
	if stake >= m.quorum {
		c.Signatures = sigs
		m.decide(c)
	}
}

func (m *Machine) tally(signature func(protocol.ID) (protocol.Sig, bool)) (sigs []protocol.VoteSig, stake uint64) {
	for _, v := range m.validators {
		if sig, ok := signature(v.ID); ok && !m.evidence.guilty[v.ID] {
			sigs = append(sigs, protocol.VoteSig{Validator: v.ID, Sig: sig})
			stake += v.Stake
		}
	}
	return sigs, stake
}

// decide keeps a certificate made here and spreads it.
func (m *Machine) decide(c protocol.Certificate) {
	message, err := NewMessage(c)
	if err != nil {
		return // its parts were valid; without an encoding nobody could use it
	}
	m.keep(c, message)
	if m.key != nil {
		m.pending.Send = append(m.pending.Send, message)
	}
}

// keep makes a certificate this machine's own, for good.
func (m *Machine) keep(c protocol.Certificate, message Message) {
	m.certificate = &c
	m.pending.Persist = append(m.pending.Persist, message.Encode())
}

// finish gives the output: a certificate whenever it comes, else what is known at the deadline.
func (m *Machine) finish() {
	switch {
	case m.final:
	case m.certificate != nil:
		m.final = true
		out := &Output{Outcome: Null, Certificate: m.certificate, Late: m.ended}
		if p := m.certificate.Proposal; p != nil {
			out.Outcome, out.Value = Certified, &p.Value
		} else {
			out.Value = m.fallback()
		}
		m.pending.Output = out
	case m.now >= m.cfg.Deadline() && !m.ended:
		m.ended = true
		m.null()
		m.pending.Output = &Output{Outcome: Fallback, Value: m.fallback()}
	}
}

// null says that this validator signed no vote and never will.
func (m *Machine) null() {
	if m.key == nil || m.voted || m.nulled {
		return
	}
	s := protocol.StatusVote{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance,
		Type: protocol.StatusNull, Parent: m.cfg.Parent, Validator: m.cfg.Self,
	}
	if s.Sign(m.key) != nil || m.emit(s, true) != nil {
		return
	}
	m.nulled = true
}

// fallback is the value of what arrived, nil if that is too little.
func (m *Machine) fallback() *protocol.Value {
	n, stake := m.collect()
	if stake < m.quorum {
		return nil
	}
	value, err := m.derive(n)
	if err != nil {
		return nil
	}
	return &value
}
