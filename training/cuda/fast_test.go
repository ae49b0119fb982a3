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
	for name, c := range map[string]emu.Config{
		"": {}, "9.0": {Major: 9}, "9.0 reverse": {Major: 9, Reverse: true}, "9.0 prompt": {Major: 9, Prompt: true},
		"9.0 reverse prompt": {Major: 9, Reverse: true, Prompt: true},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := cuda.New(emu.Test(t, c), cuda.Options{Mode: cuda.Fast, Untried: true})
			if err != nil {
				t.Fatal(err)
			}
			backendtest.RunAll(t, b, backendtest.Options{Tolerance: bfloat16})
		})
	}
}
