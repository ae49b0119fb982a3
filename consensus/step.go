package consensus

import (
	"math"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Step takes a message of a peer, in any order, any number of times. nil: it is new, and worth forwarding. Else the error
// is one of [ErrPeer], [ErrIgnore], [ErrConflict], or [ErrBug] if no Tick came before.
//
// Whether a message is an [ErrPeer] depends on its bytes and the snapshot, for a proposal also on the records it names;
// never on when it arrived.
func (m *Machine) Step(message Message) error {
	v, err := open(message)
	if err != nil {
		return err
	}
	return m.step(v)
}

// StepValid is Step for a message that was checked under this machine's snapshot; under another it is an [ErrBug].
func (m *Machine) StepValid(v Valid) error {
	if v.snapshot != m.checker.digest || v.network != m.cfg.Network {
		return bug("step: checked under another snapshot or network")
	}
	return m.step(v)
}

func (m *Machine) step(v Valid) (err error) {
	if m.now == math.MinInt64 {
		return bug("step before the first tick")
	}
	switch r := v.record.(type) {
	case protocol.ScoreCommit:
		err = m.stepCommit(v, r)
	case protocol.ScoreVector:
		err = m.stepVector(v, r, protocol.InstanceW, r.Network, r.Cycle, r.Parent)
	case protocol.MergeVector:
		err = m.stepVector(v, r, protocol.InstanceM, r.Network, r.Cycle, r.Parent)
	case protocol.List:
		err = m.stepList(v, r)
	case protocol.Proposal:
		err = m.stepProposal(v, r)
	case protocol.Vote:
		err = m.stepVote(v, r)
	case protocol.StatusVote:
		err = m.stepStatus(v, r)
	case protocol.Lock:
		err = m.stepLock(v, r)
	case protocol.Certificate:
		err = m.stepCertificate(v, r)
	case protocol.EquivocationProof:
		err = m.stepProof(v, r)
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
	if parent != m.cfg.Parent && !m.cfg.rules.NoParent {
		return ignore("under the parent %s, not %s", parent, m.cfg.Parent)
	}
	return nil
}

// check verifies the signatures, unless that was done.
func (m *Machine) check(v *Valid) error {
	if v.snapshot == m.checker.digest {
		return nil
	}
	return m.checker.verify(v)
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

func (m *Machine) stepCommit(v Valid, c protocol.ScoreCommit) error {
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
	if err := m.check(&v); err != nil {
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

func (m *Machine) stepVector(v Valid, r protocol.Signed, instance protocol.Instance, network protocol.Link, cycle uint64,
	parent protocol.Hash) error {
	if err := m.belongs(network, cycle, instance); err != nil {
		return err
	}
	if err := m.under(parent); err != nil {
		return err
	}
	if _, ok := m.evidence.held[v.name]; ok {
		m.hears(r.Signer()) // it has prepared nothing yet
	}
	return m.hold(v, r)
}

func (m *Machine) stepList(v Valid, l protocol.List) error {
	if err := m.belongs(l.Network, l.Cycle, protocol.InstanceW); err != nil {
		return err
	}
	if err := m.hold(v, l); err != nil {
		return err
	}
	if h, ok := m.evidence.first(KindList, l.Validator, func(named) bool { return true }); ok && h != v.name {
		m.convict(m.evidence.held[h].record.(protocol.List), l)
	}
	return nil
}

// hold keeps a vector or list.
func (m *Machine) hold(v Valid, r protocol.Signed) error {
	kind := v.message.Kind
	if _, ok := m.evidence.held[v.name]; ok {
		return ignore("%s known already", kind)
	}
	if !m.evidence.room(Name{kind, v.name}, r.Signer()) {
		return ignore("one %s too many of %s", kind, r.Signer())
	}
	if err := m.check(&v); err != nil {
		return err
	}
	m.evidence.put(v.name, named{message: v.message, record: r, signer: r.Signer(), opens: v.opens})
	if r.Signer() == m.cfg.Self && kind == KindMergeVector {
		m.committed = true
	}
	return nil
}

func (m *Machine) stepProposal(v Valid, p protocol.Proposal) error {
	if err := m.belongs(p.Network, p.Cycle, p.Instance); err != nil {
		return err
	}
	if err := m.under(p.Parent); err != nil {
		return err
	}
	rank := m.cfg.rank(p.Round, p.Proposer)
	switch {
	case int64(p.Round) >= m.cfg.Rounds:
		return peer("proposal of round %d; there are %d", p.Round, m.cfg.Rounds)
	case rank < 0:
		return peer("proposal of round %d by %s, whose turn it is not", p.Round, p.Proposer)
	case len(p.Vectors) > len(m.validators) || len(p.Lists) > len(m.validators):
		return peer("proposal of round %d names more than every validator has", p.Round)
	}
	r := &m.rounds[p.Round]
	if r.find(rank, v.name) != nil {
		return ignore("proposal known already")
	}
	wanted := m.evidence.wanted[Name{KindProposal, v.name}]
	if len(r.proposals[rank]) > 1 && !wanted {
		return ignore("a third proposal of round %d by %s", p.Round, p.Proposer)
	}
	if err := m.check(&v); err != nil {
		return err
	}
	if m.cfg.rules.Timing && m.now > m.cfg.Turn(Ranks*p.Round+uint32(rank))+m.cfg.Delta {
		return peer("proposal of round %d came late", p.Round)
	}
	c := m.candidate(p, v.message, v.name)
	r.proposals[rank] = append(r.proposals[rank], c)
	if p.Lock != nil {
		m.learn(*p.Lock)
	}
	if p.Proposer == m.cfg.Self {
		m.bind(p)
	}
	if len(r.proposals[rank]) > 1 {
		m.convict(r.proposals[rank][0].proposal, p)
		return nil
	}
	if m.certificate != nil || m.now >= m.cfg.Deadline() {
		return nil
	}
	m.want(c.proposal)
	return m.judge(c)
}

func (m *Machine) stepVote(v Valid, vote protocol.Vote) error {
	if err := m.belongs(vote.Network, vote.Cycle, vote.Instance); err != nil {
		return err
	}
	if err := m.under(vote.Parent); err != nil {
		return err
	}
	m.hears(vote.Validator)
	known, ok := m.rounds[vote.Round].vote(vote.Type, vote.Validator)
	if ok && known.Digest == vote.Digest {
		return ignore("vote known already")
	}
	if ok && m.evidence.guilty[vote.Validator] {
		return ignore("vote of %s, whose equivocation is proven", vote.Validator)
	}
	if err := m.check(&v); err != nil {
		return err
	}
	if ok {
		m.convict(known, vote)
		return nil
	}
	m.cast(vote)
	m.remember(vote)
	m.contradicts(vote.Validator)
	m.forgotten(v, vote)
	return nil
}

func (m *Machine) stepStatus(v Valid, s protocol.StatusVote) error {
	if err := m.belongs(s.Network, s.Cycle, s.Instance); err != nil {
		return err
	}
	if err := m.under(s.Parent); err != nil {
		return err
	}
	m.hears(s.Validator)
	if int64(s.Round) < m.cfg.Rounds {
		return peer("status of round %d; they begin with %d", s.Round, m.cfg.Rounds)
	}
	if _, ok := m.rounds[s.Round].statuses[s.Validator]; ok {
		return ignore("status known already")
	}
	if err := m.check(&v); err != nil {
		return err
	}
	m.status(s)
	m.excuse(s)
	m.contradicts(s.Validator)
	m.forgotten(v, s)
	return nil
}

// forgotten binds this validator to what it signed in a life that the log forgot and now hears of.
func (m *Machine) forgotten(v Valid, r protocol.Signed) {
	if r.Signer() == m.cfg.Self {
		m.bind(r)
		m.pending.Persist = append(m.pending.Persist, v.message.Encode())
	}
}

func (m *Machine) stepLock(v Valid, l protocol.Lock) error {
	if err := m.belongs(l.Network, l.Cycle, l.Instance); err != nil {
		return err
	}
	if err := m.under(l.Parent); err != nil {
		return err
	}
	if m.rounds[l.Round].lock != nil {
		return ignore("lock of round %d known already", l.Round)
	}
	if err := m.check(&v); err != nil {
		return err
	}
	m.learn(l)
	if m.candidates[l.Digest] == nil && l.Digest != m.null {
		m.lack(l.Digest)
	}
	return nil
}

func (m *Machine) stepCertificate(v Valid, c protocol.Certificate) error {
	if err := m.belongs(c.Network, c.Cycle, c.Instance); err != nil {
		return err
	}
	if err := m.under(c.Parent); err != nil {
		return err
	}
	if m.certificate != nil && m.decided == v.name {
		return ignore("certificate known already")
	}
	if err := m.check(&v); err != nil {
		return err
	}
	if m.certificate != nil {
		return ErrConflict
	}
	m.keep(c, v.name, v.message)
	return nil
}

func (m *Machine) stepProof(v Valid, p protocol.EquivocationProof) error {
	name := Name{KindProof, v.name}
	if _, ok := m.evidence.held[name.Hash]; ok {
		return ignore("proof known already")
	}
	if err := m.check(&v); err != nil {
		return err
	}
	offence := v.offence
	// Two commitments void those of their cycle; the others say something about their signer, in later cycles too.
	if offence.Cycle > m.cfg.Cycle || offence.Kind == protocol.EquivocationCommitment && offence.Cycle != m.cfg.Cycle {
		return ignore("proof of cycle %d, this is %d", offence.Cycle, m.cfg.Cycle)
	}
	if !m.evidence.room(name, offence.Offender) {
		return ignore("one proof too many against %s", offence.Offender)
	}
	m.guilty(v.message, p, p.Kind, offence.Offender)
	return nil
}
