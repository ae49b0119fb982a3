package sim

import (
	"fmt"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Property is a promise of the agreement.
type Property string

// The promises.
const (
	// Agreement: no two certificates of different decisions, nor one of a decision and a null one, at anybody.
	Agreement Property = "agreement"
	// Proof: a certificate that is output verifies against the snapshot alone.
	Proof Property = "proof"
	// Termination: every honest validator that was up had one output by its deadline, and after it at most a late one.
	Termination Property = "termination"
	// Derivation: a certified value follows from the records that it names, all under the instance's parent.
	Derivation Property = "derivation"
	// Range: the certified medians lie within what honest validators measured.
	Range Property = "range"
	// Honesty: no honest validator signed two statements that conflict, over all its lives.
	Honesty Property = "honesty"
	// Originality: certified scores were committed to before anybody's could be read, all of them if the proposer is honest,
	// else those of two thirds of the stake.
	Originality Property = "originality"
	// Verdict: no honest validator calls what an honest one signed, and an honest one brought, wrong; whenever it came.
	Verdict Property = "verdict"
)

// Broken is a promise that a run broke.
type Broken struct {
	Property Property
	What     string
}

func (b Broken) String() string { return string(b.Property) + ": " + b.What }

// Check returns every promise that the run broke.
func (r *Result) Check() (broken []Broken) {
	add := func(p Property, format string, args ...any) {
		broken = append(broken, Broken{p, fmt.Sprintf(format, args...)})
	}
	var first *protocol.Certificate
	decisions := make(map[protocol.Hash]bool)
	for _, n := range r.Nodes {
		for _, o := range n.Outputs {
			c := o.Output.Certificate
			if c == nil || n.bad != nil {
				continue
			}
			if first == nil {
				first = c
			}
			if first.Decision() != c.Decision() {
				add(Agreement, "%s holds %s, another holds %s", n.name(), certificate(*c), certificate(*first))
			}
			if !decisions[c.Decision()] {
				decisions[c.Decision()] = true
				if err := c.Verify(n.Setup.Snapshot); err != nil {
					add(Proof, "%s output a certificate that does not verify: %v", n.name(), err)
				}
				if !c.Null() {
					r.follows(*c.Proposal, add)
				}
			}
		}
		if n.Honest() && n.lives == 1 {
			r.ended(n, add)
		}
	}
	said := make(map[string][]protocol.Signed) // what can conflict only
	for _, s := range r.Signed {
		said[fmt.Sprintf("%T", s)] = append(said[fmt.Sprintf("%T", s)], s)
	}
	for _, s := range r.Signed {
		for _, other := range append(said[fmt.Sprintf("%T", s)], said["protocol.StatusVote"]...) {
			if s.Signer() != other.Signer() {
				continue
			}
			if p, err := protocol.NewEquivocationProof(s, other); err == nil {
				add(Honesty, "honest %s signed %s", r.Nodes[int(s.Signer()[0])<<8|int(s.Signer()[1])].name(), p.Kind)
			}
		}
	}
	for _, what := range r.Blamed {
		add(Verdict, "%s", what)
	}
	return broken
}

type report func(p Property, format string, args ...any)

// ended checks that a node that was up had its output in time.
func (r *Result) ended(n *Node, add report) {
	if len(n.Outputs) == 0 || n.Outputs[0].At > r.deadline {
		add(Termination, "%s had no output by %d ms", n.name(), r.deadline)
		return
	}
	first, last := n.Outputs[0].Output, n.Outputs[len(n.Outputs)-1].Output
	if n := len(n.Outputs); n > 2 || n == 2 && (!last.Late || first.Outcome != consensus.Fallback) {
		add(Termination, "a validator had %d outputs", n)
	}
}

// follows checks the certified value against the records it names.
func (r *Result) follows(p protocol.Proposal, add report) {
	var set consensus.Set
	for _, h := range p.Vectors {
		found := false
		for _, n := range r.Nodes {
			if n.Machine == nil || found {
				continue
			}
			m, ok := n.Machine.Held(h)
			if !ok {
				continue
			}
			found = true
			parent := n.Setup.Parent
			switch record, _ := m.Record(); v := record.(type) {
			case protocol.ScoreVector:
				set.Scores = append(set.Scores, v)
				parent = v.Parent
			case protocol.MergeVector:
				set.Merges = append(set.Merges, v)
				parent = v.Parent
			}
			if parent != n.Setup.Parent {
				add(Derivation, "the certified vector %s rests on another parent", short(h))
			}
		}
		if !found {
			add(Derivation, "nobody holds the certified vector %s", h)
		}
	}
	value, err := derive(r.Nodes[0].Setup.Snapshot, r.cfg.Miners)(set)
	if err != nil || value.Digest() != p.Value.Digest() {
		add(Derivation, "the certified value does not follow from its vectors (%v)", err)
	}
	r.committed(p, set.Scores, add)
	for m := range r.cfg.Miners {
		gain, ok := median(r.Nodes[0].Setup.Snapshot, r.cfg.Miners, set.Scores, m)
		if ok && (gain < truth(m)-noise || gain > truth(m)+noise) {
			add(Range, "miner %d has the certified gain %d, nobody honest measured that", m, gain)
		}
	}
}

// committed checks that what is certified was committed to in time.
func (r *Result) committed(p protocol.Proposal, vectors []protocol.ScoreVector, add report) {
	snapshot := r.Nodes[0].Setup.Snapshot
	var late uint64
	for _, v := range vectors {
		if !r.commits[v.CommitDigest()] {
			late += stake(snapshot, v.Validator)
		}
	}
	leader := r.Nodes[int(p.Proposer[0])<<8|int(p.Proposer[1])]
	if limit := (snapshot.TotalStake() - 1) / 3; late > limit || late > 0 && leader.bad == nil {
		add(Originality, "certified vectors of stake %d were not committed to in time, by a proposal of %s", late, leader.name())
	}
}
