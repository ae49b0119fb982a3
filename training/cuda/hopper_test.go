package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

// hopperTrial runs operations in fast mode on a card of compute capability 9.0 and in float32 on the processor. What goes in
// are bfloat16 values, so that only what happens inside differs.
type hopperTrial struct {
	*testing.T
	device, host backend.Backend
	seed         uint64
}

// near compares what f returns on both sides: an error may be the tolerance times the value and the root mean square.
func (p *hopperTrial) near(name string, tolerance float64, f func(s *side) []backend.Buffer) {
	p.Helper()
	p.seed++
	var got [2][][]float32
	for i, b := range []backend.Backend{p.device, p.host} {
		results := f(&side{b, rand.New(rand.NewPCG(p.seed, 3)), 0})
		if err := b.Sync(); err != nil {
			p.Fatalf("%s: %v", name, err)
		}
		for _, r := range results {
			v := make([]float32, r.Len())
			b.Read(v, r)
			got[i] = append(got[i], v)
		}
	}
	for i, want := range got[1] {
		square := 0.0
		for _, w := range want {
			square += float64(w) * float64(w)
		}
		size := math.Sqrt(square / float64(len(want)))
		for j, w := range want {
			if g := got[0][i][j]; !(math.Abs(float64(g)-float64(w)) <= tolerance*(math.Abs(float64(w))+size)+1e-6) {
				p.Errorf("%s, result %d: value %d of %d is %v, the processor says %v; their root mean square is %v", name, i, j, len(want), g, w, size)
				break
			}
		}
	}
}

// Tolerances are some roundings to bfloat16: one for products, or two where they are added to a bfloat16; four for gradients of
// experts; the gradient of attention subtracts what is nearly the same. The kernels for sm_80 are as far away.
const productTolerance, mixtureTolerance, attentionTolerance = 0.006, 0.025, 0.035

// normal are bfloat16 values of a standard deviation.
func (s *side) normal(n int, scale float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = math.Float32frombits(math.Float32bits(float32(s.NormFloat64()*scale)) &^ 0xffff)
	}
	return v
}

// activation holds values in the type of activations, wide ones in float32.
func (s *side) activation(v []float32) backend.Buffer {
	b := s.AllocActivation(len(v))
	s.Write(b, v)
	return b
}
func (s *side) wide(v []float32) backend.Buffer {
	b := s.Alloc(len(v))
	s.Write(b, v)
	return b
}

func (s *side) matrix(out, in int) backend.Weight {
	return s.Freeze(s.normal(out*in, 1/math.Sqrt(float64(in))), out, in, false)
}

// everything also runs what takes long and seldom says more: all orders in which the emulator can work, with all shapes.
var everything = os.Getenv("BZD_EMULATE") == "all"

// TestHopper compares operations that the kernels for sm_90a do, with threads in both orders and with what the copy engine and
// the tensor cores do as late and as early as it may be done.
func TestHopper(t *testing.T) {
	seen := map[string]bool{}
	for _, untried := range []bool{true, false} {
		for i, c := range []emu.Config{{SMs: 3}, {Reverse: true}, {Prompt: true, SMs: 2}, {Reverse: true, Prompt: true}} {
			if !everything && untried != (i == 1 || i == 2) {
				continue
			}
			c.Major = 9
			t.Run(fmt.Sprintf("untried %v reverse %v prompt %v", untried, c.Reverse, c.Prompt), func(t *testing.T) {
				host, err := cpu.New(cpu.Options{Threads: 2})
				if err != nil {
					t.Fatal(err)
				}
				d := &launches{emu.Test(t, c), map[cuda.Function]string{}, seen}
				device, err := cuda.New(d, cuda.Options{Mode: cuda.Fast, Untried: untried})
				if err != nil {
					t.Fatal(err)
				}
				p := &hopperTrial{T: t, device: device, host: host}
				p.products()
				p.mixtures(i)
				if untried {
					p.attention()
				}
			})
		}
	}
	for _, m := range kernels.Modules() {
		for _, k := range m.Kernels {
			if m.Arch == "sm_90a" && !seen[k] && !slices.Contains(notForHost, k) {
				t.Errorf("kernel %s did not run", k)
			}
		}
	}
}

// notForHost are kernels that no operation launches: the tests of package emu run them.
var notForHost = []string{"gemm_tn_bf16_sm90", "gemm_nt_grouped_f32_sm90", "gemm_nn_grouped_f32_sm90", "gemm_tn_grouped_bf16_sm90"}

func (p *hopperTrial) products() {
	shapes := []struct{ rows, in, out int }{
		{70, 64, 72}, {300, 136, 520}, {130, 1600, 72}, {130, 72, 1600}, {1600, 72, 136},
	}
	for _, s := range shapes {
		p.near(fmt.Sprint("product ", s), productTolerance, func(b *side) []backend.Buffer {
			x, dy := b.activation(b.normal(s.rows*s.in, 1)), b.activation(b.normal(s.rows*s.out, 1))
			w := b.matrix(s.out, s.in)
			y, wide := b.activation(b.normal(s.rows*s.out, 1)), b.wide(b.normal(s.rows*s.out, 1))
			old := b.normal(s.rows*s.in, 1)
			dx, added, sum := b.activation(old), b.activation(old), b.wide(old)
			dw := b.wide(b.normal(s.out*s.in, 1))
			b.Linear(y, x, w)
			b.Linear(wide, x, w)
			b.LinearGradInput(dx, dy, w, false)
			b.LinearGradInput(added, dy, w, true)
			b.LinearGradInput(sum, dy, w, true)
			b.LinearGradWeight(dw, dy, x, s.rows)
			return []backend.Buffer{y, wide, dx, added, sum, dw}
		})
	}
}

