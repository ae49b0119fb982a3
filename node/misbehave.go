package node

import (
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// outgoing is a message of the agreement on its way.
type outgoing struct {
	bytes []byte
	only  func(i int) bool // directly to these of the connected validators; nil: to all
}

func odd(i int) bool { return i%2 == 1 }

// misbehave is what a node sends in place of a message: that very one unless its behaviour is not honest.
func (n *Node) misbehave(message []byte) []outgoing {
	honest := []outgoing{{bytes: message}}
	b := n.cfg.Behaviour
	if !b.Silent && b.Byzantine == "" {
		return honest
	}
	m, err := consensus.DecodeMessage(message)
	if err != nil {
		return honest
	}
	r, err := m.Record()
	if err != nil {
		return honest
	}
	proposal, proposes := r.(protocol.Proposal)
	vote, votes := r.(protocol.Vote)
	switch {
	case b.Silent && proposes, b.Byzantine == WithholdCommit && votes && vote.Type == protocol.VoteCommit:
		return nil
	case b.Byzantine == Selective && (proposes || votes):
		return []outgoing{{bytes: message, only: odd}}
	case b.Byzantine == Equivocate && proposes:
		proposal.Vectors, proposal.Lock = slices.Clone(proposal.Vectors[1:]), nil // too few, or of another value: invalid, and a proof
		if len(proposal.Vectors) > 0 && proposal.Sign(n.cfg.Key) == nil {
			return n.also(honest, proposal)
		}
	case b.Byzantine == Equivocate && votes:
		vote.Digest[0] ^= 1
		if vote.Sign(n.cfg.Key) == nil {
			return n.also(honest, vote)
		}
	}
	return honest
}

// also adds another statement for every second validator.
func (n *Node) also(out []outgoing, r protocol.Record) []outgoing {
	m, err := consensus.NewMessage(r)
	if err != nil {
		return out
	}
	return append(out, outgoing{bytes: m.Encode(), only: odd})
}

// apart reports whether a message does not get through.
func (n *Node) apart(v consensus.Valid) bool {
	b := n.cfg.Behaviour
	id, ok := v.Signer()
	return ok && v.Cycle() >= uint64(b.ApartFrom) && v.Cycle() <= uint64(b.ApartTo) && slices.Contains(b.Apart, id)
}

// lies turns scores around.
func lies(groups []protocol.GroupRows) (out []protocol.GroupRows) {
	for _, g := range groups {
		g.Rows = slices.Clone(g.Rows)
		for i := range g.Rows {
			g.Rows[i].Gain = -g.Rows[i].Gain
		}
		out = append(out, g)
	}
	return out
}
