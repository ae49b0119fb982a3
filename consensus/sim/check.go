package sim

import (
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Check returns, in words, every promise that the run broke:
//
//   - agreement: no two certificates of different decisions, nor one of a decision and a null one, at anybody;
//   - termination: every honest validator that was up had an output by its deadline;
//   - validity: a certified value follows from the records that it names, and its medians lie within what honest
//     validators measured;
//   - honesty: no honest validator signed two statements that conflict, over all its lives.
func (r *Result) Check() (broken []string) {
	var first *protocol.Certificate
	for _, n := range r.Nodes {
		for _, o := range n.Outputs {
			c := o.Output.Certificate
			if c == nil {
				continue
			}
			if err := c.Verify(n.Setup.Snapshot); err != nil {
				broken = append(broken, fmt.Sprintf("v%d output a certificate that does not verify: %v", n.Index, err))
			}
			if first == nil {
				first = c
			}
			if first.Decision() != c.Decision() {
				broken = append(broken, fmt.Sprintf("v%d holds %s, another holds %s", n.Index, certificate(*c), certificate(*first)))
			}
		}
		broken = append(broken, r.ended(n)...)
	}
	if first != nil && !first.Null() {
		broken = append(broken, r.follows(*first.Proposal)...)
	}
	for i, a := range r.Signed {
		for _, b := range r.Signed[:i] {
			if p, err := protocol.NewEquivocationProof(a, b); err == nil {
				broken = append(broken, fmt.Sprintf("honest %s signed %s", a.Signer(), p.Kind))
			}
		}
	}
	return broken
}

// ended checks that a node that was up had its output in time.
func (r *Result) ended(n *Node) (broken []string) {
	if n.bad != nil || slices.Contains(n.Config.Offline, n.Index) || n.lives != 1 {
		return nil
	}
	if len(n.Outputs) == 0 || n.Outputs[0].At > r.deadline {
		return []string{fmt.Sprintf("v%d had no output by %d ms", n.Index, r.deadline)}
	}
	if last := len(n.Outputs) - 1; last > 1 || last == 1 && (!n.Outputs[1].Output.Late || n.Outputs[0].Output.Outcome != consensus.Fallback) {
		broken = append(broken, fmt.Sprintf("v%d had %d outputs", n.Index, last+1))
	}
	return broken
}

// follows checks the certified value against the records it names.
func (r *Result) follows(p protocol.Proposal) (broken []string) {
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
			switch record, _ := m.Record(); v := record.(type) {
			case protocol.ScoreVector:
				set.Scores = append(set.Scores, v)
			case protocol.MergeVector:
				set.Merges = append(set.Merges, v)
			}
		}
		if !found {
			broken = append(broken, fmt.Sprintf("nobody holds the certified vector %s", h))
		}
	}
	value, err := r.Nodes[0].Setup.Derive(set)
	if err != nil || value.Digest() != p.Value.Digest() {
		broken = append(broken, fmt.Sprintf("the certified value does not follow from its vectors (%v)", err))
	}
	for m := range miners {
		if gain, ok := median(r.Nodes[0].Setup.Snapshot, set.Scores, m); ok && (gain < truth(m)-noise || gain > truth(m)+noise) {
			broken = append(broken, fmt.Sprintf("miner %d has the certified gain %d, nobody honest measured that", m, gain))
		}
	}
	return broken
}
