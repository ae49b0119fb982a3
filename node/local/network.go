package local

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/validation"
)

// Network is a genesis with the datasets that are on this machine.
type Network struct {
	Genesis protocol.Genesis
	Data    map[string]*data.Dataset

	// Measured, if not nil, is called after every measurement with its number of sequences. It may be set between jobs.
	Measured func(sequences int)

	probes map[string]func() (probe, error) // of the domains in Data, drawn when they are asked for: a miner never does
	spare  *training.Spare
}

// probe is the fixed draw of a domain that the node watches itself by, in no cycle's draw.
type probe struct {
	samples []data.Sample
	ids     validation.Set
}

// ErrWrongData is wrapped when a dataset is not the one that the genesis names.
var ErrWrongData = errors.New("dataset is not the network's")

// ErrSmallPool is wrapped when a held-out pool is too small for honest draws.
var ErrSmallPool = errors.New("held-out pool too small")

// NewNetwork joins a genesis with datasets. Domains may be missing until a job needs them; a dataset with another CID,
// or too small for the genesis parameters, is refused.
//
// A pool must hold the probe and 4·(K+1) draws: whoever memorised what all of the last K cycles may have used knows at
// most half of what is left to draw from.
func NewNetwork(g protocol.Genesis, sets []*data.Dataset) (*Network, error) {
	if err := g.Validate(); err != nil {
		return nil, err
	}
	n := &Network{Genesis: g, Data: map[string]*data.Dataset{}, probes: map[string]func() (probe, error){}, spare: &training.Spare{}}
	for _, d := range sets {
		dom, ok := g.Domain(d.Name())
		if !ok {
			continue
		}
		if link, err := protocol.NewLink(d.CID()); err != nil || link != dom.Dataset {
			return nil, fmt.Errorf("%w: %s here is %s, the genesis names %s (another Go version or other files?)", ErrWrongData, d.Name(), d.CID(), dom.Dataset)
		}
		if _, err := d.Draw([32]byte{}, 0, n.window(), nil); err != nil {
			return nil, err // no piece can hold such a window
		}
		q := n.quota(d.Name())
		need := int64(g.Params.ProbeSamples) + 4*int64(g.Params.ExcludeCycles+1)*int64(q.Score+q.Merge)
		if have := d.Windows(data.HeldOut, n.window()); have >= 0 && have < need {
			return nil, fmt.Errorf("%w: domain %s has %d held-out samples, the parameters need %d: about %d KiB more text", ErrSmallPool,
				d.Name(), have, need, (need-have)*int64(n.window())*1000/int64(d.HeldOutPermille())>>10)
		}
		n.Data[d.Name()] = d
		n.probes[d.Name()] = sync.OnceValues(func() (probe, error) { return n.drawProbe(d) })
	}
	return n, nil
}

func (n *Network) drawProbe(d *data.Dataset) (probe, error) {
	s, err := d.Draw(seedOf("probe", d.Name()), int(n.Genesis.Params.ProbeSamples), n.window(), nil)
	if err != nil {
		return probe{}, err
	}
	p := probe{samples: s, ids: validation.Set{}}
	for _, x := range s {
		p.ids[x.ID()] = struct{}{}
	}
	return p, nil
}

// window is the bytes of a sample.
func (n *Network) window() int { return int(n.Genesis.Params.SequenceLength) + 1 }

// seq is how many tokens of a sample the model sees: one for every byte but the last with the byte-level tokenizer, and a
// quarter of that with another. What a window has more is cut off, and what it has less is not measured.
func (n *Network) seq(t Tokenizer) int { return max(1, (n.window()-1)/t.bytes()) }

// Sequence is how many tokens of a sample the model of the checkpoint in dir sees.
func (n *Network) Sequence(dir string) (int, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_, t, err := readConfig(c, dir)
	return n.seq(t), err
}

// quota is how many samples a cycle takes from a domain. A group's score has a share of canary samples.
func (n *Network) quota(domain string) validation.Quota {
	p := n.Genesis.Params
	canary := p.ScoreSamples * p.CanaryPermille / 1000
	q := validation.Quota{Score: int(p.ScoreSamples - canary), Merge: int(p.MergeSamples)}
	if domain == n.Genesis.Canary {
		q.Score = int(canary)
	}
	return q
}

// group returns the group of that name in the state, with its names listed on error.
func group(s protocol.ProtocolState, name string) (protocol.Group, error) {
	var names []string
	for _, g := range s.Groups {
		if g.Name == name {
			return g, nil
		}
		names = append(names, g.Name)
	}
	return protocol.Group{}, fmt.Errorf("no group %q in this checkpoint, it has %v", name, names)
}

// Draw returns a cycle's samples of a domain in the tokens of t; see validation.Draw.
func (n *Network) Draw(t Tokenizer, domain string, cycle uint64, beacons []validation.Beacon) (score, mergeSplit []validation.Sample, err error) {
	d, err := n.dataset(domain)
	if err != nil {
		return nil, nil, err
	}
	if most := int(n.Genesis.Params.ExcludeCycles) + 1; len(beacons) > most {
		beacons = beacons[:most]
	}
	p, err := n.probes[domain]()
	if err != nil {
		return nil, nil, err
	}
	return validation.Draw(pool{d, n.window(), n.seq(t), t}, domain, cycle, beacons, n.quota(domain), p.ids)
}

// Probe measures the fixed probe of every domain present: the mean loss in nats per token. No decision rests on it.
func (n *Network) Probe(ctx context.Context, p *Phi, workers int) (map[string]float64, error) {
	return labelled(ctx, Evaluation, func(ctx context.Context) (map[string]float64, error) { return n.measureProbe(ctx, p, workers) })
}

func (n *Network) measureProbe(ctx context.Context, p *Phi, workers int) (map[string]float64, error) {
	out := map[string]float64{}
	for domain, draw := range n.probes {
		drawn, err := draw()
		if err != nil {
			return nil, err
		}
		samples := make([]validation.Sample, len(drawn.samples))
		for i, s := range drawn.samples {
			samples[i] = validation.Sample{ID: s.ID(), Document: s.Document, Tokens: p.Tokens.sample(s.Text, n.seq(p.Tokens))}
		}
		l, err := n.losses(p.Model, p.Tokens, workers, nil)(ctx, samples)
		if err != nil {
			return nil, err
		}
		var sum int64
		for _, x := range l {
			sum += x
		}
		out[domain] = float64(sum) / float64(len(l)) / 1e9
	}
	return out, nil
}

// belowLimit bounds what one measurement keeps of the unchanged model.
const belowLimit = 1 << 30

// below keeps what Φ computes below the experts of some groups.
func below(p *Phi, groups ...protocol.Group) *training.Below {
	layer := p.Model.Layers - 1
	for _, g := range groups {
		for _, e := range g.Experts {
			layer = min(layer, int(e.Layer))
		}
	}
	return training.NewBelow(p.Model, layer, belowLimit)
}

// losses is a model as validation sees it. below, which may be nil, is shared by the models of one measurement.
func (n *Network) losses(m *model.Model, t Tokenizer, workers int, below *training.Below) validation.Losses {
	e := training.Evaluator{Seq: n.seq(t), Workers: workers, Spare: n.spare, Below: below}
	return func(ctx context.Context, samples []validation.Sample) ([]int64, error) {
		sequences := make([][]int32, len(samples))
		for i, s := range samples {
			sequences[i] = s.Tokens
		}
		l, err := e.Losses(ctx, m, sequences)
		if err == nil && n.Measured != nil {
			n.Measured(len(sequences))
		}
		return l, err
	}
}
