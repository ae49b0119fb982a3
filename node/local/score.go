package local

import (
	"context"
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
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
		rows, err := n.score(ctx, p, name, cycle, beacons, subs, workers)
		if err == nil {
			err = p.unchanged()
		}
		return rows, err
	})
}

func (n *Network) score(ctx context.Context, p *Phi, name string, cycle uint64, beacons []validation.Beacon, subs []Submission, workers int) ([]protocol.Row, error) {
	g, err := group(p.State, name)
	if err != nil {
		return nil, err
	}
	type drawn struct {
		samples []validation.Sample
		base    []int64
	}
	var domains []drawn
	for _, domain := range []string{g.Domain, n.Genesis.Canary} {
		if n.quota(domain).Score == 0 {
			continue
		}
		samples, _, err := n.Draw(p.Tokens, domain, cycle, beacons)
		if err != nil {
			return nil, err
		}
		domains = append(domains, drawn{samples: samples})
	}
	rows := make([]protocol.Row, len(subs))
	var good []int // submissions to measure
	for i, s := range subs {
		rows[i] = protocol.Row{Miner: s.Miner, Status: s.Status}
		if s.Status == protocol.StatusOK {
			good = append(good, i)
		}
	}
	for part := range slices.Chunk(good, p.together(g)) {
		models, measured := []*model.Model{p.Model}, []int{}
		for _, i := range part {
			m, err := p.with([]step{single(g, subs[i].Delta)}, protocol.Rational{Num: 1, Den: 1})
			if err != nil { // finite units on finite weights overflow only if the sum does
				rows[i].Status = protocol.StatusInvalid
				continue
			}
			models, measured = append(models, m), append(measured, i)
		}
		baselines, updated := make([]validation.Baseline, len(domains)), make([][]training.Measured, len(domains))
		for k := range domains {
			d := &domains[k]
			if d.base != nil { // Φ was measured with the part before
				models[0] = nil
			}
			all, err := n.each(ctx, p, models, d.samples, workers)
			if err != nil {
				return nil, err
			}
			if d.base == nil {
				if err := all[0].Err; err != nil {
					return nil, err
				}
				d.base = all[0].Losses
			}
			baselines[k], updated[k] = validation.Baseline{Samples: d.samples, Losses: d.base}, all[1:]
		}
		for j, i := range measured {
			k := 0 // Measure asks for the baselines in their order
			if rows[i], err = validation.Measure(ctx, subs[i].Miner, func(context.Context, []validation.Sample) ([]int64, error) {
				k++
				return updated[k-1][j].Losses, updated[k-1][j].Err
			}, baselines...); err != nil {
				return nil, err
			}
		}
	}
	return rows, nil
}

// overlayLimit bounds what the deltas that are measured together take in memory, in bytes.
const overlayLimit = 1 << 30

// together is how many deltas of a group are measured in one pass.
func (p *Phi) together(g protocol.Group) int {
	values := 0
	routers := map[string]bool{}
	for _, t := range p.layout(g) {
		if t.Rows == nil {
			values += p.Model.Dim * p.Model.Width
		} else if name := t.CheckpointName(); !routers[name] {
			routers[name] = true
			values += p.Model.Experts * p.Model.Dim
		}
	}
	return max(1, overlayLimit/(4*values))
}

// each measures models, overlays of Φ or Φ itself, on samples; nil ones are left out.
func (n *Network) each(ctx context.Context, p *Phi, models []*model.Model, samples []validation.Sample, workers int) ([]training.Measured, error) {
	e := training.Evaluator{Seq: n.seq(p.Tokens), Workers: workers, Spare: n.spare}
	sequences := make([][]int32, len(samples))
	for i, s := range samples {
		sequences[i] = s.Tokens
	}
	var some []*model.Model
	for _, m := range models {
		if m != nil {
			some = append(some, m)
		}
	}
	measured, err := e.Each(ctx, p.Model, some, sequences)
	if err != nil {
		return nil, err
	}
	out := make([]training.Measured, len(models))
	for i, m := range models {
		if m != nil {
			out[i], measured = measured[0], measured[1:]
			if n.Measured != nil {
				n.Measured(len(sequences))
			}
		}
	}
	return out, nil
}
