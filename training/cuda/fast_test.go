package cuda_test

import (
	"testing"

	"github.com/blockzero-net/bzd/training/backend/backendtest"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

// bfloat16 is the tolerance of operations whose operands have eight bits: a product's error grows with the root of its
// length, and gradients pass several.
const bfloat16 = 0.03

func TestFast(t *testing.T) {
	b, err := cuda.New(emu.Test(t, emu.Config{}), cuda.Options{Mode: cuda.Fast})
	if err != nil {
		t.Fatal(err)
	}
	backendtest.RunAll(t, b, backendtest.Options{Tolerance: bfloat16})
}
