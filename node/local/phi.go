package local

import (
	"fmt"
	"maps"
	"slices"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// Phi is a checkpoint loaded for computing.
type Phi struct {
	Link  protocol.Link
	State protocol.ProtocolState
	Model *model.Model
	Parts checkpoint.Parts // the files it was read from

	spent bool // Model is for one training run, which changes it
}

// LoadPhi opens the checkpoint in dir. Every weight must be finite, every group's experts in the model.
func LoadPhi(b backend.Backend, dir string) (*Phi, error) {
	return loadPhi(dir, whole(b), false)
}

// loader makes a model of weights.
type loader func(model.Config, model.Source) (*model.Model, error)

func whole(b backend.Backend) loader {
	return func(c model.Config, src model.Source) (*model.Model, error) { return model.New(b, c, src) }
}

// LoadVerified is LoadPhi of a directory that is known to be the checkpoint of that link and those parts: its files are
// not hashed.
func LoadVerified(b backend.Backend, dir string, link protocol.Link, parts checkpoint.Parts) (*Phi, error) {
	p, err := openPhi(dir, whole(b), false)
	if err != nil {
		return nil, err
	}
	p.Link, p.Parts = link, parts
	return p, nil
}

func loadPhi(dir string, load loader, spent bool) (*Phi, error) {
	p, err := openPhi(dir, load, spent)
	if err != nil {
		return nil, err
	}
	root, parts, err := checkpoint.Blocks(dir, nil, nil)
	if err != nil {
		return nil, err
	}
	p.Parts = parts
	p.Link, err = protocol.NewLink(root)
	return p, err
}

// openPhi is loadPhi without link and parts.
func openPhi(dir string, load loader, spent bool) (*Phi, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p := &Phi{spent: spent}
	if p.Model, err = loadModel(c, dir, load); err != nil {
		return nil, err
	}
	p.State, err = decodeState(c, dir, p.Model.Config)
	return p, err
}

// LoadNext opens the checkpoint in dir, which is known to be the one of that link and those parts, as a successor of p:
// weights of files that both have are shared with p, and only the others are read. Where the two have another
// configuration it is LoadPhi.
func (p *Phi) LoadNext(dir string, link protocol.Link, parts checkpoint.Parts) (*Phi, error) {
	same := parts.Same(p.Parts)
	for _, name := range append(tokenizerFiles(), checkpoint.ConfigName) {
		if _, ok := same[name]; !ok {
			return LoadPhi(p.Model.Backend(), dir)
		}
	}
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	changed := map[string][]float32{}
	for _, s := range p.Model.Specs() {
		info, err := c.Tensor(s.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", dir, model.ErrWeights, err)
		}
		if _, ok := same[info.File]; ok {
			continue
		}
		v := make([]float32, s.Len())
		if err := readWeight(c, s, v); err != nil {
			return nil, fmt.Errorf("%s: %w: %s: %w", dir, model.ErrWeights, s.Name, err)
		}
		changed[s.Name] = v
	}
	next := &Phi{Link: link, Parts: parts}
	if next.Model, err = p.Model.Overlay(changed); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	next.State, err = decodeState(c, dir, next.Model.Config)
	return next, err
}

// tokenizerFiles are the names of the tokenizer's documents.
func tokenizerFiles() []string { return slices.Sorted(maps.Keys(tokenizer.Files())) }

// readConfig reads config.json and checks the tokenizer of an opened checkpoint.
func readConfig(c *checkpoint.Checkpoint, dir string) (model.Config, error) {
	fail := func(err error) (model.Config, error) { return model.Config{}, err }
	raw, err := c.Document(checkpoint.ConfigName)
	if err != nil {
		return fail(err)
	}
	config, err := model.ParseConfig(raw)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", dir, err))
	}
	if raw, err = c.Document(tokenizer.JSONFile); err != nil {
		return fail(fmt.Errorf("%s: %s: %w", dir, tokenizer.JSONFile, err))
	}
	if _, err := tokenizer.Parse(raw); err != nil {
		return fail(fmt.Errorf("%s: %w", dir, err))
	}
	if config.Vocab < tokenizer.VocabSize {
		return fail(fmt.Errorf("%s: config.json: vocab_size %d, the tokenizer has %d", dir, config.Vocab, tokenizer.VocabSize))
	}
	return config, nil
}

// loadModel reads all weights of an opened checkpoint.
func loadModel(c *checkpoint.Checkpoint, dir string, load loader) (*model.Model, error) {
	config, err := readConfig(c, dir)
	if err != nil {
		return nil, err
	}
	m, err := load(config, func(s model.Spec, dst []float32) error { return readWeight(c, s, dst) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

// readWeight fills dst with a tensor, which must have the shape that the configuration wants, and be finite.
func readWeight(c *checkpoint.Checkpoint, s model.Spec, dst []float32) error {
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
}

// layout lists a group's tensors in the order of a delta.
func (p *Phi) layout(g protocol.Group) []delta.Tensor {
	return delta.Layout(g, p.Model.Dim, p.Model.Width)
}

// Expect is what a delta of a group of p must be.
func (n *Network) Expect(p *Phi, name string) (delta.Expect, error) {
	g, err := group(p.State, name)
	if err != nil {
		return delta.Expect{}, err
	}
	return n.expect(p, g), nil
}

func (n *Network) expect(p *Phi, g protocol.Group) delta.Expect {
	return delta.Expect{Base: p.Link, Group: g.Name, Tensors: p.layout(g), TopK: int(n.Genesis.Params.TopK)}
}

// read returns the values that an entry of a delta is about: a whole tensor, or some rows of a router.
func read(m *model.Model, t delta.Tensor) []float32 { return entry(m.Read(t.CheckpointName()), t) }

// entry takes from a tensor what an entry of a delta is about.
func entry(all []float32, t delta.Tensor) []float32 {
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
