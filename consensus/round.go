package consensus

import "github.com/blockzero-net/bzd/internal/protocol"

// maxRounds bounds the rounds of an instance, those after its deadline too. Votes of later ones have no encoding.
const maxRounds = 64

// state is what this node thinks of a decision.
type state uint8

const (
	waiting     state = iota // something it rests on is not held
	unavailable              // Derive cannot tell yet
	valid
	invalid
)

// candidate is a decision that was proposed, with the first proposal of it that came.
type candidate struct {
	proposal protocol.Proposal
	message  Message
	decision protocol.Hash
	state    state
}

// ballot is the votes of one type in one round.
type ballot struct {
	votes map[protocol.ID]protocol.Vote
	stake map[protocol.Hash]uint64 // by what they are over
	most  uint64                   // of stake
}

// round is what is known of one round.
type round struct {
	proposals [Ranks][]*candidate // as they came; a second one shows that its proposer equivocates
	proposed  [Ranks]bool         // by this validator
	ballots   [protocol.VoteCommit + 1]ballot
	statuses  map[protocol.ID]protocol.StatusVote
	told      uint64         // the stake of statuses
	lock      *protocol.Lock // a quorum of the round's PREPAREs
}

// find returns the proposal of a decision.
func (r *round) find(rank int, decision protocol.Hash) *candidate {
	for _, c := range r.proposals[rank] {
		if c.decision == decision {
			return c
		}
	}
	return nil
}

// vote returns a validator's first vote of a type.
func (r *round) vote(step protocol.VoteType, id protocol.ID) (protocol.Vote, bool) {
	v, ok := r.ballots[step].votes[id]
	return v, ok
}

// cast counts a validator's first vote of a type.
func (b *ballot) cast(v protocol.Vote, stake uint64) {
	if _, ok := b.votes[v.Validator]; ok {
		return
	}
	if b.votes == nil {
		b.votes, b.stake = make(map[protocol.ID]protocol.Vote), make(map[protocol.Hash]uint64)
	}
	b.votes[v.Validator] = v
	b.stake[v.Digest] += stake
	b.most = max(b.most, b.stake[v.Digest])
}

// quorum returns what has the stake of a quorum, which is one decision at most.
func (b *ballot) quorum(q uint64) (digest protocol.Hash, ok bool) {
	if b.most < q {
		return digest, false
	}
	for d, stake := range b.stake {
		if stake >= q && (!ok || d.Compare(digest) < 0) { // the order is for tests that lower q
			digest, ok = d, true
		}
	}
	return digest, ok
}

// signatures are those of the votes over a decision, in the order of the validators.
func (m *Machine) signatures(b *ballot, digest protocol.Hash) (sigs []protocol.VoteSig) {
	for _, v := range m.validators {
		if vote, ok := b.votes[v.ID]; ok && vote.Digest == digest {
			sigs = append(sigs, protocol.VoteSig{Validator: v.ID, Sig: vote.Sig})
		}
	}
	return sigs
}

// cast counts a vote whose signature was verified, or that is durable here.
func (m *Machine) cast(v protocol.Vote) {
	stake := m.stake[v.Validator]
	m.rounds[v.Round].ballots[v.Type].cast(v, stake)
	if m.cfg.rules.TypeUnsigned {
		m.rounds[v.Round].ballots[protocol.VotePrepare+protocol.VoteCommit-v.Type].cast(v, stake)
	}
	if m.cfg.rules.RoundUnsigned {
		for r := range m.rounds {
			m.rounds[r].ballots[v.Type].cast(v, stake)
		}
	}
}

// status keeps a validator's first STATUS of a round.
func (m *Machine) status(s protocol.StatusVote) {
	r := &m.rounds[s.Round]
	if _, ok := r.statuses[s.Validator]; ok {
		return
	}
	if r.statuses == nil {
		r.statuses = make(map[protocol.ID]protocol.StatusVote)
	}
	r.statuses[s.Validator] = s
	r.told += m.stake[s.Validator]
}

// learn keeps a lock of a round that has none yet.
func (m *Machine) learn(l protocol.Lock) {
	r := &m.rounds[l.Round]
	if r.lock != nil {
		return
	}
	r.lock = &l
	if m.top == nil || l.Round > m.top.Round {
		m.top = &l
	}
}

// lockedOn reports whether a lock proves that a decision was prepared, in a round from after to before, both excluded.
func (m *Machine) lockedOn(decision protocol.Hash, after, before int) bool {
	for r := after + 1; r < min(before, len(m.rounds)); r++ {
		if l := m.rounds[r].lock; l != nil && l.Digest == decision {
			return true
		}
	}
	return false
}

// free reports whether this validator's own lock lets it prepare a decision in a round: it has none, or that very one, or
// a lock of a round in between is on the decision.
func (m *Machine) free(decision protocol.Hash, round uint32) bool {
	return m.locked < 0 || m.lockedTo == decision || m.cfg.rules.NoLock || m.lockedOn(decision, m.locked, int(round))
}
