package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/model"
)

// drawn is a model with heads of 64 values, which the kernels for sm_90a want, with weights drawn at random and a batch.
func drawn(seed uint64) golden {
	c := model.Config{Vocab: 320, Dim: 128, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 64, Experts: 4, TopK: 2, Width: 72, Positions: 72,
		Normalize: true, RopeTheta: 10000, NormEps: 1e-5}
	r := rand.New(rand.NewPCG(seed, 5))
	g := golden{Config: c.JSON(), Seq: 72, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		v := make([]float32, s.Len())
		for i := range v {
			v[i] = float32(r.NormFloat64() / math.Sqrt(float64(s.Shape[len(s.Shape)-1])))
			row, col := i/c.Dim, i%c.Dim
			switch {
			case strings.Contains(s.Name, "norm"):
				v[i] += 1
			case strings.Contains(s.Name, "embed") && col < c.Experts: // marks of a token's experts, so that rounding changes no choice
				v[i] += [4]float32{8, 6, 0, 0}[(row+col)%4]
			case strings.Contains(s.Name, "mlp.gate."):
				v[i] /= 10
				if row == col {
					v[i] += 0.5
				}
			}
		}
		g.Weights[s.Name] = v
	}
	for range 2 * g.Seq {
		g.Tokens, g.Targets = append(g.Tokens, r.Int32N(int32(c.Vocab))), append(g.Targets, r.Int32N(int32(c.Vocab)))
	}
	return g
}

// TestFastModel trains whole models in fast mode, on cards old and new, and compares them with the processor in float32. The
// gradients of the second step are left out: AdamW makes a step of the same size of a gradient that is next to nothing.
func TestFastModel(t *testing.T) {
	host, err := cpu.New(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	g := drawn(1)
	for what, group := range map[string][]model.ExpertRef{"all": nil, "group": {{Layer: 0, Index: 1}, {Layer: 1, Index: 0}}} {
		want := g.run(t, host, group, 1e-4)
		norm := float64(want["norm"][0])
		for _, c := range []emu.Config{{}, {Major: 9}, {Major: 9, Reverse: true, Prompt: true}} {
			if !everything && group != nil && (c.Major == 0 || c.Prompt) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d.0 reverse %v prompt %v", what, max(8, c.Major), c.Reverse, c.Prompt), func(t *testing.T) {
				device, err := cuda.New(emu.Test(t, c), cuda.Options{Mode: cuda.Fast, Resident: 1, Untried: true})
				if err != nil {
					t.Fatal(err)
				}
				got := g.run(t, device, group, 1e-4)
				for name, w := range want {
					size, difference := apart(make([]float32, len(w)), w), apart(got[name], w)
					limit := 0.01 * size
					switch {
					case name == "losses":
						continue
					case strings.HasPrefix(name, "gradient 1"):
						limit = math.Inf(1)
					case strings.HasPrefix(name, "gradient"): // those of routers are what is left of much larger ones
						limit = 0.02*size + 0.003*norm
					}
					if !(difference <= limit) {
						t.Errorf("%s is %v away, of a size of %v", name, difference, size)
					}
				}
				for i, w := range whole(want["losses"]) {
					if l := whole(got["losses"])[i]; !(math.Abs(l-w) <= 0.02*w) {
						t.Errorf("loss %d is %v, want %v", i, l, w)
					}
				}
			})
		}
	}
}

// apart is the root of the sum of squares of the difference.
func apart(got, want []float32) float64 {
	sum := 0.0
	for i, w := range want {
		sum += math.Pow(float64(got[i])-float64(w), 2)
	}
	return math.Sqrt(sum)
}

// whole puts the halves together that [golden.run] makes of losses.
func whole(halves []float32) (v []float64) {
	for i := 0; i < len(halves); i += 2 {
		v = append(v, math.Float64frombits(uint64(math.Float32bits(halves[i]))<<32|uint64(math.Float32bits(halves[i+1]))))
	}
	return v
}
