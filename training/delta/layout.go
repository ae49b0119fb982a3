package delta

import (
	"fmt"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// rowsSuffix marks an entry that holds some rows of a checkpoint tensor, not all of it.
const rowsSuffix = "#rows"

// Tensor is one trainable tensor of a group.
type Tensor struct {
	Name  string
	Shape []uint64
	// Rows are the rows of the checkpoint tensor that the entry holds, in order; nil if it holds all of it.
	Rows []uint32
}

// CheckpointName is the name of the tensor in the checkpoint: Name without "#rows".
func (t Tensor) CheckpointName() string { return strings.TrimSuffix(t.Name, rowsSuffix) }

// Layout returns the tensors of a group in the one order that deltas use, with the names of Hugging Face's qwen3_moe:
// layers ascending; in a layer first the router rows of the group's experts, [experts, dModel], then per expert
// ascending gate_proj [dFF, dModel], up_proj [dFF, dModel] and down_proj [dModel, dFF]. The group must be valid, so that
// its experts are sorted.
func Layout(group protocol.Group, dModel, dFF int) []Tensor {
	d, f := uint64(dModel), uint64(dFF)
	var tensors []Tensor
	for rest := group.Experts; len(rest) > 0; {
		layer, n := rest[0].Layer, 0
		var rows []uint32
		for n < len(rest) && rest[n].Layer == layer {
			rows = append(rows, rest[n].Index)
			n++
		}
		rest = rest[n:]
		mlp := fmt.Sprintf("model.layers.%d.mlp.", layer)
		tensors = append(tensors, Tensor{Name: mlp + "gate.weight" + rowsSuffix, Shape: []uint64{uint64(n), d}, Rows: rows})
		for _, index := range rows {
			expert := fmt.Sprintf("%sexperts.%d.", mlp, index)
			tensors = append(tensors,
				Tensor{Name: expert + "gate_proj.weight", Shape: []uint64{f, d}},
				Tensor{Name: expert + "up_proj.weight", Shape: []uint64{f, d}},
				Tensor{Name: expert + "down_proj.weight", Shape: []uint64{d, f}})
		}
	}
	return tensors
}
