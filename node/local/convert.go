package local

import (
	"fmt"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/model"
)

// foreign is a Hugging Face model of any family that is read tensor by tensor: it may be larger than memory.
type foreign struct {
	c      *checkpoint.Checkpoint
	w      *weights
	config model.Config
	tokens Tokenizer
}

func openForeign(dir string) (*foreign, error) {
	c, err := checkpoint.Open(dir)
	if err != nil {
		return nil, err
	}
	f := &foreign{c: c}
	if f.config, f.tokens, err = readConfig(c, dir); err == nil {
		if f.w, err = openWeights(c, dir, f.config); err != nil {
			err = fmt.Errorf("%s: %w", dir, err)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return f, nil
}

// write makes a checkpoint of it in dir. Hub weights are stored in bf16; one that is not exact there is refused unless
// round is set.
func (f *foreign) write(dir string, groups []protocol.Group, round bool) (protocol.Link, error) {
	documents, err := readDocuments(f.c)
	if err != nil {
		return protocol.Link{}, err
	}
	if documents[checkpoint.ConfigName], err = f.config.Amend(documents[checkpoint.ConfigName]); err != nil {
		return protocol.Link{}, err
	}
	exact := map[string]bool{} // stored in F32
	for l := range f.config.Layers {
		exact[model.RouterName(l)] = true
	}
	for _, g := range groups {
		for _, e := range g.Experts {
			for _, p := range []string{"gate", "up", "down"} {
				exact[model.ExpertName(int(e.Layer), int(e.Index), p)] = true
			}
		}
	}
	load := func(s model.Spec) ([]float32, error) {
		v, err := f.w.load(s)
		if round && !exact[s.Name] {
			for i := range v {
				v[i] = safetensors.RoundBF16(v[i])
			}
		}
		return v, err
	}
	state := protocol.ProtocolState{Version: protocol.Version, Groups: groups}
	root, _, err := writeCheckpoint(dir, contents{f.config, documents, state, load}, reuse{}, nil)
	return link(root, err)
}

// Import turns a Hugging Face model in src into a checkpoint in dst: every expert belongs to the hub and there are no
// groups yet. Hub weights are stored in bf16; one that is not exact there is refused unless round is set.
func Import(src, dst string, round bool) (protocol.Link, error) {
	f, err := openForeign(src)
	if err != nil {
		return protocol.Link{}, err
	}
	defer f.c.Close()
	return f.write(dst, nil, round)
}

// Export copies the checkpoint in src to dst and verifies the copy. It has the layout of the model's family.
func Export(src, dst string) (protocol.Link, error) { return link(checkpoint.Copy(dst, src)) }

// ExportFused writes the model of the checkpoint in src to dst with the experts of each layer in two tensors, as
// transformers 5 keeps them. It is no checkpoint: it has no groups.
func ExportFused(src, dst string) error {
	f, err := openForeign(src)
	if err != nil {
		return err
	}
	defer f.c.Close()
	documents, err := readDocuments(f.c)
	if err != nil {
		return err
	}
	var tensors []checkpoint.Tensor
	for _, s := range f.config.Stored(true) {
		t := checkpoint.BF16
		for _, p := range s.Parts {
			if f.w.at[p.Name].info.DType != checkpoint.BF16 {
				t = checkpoint.F32
			}
		}
		x := tensorOf(model.Spec{Name: s.Name, Shape: s.Shape}, t, nil)
		x.Load = func() (all []float32, err error) {
			for _, p := range s.Parts {
				v, err := f.w.load(p)
				if err != nil {
					return nil, err
				}
				all = append(all, v...)
			}
			return all, nil
		}
		tensors = append(tensors, x)
	}
	_, err = checkpoint.Write(dst, checkpoint.Contents{Documents: documents, Files: checkpoint.Shards("model", 0, tensors)})
	return err
}
