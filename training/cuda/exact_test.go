package cuda_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/backend/backendtest"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

// exactBackend is a backend in exact mode on an emulated device.
func exactBackend(t *testing.T, c emu.Config) *cuda.Backend {
	t.Helper()
	b, err := cuda.New(emu.Test(t, c), cuda.Options{Mode: cuda.Exact})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExactSuite(t *testing.T) {
	for name, c := range map[string]emu.Config{"": {}, "reverse": {Reverse: true}} {
		t.Run(name, func(t *testing.T) {
			backendtest.RunAll(t, exactBackend(t, c), backendtest.Options{Exact: true})
		})
	}
}

// launches notes which kernels were started.
type launches struct {
	cuda.Driver
	names map[cuda.Function]string
	seen  map[string]bool
}

func (l *launches) Load(ptx []byte, names []string) (map[string]cuda.Function, error) {
	all, err := l.Driver.Load(ptx, names)
	for name, f := range all {
		l.names[f] = name
	}
	return all, err
}

func (l *launches) Launch(f cuda.Function, grid, block [3]int, shared int, s cuda.Stream, args ...any) error {
	l.seen[l.names[f]] = true
	return l.Driver.Launch(f, grid, block, shared, s, args...)
}

// trial runs operations on a device and on the processor, and compares bits.
type trial struct {
	*testing.T
	device, host backend.Backend
	seed         uint64
}

// side is one of the two. Both draw the same values.
type side struct {
	backend.Backend
	*rand.Rand
	skew int // values that buffers lie beyond an aligned address
}

// value is of a random sign and magnitude, from 2⁻¹⁹ to 2, and sometimes a zero of either sign.
func (s *side) value() float32 {
	x := float32(s.Float64()*2-1) * float32(math.Ldexp(1, 1-s.IntN(20)))
	if s.IntN(16) == 0 {
		return float32(math.Copysign(0, float64(x)))
	}
	return x
}

func (s *side) values(n int, scale float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = s.value() * scale
	}
	return v
}

// shortValues are those of a bfloat16.
func (s *side) shortValues(n int, scale float32) []float32 {
	v := s.values(n, scale)
	for i, x := range v {
		v[i] = math.Float32frombits(math.Float32bits(x) &^ 0xffff)
	}
	return v
}

func (s *side) put(v []float32) backend.Buffer {
	b := s.Alloc(len(v)+s.skew).Slice(s.skew, len(v))
	s.Write(b, v)
	return b
}

func (s *side) random(n int) backend.Buffer { return s.put(s.values(n, 1)) }

// weight is one of the three forms a weight can have: trained, frozen in float32, frozen in bfloat16.
func (s *side) weight(form, out, in int, scale float32) backend.Weight {
	switch form % 3 {
	case 0:
		return s.Prepare(s.put(s.values(out*in, scale)), out, in)
	case 1:
		return s.Freeze(s.values(out*in, scale), out, in, false)
	default:
		return s.Freeze(s.shortValues(out*in, scale), out, in, false)
	}
}

// same compares what f returns on both sides.
func (p *trial) same(name string, skew int, f func(s *side) []backend.Buffer) {
	p.Helper()
	p.seed++
	var got [2][][]float32
	for i, b := range []backend.Backend{p.device, p.host} {
		s := &side{b, rand.New(rand.NewPCG(p.seed, 7)), skew}
		results := f(s)
		if err := b.Sync(); err != nil {
			p.Fatalf("%s: %v", name, err)
		}
		for _, r := range results {
			v := make([]float32, r.Len())
			b.Read(v, r)
			got[i] = append(got[i], v)
		}
	}
	for i := range got[0] {
		compare(p.T, fmt.Sprintf("%s, result %d", name, i), got[0][i], got[1][i])
	}
}

// compare compares bits; any NaN equals any.
func compare(t *testing.T, name string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if math.Float32bits(g) != math.Float32bits(w) && (g == g || w == w) {
			t.Errorf("%s: value %d of %d is %v (%08x), the processor says %v (%08x)", name, i, len(want), g, math.Float32bits(g), w, math.Float32bits(w))
			return
		}
	}
}

