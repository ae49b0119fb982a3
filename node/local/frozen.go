package local

import (
	"fmt"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
)

// Outline is the configuration of the checkpoint in dir and the experts of one of its groups. It reads no weights.
func Outline(dir, name string) (model.Config, []model.ExpertRef, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return model.Config{}, nil, err
	}
	defer c.Close()
	config, _, err := readConfig(c, dir)
	if err != nil {
		return model.Config{}, nil, err
	}
	state, err := decodeState(c, dir, config)
	if err != nil {
		return model.Config{}, nil, err
	}
	g, err := group(state, name)
	if err != nil {
		return model.Config{}, nil, err
	}
	return config, experts(g), nil
}

// MatrixBytes is how many bytes all matrices of the checkpoint in dir have. It reads no weights.
func MatrixBytes(dir string) (int64, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	sum := int64(0)
	for _, t := range c.Tensors() {
		if len(t.Shape) > 1 {
			sum += t.Elements() * t.DType.Size()
		}
	}
	return sum, nil
}

// LoadToTrain is LoadPhi for one Train of the named group, which changes the weights in place: what the group does not
// train takes less memory, and may leave the device if the backend wants that. Nothing else can be done with it.
func LoadToTrain(b backend.Backend, dir, name string) (*Phi, error) {
	_, refs, err := Outline(dir, name)
	if err != nil {
		return nil, err
	}
	return loadPhi(dir, func(c model.Config, w *weights) (*model.Model, error) {
		if err := checkMemory(b, c); err != nil {
			return nil, err
		}
		return model.NewFrozen(b, c, w.read, refs)
	}, true)
}

// experts names a group's experts in the words of package model.
func experts(g protocol.Group) (refs []model.ExpertRef) {
	for _, e := range g.Experts {
		refs = append(refs, model.ExpertRef{Layer: int(e.Layer), Index: int(e.Index)})
	}
	return refs
}

// decodeState reads the protocol's state and checks that it is about a model of that configuration.
func decodeState(c *checkpoint.Checkpoint, dir string, m model.Config) (protocol.ProtocolState, error) {
	raw, err := c.Document(stateFile)
	if err != nil {
		return protocol.ProtocolState{}, fmt.Errorf("%s: %s: %w (a model from elsewhere? see bzd checkpoint import)", dir, stateFile, err)
	}
	state, err := protocol.DecodeProtocolState(raw)
	if err != nil {
		return protocol.ProtocolState{}, fmt.Errorf("%s: %s: %w", dir, stateFile, err)
	}
	for _, g := range state.Groups {
		for _, e := range g.Experts {
			if int(e.Layer) >= m.Layers || int(e.Index) >= m.Experts {
				return protocol.ProtocolState{}, fmt.Errorf("%s: %s: group %s has expert %d of layer %d, the model has %d of %d", dir, stateFile, g.Name, e.Index, e.Layer, m.Experts, m.Layers)
			}
		}
	}
	return state, nil
}
