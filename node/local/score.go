package local

import (
	"context"
	"fmt"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/validation"
	"github.com/blockzero-net/bzd/validation/merge"
)

// Submission is one miner's delta, or why there is none.
type Submission struct {
	Miner  protocol.ID
	Group  string
	Delta  *delta.Delta    // nil unless Status is ok
	Status protocol.Status // ok if the delta is to be measured
	Reason string          // why not
	Bytes  int64           // size of the payload
}

// step is a weighted sum of one group's deltas.
type step struct {
	group   protocol.Group
	deltas  []merge.Codes
	weights []uint32
}

// single is the step of one delta by itself, in the arithmetic of the merge.
func single(g protocol.Group, d merge.Codes) step {
	return step{g, []merge.Codes{d}, []uint32{merge.Mass}}
}

// with returns Φ + α·steps.
func (p *Phi) with(steps []step, alpha protocol.Rational) (*model.Model, error) {
	changed, err := p.moved(steps, alpha)
	if err != nil {
		return nil, err
	}
	return p.Model.Overlay(changed)
}

// moved returns the tensors of Φ + α·steps that are not those of Φ. Groups share no values, only router tensors of which
// each has its own rows.
func (p *Phi) moved(steps []step, alpha protocol.Rational) (map[string][]float32, error) {
	changed := map[string][]float32{}
	for _, s := range steps {
		for i, t := range p.layout(s.group) {
			name := t.CheckpointName()
			moved := read(p.Model, t)
			if err := merge.Step(moved, moved, i, s.deltas, s.weights, alpha); err != nil {
				return nil, fmt.Errorf("%s: %w", t.Name, err)
			}
			if t.Rows == nil {
				changed[name] = moved
				continue
			}
			if changed[name] == nil {
				changed[name] = p.Model.Read(name)
			}
			width := int(t.Shape[1])
			for j, r := range t.Rows {
				copy(changed[name][int(r)*width:], moved[j*width:][:width])
			}
		}
	}
	return changed, nil
}

// Score measures the submissions to one group on a cycle's split A: a row each, in their order.
func (n *Network) Score(ctx context.Context, p *Phi, name string, cycle uint64, beacons []validation.Beacon, subs []Submission, workers int) ([]protocol.Row, error) {
	return labelled(ctx, Evaluation, func(ctx context.Context) ([]protocol.Row, error) {
		return n.score(ctx, p, name, cycle, beacons, subs, workers)
	})
}

func (n *Network) score(ctx context.Context, p *Phi, name string, cycle uint64, beacons []validation.Beacon, subs []Submission, workers int) ([]protocol.Row, error) {
	g, err := group(p.State, name)
	if err != nil {
		return nil, err
	}
	var baselines []validation.Baseline
	under := below(p, g)
	for _, domain := range []string{g.Domain, n.Genesis.Canary} {
		if n.quota(domain).Score == 0 {
			continue
		}
		samples, _, err := n.Draw(p.Tokens, domain, cycle, beacons)
		if err != nil {
			return nil, err
		}
		b, err := validation.NewBaseline(ctx, n.losses(p.Model, p.Tokens, workers, under), samples)
		if err != nil {
			return nil, err
		}
		baselines = append(baselines, b)
	}
	rows := make([]protocol.Row, len(subs))
	for i, s := range subs {
		if s.Status != protocol.StatusOK {
			rows[i] = protocol.Row{Miner: s.Miner, Status: s.Status}
			continue
		}
		m, err := p.with([]step{single(g, s.Delta)}, protocol.Rational{Num: 1, Den: 1})
		if err != nil { // finite units on finite weights overflow only if the sum does
			rows[i] = protocol.Row{Miner: s.Miner, Status: protocol.StatusInvalid}
			continue
		}
		if rows[i], err = validation.Measure(ctx, s.Miner, n.losses(m, p.Tokens, workers, under), baselines...); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
