package consensus

import "github.com/blockzero-net/bzd/internal/protocol"

// count takes a durable record of this validator into its own tallies. fresh: by this very machine, not restored.
func (m *Machine) count(message Message, fresh bool) {
	r, err := message.Record()
	if err != nil { // it was encoded here
		return
	}
	slot := message.Kind
	if v, ok := r.(protocol.Vote); ok && v.Type == protocol.VoteCommit {
		slot = slotCommit
	}
	if m.key != nil {
		m.own[slot] = message
	}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		if _, ok := m.evidence.commits[r.Validator]; !ok {
			m.evidence.commits[r.Validator] = r
		}
	case protocol.ScoreVector:
		m.evidence.put(r.Digest(), named{message: message, record: r, signer: r.Validator, opens: r.CommitDigest()})
	case protocol.MergeVector:
		m.evidence.put(r.Digest(), named{message: message, record: r, signer: r.Validator})
	case protocol.Proposal:
		rank := m.cfg.rank(r.Round, r.Proposer)
		c := m.candidate(r, message, r.Decision())
		if fresh {
			c.state = valid
		}
		if t := &m.rounds[r.Round]; rank >= 0 && t.find(rank, c.decision) == nil {
			t.proposals[rank] = append(t.proposals[rank], c)
		}
	case protocol.Vote:
		m.cast(r)
		m.remember(r)
	case protocol.StatusVote:
		m.status(r)
		m.excuse(r)
	}
}

// bind takes what this validator signed, now or in an earlier life, into what it may sign from now on.
func (m *Machine) bind(r protocol.Record) {
	switch r := r.(type) {
	case protocol.Vote:
		m.entered = max(m.entered, int(r.Round))
		if r.Type == protocol.VotePrepare {
			m.prepared = max(m.prepared, int(r.Round))
		} else if m.voted = max(m.voted, int(r.Round)); int(r.Round) > m.locked {
			m.locked, m.lockedTo = int(r.Round), r.Digest
		}
	case protocol.StatusVote:
		m.said, m.entered = max(m.said, int(r.Round)), max(m.entered, int(r.Round))
	case protocol.Proposal:
		if rank := m.cfg.rank(r.Round, r.Proposer); rank >= 0 {
			m.rounds[r.Round].proposed[rank] = true
		}
	}
}

// restore takes back what an earlier machine persisted.
func (m *Machine) restore(b []byte) error {
	message, err := DecodeMessage(b)
	if err != nil {
		return bug("restore: %w", err)
	}
	r, err := message.Record()
	if err != nil {
		return bug("restore: %w", err)
	}
	w := m.cfg.Instance == protocol.InstanceW
	mine := func(network protocol.Link, cycle uint64, instance bool) bool {
		return network == m.cfg.Network && cycle == m.cfg.Cycle && instance
	}
	var here, under bool // of this instance, under this parent
	switch r := r.(type) {
	case protocol.ScoreCommit:
		here, under = mine(r.Network, r.Cycle, w), true
	case protocol.ScoreVector:
		here, under = mine(r.Network, r.Cycle, w), r.Parent == m.cfg.Parent
	case protocol.MergeVector:
		here, under = mine(r.Network, r.Cycle, !w), r.Parent == m.cfg.Parent
	case protocol.Proposal:
		here, under = mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance), r.Parent == m.cfg.Parent && int64(r.Round) < m.cfg.Rounds
	case protocol.Vote:
		here, under = mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance), r.Parent == m.cfg.Parent
	case protocol.StatusVote:
		here, under = mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance), r.Parent == m.cfg.Parent
	case protocol.Lock:
		here, under = mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance), r.Parent == m.cfg.Parent && r.Snapshot == m.checker.digest
	case protocol.Certificate:
		here, under = mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance), r.Parent == m.cfg.Parent && r.Snapshot == m.checker.digest
	}
	if !here {
		return nil
	}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		m.committed = true
	case protocol.MergeVector:
		m.committed, m.revealed = true, true
	case protocol.Vote, protocol.StatusVote:
		// A vote under another parent is of another chain of rounds: this validator's part in the instance is over.
		m.barred = m.barred || !under
	case protocol.Lock:
		if under {
			m.learn(r)
		}
		return nil
	case protocol.Certificate:
		if under {
			m.certificate, m.decided = &r, r.Decision()
		}
		return nil
	}
	if !under {
		return nil
	}
	if p, ok := r.(protocol.Proposal); ok && p.Proposer != m.cfg.Self { // kept with the lock on it
		m.candidate(p, message, p.Decision())
		return nil
	}
	if s := r.(protocol.Signed); s.Signer() != m.cfg.Self {
		return bug("restore: a %s of %s, but this is %s: the log of another validator", message.Kind, s.Signer(), m.cfg.Self)
	} else if err := m.cfg.Snapshot.Check(s, protocol.RoleValidator); err != nil {
		return bug("restore: a %s: %w", message.Kind, err)
	}
	m.bind(r)
	m.count(message, false)
	return nil
}
