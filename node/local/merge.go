package local

import (
	"context"
	"fmt"
	"slices"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/validation"
	"github.com/blockzero-net/bzd/validation/merge"
)

// Accepted is a delta that takes part in the merge, with its claim to the group's step.
type Accepted struct {
	Miner  protocol.ID
	Group  string
	Delta  *delta.Delta
	Points uint64
}

// Merged is the outcome of a merge.
type Merged struct {
	Alpha    protocol.Rational
	Measure  protocol.MergeMeasure
	Verdicts []merge.Verdict
	Excluded []string // groups left out because no scale with them was acceptable
	Next     protocol.Link
}

// Search measures joint steps on a cycle's split B. The losses of the unchanged model are measured once.
type Search struct {
	n         *Network
	p         *Phi
	workers   int
	baselines map[string]validation.Baseline
	below     *training.Below
	measured  map[protocol.Rational]map[string][]float32 // by scale: the tensors that the last Measure moved
}

// NewSearch draws split B of every domain and measures the unchanged model on it.
func (n *Network) NewSearch(ctx context.Context, p *Phi, cycle uint64, beacons []validation.Beacon, workers int) (*Search, error) {
	return labelled(ctx, Evaluation, func(ctx context.Context) (*Search, error) {
		return n.newSearch(ctx, p, cycle, beacons, workers)
	})
}

