package sim

import (
	"crypto/ed25519"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Honest changes nothing; the others embed it.
type Honest struct{}

// Scores implements [Adversary].
func (Honest) Scores(*protocol.ScoreVector) {}

// Out implements [Adversary].
func (Honest) Out(_ *Node, _ int, m consensus.Message) []consensus.Message {
	return []consensus.Message{m}
}

// Liar reports what pays the first miner.
type Liar struct{ Honest }

// Scores implements [Adversary].
func (Liar) Scores(v *protocol.ScoreVector) {
	for m := range v.Groups[0].Rows {
		v.Groups[0].Rows[m].Gain = -1_000_000_000
	}
	v.Groups[0].Rows[0].Gain = 1_000_000_000
}

// SilentLeader never proposes.
type SilentLeader struct{ Honest }

// Out implements [Adversary].
func (SilentLeader) Out(_ *Node, _ int, m consensus.Message) []consensus.Message {
	if m.Kind == consensus.KindProposal {
		return nil
	}
	return []consensus.Message{m}
}

// HalfLeader sends its proposal to every second validator only.
type HalfLeader struct{ Honest }

// Out implements [Adversary].
func (HalfLeader) Out(_ *Node, to int, m consensus.Message) []consensus.Message {
	if m.Kind == consensus.KindProposal && to%2 == 1 {
		return nil
	}
	return []consensus.Message{m}
}

// PhantomLeader names a vector that nobody has.
type PhantomLeader struct{ Honest }

// Out implements [Adversary].
func (PhantomLeader) Out(n *Node, _ int, m consensus.Message) []consensus.Message {
	p, ok := own[protocol.Proposal](n, m)
	if !ok {
		return []consensus.Message{m}
	}
	p.Vectors = slices.Clone(p.Vectors)
	p.Vectors[len(p.Vectors)-1] = protocol.Hash{0: 0xff, 1: 0xff, 2: 0xff, 3: 0xff}
	return sign(n, &p)
}

// WrongLeader proposes weights that do not follow.
type WrongLeader struct{ Honest }

// Out implements [Adversary].
func (WrongLeader) Out(n *Node, _ int, m consensus.Message) []consensus.Message {
	p, ok := own[protocol.Proposal](n, m)
	if !ok || p.Value.Weights == nil {
		return []consensus.Message{m}
	}
	value := protocol.WeightsValue{MergeSet: p.Value.Weights.MergeSet, Weights: []protocol.MinerWeight{
		{Miner: protocol.ID{1}, Group: "go", Status: protocol.StatusOK, Weight: protocol.WeightTotal, Part: protocol.WeightTotal},
	}}
	p.Value.Weights = &value
	return sign(n, &p)
}

// Equivocator proposes one thing to the even validators and another, as valid, to the odd ones, and votes for whichever
// the recipient was told of.
type Equivocator struct {
	Honest
	second protocol.Hash // the other decision
}

// Out implements [Adversary].
func (e *Equivocator) Out(n *Node, to int, m consensus.Message) []consensus.Message {
	if to%2 == 0 {
		return []consensus.Message{m}
	}
	if p, ok := own[protocol.Proposal](n, m); ok {
		second := other(n, p)
		e.second = second.Decision()
		return sign(n, second)
	}
	v, ok := own[protocol.Vote](n, m)
	if !ok {
		return []consensus.Message{m}
	}
	if !e.second.IsZero() {
		v.Digest = e.second
	}
	return sign(n, &v)
}

// other is a second valid proposal: a vector less, if a quorum is left, else nothing but different bytes.
func other(n *Node, p protocol.Proposal) *protocol.Proposal {
	var set consensus.Set
	for _, h := range p.Vectors[1:] {
		held, _ := n.Machine.Held(h)
		switch r, _ := held.Record(); v := r.(type) {
		case protocol.ScoreVector:
			set.Scores = append(set.Scores, v)
		case protocol.MergeVector:
			set.Merges = append(set.Merges, v)
		}
	}
	if value, err := n.Setup.Derive(set); err == nil {
		p.Value = value
	}
	p.Vectors = p.Vectors[1:]
	return &p
}

// TwoFaced votes to the even validators and says null to the odd ones.
type TwoFaced struct{ Honest }

// Out implements [Adversary].
func (TwoFaced) Out(n *Node, to int, m consensus.Message) []consensus.Message {
	v, ok := own[protocol.Vote](n, m)
	if !ok || to%2 == 0 {
		return []consensus.Message{m}
	}
	return sign(n, &protocol.StatusVote{
		Version: protocol.Version, Network: v.Network, Cycle: v.Cycle, Instance: v.Instance, Type: protocol.StatusNull, Parent: v.Parent,
		Validator: v.Validator,
	})
}

// LateScorer commits, and reveals something else.
type LateScorer struct{ Honest }

// Out implements [Adversary].
func (LateScorer) Out(n *Node, _ int, m consensus.Message) []consensus.Message {
	v, ok := own[protocol.ScoreVector](n, m)
	if !ok {
		return []consensus.Message{m}
	}
	Liar{}.Scores(&v)
	return sign(n, &v)
}

// Babbler sends, beside what it should, every message cut, flipped, and as another kind.
type Babbler struct{ Honest }

// Out implements [Adversary].
func (Babbler) Out(_ *Node, to int, m consensus.Message) []consensus.Message {
	flipped := slices.Clone(m.Bytes)
	flipped[(to*31)%len(flipped)] ^= 1 << (to % 8)
	return []consensus.Message{
		m,
		{Kind: m.Kind, Bytes: flipped},
		{Kind: m.Kind, Bytes: m.Bytes[:len(m.Bytes)/2]},
		{Kind: m.Kind%9 + 1, Bytes: m.Bytes},
		{Kind: m.Kind + 100},
	}
}

// own decodes a message of one type that the node itself signed.
func own[T protocol.Signed](n *Node, m consensus.Message) (T, bool) {
	r, err := m.Record()
	v, ok := r.(T)
	return v, err == nil && ok && v.Signer() == n.Setup.Self
}

// signer is a pointer to a record that can be signed.
type signer[T protocol.Record] interface {
	*T
	Sign(ed25519.PrivateKey) error
}

// sign signs a record and makes a message of it, none if it cannot be encoded.
func sign[T protocol.Record, P signer[T]](n *Node, r P) []consensus.Message {
	if err := r.Sign(n.Keys); err != nil {
		return nil
	}
	m, err := consensus.NewMessage(*r)
	if err != nil {
		return nil
	}
	return []consensus.Message{m}
}
