package local

import (
	"context"
	"sort"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
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

// Merge searches the scale of the joint step of all groups on a cycle's split B and writes Φ(t+1) to dir. If no scale
// is acceptable the group doing most harm is left out and the rest tried again; if nothing is left the checkpoint stays
// and nothing is written.
func (n *Network) Merge(ctx context.Context, p *Phi, cycle uint64, beacons []validation.Beacon, accepted []Accepted, dir string, workers int) (Merged, error) {
	out := Merged{Alpha: protocol.Rational{Den: 1}, Next: p.Link}
	steps, err := n.steps(p, accepted)
	if err != nil || len(steps) == 0 {
		return out, err
	}
	baselines := map[string]validation.Baseline{}
	for _, d := range n.Genesis.Domains {
		_, samples, err := n.Draw(d.Name, cycle, beacons)
		if err != nil {
			return out, err
		}
		if baselines[d.Name], err = validation.NewBaseline(ctx, losses(p.Model, n.window()-1, workers), samples); err != nil {
			return out, err
		}
	}
	rules := merge.NewRules(n.Genesis)
	for len(steps) > 0 {
		models := make([]*model.Model, len(n.Genesis.Params.AlphaGrid))
		if out.Measure, err = n.search(ctx, p, steps, baselines, models, workers); err != nil {
			return out, err
		}
		var best int
		if best, out.Verdicts, err = rules.Best(out.Measure); err != nil {
			return out, err
		}
		if best > 0 {
			out.Alpha = n.Genesis.Params.AlphaGrid[best]
			state := p.State
			state.Previous = &p.Link
			root, err := writeCheckpoint(dir, models[best], state)
			if err != nil {
				return out, err
			}
			out.Next, err = protocol.NewLink(root)
			return out, err
		}
		var joined []protocol.Group
		for _, s := range steps {
			joined = append(joined, s.group)
		}
		worst, ok := merge.WorstGroup(joined, []merge.Vector{{Stake: 1, Measure: out.Measure}})
		if !ok {
			break
		}
		out.Excluded = append(out.Excluded, worst)
		kept := steps[:0]
		for _, s := range steps {
			if s.group.Name != worst {
				kept = append(kept, s)
			}
		}
		steps = kept
	}
	return out, nil
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

// search measures the joint step at every scale of the grid on every domain, and keeps the models.
func (n *Network) search(ctx context.Context, p *Phi, steps []step, baselines map[string]validation.Baseline, models []*model.Model, workers int) (protocol.MergeMeasure, error) {
	out := protocol.MergeMeasure{Version: protocol.Version}
	for _, s := range steps {
		out.Groups = append(out.Groups, s.group.Name)
	}
	sort.Strings(out.Groups)
	for i, alpha := range n.Genesis.Params.AlphaGrid {
		if alpha.IsZero() {
			continue
		}
		m, err := p.with(steps, alpha)
		if err != nil {
			continue // not finite at this scale: unmeasured, so not acceptable
		}
		models[i] = m
		for _, d := range n.Genesis.Domains { // sorted by name, as the rows must be
			row, err := validation.MeasureStep(ctx, i, d.Name, losses(m, n.window()-1, workers), baselines[d.Name])
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