func (n *Network) newSearch(ctx context.Context, p *Phi, cycle uint64, beacons []validation.Beacon, workers int) (*Search, error) {
	s := &Search{n: n, p: p, workers: workers, baselines: map[string]validation.Baseline{}, below: below(p, p.State.Groups...)}
	for _, d := range n.Genesis.Domains {
		_, samples, err := n.Draw(p.Tokens, d.Name, cycle, beacons)
		if err != nil {
			return nil, err
		}
		if s.baselines[d.Name], err = validation.NewBaseline(ctx, n.losses(p.Model, p.Tokens, workers, s.below), samples); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Measure is the effect of the joint step of the accepted deltas at every scale of the grid on every domain. A scale at
// which the model is not finite has no rows.
func (s *Search) Measure(ctx context.Context, accepted []Accepted) (protocol.MergeMeasure, error) {
	return labelled(ctx, Evaluation, func(ctx context.Context) (protocol.MergeMeasure, error) {
		return s.measure(ctx, accepted)
	})
}

func (s *Search) measure(ctx context.Context, accepted []Accepted) (protocol.MergeMeasure, error) {
	out := protocol.MergeMeasure{Version: protocol.Version}
	s.measured = map[protocol.Rational]map[string][]float32{}
	steps, err := s.n.steps(s.p, accepted)
	if err != nil {
		return out, err
	}
	for _, x := range steps { // groups are sorted by name
		out.Groups = append(out.Groups, x.group.Name)
	}
	for i, alpha := range s.n.Genesis.Params.AlphaGrid {
		if alpha.IsZero() {
			continue
		}
		changed, err := s.p.moved(steps, alpha)
		if err != nil {
			continue
		}
		m, err := s.p.Model.Overlay(changed)
		if err != nil {
			continue
		}
		s.measured[alpha] = changed
		for _, d := range s.n.Genesis.Domains { // sorted by name, as the rows must be
			row, err := validation.MeasureStep(ctx, i, d.Name, s.n.losses(m, s.p.Tokens, s.workers, s.below), s.baselines[d.Name])
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
			if err == nil {
				out.Rows = append(out.Rows, row)
			}
		}
	}
	return out, nil
}

// Write writes Φ + α·M to dir, the joint step M of the accepted deltas, and returns its link.
func (n *Network) Write(p *Phi, accepted []Accepted, alpha protocol.Rational, dir string) (protocol.Link, error) {
	next, err := n.Advance(p, accepted, alpha, dir, "", nil)
	if err != nil {
		return protocol.Link{}, err
	}
	return next.Link, nil
}

// Advance is Write, and returns Φ + α·M ready for computing. With from, the directory of p, files that do not change are
// linked from there. emit, which may be nil, takes the blocks of the new files.
func (n *Network) Advance(p *Phi, accepted []Accepted, alpha protocol.Rational, dir, from string, emit func(blocks.Block) error) (*Phi, error) {
	steps, err := n.steps(p, accepted)
	if err != nil {
		return nil, err
	}
	changed, err := p.moved(steps, alpha)
	if err != nil {
		return nil, err
	}
	return p.advance(changed, dir, from, emit)
}

// Advance is [Network.Advance] of the deltas that were measured last, at a scale of the grid.
func (s *Search) Advance(alpha protocol.Rational, dir, from string, emit func(blocks.Block) error) (*Phi, error) {
	changed, ok := s.measured[alpha]
	if !ok {
		return nil, fmt.Errorf("scale %s was not measured", alpha)
	}
	return s.p.advance(changed, dir, from, emit)
}

// advance writes p with some tensors replaced.
func (p *Phi) advance(changed map[string][]float32, dir, from string, emit func(blocks.Block) error) (*Phi, error) {
	next, previous := &Phi{State: p.State, Tokens: p.Tokens, documents: p.documents}, p.Link // a pointer into p would keep its model
	next.State.Previous = &previous
	var err error
	if next.Model, err = p.Model.Overlay(changed); err != nil {
		return nil, err
	}
	var r reuse
	if from != "" {
		r = reuse{dir: from, parts: p.Parts, changed: changed}
	}
	root, parts, err := writeCheckpoint(dir, contentsOf(next), r, emit)
	if err != nil {
		return nil, err
	}
	next.Parts = parts
	next.Link, err = protocol.NewLink(root)
	return next, err
}

// Merge searches the scale of the joint step of all groups on a cycle's split B and writes Φ(t+1) to dir. If no scale
// is acceptable the group doing most harm is left out and the rest tried again; if nothing is left the checkpoint stays
// and nothing is written.
func (n *Network) Merge(ctx context.Context, p *Phi, cycle uint64, beacons []validation.Beacon, accepted []Accepted, dir string, workers int) (Merged, error) {
	out := Merged{Alpha: protocol.Rational{Den: 1}, Next: p.Link}
	rules := merge.NewRules(n.Genesis)
	var search *Search
	for accepted = claims(accepted); len(accepted) > 0; accepted = out.without(accepted) {
		var err error
		if search == nil {
			if search, err = n.NewSearch(ctx, p, cycle, beacons, workers); err != nil {
				return out, err
			}
		}
		if out.Measure, err = search.Measure(ctx, accepted); err != nil {
			return out, err
		}
		var best int
		if best, out.Verdicts, err = rules.Best(out.Measure); err != nil {
			return out, err
		}
		if best > 0 {
			out.Alpha = n.Genesis.Params.AlphaGrid[best]
			out.Next, err = n.Write(p, accepted, out.Alpha, dir)
			return out, err
		}
		worst, ok := merge.WorstGroup(joined(p, accepted), []merge.Vector{{Stake: 1, Measure: out.Measure}})
		if !ok {
			break
		}
		out.Excluded = append(out.Excluded, worst)
	}
	return out, nil
}

// claims are the deltas with a claim to their group's step.
func claims(accepted []Accepted) []Accepted {
	return slices.DeleteFunc(slices.Clone(accepted), func(a Accepted) bool { return a.Points == 0 })
}

// without leaves out the deltas of the excluded groups.
func (m Merged) without(accepted []Accepted) []Accepted {
	return slices.DeleteFunc(accepted, func(a Accepted) bool { return slices.Contains(m.Excluded, a.Group) })
}

// joined are the groups that take part.
func joined(p *Phi, accepted []Accepted) []protocol.Group {
	return slices.DeleteFunc(slices.Clone(p.State.Groups), func(g protocol.Group) bool {
		return !slices.ContainsFunc(accepted, func(a Accepted) bool { return a.Group == g.Name })
	})
}

// steps weighs the accepted deltas of every group, groups sorted by name.
func (n *Network) steps(p *Phi, accepted []Accepted) ([]step, error) {
	var out []step
	for _, g := range p.State.Groups {
		s := step{group: g}
		var scores []merge.Score
		for _, a := range accepted {
			if a.Group == g.Name && a.Points > 0 {
				scores = append(scores, merge.Score{Miner: a.Miner, Points: a.Points})
				s.deltas = append(s.deltas, a.Delta)
			}
		}
		if len(scores) == 0 {
			continue
		}
		var err error
		if s.weights, err = merge.Weights(scores, n.Genesis.Params.GroupMassNum, n.Genesis.Params.GroupMassDen); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
