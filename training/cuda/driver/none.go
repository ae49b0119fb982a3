//go:build !cuda

package driver

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/cuda"
)

// Built says whether the binary was built with the tag cuda.
const Built = false

var errNotBuilt = fmt.Errorf("%w: this binary was built without CUDA; make cuda builds one with it", cuda.ErrNoDriver)

// Open fails: the binary was built without CUDA.
func Open(ordinal int) (cuda.Driver, error) { return nil, errNotBuilt }

// List fails: the binary was built without CUDA.
func List() ([]cuda.Info, error) { return nil, errNotBuilt }
