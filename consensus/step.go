package consensus

import (
	"errors"
	"math"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Step takes a message of a peer, in any order, any number of times. nil: it is new, and worth forwarding. Else the error
// is one of [ErrPeer], [ErrIgnore], [ErrConflict], or [ErrBug] if no Tick came before.
//
// Whether a message is an [ErrPeer] depends on its bytes and the snapshot, for a proposal also on the records it names;
// never on when it arrived.
func (m *Machine) Step(message Message) error {
	if m.now == math.MinInt64 {
		return bug("step before the first tick")
	}
	r, err := message.Record()
	if err != nil {
		return err
	}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		err = m.stepCommit(r)
	case protocol.ScoreVector:
		err = m.stepVector(message, r, protocol.InstanceW, r.Network, r.Cycle, r.Parent, r.Digest)
	case protocol.MergeVector:
		err = m.stepVector(message, r, protocol.InstanceM, r.Network, r.Cycle, r.Parent, r.Digest)
	case protocol.List:
		err = m.stepList(message, r)
	case protocol.Proposal:
		err = m.stepProposal(r)
	case protocol.Vote:
		err = m.stepVote(message, r)
	case protocol.StatusVote:
		err = m.stepStatus(message, r)
	case protocol.Certificate:
		err = m.stepCertificate(message, r)
	case protocol.EquivocationProof:
		err = m.stepProof(message, r)
	}
	m.progress()
	return err
}

// belongs checks what every record names. Another cycle's or instance's may be right elsewhere; another network's is not.
func (m *Machine) belongs(network protocol.Link, cycle uint64, instance protocol.Instance) error {
	switch {
	case network != m.cfg.Network:
		return peer("of another network, %s", network)
	case cycle != m.cfg.Cycle:
		return ignore("of cycle %d, this is %d", cycle, m.cfg.Cycle)
	case instance != m.cfg.Instance:
		return ignore("of instance %s, this is %s", instance, m.cfg.Instance)
	}
	return nil
}

// under checks the parent, which rests on what this node knows to be decided.
func (m *Machine) under(parent protocol.Hash) error {
	if parent != m.cfg.Parent {
		return ignore("under the parent %s, not %s", parent, m.cfg.Parent)
	}
	return nil
}

// check verifies who signed.
func (m *Machine) check(r protocol.Signed) error {
	return m.blame(m.cfg.Snapshot.Check(r, protocol.RoleValidator))
}

// blame sorts the errors of a check against the snapshot. Who is registered is local knowledge while a snapshot is young.
func (m *Machine) blame(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, protocol.ErrSigner), errors.Is(err, protocol.ErrSnapshot):
		return ignore("%w", err)
	}
	return peer("%w", err)
}

// convict keeps and spreads the proof that two statements are. Both are verified.
func (m *Machine) convict(a, b protocol.Signed) {
	proof, err := protocol.NewEquivocationProof(a, b)
	if err != nil {
		return // they say the same, in two encodings
	}
	message, err := NewMessage(proof)
	if err != nil {
		return
	}
	if n := (Name{KindProof, proof.Digest()}); m.evidence.room(n, a.Signer()) {
		m.guilty(message, proof, proof.Kind, a.Signer())
		m.send(message)
	}
}

func (m *Machine) guilty(message Message, proof protocol.EquivocationProof, kind protocol.Equivocation, offender protocol.ID) {
	// Two commitments void the commitments, which is the list's matter; they say nothing about the offender's votes.
	m.evidence.put(proof.Digest(), named{message: message, record: proof, signer: offender, convict: kind != protocol.EquivocationCommitment})
	m.pending.Proofs = append(m.pending.Proofs, proof)
}

func (m *Machine) stepCommit(c protocol.ScoreCommit) error {
	if err := m.belongs(c.Network, c.Cycle, protocol.InstanceW); err != nil {
		return err
	}
	known, ok := m.evidence.commits[c.Validator]
	if ok && known.Digest == c.Digest {
		return ignore("score commit known already")
	}
	if !ok && m.now >= m.cfg.Start {
		return ignore("score commit at %d ms, they close at %d", m.now, m.cfg.Start)
	}
	if err := m.check(c); err != nil {
		return err
	}
	if ok {
		m.convict(known, c)
		return nil
	}
	m.evidence.commits[c.Validator] = c
	if c.Validator == m.cfg.Self {
		m.committed = true // signed in a life that the log forgot
	}
	return nil
}

func (m *Machine) stepVector(message Message, r protocol.Signed, instance protocol.Instance, network protocol.Link,
	cycle uint64, parent protocol.Hash, digest func() protocol.Hash) error {
	if err := m.belongs(network, cycle, instance); err != nil {
		return err
	}
	if err := m.under(parent); err != nil {
		return err
	}
	return m.hold(message, r, digest())
}

func (m *Machine) stepList(message Message, l protocol.List) error {
	if err := m.belongs(l.Network, l.Cycle, protocol.InstanceW); err != nil {
		return err
	}
	if err := m.hold(message, l, l.Digest()); err != nil {
		return err
	}
	if h, ok := m.evidence.first(KindList, l.Validator, func(named) bool { return true }); ok && h != l.Digest() {
		m.convict(m.evidence.held[h].record.(protocol.List), l)
	}
	return nil
}

