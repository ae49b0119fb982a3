package local

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/training/model"
)

// weights are a model's tensors in an opened checkpoint, whatever they are called there.
type weights struct {
	c  *checkpoint.Checkpoint
	at map[string]place // by the model's name
}

// place is where a tensor of the model lies: in a tensor of the files, from that value on.
type place struct {
	info  checkpoint.Info
	first int64
}

// openWeights finds every tensor of the configuration in c, which must hold them in their shapes and none besides: one
// that is not known would change what the model computes.
func openWeights(c *checkpoint.Checkpoint, dir string, config model.Config) (*weights, error) {
	w := &weights{c: c, at: map[string]place{}}
	fault := func(file, tensor, field, format string, a ...any) error {
		return fmt.Errorf("%w: %w", model.ErrWeights,
			&checkpoint.FormatError{File: filepath.Join(dir, file), Tensor: tensor, Field: field, Reason: fmt.Sprintf(format, a...)})
	}
	list := checkpoint.IndexName
	if files := c.Files(); len(files) == 1 && files[0].Name == checkpoint.SingleName {
		list = checkpoint.SingleName
	}
	_, err := c.Tensor(model.FusedName)
	fused := err == nil
	if n := 3 * config.Layers * config.Experts; !fused && n > len(c.Tensors()) { // before so many names are made
		return nil, fault(checkpoint.ConfigName, "", "", "%d layers of %d experts are %d tensors, the files have %d",
			config.Layers, config.Experts, n, len(c.Tensors()))
	}
	known := map[string]bool{}
	for _, s := range config.Stored(fused) {
		info, err := c.Tensor(s.Name)
		if err != nil {
			return nil, fault(list, s.Name, "", "missing; config.json (model_type %s) wants it", config.Family)
		}
		if !equal(info.Shape, s.Shape) {
			if n := len(s.Shape); n == 3 && equal(info.Shape, []int{s.Shape[0], s.Shape[2], s.Shape[1]}) {
				return nil, fault(info.File, info.Name, "shape",
					"%v: matrices of experts are transposed, and are not read so; config.json wants %v", info.Shape, s.Shape)
			}
			return nil, fault(info.File, info.Name, "shape", "%v, config.json wants %v", info.Shape, s.Shape)
		}
		known[s.Name] = true
		first := int64(0)
		for _, p := range s.Parts {
			w.at[p.Name] = place{info, first}
			first += int64(p.Len())
		}
	}
	for _, info := range c.Tensors() {
		ignored := strings.HasSuffix(info.Name, ".rotary_emb.inv_freq") || config.Tied && info.Name == "lm_head.weight"
		if !known[info.Name] && !ignored {
			return nil, fault(info.File, info.Name, "",
				"not a tensor of the model that config.json describes (model_type %s): what it would change is not known", config.Family)
		}
	}
	return w, nil
}

func equal(shape []int64, want []int) bool {
	return slices.EqualFunc(shape, want, func(a int64, b int) bool { return a == int64(b) })
}

// read fills dst with a tensor, every value finite.
func (w *weights) read(s model.Spec, dst []float32) error {
	p := w.at[s.Name]
	return w.c.ReadFinitePart(p.info.Name, p.first, dst)
}

// view gives a tensor where it is mapped.
func (w *weights) view(s model.Spec) (raw []byte, half bool) {
	p := w.at[s.Name]
	all, err := w.c.View(p.info.Name)
	size := p.info.DType.Size()
	if err != nil || p.info.DType != checkpoint.BF16 && p.info.DType != checkpoint.F32 {
		return nil, false // reading it says why
	}
	return all[p.first*size:][:int64(s.Len())*size], p.info.DType == checkpoint.BF16
}

// load returns a tensor.
func (w *weights) load(s model.Spec) ([]float32, error) {
	v := make([]float32, s.Len())
	return v, w.read(s, v)
}