// TestExactShapes compares with package cpu, on devices so small and so large that every kernel runs.
func TestExactShapes(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []emu.Config{{SMs: 1}, {SMs: 1000, Reverse: true}} {
		t.Run(fmt.Sprintf("%d multiprocessors", c.SMs), func(t *testing.T) {
			host, err := cpu.New(cpu.Options{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			device, err := cuda.New(&launches{emu.Test(t, c), map[cuda.Function]string{}, seen}, cuda.Options{Mode: cuda.Exact})
			if err != nil {
				t.Fatal(err)
			}
			p := &trial{T: t, device: device, host: host}
			p.products()
			p.underflow()
			p.rows()
			p.attention()
			p.mixtures()
			p.ends()
		})
	}
	for _, m := range kernels.Modules() {
		if !slices.Contains([]string{"gemm_exact", "exact", "attention_exact", "mixture_exact"}, m.Name) {
			continue
		}
		for _, k := range m.Kernels {
			if !seen[k] {
				t.Errorf("kernel %s did not run", k)
			}
		}
	}
}

func (p *trial) products() {
	for i, s := range []struct{ rows, in, out int }{
		{1, 8, 8}, {3, 5, 7}, {130, 24, 136}, {64, 272, 72}, {129, 264, 64}, {40, 520, 132}, {260, 16, 24}, {16, 12, 20}, {200, 257, 30}, {5, 1040, 260},
	} {
		for form := range 3 {
			for _, skew := range []int{0, 4, 1} {
				if skew == 4 && form > 0 {
					continue // only trained weights lie where the caller says
				}
				name := fmt.Sprintf("[%d %d %d] form %d skew %d", s.rows, s.in, s.out, form, skew)
				p.same(name, skew, func(b *side) []backend.Buffer {
					x, dy := b.random(s.rows*s.in), b.random(s.rows*s.out)
					w := b.weight(form+i, s.out, s.in, 1)
					y, dx, added, dw := b.random(s.rows*s.out), b.random(s.rows*s.in), b.random(s.rows*s.in), b.random(s.out*s.in)
					b.Linear(y, x, w)
					b.LinearGradInput(dx, dy, w, false)
					b.LinearGradInput(added, dy, w, true)
					b.LinearGradWeight(dw, dy, x, s.rows)
					return []backend.Buffer{y, dx, added, dw}
				})
			}
		}
	}
}

// underflow multiplies values so small that sums are −0 and denormal: zeros that pad k must not show.
func (p *trial) underflow() {
	for _, scale := range []float32{0x1p-76, 0x1p-68} {
		for i, s := range []struct{ rows, in, out int }{{9, 3, 5}, {70, 20, 12}, {36, 264, 8}, {20, 36, 68}} {
			for _, skew := range []int{0, 3} {
				p.same(fmt.Sprintf("[%d %d %d] of %g", s.rows, s.in, s.out, scale), skew, func(b *side) []backend.Buffer {
					x, dy, w := b.put(b.values(s.rows*s.in, scale)), b.put(b.values(s.rows*s.out, scale)), b.weight(i, s.out, s.in, scale)
					y, dx, dw := b.random(s.rows*s.out), b.random(s.rows*s.in), b.put(b.values(s.out*s.in, scale*scale))
					b.Linear(y, x, w)
					b.LinearGradInput(dx, dy, w, false)
					b.LinearGradWeight(dw, dy, x, s.rows)
					return []backend.Buffer{y, dx, dw}
				})
			}
		}
	}
}

func (p *trial) rows() {
	for _, s := range []struct{ rows, d int }{{1, 1}, {9, 130}, {150, 36}, {3, 2050}} {
		p.same(fmt.Sprintf("norm [%d %d]", s.rows, s.d), 2, func(b *side) []backend.Buffer {
			x, w, dy, y, inv := b.random(s.rows*s.d), b.random(s.d), b.random(s.rows*s.d), b.random(s.rows*s.d), b.random(s.rows)
			dx, dw, sum := b.random(s.rows*s.d), b.random(s.d), b.random(s.rows*s.d)
			b.RMSNorm(y, inv, x, w, 1e-5)
			b.RMSNormGrad(dx, dw, dy, inv, x, w)
			b.Sum(sum, x, y)
			return []backend.Buffer{y, inv, dx, dw, sum}
		})
	}
	for _, s := range []struct{ sequences, seq, heads, d int }{{1, 3, 1, 2}, {3, 7, 5, 38}, {2, 40, 3, 64}} {
		p.same(fmt.Sprintf("heads %v", s), 0, func(b *side) []backend.Buffer {
			n := s.sequences * s.seq * s.heads
			rope := backend.Rope{Cos: b.random(s.seq * s.d / 2), Sin: b.random(s.seq * s.d / 2), NegSin: b.random(s.seq * s.d / 2)}
			x, w, dy, y, inv, dx, dw := b.random(n*s.d), b.random(s.d), b.random(n*s.d), b.random(n*s.d), b.random(n), b.random(n*s.d), b.random(s.d)
			b.HeadNormRope(y, inv, x, w, rope, s.heads, s.seq, 1e-6)
			b.HeadNormRopeGrad(dx, dw, dy, inv, x, w, rope, s.heads, s.seq)
			return []backend.Buffer{y, inv, dx, dw}
		})
	}
}

func (p *trial) attention() {
	for _, s := range []struct{ sequences, seq, heads, kv, d int }{
		{2, 1, 2, 1, 4}, {1, 15, 2, 2, 7}, {2, 65, 4, 2, 16}, {1, 128, 2, 1, 68}, {1, 20, 1, 1, 260}, {1, 345, 3, 1, 6},
	} {
		for skew := range 2 {
			p.same(fmt.Sprintf("attention %v", s), skew, func(b *side) []backend.Buffer {
				shape := backend.AttentionShape{Seq: s.seq, Heads: s.heads, KVHeads: s.kv, HeadDim: s.d}
				rows := s.sequences * s.seq
				nq, nk := rows*s.heads*s.d, rows*s.kv*s.d
				q, k, v, dout, out := b.put(b.values(nq, 4)), b.put(b.values(nk, 4)), b.random(nk), b.random(nq), b.random(nq)
				dq, dk, dv := b.random(nq), b.random(nk), b.random(nk)
				a := b.NewAttn(shape, rows+s.seq, true)
				b.Attention(out, q, k, v, a)
				b.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
				return []backend.Buffer{out, dq, dk, dv}
			})
		}
	}
}

func (p *trial) mixtures() {
	for i, s := range []struct {
		tokens, experts, top, model, width int
		normalize, nothing                 bool // nothing: experts from the third on get no token
	}{
		{1, 1, 1, 4, 4, false, false}, {90, 6, 3, 24, 40, true, false}, {33, 20, 2, 17, 9, false, false}, {300, 3, 2, 16, 8, true, false},
		{130, 300, 4, 8, 16, false, false}, {140, 5, 2, 136, 72, true, true},
	} {
		for frozen := range 3 {
			skew := (i + frozen) % 2
			p.same(fmt.Sprintf("mixture %v, frozen %d", s, frozen), skew, func(b *side) []backend.Buffer {
				shape := backend.MixtureShape{Experts: s.experts, TopK: s.top, Model: s.model, Width: s.width, Normalize: s.normalize}
				var experts []backend.Expert
				grads := make([]backend.ExpertGrad, s.experts)
				size := s.model * s.width
				var results []backend.Buffer
				for e := range s.experts {
					form := 0
					if e%3 != frozen {
						form = 1 + e%2
					} else {
						grads[e] = backend.ExpertGrad{Gate: b.random(size), Up: b.random(size), Down: b.random(size)}
						results = append(results, grads[e].Gate, grads[e].Up, grads[e].Down)
					}
					experts = append(experts, backend.Expert{
						Gate: b.weight(form, s.width, s.model, 1), Up: b.weight(form, s.width, s.model, 1), Down: b.weight(form, s.model, s.width, 1)})
				}
				logits := b.values(s.tokens*s.experts, 4)
				for j := range logits {
					if s.nothing && j%s.experts >= 2 {
						logits[j] = -100
					}
				}
				x, dy, y := b.random(s.tokens*s.model), b.random(s.tokens*s.model), b.random(s.tokens*s.model)
				dlogits := b.random(len(logits))
				var dx backend.Buffer
				if frozen != 1 {
					dx = b.random(s.tokens * s.model)
					results = append(results, dx)
				}
				m := b.NewMix(shape, s.tokens+1, true)
				l := b.put(logits)
				b.Mixture(y, x, l, experts, m)
				load := make([]float32, s.experts)
				for e, n := range m.Load() {
					load[e] = float32(n)
				}
				b.MixtureGrad(dx, dlogits, dy, x, experts, grads, m, float32(frozen)/100)
				forward := b.random(s.tokens * s.model)
				b.Mixture(forward, x, l, experts, b.NewMix(shape, s.tokens, false))
				return append(results, y, dlogits, forward, b.put(load))
			})
		}
	}
}

func (p *trial) ends() {
	for _, s := range []struct{ rows, vocab, d int }{{1, 3, 5}, {300, 9, 40}, {20, 700, 530}} {
		for form := range 3 {
			p.same(fmt.Sprintf("ends %v", s), form, func(b *side) []backend.Buffer {
				ids := make([]int32, s.rows)
				for i := range ids {
					ids[i] = int32(b.IntN(s.vocab))
				}
				y, grad := b.random(s.rows*s.d), b.random(s.vocab*s.d)
				b.Embed(y, b.weight(form, s.vocab, s.d, 1), ids)
				b.EmbedGrad(grad, y, ids)
				logits, still := b.values(s.rows*s.vocab, 8), make([]float64, s.rows)
				losses := make([]float64, s.rows)
				g := b.put(logits)
				b.CrossEntropy(losses, g, ids, 0.25)
				b.CrossEntropy(still, b.put(logits), ids, 0)
				if err := b.Sync(); err != nil {
					p.Fatal(err)
				}
				var parts []float32
				for _, l := range append(losses, still...) {
					parts = append(parts, math.Float32frombits(uint32(math.Float64bits(l)>>32)), math.Float32frombits(uint32(math.Float64bits(l))))
				}
				cols := b.Alloc(s.rows * 2)
				b.Columns(cols, g, []int{s.vocab - 1, 0})
				return []backend.Buffer{y, grad, g, cols, b.put(parts)}
			})
		}
	}
	p.same("optimizer", 0, func(b *side) []backend.Buffer {
		m, v, g := b.random(3001), b.put(make([]float32, 3001)), b.random(3001)
		x := b.random(3001)
		h := backend.AdamW{Clip: 0.7, Beta1: 0.9, One1: 0.1, Beta2: 0.95, One2: 0.05, Step: 0.01, Root: 1.5, Eps: 1e-8, Decay: 0.02}
		b.AdamW(x, m, v, g, h)
		b.AdamW(x, m, v, g, h)
		long := b.random(2048*9 + 100)
		all := []backend.Buffer{x, long, long.Slice(1, 2048*7), long.Slice(4, 2048*5), long.Slice(0, 0), long.Slice(8, 3)}
		return []backend.Buffer{x, m, v, b.put(b.SumSquares(all))}
	})
}

// TestExactSpecialValues feeds infinities and NaN: where they appear is promised.
func TestExactSpecialValues(t *testing.T) {
	host, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	p := &trial{T: t, device: exactBackend(t, emu.Config{}), host: host}
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, odd := range [][]float32{{nan}, {inf}, {-inf}, {inf, -inf}, {-inf, -inf, nan, nan}} {
		name := strings.ReplaceAll(fmt.Sprint(odd), " ", ",")
		spoil := func(b *side, n, every int) backend.Buffer {
			v := b.values(n, 2)
			for i := range v {
				if i%every < len(odd) {
					v[i] = odd[i%every]
				}
			}
			return b.put(v)
		}
		p.same("cross-entropy "+name, 0, func(b *side) []backend.Buffer {
			l, losses := spoil(b, 5*40, 67), make([]float64, 5)
			b.CrossEntropy(losses, l, []int32{0, 1, 2, 39, 4}, 1)
			if err := b.Sync(); err != nil {
				t.Fatal(err)
			}
			sums := make([]float32, 5)
			for i, x := range losses {
				sums[i] = float32(x)
			}
			return []backend.Buffer{l, b.put(sums)}
		})
		p.same("router "+name, 0, func(b *side) []backend.Buffer {
			shape := backend.MixtureShape{Experts: 20, TopK: 3, Model: 4, Width: 4, Normalize: true}
			var experts []backend.Expert
			for range shape.Experts {
				experts = append(experts, backend.Expert{Gate: b.weight(0, 4, 4, 1), Up: b.weight(0, 4, 4, 1), Down: b.weight(0, 4, 4, 1)})
			}
			y, m := b.random(20), b.NewMix(shape, 5, false)
			b.Mixture(y, b.random(20), spoil(b, 5*20, 31), experts, m)
			load := make([]float32, shape.Experts)
			for e, n := range m.Load() {
				load[e] = float32(n)
			}
			return []backend.Buffer{y, b.put(load)}
		})
		p.same("all the logits of a router "+name, 0, func(b *side) []backend.Buffer {
			shape := backend.MixtureShape{Experts: 20, TopK: 3, Model: 4, Width: 4}
			var experts []backend.Expert
			for range shape.Experts {
				experts = append(experts, backend.Expert{Gate: b.weight(0, 4, 4, 1), Up: b.weight(0, 4, 4, 1), Down: b.weight(0, 4, 4, 1)})
			}
			y, m := b.random(4), b.NewMix(shape, 1, false)
			b.Mixture(y, b.random(4), spoil(b, 20, len(odd)), experts, m)
			load := make([]float32, shape.Experts)
			for e, n := range m.Load() {
				load[e] = float32(n)
			}
			return []backend.Buffer{y, b.put(load)}
		})
		p.same("attention "+name, 0, func(b *side) []backend.Buffer {
			shape := backend.AttentionShape{Seq: 37, Heads: 2, KVHeads: 1, HeadDim: 4}
			q, k, v := spoil(b, 37*8, 101), b.random(37*4), spoil(b, 37*4, 83)
			out, dq, dk, dv := b.random(37*8), b.random(37*8), b.random(37*4), b.random(37*4)
			a := b.NewAttn(shape, 37, true)
			b.Attention(out, q, k, v, a)
			b.AttentionGrad(dq, dk, dv, b.random(37*8), out, q, k, v, a)
			return []backend.Buffer{out, dq, dk, dv}
		})
	}
}
