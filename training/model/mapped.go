package model

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// View gives the bytes of a tensor where they lie in a file, little endian, bfloat16 ones if half and otherwise float32; nil
// if it lies nowhere in one piece.
type View func(s Spec) (raw []byte, half bool)

// NewMapped is New for a model whose matrices stay in their files and come into memory when they are used. What is to be
// trained is given float32 values by Overlay. On a backend that is no backend.Mapper it fails.
func NewMapped(b backend.Backend, c Config, src Source, view View) (*Model, error) {
	mapper, ok := b.(backend.Mapper)
	if !ok {
		return nil, fmt.Errorf("model: weights in files: %w (%s)", backend.ErrUnsupported, b.Name())
	}
	return loadWith(b, c, src, func(s Spec) (backend.Weight, error) {
		if len(s.Shape) != 2 {
			return nil, nil
		}
		raw, half := view(s)
		if raw == nil {
			return nil, nil
		}
		return mapper.Map(raw, half, s.Shape[0], s.Shape[1])
	}, func(string) bool { return false })
}
