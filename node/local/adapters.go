package local

import (
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/validation"
)

// pool gives a dataset's held-out windows to validation, as at most seq+1 tokens.
type pool struct {
	d           *data.Dataset
	window, seq int
	tokens      Tokenizer
}

func (p pool) Draw(seed [32]byte, n int, exclude validation.Set) ([]validation.Sample, error) {
	not := make(data.Set, len(exclude))
	for id := range exclude {
		not[data.SampleID(id)] = struct{}{}
	}
	drawn, err := p.d.Draw(seed, n, p.window, not)
	if err != nil {
		return nil, err
	}
	out := make([]validation.Sample, len(drawn))
	for i, s := range drawn {
		out[i] = validation.Sample{ID: s.ID(), Document: s.Document, Tokens: p.tokens.sample(s.Text, p.seq)}
	}
	return out, nil
}

// tensorReader is what an opened safetensors file and an opened checkpoint have in common.
type tensorReader interface {
	ReadFiniteF32(name string, dst []float32) error
}

func readTensor(r tensorReader, s model.Spec, dst []float32) error {
	return r.ReadFiniteF32(s.Name, dst)
}

func tensorOf(s model.Spec, t safetensors.DType, v []float32) safetensors.Tensor {
	shape := make([]int64, len(s.Shape))
	for i, d := range s.Shape {
		shape[i] = int64(d)
	}
	return safetensors.Tensor{Name: s.Name, DType: t, Shape: shape, Data: v}
}

// ErrNoData is wrapped when a domain's text is not on this machine.
var ErrNoData = errors.New("dataset not available")

func (n *Network) dataset(domain string) (*data.Dataset, error) {
	d, ok := n.Data[domain]
	if !ok {
		return nil, fmt.Errorf("%w: domain %q; give it with --data %s=DIR, or set GOROOT", ErrNoData, domain, domain)
	}
	return d, nil
}

// link turns a CID into the form that records hold.
func link(c cid.Cid, err error) (protocol.Link, error) {
	if err != nil {
		return protocol.Link{}, err
	}
	return protocol.NewLink(c)
}
