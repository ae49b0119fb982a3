package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
	"github.com/blockzero-net/bzd/validation"
)

// Network is a genesis with the datasets that are on this machine.
type Network struct {
	Genesis protocol.Genesis
	Data    map[string]*data.Dataset

	probes map[string]validation.Set
	probe  map[string][]validation.Sample
	spare  *training.Spare
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
	n := &Network{Genesis: g, Data: map[string]*data.Dataset{}, probes: map[string]validation.Set{}, probe: map[string][]validation.Sample{}, spare: &training.Spare{}}
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
		s, err := pool{d, n.window()}.Draw(seedOf("probe", d.Name()), int(g.Params.ProbeSamples), nil)
		if err != nil {
			return nil, err
		}
		n.probe[d.Name()], n.probes[d.Name()] = s, validation.Set{}
		for _, x := range s {
			n.probes[d.Name()][x.ID] = struct{}{}
		}
	}
	return n, nil
}

func (n *Network) window() int { return int(n.Genesis.Params.SequenceLength) + 1 }

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

// Draw returns a cycle's samples of a domain; see validation.Draw.
func (n *Network) Draw(domain string, cycle uint64, beacons []validation.Beacon) (score, mergeSplit []validation.Sample, err error) {
	d, err := n.dataset(domain)
	if err != nil {
		return nil, nil, err
	}
	if most := int(n.Genesis.Params.ExcludeCycles) + 1; len(beacons) > most {
		beacons = beacons[:most]
	}
	return validation.Draw(pool{d, n.window()}, domain, cycle, beacons, n.quota(domain), n.probes[domain])
}

// Probe measures the fixed probe of every domain present: the mean loss in nats per token. No decision rests on it.
func (n *Network) Probe(ctx context.Context, p *Phi, workers int) (map[string]float64, error) {
	out := map[string]float64{}
	for domain, samples := range n.probe {
		l, err := n.losses(p.Model, workers)(ctx, samples)
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

// losses is a model as validation sees it.
func (n *Network) losses(m *model.Model, workers int) validation.Losses {
	e := training.Evaluator{Seq: n.window() - 1, Workers: workers, Spare: n.spare}
	return func(ctx context.Context, samples []validation.Sample) ([]int64, error) {
		sequences := make([][]int32, len(samples))
		for i, s := range samples {
			sequences[i] = s.Tokens
		}
		return e.Losses(ctx, m, sequences)
	}
}

// Phi is a checkpoint loaded for computing.
type Phi struct {
	Link  protocol.Link
	State protocol.ProtocolState
	Model *model.Model
}

// LoadPhi opens the checkpoint in dir. Every weight must be finite, every group's experts in the model.
func LoadPhi(b backend.Backend, dir string) (*Phi, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	m, err := loadModel(b, c, dir)
	if err != nil {
		return nil, err
	}
	raw, err := c.Document(stateFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w (a model from elsewhere? see bzd checkpoint import)", dir, stateFile, err)
	}
	p := &Phi{Model: m}
	if p.State, err = protocol.DecodeProtocolState(raw); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", dir, stateFile, err)
	}
	for _, g := range p.State.Groups {
		for _, e := range g.Experts {
			if int(e.Layer) >= m.Layers || int(e.Index) >= m.Experts {
				return nil, fmt.Errorf("%s: %s: group %s has expert %d of layer %d, the model has %d of %d", dir, stateFile, g.Name, e.Index, e.Layer, m.Experts, m.Layers)
			}
		}
	}
	root, err := c.CID()
	if err != nil {
		return nil, err
	}
	p.Link, err = protocol.NewLink(root)
	return p, err
}

// loadModel reads config.json, the tokenizer and all weights of an opened checkpoint.
func loadModel(b backend.Backend, c *checkpoint.Checkpoint, dir string) (*model.Model, error) {
	raw, err := c.Document(checkpoint.ConfigName)
	if err != nil {
		return nil, err
	}
	config, err := model.ParseConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if raw, err = c.Document(tokenizer.JSONFile); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", dir, tokenizer.JSONFile, err)
	}
	if _, err := tokenizer.Parse(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if config.Vocab < tokenizer.VocabSize {
		return nil, fmt.Errorf("%s: config.json: vocab_size %d, the tokenizer has %d", dir, config.Vocab, tokenizer.VocabSize)
	}
	m, err := model.New(b, config, func(s model.Spec, dst []float32) error {
		info, err := c.Tensor(s.Name)
		if err != nil {
			return err
		}
		if len(info.Shape) != len(s.Shape) {
			return fmt.Errorf("shape %v in %s, config.json wants %v", info.Shape, info.File, s.Shape)
		}
		for i, d := range s.Shape {
			if info.Shape[i] != int64(d) {
				return fmt.Errorf("shape %v in %s, config.json wants %v", info.Shape, info.File, s.Shape)
			}
		}
		return readTensor(c, s, dst)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

// layout lists a group's tensors in the order of a delta.
func (p *Phi) layout(g protocol.Group) []delta.Tensor {
	return delta.Layout(g, p.Model.Dim, p.Model.Width)
}

// Expect is what a delta of a group must be.
func (p *Phi) Expect(name string) (delta.Expect, error) {
	g, err := group(p.State, name)
	if err != nil {
		return delta.Expect{}, err
	}
	return delta.Expect{Base: p.Link, Group: name, Tensors: p.layout(g)}, nil
}

// read returns the values that an entry of a delta is about: a whole tensor, or some rows of a router.
func read(m *model.Model, t delta.Tensor) []float32 {
	all := m.Read(t.CheckpointName())
	if t.Rows == nil {
		return all
	}
	width := int(t.Shape[1])
	var v []float32
	for _, r := range t.Rows {
		v = append(v, all[int(r)*width:][:width]...)
	}
	return v
}