// hold keeps a vector or list.
func (m *Machine) hold(message Message, r protocol.Signed, hash protocol.Hash) error {
	if _, ok := m.evidence.held[hash]; ok {
		return ignore("%s known already", message.Kind)
	}
	if !m.evidence.room(Name{message.Kind, hash}, r.Signer()) {
		return ignore("one %s too many of %s", message.Kind, r.Signer())
	}
	if err := m.check(r); err != nil {
		return err
	}
	m.evidence.put(hash, named{message: message, record: r, signer: r.Signer()})
	if r.Signer() == m.cfg.Self && message.Kind == KindMergeVector {
		m.committed = true
	}
	return nil
}

func (m *Machine) stepProposal(p protocol.Proposal) error {
	if err := m.belongs(p.Network, p.Cycle, p.Instance); err != nil {
		return err
	}
	if err := m.under(p.Parent); err != nil {
		return err
	}
	switch {
	case int(p.Round) >= len(m.turns):
		return peer("proposal of round %d; there are %d", p.Round, len(m.turns))
	case p.Proposer != m.cfg.Proposers[p.Round]:
		return peer("proposal of round %d by %s, whose turn it is not", p.Round, p.Proposer)
	case p.Lock != nil:
		return peer("proposal of round %d with a lock; there are none", p.Round)
	case len(p.Vectors) > len(m.validators) || len(p.Lists) > len(m.validators):
		return peer("proposal of round %d names more than every validator has", p.Round)
	}
	t := &m.turns[p.Round]
	if t.find(p.Decision()) != nil {
		return ignore("proposal known already")
	}
	if err := m.check(p); err != nil {
		return err
	}
	c := t.add(p)
	if c == nil {
		return ignore("a third proposal of round %d", p.Round)
	}
	if p.Proposer == m.cfg.Self {
		m.proposed = true
	}
	if len(t.proposals) > 1 {
		m.convict(t.proposals[0].proposal, p)
		return nil
	}
	if m.certificate != nil {
		return nil
	}
	m.want(p)
	if m.voted || m.nulled {
		return nil
	}
	return m.judge(c)
}

func (m *Machine) stepVote(message Message, v protocol.Vote) error {
	if err := m.belongs(v.Network, v.Cycle, v.Instance); err != nil {
		return err
	}
	if err := m.under(v.Parent); err != nil {
		return err
	}
	switch {
	case v.Type != protocol.VoteCommit:
		return ignore("a vote of type %d; nobody counts those", v.Type)
	case int(v.Round) >= len(m.turns):
		return peer("vote of round %d; there are %d", v.Round, len(m.turns))
	}
	known, ok := m.turns[v.Round].votes[v.Validator]
	if ok && known.Digest == v.Digest {
		m.asked = m.certificate != nil
		return ignore("vote known already")
	}
	if m.evidence.guilty[v.Validator] {
		return ignore("vote of %s, whose equivocation is proven", v.Validator)
	}
	if err := m.check(v); err != nil {
		return err
	}
	if ok {
		m.convict(known, v)
		return nil
	}
	if s, ok := m.nulls[v.Validator]; ok {
		m.convict(v, s)
	}
	m.turns[v.Round].vote(v)
	if v.Validator == m.cfg.Self && !m.voted { // signed in a life that the log forgot
		m.voted = true
		m.pending.Persist = append(m.pending.Persist, message.Encode())
	}
	return nil
}

func (m *Machine) stepStatus(message Message, s protocol.StatusVote) error {
	if err := m.belongs(s.Network, s.Cycle, s.Instance); err != nil {
		return err
	}
	if err := m.under(s.Parent); err != nil {
		return err
	}
	m.asked = m.certificate != nil
	if s.Type != protocol.StatusNull {
		return ignore("a status of type %d; there are no locks", s.Type)
	}
	if _, ok := m.nulls[s.Validator]; ok {
		return ignore("null known already")
	}
	if m.evidence.guilty[s.Validator] {
		return ignore("null of %s, whose equivocation is proven", s.Validator)
	}
	if err := m.check(s); err != nil {
		return err
	}
	m.nulls[s.Validator] = s
	for i := range m.turns {
		if v, ok := m.turns[i].votes[s.Validator]; ok {
			m.convict(v, s)
			break
		}
	}
	if s.Validator == m.cfg.Self && !m.nulled {
		m.nulled = true
		m.pending.Persist = append(m.pending.Persist, message.Encode())
	}
	return nil
}

func (m *Machine) stepCertificate(message Message, c protocol.Certificate) error {
	if err := m.belongs(c.Network, c.Cycle, c.Instance); err != nil {
		return err
	}
	if err := m.under(c.Parent); err != nil {
		return err
	}
	if m.certificate != nil && m.certificate.Decision() == c.Decision() {
		return ignore("certificate known already")
	}
	if err := m.blame(c.Verify(m.cfg.Snapshot)); err != nil {
		return err
	}
	if m.certificate != nil {
		return ErrConflict
	}
	m.keep(c, message)
	return nil
}

func (m *Machine) stepProof(message Message, p protocol.EquivocationProof) error {
	name := Name{KindProof, p.Digest()}
	if _, ok := m.evidence.held[name.Hash]; ok {
		return ignore("proof known already")
	}
	offence, err := p.Verify(m.cfg.Snapshot)
	if err := m.blame(err); err != nil {
		return err
	}
	if err := m.belongs(offence.Network, offence.Cycle, m.cfg.Instance); err != nil {
		return err
	}
	if !m.evidence.room(name, offence.Offender) {
		return ignore("one proof too many against %s", offence.Offender)
	}
	m.guilty(message, p, p.Kind, offence.Offender)
	return nil
}
