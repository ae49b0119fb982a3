package local

import (
	"fmt"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
)

// Phi is a checkpoint loaded for computing.
type Phi struct {
	Link  protocol.Link
	State protocol.ProtocolState
	Model *model.Model
	Parts checkpoint.Parts // the files it was read from

	Tokens Tokenizer

	documents map[string][]byte // config.json, the tokenizer and what else came with the model; nil: this build's own
	spent     bool              // Model is for one training run, which changes it
	mapped    *mapped           // the files that Model lies in; nil if it is in memory
}

// LoadPhi opens the checkpoint in dir. Every weight must be finite, every group's experts in the model.
func LoadPhi(b backend.Backend, dir string) (*Phi, error) {
	return loadPhi(dir, whole(b), false)
}

// loader makes a model of weights.
type loader func(model.Config, *weights) (*model.Model, error)

func whole(b backend.Backend) loader {
	return func(c model.Config, w *weights) (*model.Model, error) {
		if err := checkMemory(b, c); err != nil {
			return nil, err
		}
		return model.New(b, c, w.read)
	}
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
	return p, p.read(c, dir, load)
}

// read fills p from an opened checkpoint.
func (p *Phi) read(c *checkpoint.Checkpoint, dir string, load loader) error {
	config, tokens, err := readConfig(c, dir)
	if err != nil {
		return err
	}
	p.Tokens = tokens
	if p.documents, err = readDocuments(c); err != nil {
		return err
	}
	if p.State, err = decodeState(c, dir, config); err != nil {
		return err
	}
	p.Model, err = loadModel(c, dir, config, load)
	return err
}

// LoadNext opens the checkpoint in dir, which is known to be the one of that link and those parts, as a successor of p:
// weights of files that both have are shared with p, and only the others are read. Where the two have another
// configuration it is LoadPhi.
func (p *Phi) LoadNext(dir string, link protocol.Link, parts checkpoint.Parts) (*Phi, error) {
	same := parts.Same(p.Parts)
	for name := range p.documents {
		if _, ok := same[name]; !ok {
			return LoadPhi(p.Model.Backend(), dir)
		}
	}
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	w, err := openWeights(c, dir, p.Model.Config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	changed := map[string][]float32{}
	for _, s := range p.Model.Specs() {
		if _, ok := same[w.at[s.Name].info.File]; ok {
			continue
		}
		v, err := w.load(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s: %w", dir, model.ErrWeights, s.Name, err)
		}
		changed[s.Name] = v
	}
	next := &Phi{Link: link, Parts: parts, Tokens: p.Tokens, documents: p.documents}
	if next.Model, err = p.Model.Overlay(changed); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	next.State, err = decodeState(c, dir, next.Model.Config)
	return next, err
}

// readConfig reads config.json and the tokenizer of an opened checkpoint.
func readConfig(c *checkpoint.Checkpoint, dir string) (model.Config, Tokenizer, error) {
	raw, err := c.Document(checkpoint.ConfigName)
	if err != nil {
		return model.Config{}, Tokenizer{}, err
	}
	config, err := model.ParseConfig(raw)
	if err != nil {
		return model.Config{}, Tokenizer{}, fmt.Errorf("%s: %w", dir, err)
	}
	t, err := readTokenizer(c, dir, config)
	return config, t, err
}

// readDocuments reads all documents but the protocol's state.
func readDocuments(c *checkpoint.Checkpoint) (map[string][]byte, error) {
	all := map[string][]byte{}
	for _, name := range c.Documents() {
		if name == stateFile {
			continue
		}
		raw, err := c.Document(name)
		if err != nil {
			return nil, err
		}
		all[name] = raw
	}
	return all, nil
}

// loadModel reads all weights of an opened checkpoint.
func loadModel(c *checkpoint.Checkpoint, dir string, config model.Config, load loader) (*model.Model, error) {
	w, err := openWeights(c, dir, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	m, err := load(config, w)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
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
