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
	all := map[string]emu.Config{"8.0": {}, "9.0": {Major: 9}}
	if everything {
		all["9.0 reverse"] = emu.Config{Major: 9, Reverse: true}
		all["9.0 prompt"] = emu.Config{Major: 9, Prompt: true}
		all["9.0 reverse prompt"] = emu.Config{Major: 9, Reverse: true, Prompt: true}
	}
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			b, err := cuda.New(emu.Test(t, c), cuda.Options{Mode: cuda.Fast, Untried: true})
			if err != nil {
				t.Fatal(err)
			}
			backendtest.RunAll(t, b, backendtest.Options{Tolerance: bfloat16})
		})
	}
}