// mixtures takes every shape with all experts trained, some, or none, in turn from first on.
func (p *hopperTrial) mixtures(first int) {
	for i, s := range []struct {
		tokens, experts, top, model, width int
		rare                               bool // experts from the third on get few tokens, or none
	}{{300, 5, 2, 72, 328, true}, {70, 9, 3, 136, 64, false}, {240, 3, 1, 264, 80, false}} {
		for frozen := range 3 {
			if !everything && frozen != (first+i)%3 {
				continue
			}
			p.near(fmt.Sprintf("mixture %v, frozen %d", s, frozen), mixtureTolerance, func(b *side) []backend.Buffer {
				shape := backend.MixtureShape{Experts: s.experts, TopK: s.top, Model: s.model, Width: s.width, Normalize: i%2 == 0}
				var experts []backend.Expert
				var results []backend.Buffer
				grads := make([]backend.ExpertGrad, s.experts)
				for e := range s.experts {
					experts = append(experts, backend.Expert{Gate: b.matrix(s.width, s.model), Up: b.matrix(s.width, s.model), Down: b.matrix(s.model, s.width)})
					if frozen == 0 || frozen == 1 && e%2 == 0 {
						n := s.model * s.width
						g := backend.ExpertGrad{Gate: b.wide(b.normal(n, 1)), Up: b.wide(b.normal(n, 1)), Down: b.wide(b.normal(n, 1))}
						grads[e] = g
						results = append(results, g.Gate, g.Up, g.Down)
					}
				}
				logits := b.normal(s.tokens*s.experts, 1)
				for j := range logits {
					if s.rare && j%s.experts >= 2 && (j%s.experts == 3 || j > 40) {
						logits[j] = -100
					}
				}
				x, dy, y := b.activation(b.normal(s.tokens*s.model, 1)), b.activation(b.normal(s.tokens*s.model, 1)), b.activation(b.normal(s.tokens*s.model, 1))
				dl, l := b.wide(make([]float32, len(logits))), b.wide(logits)
				var dx backend.Buffer
				if frozen != 1 {
					dx = b.activation(b.normal(s.tokens*s.model, 1))
					results = append(results, dx)
				}
				m := b.NewMix(shape, s.tokens, true)
				b.Mixture(y, x, l, experts, m)
				b.MixtureGrad(dx, dl, dy, x, experts, grads, m, 0)
				once := b.activation(make([]float32, s.tokens*s.model))
				b.Mixture(once, x, l, experts, b.NewMix(shape, s.tokens, false))
				return append(results, y, dl, once)
			})
		}
	}
}

func (p *hopperTrial) attention() {
	shapes := []backend.AttentionShape{
		{Seq: 70, Heads: 2, KVHeads: 1, HeadDim: 64}, {Seq: 1, Heads: 2, KVHeads: 2, HeadDim: 128}, {Seq: 200, Heads: 1, KVHeads: 1, HeadDim: 64},
		{Seq: 200, Heads: 2, KVHeads: 1, HeadDim: 128}, {Seq: 400, Heads: 2, KVHeads: 1, HeadDim: 64}, {Seq: 333, Heads: 1, KVHeads: 1, HeadDim: 128},
	}
	if everything {
		shapes = append(shapes, backend.AttentionShape{Seq: 64, Heads: 1, KVHeads: 1, HeadDim: 128},
			backend.AttentionShape{Seq: 129, Heads: 4, KVHeads: 2, HeadDim: 128}, backend.AttentionShape{Seq: 333, Heads: 3, KVHeads: 3, HeadDim: 64})
	}
	for _, s := range shapes {
		tolerance, sharp := attentionTolerance, 1.0
		if s.Seq == 200 { // scores so far apart that maxima grow by more than the forward pass puts up with
			tolerance, sharp = 2*attentionTolerance, 8
		}
		p.near(fmt.Sprint("attention ", s), tolerance, func(b *side) []backend.Buffer {
			const sequences = 2
			rows := sequences * s.Seq
			nq, nk := rows*s.Heads*s.HeadDim, rows*s.KVHeads*s.HeadDim
			q, k, v := b.activation(b.normal(nq, sharp)), b.activation(b.normal(nk, 1)), b.activation(b.normal(nk, 1))
			out, dout := b.activation(b.normal(nq, 1)), b.activation(b.normal(nq, 1))
			dq, dk, dv := b.activation(b.normal(nq, 1)), b.activation(b.normal(nk, 1)), b.activation(b.normal(nk, 1))
			a := b.NewAttn(s, rows, true)
			b.Attention(out, q, k, v, a)
			b.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
			return []backend.Buffer{out, dq, dk, dv}
		})
	}
}

// TestHopperRefuses: what needs the copy engine fails on other cards.
func TestHopperRefuses(t *testing.T) {
	e := emu.Test(t, emu.Config{})
	if _, err := e.TensorMap(cuda.TensorSpec{}); err == nil || !strings.Contains(err.Error(), "9.0") {
		t.Errorf("a tensor map on 8.0: %v", err)
	}
	if _, err := e.Load(nil, []string{"gemm_nt_bf16_sm90"}); err == nil {
		t.Error("8.0 has a kernel of sm_90a")
	}
}
