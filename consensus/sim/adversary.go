package sim

import (
	"crypto/ed25519"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Adversary is what a dishonest validator does: it runs the machine, lies about its scores, changes what it sends, and
// answers what it hears.
type Adversary interface {
	// Scores may change the validator's vector before it is committed to.
	Scores(v *protocol.ScoreVector)
	// Out returns what one recipient gets in place of m, which may be another's that is passed on or fetched. r is its
	// record, nil if it does not decode.
	Out(n *Node, to int, m consensus.Message, r protocol.Record) []Post
	// Hear returns what the validator sends because of m.
	Hear(n *Node, m consensus.Message, r protocol.Record) []Post
}

// Post is a message on its way to one validator.
type Post struct {
	To      int // in what Out returns: its recipient, whatever it says
	After   int64
	Message consensus.Message
}

func unchanged(m consensus.Message) []Post { return []Post{{Message: m}} }

func (n *Node) name() string { return name(n.Index) }

// Honest changes nothing; the others embed it.
type Honest struct{}

// Scores implements [Adversary].
func (Honest) Scores(*protocol.ScoreVector) {}

// Out implements [Adversary].
func (Honest) Out(_ *Node, _ int, m consensus.Message, _ protocol.Record) []Post { return unchanged(m) }

// Hear implements [Adversary].
func (Honest) Hear(*Node, consensus.Message, protocol.Record) []Post { return nil }

// memory is of what was heard.
type memory struct{ heard map[string]bool }

// first reports whether a message was not heard before.
func (a *memory) first(m consensus.Message) bool {
	if a.heard == nil {
		a.heard = make(map[string]bool)
	}
	key := string(m.Bytes)
	before := a.heard[key]
	a.heard[key] = true
	return !before
}

// Silent hears everything and says nothing.
type Silent struct{ Honest }

// Out implements [Adversary].
func (Silent) Out(*Node, int, consensus.Message, protocol.Record) []Post { return nil }

// Late says everything By milliseconds late.
type Late struct {
	Honest
	By int64
}

// Out implements [Adversary].
func (l Late) Out(_ *Node, _ int, m consensus.Message, _ protocol.Record) []Post {
	return []Post{{After: l.By, Message: m}}
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

// LateScorer commits, and reveals something else.
type LateScorer struct{ Honest }

// Out implements [Adversary].
func (LateScorer) Out(n *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	v, ok := own[protocol.ScoreVector](n, r)
	if !ok {
		return unchanged(m)
	}
	Liar{}.Scores(&v)
	return sign(n, &v)
}

// without drops messages for which ok says so.
func without(m consensus.Message, drop bool) []Post {
	if drop {
		return nil
	}
	return unchanged(m)
}

// SilentLeader never proposes.
type SilentLeader struct{ Honest }

// Out implements [Adversary].
func (SilentLeader) Out(_ *Node, _ int, m consensus.Message, _ protocol.Record) []Post {
	return without(m, m.Kind == consensus.KindProposal)
}

// HalfLeader sends its proposal to every second validator only.
type HalfLeader struct{ Honest }

// Out implements [Adversary].
func (HalfLeader) Out(_ *Node, to int, m consensus.Message, _ protocol.Record) []Post {
	return without(m, m.Kind == consensus.KindProposal && to%2 == 1)
}

// LastMinuteLeader sends its proposal just before the next proposer's turn, so that it reaches some before and some after.
type LastMinuteLeader struct{ Honest }

// Out implements [Adversary].
func (LastMinuteLeader) Out(n *Node, _ int, m consensus.Message, _ protocol.Record) []Post {
	if m.Kind != consensus.KindProposal {
		return unchanged(m)
	}
	return []Post{{After: n.Setup.Delta * 9 / 10, Message: m}}
}

// Selective sends everything to a third of the validators only.
type Selective struct{ Honest }

// Out implements [Adversary].
func (Selective) Out(_ *Node, to int, m consensus.Message, _ protocol.Record) []Post {
	return without(m, to%3 != 0)
}

// VectorWithholder commits to scores and shows them to no more than one other.
type VectorWithholder struct{ Honest }

// Out implements [Adversary].
func (VectorWithholder) Out(n *Node, to int, m consensus.Message, r protocol.Record) []Post {
	_, scores := own[protocol.ScoreVector](n, r)
	_, merge := own[protocol.MergeVector](n, r)
	return without(m, (scores || merge) && to != (n.Index+1)%len(n.net.nodes))
}

// VoteWithholder prepares and never says COMMIT-V.
type VoteWithholder struct{ Honest }

// Out implements [Adversary].
func (VoteWithholder) Out(_ *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	v, ok := r.(protocol.Vote)
	return without(m, ok && v.Type == protocol.VoteCommit || m.Kind == consensus.KindCertificate)
}

// PhantomLeader names a vector that nobody has.
type PhantomLeader struct{ Honest }

// Out implements [Adversary].
func (PhantomLeader) Out(n *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	p, ok := own[protocol.Proposal](n, r)
	if !ok {
		return unchanged(m)
	}
	p.Vectors = slices.Clone(p.Vectors)
	p.Vectors[len(p.Vectors)-1] = protocol.Hash{0: 0xff, 1: 0xff, 2: 0xff, 3: 0xff}
	p.Lock = nil
	return sign(n, &p)
}

// WrongLeader proposes weights that do not follow.
type WrongLeader struct{ Honest }

// Out implements [Adversary].
func (WrongLeader) Out(n *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	p, ok := own[protocol.Proposal](n, r)
	if !ok || p.Value.Weights == nil {
		return unchanged(m)
	}
	value := protocol.WeightsValue{MergeSet: p.Value.Weights.MergeSet, Weights: []protocol.MinerWeight{
		{Miner: protocol.ID{1}, Group: "go", Status: protocol.StatusOK, Weight: protocol.WeightTotal, Part: protocol.WeightTotal},
	}}
	p.Value.Weights, p.Lock = &value, nil
	return sign(n, &p)
}

// Equivocator proposes one thing to the even validators and another, as valid, to the odd ones, and votes for whichever
// the recipient was told of.
type Equivocator struct {
	Honest
	second map[protocol.Hash]protocol.Hash // by the first decision, the other
}

// Out implements [Adversary].
func (e *Equivocator) Out(n *Node, to int, m consensus.Message, r protocol.Record) []Post {
	if to%2 == 0 {
		return unchanged(m)
	}
	if p, ok := own[protocol.Proposal](n, r); ok {
		second := other(n, p)
		if e.second == nil {
			e.second = make(map[protocol.Hash]protocol.Hash)
		}
		e.second[p.Decision()] = second.Decision()
		return sign(n, second)
	}
	v, ok := own[protocol.Vote](n, r)
	if !ok {
		return unchanged(m)
	}
	if second, ok := e.second[v.Digest]; ok {
		v.Digest = second
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
	p.Vectors, p.Lock = p.Vectors[1:], nil
	return &p
}

// TwoFaced votes to the even validators and says null to the odd ones.
type TwoFaced struct{ Honest }

// Out implements [Adversary].
func (TwoFaced) Out(n *Node, to int, m consensus.Message, r protocol.Record) []Post {
	if _, vote := own[protocol.Vote](n, r); !vote || to%2 == 0 {
		return unchanged(m)
	}
	return sign(n, null(n))
}

// null is a statement that nothing was signed.
func null(n *Node) *protocol.StatusVote {
	return &protocol.StatusVote{
		Version: protocol.Version, Network: n.Setup.Network, Cycle: n.Setup.Cycle, Instance: n.Setup.Instance,
		Round: uint32(n.Setup.Rounds), Type: protocol.StatusNull, Parent: n.Setup.Parent, Validator: n.Setup.Self,
	}
}

// Replayer says everything that it hears again, thrice: at once, half a δ later, and three δ later.
type Replayer struct {
	Honest
	memory
}

// Hear implements [Adversary].
func (a *Replayer) Hear(n *Node, m consensus.Message, _ protocol.Record) (posts []Post) {
	if !a.first(m) {
		return nil
	}
	for to := range n.net.nodes {
		for _, after := range []int64{0, n.Setup.Delta / 2, 3 * n.Setup.Delta} {
			posts = append(posts, Post{to, after, m})
		}
	}
	return posts
}

// Spammer sends, beside what it should, every message cut, flipped, and as another kind, and signs more than anybody asked
// for: votes for nothing, statuses, commits, lists, vectors, all of it valid in form.
type Spammer struct {
	Honest
	said byte
}

// Out implements [Adversary].
func (s *Spammer) Out(n *Node, to int, m consensus.Message, _ protocol.Record) []Post {
	flipped := slices.Clone(m.Bytes)
	flipped[(to*31)%len(flipped)] ^= 1 << (to % 8)
	posts := []Post{
		{Message: m},
		{Message: consensus.Message{Kind: m.Kind, Bytes: flipped}},
		{Message: consensus.Message{Kind: m.Kind, Bytes: m.Bytes[:len(m.Bytes)/2]}},
		{Message: consensus.Message{Kind: m.Kind%9 + 1, Bytes: m.Bytes}},
		{Message: consensus.Message{Kind: m.Kind + 100}},
	}
	if s.said++; s.said > 40 {
		return posts
	}
	setup, noise := n.Setup, protocol.Hash{s.said, 1}
	vote := protocol.Vote{
		Version: protocol.Version, Network: setup.Network, Cycle: setup.Cycle, Instance: setup.Instance, Round: uint32(s.said) % 4,
		Type: protocol.VoteType(1 + s.said%2), Parent: setup.Parent, Digest: noise, Validator: setup.Self,
	}
	commit := protocol.ScoreCommit{
		Version: protocol.Version, Network: setup.Network, Cycle: setup.Cycle, Validator: setup.Self, Digest: noise,
	}
	list := protocol.List{
		Version: protocol.Version, Network: setup.Network, Cycle: setup.Cycle, Validator: setup.Self,
		Entries: []protocol.ListEntry{{Miner: protocol.ID{s.said}, Group: "go", Manifest: setup.Network, State: protocol.ListHeld}},
	}
	posts = append(posts, sign(n, &vote)...)
	posts = append(posts, sign(n, &commit)...)
	posts = append(posts, sign(n, &list)...)
	return append(posts, sign(n, null(n))...)
}

// Copier commits to nothing that it measured, waits for somebody else's scores, and shows them as its own.
type Copier struct {
	Honest
	shown bool
}

// Out implements [Adversary].
func (*Copier) Out(n *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	_, ok := own[protocol.ScoreVector](n, r)
	return without(m, ok)
}

// Hear implements [Adversary].
func (c *Copier) Hear(n *Node, _ consensus.Message, r protocol.Record) []Post {
	v, ok := r.(protocol.ScoreVector)
	if !ok || c.shown {
		return nil
	}
	c.shown = true
	v.Validator, v.List = n.Setup.Self, protocol.Hash{}
	return everybody(n, sign(n, &v))
}

// everybody is a post to all.
func everybody(n *Node, said []Post) (posts []Post) {
	for to := range n.net.nodes {
		for _, p := range said {
			p.To = to
			posts = append(posts, p)
		}
	}
	return posts
}

// Orphan shows a line search that rests on another decision than the one before.
type Orphan struct{ Honest }

// Out implements [Adversary].
func (Orphan) Out(n *Node, _ int, m consensus.Message, r protocol.Record) []Post {
	v, ok := own[protocol.MergeVector](n, r)
	if !ok {
		return unchanged(m)
	}
	v.Parent[0] ^= 1
	return sign(n, &v)
}

// Forger passes votes off as what they are not: with the other type, and with the next round, the signature as it was.
type Forger struct {
	Honest
	memory
}

// Hear implements [Adversary].
func (f *Forger) Hear(n *Node, m consensus.Message, r protocol.Record) (posts []Post) {
	v, ok := r.(protocol.Vote)
	if !ok || !f.first(m) {
		return nil
	}
	typed, later := v, v
	typed.Type = protocol.VotePrepare + protocol.VoteCommit - v.Type
	later.Round++
	for _, forged := range []protocol.Vote{typed, later} {
		if m, err := consensus.NewMessage(forged); err == nil {
			posts = append(posts, everybody(n, unchanged(m))...)
		}
	}
	return posts
}

// Ring is a third that acts as one. Each member proposes like [Equivocator]; and whatever an honest validator signs, every
// member signs too, for that validator's eyes alone: the votes of its round and decision, and a null. So a decision or a null
// needs no more honest stake than it must, on as many sides as there are.
type Ring struct {
	members []*Node
	memory
}

// Member returns a new member.
func (r *Ring) Member() Adversary { return &colluder{ring: r} }

type colluder struct {
	Equivocator
	ring   *Ring
	joined bool
}

func (c *colluder) join(n *Node) {
	if !c.joined {
		c.joined = true
		c.ring.members = append(c.ring.members, n)
	}
}

// Out implements [Adversary]. A member passes on what others sign only to other members, and shows its vector to two thirds
// only, so that honest proposers propose different things.
func (c *colluder) Out(n *Node, to int, m consensus.Message, r protocol.Record) []Post {
	c.join(n)
	_, scores := own[protocol.ScoreVector](n, r)
	_, merge := own[protocol.MergeVector](n, r)
	if (scores || merge) && to%3 == 0 {
		return nil
	}
	if m.Kind == consensus.KindVote || m.Kind == consensus.KindStatus || m.Kind == consensus.KindProof {
		if _, member := n.net.nodes[to].bad.(*colluder); !member {
			return nil // what it votes for it tells by Hear
		}
	}
	return c.Equivocator.Out(n, to, m, r)
}

// Hear implements [Adversary].
func (c *colluder) Hear(n *Node, m consensus.Message, r protocol.Record) (posts []Post) {
	c.join(n)
	switch r.(type) {
	case protocol.Vote, protocol.StatusVote:
	default:
		return nil
	}
	s := r.(protocol.Signed)
	if n.net.index(s.Signer()) >= len(n.net.nodes) || n.net.nodes[n.net.index(s.Signer())].bad != nil || !c.ring.first(m) {
		return nil
	}
	to := n.net.index(s.Signer())
	for _, member := range c.ring.members {
		var echo []Post
		switch r := r.(type) {
		case protocol.Vote:
			for _, t := range []protocol.VoteType{protocol.VotePrepare, protocol.VoteCommit} {
				r.Type, r.Validator = t, member.Setup.Self
				echo = append(echo, sign(member, &r)...)
			}
		case protocol.StatusVote:
			r.Validator, r.Type, r.LockRound, r.LockDigest = member.Setup.Self, protocol.StatusNull, 0, protocol.Hash{}
			echo = sign(member, &r)
		}
		for _, p := range echo {
			p.To = to
			posts = append(posts, p)
		}
	}
	return posts
}

// own is a record of one type that the node itself signed.
func own[T protocol.Signed](n *Node, r protocol.Record) (T, bool) {
	v, ok := r.(T)
	return v, ok && v.Signer() == n.Setup.Self
}

// signer is a pointer to a record that can be signed.
type signer[T protocol.Record] interface {
	*T
	Sign(ed25519.PrivateKey) error
}

// sign signs a record and makes a message of it, none if it cannot be encoded.
func sign[T protocol.Record, P signer[T]](n *Node, r P) []Post {
	if err := r.Sign(n.Keys); err != nil {
		return nil
	}
	m, err := consensus.NewMessage(*r)
	if err != nil {
		return nil
	}
	return []Post{{Message: m}}
}
