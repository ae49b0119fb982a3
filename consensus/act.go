package consensus

import (
	"errors"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// progress does everything that time and messages allow now. Calling it again changes nothing.
func (m *Machine) progress() {
	m.reveal()
	m.leave()
	m.propose()
	m.prepare()
	m.settle()
	m.commit()
	m.certify()
	m.finish()
}

// signs reports whether this validator may still sign votes.
func (m *Machine) signs() bool { return m.key != nil && !m.barred && m.certificate == nil }

// turns returns the round before the deadline that is under way; ok is false before the first and after the last.
func (m *Machine) turns() (round uint32, ok bool) {
	if m.now < m.cfg.Open() || m.now >= m.cfg.Deadline() {
		return 0, false
	}
	return uint32((m.now - m.cfg.Open()) / (Ranks * m.cfg.Delta)), true
}

// recovery returns the round after the deadline that is under way, and when it began. Each is twice as long as the one
// before: round R + j begins at Deadline + 3δ(2ʲ − 1).
func (m *Machine) recovery() (round int, begin int64) {
	round, begin = int(m.cfg.Rounds), m.cfg.Deadline()
	for length := Ranks * m.cfg.Delta; round < maxRounds-1 && m.now-begin >= length; length *= 2 {
		begin += length
		round++
	}
	return round, begin
}

// reveal opens the commit of the scores at Start.
func (m *Machine) reveal() {
	if message := m.own[KindScoreVector]; !m.revealed && message.Kind != 0 && m.now >= m.cfg.Start {
		m.revealed = true
		m.send(message)
	}
}

// leave begins a round after the deadline: with its STATUS this validator leaves all earlier rounds behind.
func (m *Machine) leave() {
	if m.now < m.cfg.Deadline() || !m.signs() {
		return
	}
	k, _ := m.recovery()
	if k <= m.said || k < m.entered {
		return
	}
	s := protocol.StatusVote{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: uint32(k),
		Type: protocol.StatusNull, Parent: m.cfg.Parent, Validator: m.cfg.Self,
	}
	switch {
	case m.cfg.rules.NullAfterCommit:
	case m.top != nil && int(m.top.Round) < k:
		s.Type, s.LockRound, s.LockDigest = protocol.StatusLock, m.top.Round, m.top.Digest
	case m.locked >= 0: // in a life of which the log has the vote only
		s.Type, s.LockRound, s.LockDigest = protocol.StatusLock, uint32(m.locked), m.lockedTo
	}
	if int(s.LockRound) < k && s.Sign(m.key) == nil && m.emit(s, true) == nil {
		m.bind(s)
	}
}

// propose makes this validator's proposal in its turn: what is locked already, else what it holds enough for.
func (m *Machine) propose() {
	k, ok := m.turns()
	if !ok || !m.signs() || int(k) < m.entered || int(k) == m.prepared {
		return
	}
	r := &m.rounds[k]
	for rank := range Ranks {
		id, ok := m.cfg.Proposer(k, rank)
		if !ok || id != m.cfg.Self || r.proposed[rank] || m.now < m.cfg.Turn(Ranks*k+uint32(rank)) {
			continue
		}
		p, ok := m.proposal(k)
		if !ok {
			return
		}
		p.Round, p.Proposer = k, m.cfg.Self
		if p.Sign(m.key) != nil || m.emit(p, true) != nil {
			return // Derive gave a value that no proposal can hold
		}
		m.bind(p)
	}
}

// proposal is what this validator would have decided in a round.
func (m *Machine) proposal(k uint32) (p protocol.Proposal, ok bool) {
	if l := m.top; l != nil && !m.cfg.rules.NoLockProposal {
		c := m.candidates[l.Digest]
		if c == nil {
			m.lack(l.Digest)
		}
		if c == nil || l.Round >= k {
			return p, false
		}
		p = c.proposal
		p.Lock = l
		return p, true
	}
	if m.tried == len(m.evidence.held) {
		return p, false
	}
	m.tried = len(m.evidence.held)
	n, stake := m.collect()
	if stake < m.quorum {
		return p, false
	}
	value, err := m.derive(n)
	if err != nil {
		return p, false // nobody can propose from this set; another may hold more
	}
	return protocol.Proposal{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Parent: m.cfg.Parent,
		Vectors: n.vectors, Lists: n.lists, Proofs: n.proofs, Value: value,
	}, true
}

// derive is the value of what names stand for.
func (m *Machine) derive(n names) (protocol.Value, error) {
	set, err := m.gather(n)
	if err != nil {
		return protocol.Value{}, err
	}
	return m.cfg.Derive(set)
}

// candidate returns the decision of a proposal, kept from now on.
func (m *Machine) candidate(p protocol.Proposal, message Message, decision protocol.Hash) *candidate {
	c := m.candidates[decision]
	if c == nil {
		c = &candidate{proposal: p, message: message, decision: decision}
		m.candidates[decision] = c
		delete(m.evidence.wanted, Name{KindProposal, decision})
	}
	return c
}

// judge finds out whether a decision is valid. The error is the fault of whoever proposes it.
func (m *Machine) judge(c *candidate) error {
	p := c.proposal
	if c.state == invalid {
		return peer("proposal of round %d: known to be invalid", p.Round)
	}
	if c.state != waiting || len(m.missing(p)) > 0 {
		return nil
	}
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

// prepare signs this validator's PREPARE in a round before the deadline: for the lowest rank whose turn has come and whose
// one proposal is valid and allowed by the lock.
func (m *Machine) prepare() {
	k, ok := m.turns()
	if !ok || !m.signs() || int(k) < m.entered || int(k) <= m.prepared {
		return
	}
	for rank := range Ranks {
		list := m.rounds[k].proposals[rank]
		if m.now < m.cfg.Turn(Ranks*k+uint32(rank)) {
			return
		}
		if len(list) != 1 || !m.free(list[0].decision, k) { // two show that the proposer equivocates
			continue
		}
		// A lock on it says that somebody honest found it valid. Else the error was for whoever sent the proposal; by now
		// it may be known to be wrong, and that is all.
		c := list[0]
		if !m.lockedOn(c.decision, -1, int(k)) && (m.judge(c) != nil || c.state != valid || m.surprising(c.proposal)) {
			continue
		}
		m.sign(protocol.VotePrepare, k, c.decision)
		return
	}
}

// settle signs this validator's PREPARE in a round after the deadline, once a quorum has said where it stands: for what the
// highest lock is on, or for nothing.
func (m *Machine) settle() {
	if m.now < m.cfg.Deadline() || !m.signs() {
		return
	}
	k, begin := m.recovery()
	r := &m.rounds[k]
	if k < m.entered || k <= m.prepared || r.told < m.quorum || m.now < begin+m.cfg.Delta && r.told < m.total {
		return
	}
	digest := m.null
	switch {
	case m.top != nil:
		digest = m.top.Digest
	case m.locked >= 0:
		digest = m.lockedTo
	}
	if m.free(digest, uint32(k)) {
		m.sign(protocol.VotePrepare, uint32(k), digest)
	}
}

// commit signs a COMMIT-V for what a quorum prepared, unless this validator has left that round, and locks itself on it.
func (m *Machine) commit() {
	for k := range m.rounds {
		r := &m.rounds[k]
		if r.lock != nil {
			continue
		}
		if digest, ok := r.ballots[protocol.VotePrepare].quorum(m.quorum); ok {
			m.learn(protocol.Lock{
				Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: uint32(k),
				Parent: m.cfg.Parent, Digest: digest, Snapshot: m.checker.digest,
				Signatures: m.signatures(&r.ballots[protocol.VotePrepare], digest),
			})
		}
	}
	if m.cfg.rules.CommitBehind {
		for k := range m.rounds {
			if l := m.rounds[k].lock; l != nil && m.signs() && k > m.voted {
				m.sign(protocol.VoteCommit, l.Round, l.Digest)
			}
		}
		return
	}
	l := m.top
	if l == nil || !m.signs() || int(l.Round) < m.entered || int(l.Round) <= m.voted {
		return
	}
	// What the lock is on and the lock itself are kept with it: a restart, and the next cycle, must be able to show them.
	if c := m.candidates[l.Digest]; c == nil && l.Digest != m.null {
		m.lack(l.Digest)
		return
	} else if c != nil && c.proposal.Proposer != m.cfg.Self {
		m.pending.Persist = append(m.pending.Persist, c.message.Encode())
	}
	if message, err := NewMessage(*l); err == nil {
		m.pending.Persist = append(m.pending.Persist, message.Encode())
	}
	m.sign(protocol.VoteCommit, l.Round, l.Digest)
}

// sign signs and sends a vote.
func (m *Machine) sign(step protocol.VoteType, round uint32, digest protocol.Hash) {
	v := protocol.Vote{
		Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: round, Type: step,
		Parent: m.cfg.Parent, Digest: digest, Validator: m.cfg.Self,
	}
	if v.Sign(m.key) == nil && m.emit(v, true) == nil {
		m.bind(v)
	}
}

// certify looks for a quorum of COMMIT-Vs of one round.
func (m *Machine) certify() {
	if m.certificate != nil {
		return
	}
	for k := range m.rounds {
		b := &m.rounds[k].ballots[protocol.VoteCommit]
		digest, ok := b.quorum(m.quorum)
		if !ok {
			continue
		}
		c := protocol.Certificate{
			Version: protocol.Version, Network: m.cfg.Network, Cycle: m.cfg.Cycle, Instance: m.cfg.Instance, Round: uint32(k),
			Parent: m.cfg.Parent, Snapshot: m.checker.digest,
		}
		if digest != m.null {
			known := m.candidates[digest]
			if known == nil {
				m.lack(digest)
				continue
			}
			c.Proposal = &known.proposal
		}
		c.Signatures = m.signatures(b, digest)
		message, err := NewMessage(c)
		if err != nil {
			continue // its parts were valid; without an encoding nobody could use it
		}
		m.keep(c, digest, message)
		return
	}
}

// keep makes a certificate this machine's own, for good.
func (m *Machine) keep(c protocol.Certificate, digest protocol.Hash, message Message) {
	m.certificate, m.decided = &c, digest
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
		m.pending.Output = &Output{Outcome: Fallback, Value: m.fallback()}
	}
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

// remember keeps the COMMIT-V of the lowest round, and excuse the null of the highest: they conflict if any do.
func (m *Machine) remember(v protocol.Vote) {
	if old, ok := m.commits[v.Validator]; v.Type == protocol.VoteCommit && (!ok || v.Round < old.Round) {
		m.commits[v.Validator] = v
	}
}

func (m *Machine) excuse(s protocol.StatusVote) {
	if old, ok := m.nulls[s.Validator]; s.Type == protocol.StatusNull && (!ok || s.Round > old.Round) {
		m.nulls[s.Validator] = s
	}
}

// contradicts convicts who said null in a round after one in which it signed a COMMIT-V.
func (m *Machine) contradicts(id protocol.ID) {
	v, voted := m.commits[id]
	if s, said := m.nulls[id]; voted && said && v.Round < s.Round {
		m.convict(v, s)
	}
}
