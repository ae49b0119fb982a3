package cpu

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
)

// Attention and the mixture by the words of docs/spec/exact.md, without panels, blocks of rows or threads: what the
// kernels compute must equal this to the bit.

// specAttention is one head of one sequence; q, k and v are [t, d]. It returns the probabilities, [t, t].
func specAttention(q, k, v []float32, t, d int) (out, p []float32) {
	scale := 1 / sqrt(float32(d))
	out, p = make([]float32, t*d), make([]float32, t*t)
	z := scalarKernels()
	for i := range t {
		horizon := min(i/16*16+16, t)
		row := make([]float32, 16*(i/16+1))
		for j := range row {
			row[j] = -inf
		}
		specProduct(row, 0, 1, i+1, d, at(q[i*d:], 0, 1), at(k, 1, d), false)
		sum := z.expSum(row, row, scale, float32(z.maximum(row)*scale))
		inverse := 1 / sum
		for j := range i + 1 {
			p[i*t+j] = row[j] * inverse
		}
		specProduct(out[i*d:], 0, 1, d, horizon, at(p[i*t:], 0, 1), at(v, d, 1), false)
	}
	return out, p
}

// specAttentionGrad sets dq and, as the first head of its group, sets dk and dv; a later head adds.
func specAttentionGrad(dq, dk, dv, dout, p, q, k, v []float32, t, d int, add bool) {
	scale := 1 / sqrt(float32(d))
	ds := make([]float32, t*t)
	z := scalarKernels()
	for i := range t {
		horizon := min(i/16*16+16, t)
		dp, pr := make([]float32, 16*(i/16+1)), make([]float32, 16*(i/16+1))
		specProduct(dp, 0, 1, horizon, d, at(dout[i*d:], 0, 1), at(v, 1, d), false)
		copy(pr, p[i*t:][:horizon])
		dot := z.dot(pr, dp)
		for j := range horizon {
			ds[i*t+j] = float32(pr[j]*float32(dp[j]-dot)) * scale
		}
		specProduct(dq[i*d:], 0, 1, d, horizon, at(ds[i*t:], 0, 1), at(k, d, 1), false)
	}
	for lo := 0; lo < t; lo += 16 { // rows of dk and dv; the sum runs over the rows i ≥ lo, blocks of 256 from lo
		m := min(16, t-lo)
		specProduct(dv[lo*d:], d, m, d, t-lo, at(p[lo*t+lo:], 1, t), at(dout[lo*d:], d, 1), add)
		specProduct(dk[lo*d:], d, m, d, t-lo, at(ds[lo*t+lo:], 1, t), at(q[lo*d:], d, 1), add)
	}
}

// column cuts n columns from col out of rows rows of x.
func column(x []float32, rows, width, col, n int) []float32 {
	var out []float32
	for r := range rows {
		out = append(out, x[r*width+col:][:n]...)
	}
	return out
}

func TestAttentionDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	value := func() float32 { return float32(r.NormFloat64()) * 2 }
	for _, s := range []backend.AttentionShape{
		{Seq: 1, Heads: 1, KVHeads: 1, HeadDim: 2}, {Seq: 17, Heads: 4, KVHeads: 2, HeadDim: 6}, {Seq: 64, Heads: 2, KVHeads: 2, HeadDim: 16}, {Seq: 300, Heads: 2, KVHeads: 1, HeadDim: 10},
	} {
		const sequences = 2
		rows, qw, kw, d := sequences*s.Seq, s.Heads*s.HeadDim, s.KVHeads*s.HeadDim, s.HeadDim
		q, k, v, dout := fill(rows*qw, value), fill(rows*kw, value), fill(rows*kw, value), fill(rows*qw, value)
		type head struct{ out, dq, dk, dv []float32 }
		heads := map[int]head{}
		for n := range sequences {
			for h := range s.Heads {
				kv := h / (s.Heads / s.KVHeads)
				cut := func(x []float32, width, i int) []float32 {
					return column(x[n*s.Seq*width:], s.Seq, width, i*d, d)
				}
				q, k, v, dout := cut(q, qw, h), cut(k, kw, kv), cut(v, kw, kv), cut(dout, qw, h)
				out, p := specAttention(q, k, v, s.Seq, d)
				g := head{out, make([]float32, len(q)), make([]float32, len(k)), make([]float32, len(v))}
				first := h%(s.Heads/s.KVHeads) == 0
				if !first {
					before := heads[n*s.Heads+h-1]
					g.dk, g.dv = slices.Clone(before.dk), slices.Clone(before.dv)
				}
				specAttentionGrad(g.dq, g.dk, g.dv, dout, p, q, k, v, s.Seq, d, !first)
				heads[n*s.Heads+h] = g
			}
		}
		for _, b := range backends(t, 1, 3) {
			name := fmt.Sprintf("%s %+v ", b.Name(), s)
			out, state, dq := make(floats, rows*qw), b.NewAttn(s, rows, true), make(floats, rows*qw)
			dk, dv := make(floats, rows*kw), make(floats, rows*kw)
			b.Attention(out, floats(q), floats(k), floats(v), state)
			b.AttentionGrad(dq, dk, dv, floats(dout), out, floats(q), floats(k), floats(v), state)
			forward := make(floats, rows*qw)
			b.Attention(forward, floats(q), floats(k), floats(v), b.NewAttn(s, rows, false))
			compare(t, name+"out without keeping", forward, out)
			for n := range sequences {
				for h := range s.Heads {
					cut := func(x []float32, width, i int) []float32 {
						return column(x[n*s.Seq*width:], s.Seq, width, i*d, d)
					}
					want, group := heads[n*s.Heads+h], s.Heads/s.KVHeads
					compare(t, name+"out", cut(out, qw, h), want.out)
					compare(t, name+"dq", cut(dq, qw, h), want.dq)
					if h%group == group-1 {
						compare(t, name+"dk", cut(dk, kw, h/group), want.dk)
						compare(t, name+"dv", cut(dv, kw, h/group), want.dv)
					}
				}
			}
		}
	}
}

// row multiplies one row by a matrix w [out, in], or with back by its transpose.
func row(x, w []float32, out, in int, back bool) []float32 {
	if back {
		y := make([]float32, in)
		specProduct(y, 0, 1, in, out, at(x, 0, 1), at(w, in, 1), false)
		return y
	}
	y := make([]float32, out)
	specProduct(y, 0, 1, out, in, at(x, 0, 1), at(w, 1, in), false)
	return y
}

// specSlot is what one token sends through one of its experts, and back.
type specSlot struct {
	token      int
	x, a, y    []float32
	dy, dg, du []float32
}

// specMixture computes forward and backward for every slot, and the router, one token after the other.
func specMixture(s backend.MixtureShape, x, dy, logits []float32, e [][3][]float32, balance float32) (y, dx, dlogits []float32, slots [][]specSlot) {
	tokens, z := len(x)/s.Model, scalarKernels()
	y, dx, dlogits, slots = make([]float32, len(x)), make([]float32, len(x)), make([]float32, len(logits)), make([][]specSlot, s.Experts)
	probs, chosen := make([][]float32, tokens), make([][]int, tokens)
	load := make([]int, s.Experts)
	for t := range tokens {
		p := slices.Clone(logits[t*s.Experts:][:s.Experts])
		inverse := 1 / z.expSum(p, p, 1, z.maximum(p))
		for i := range p {
			p[i] *= inverse
		}
		order := make([]int, s.Experts)
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case p[a] > p[b]:
				return -1
			case p[a] < p[b]:
				return 1
			}
			return 0
		})
		probs[t], chosen[t] = p, order[:s.TopK]
		for _, c := range chosen[t] {
			load[c]++
		}
	}
	for t := range tokens {
		p, total := probs[t], float32(0)
		for _, c := range chosen[t] {
			total += p[c]
		}
		w, dw, mean := make([]float32, s.TopK), make([]float32, s.TopK), float32(0)
		out, back, dl := y[t*s.Model:][:s.Model], dx[t*s.Model:][:s.Model], dlogits[t*s.Experts:][:s.Experts]
		for n, c := range chosen[t] {
			w[n] = p[c]
			if s.Normalize {
				w[n] /= total
			}
			q := specSlot{token: t, x: x[t*s.Model:][:s.Model], a: make([]float32, s.Width), dg: make([]float32, s.Width), du: make([]float32, s.Width)}
			g, u := row(q.x, e[c][0], s.Width, s.Model, false), row(q.x, e[c][1], s.Width, s.Model, false)
			z.siluMul(q.a, g, u)
			q.y = row(q.a, e[c][2], s.Model, s.Width, false)
			d := dy[t*s.Model:][:s.Model]
			dw[n] = z.dot(d, q.y)
			q.dy = make([]float32, s.Model)
			for i := range out {
				if n == 0 {
					out[i] = q.y[i] * w[n]
				} else {
					out[i] = fma(w[n], q.y[i], out[i])
				}
				q.dy[i] = d[i] * w[n]
			}
			z.siluMulGrad(q.dg, q.du, row(q.dy, e[c][2], s.Model, s.Width, true), g, u)
			through := row(q.dg, e[c][0], s.Width, s.Model, true)
			specProduct(through, 0, 1, s.Model, s.Width, at(q.du, 0, 1), at(e[c][1], s.Model, 1), true)
			for i, v := range through {
				back[i] += v
			}
			slots[c] = append(slots[c], q)
			mean = fma(dw[n], w[n], mean)
		}
		for c := range dl {
			if balance != 0 {
				dl[c] = float32(float32(balance*float32(s.Experts))*(float32(load[c])/float32(tokens))) / float32(tokens)
			}
		}
		for n, c := range chosen[t] {
			if s.Normalize {
				dl[c] += (dw[n] - mean) / total
			} else {
				dl[c] += dw[n]
			}
		}
		mean = 0
		for c := range dl {
			mean = fma(p[c], dl[c], mean)
		}
		for c := range dl {
			dl[c] = p[c] * (dl[c] - mean)
		}
	}
	return y, dx, dlogits, slots
}

func TestMixtureDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	value := func() float32 { return float32(r.NormFloat64()) / 2 }
	for _, s := range []backend.MixtureShape{
		{Experts: 3, TopK: 2, Model: 20, Width: 12, Normalize: true}, {Experts: 20, TopK: 3, Model: 17, Width: 33}, {Experts: 2, TopK: 2, Model: 16, Width: 16},
		{Experts: 2, TopK: 1, Model: 40, Width: 530}, {Experts: 2, TopK: 1, Model: 530, Width: 24}, // so wide that columns are shared out
	} {
		tokens := 450
		if s.Model*s.Width > 10000 {
			tokens = 20
		}
		const balance = 0.01
		x, dy, logits := fill(tokens*s.Model, value), fill(tokens*s.Model, value), fill(tokens*s.Experts, value)
		logits[3] = logits[2] // a tie, sometimes among the chosen
		var e [][3][]float32
		n := s.Model * s.Width
		for range s.Experts {
			e = append(e, [3][]float32{fill(n, value), fill(n, value), fill(n, value)})
		}
		y, dx, dlogits, slots := specMixture(s, x, dy, logits, e, balance)
		var grads [][3][]float32 // by the slots of an expert in the order of tokens
		for c := range e {
			k := len(slots[c])
			of := func(f func(q *specSlot) []float32) func(i, k int) float32 {
				return func(i, k int) float32 { return f(&slots[c][k])[i] }
			}
			turn := func(f func(i, k int) float32) func(k, j int) float32 {
				return func(k, j int) float32 { return f(j, k) }
			}
			g := [3][]float32{make([]float32, n), make([]float32, n), make([]float32, n)}
			if k > 0 {
				in := turn(of(func(q *specSlot) []float32 { return q.x }))
				specProduct(g[0], s.Model, s.Width, s.Model, k, of(func(q *specSlot) []float32 { return q.dg }), in, true)
				specProduct(g[1], s.Model, s.Width, s.Model, k, of(func(q *specSlot) []float32 { return q.du }), in, true)
				specProduct(g[2], s.Width, s.Model, s.Width, k, of(func(q *specSlot) []float32 { return q.dy }), turn(of(func(q *specSlot) []float32 { return q.a })), true)
			}
			grads = append(grads, g)
		}
		for _, b := range backends(t, 1, 3) {
			name := fmt.Sprintf("%s %+v ", b.Name(), s)
			var experts []backend.Expert
			var got []backend.ExpertGrad
			for _, w := range e {
				experts = append(experts, backend.Expert{Gate: b.Prepare(floats(w[0]), s.Width, s.Model), Up: b.Prepare(floats(w[1]), s.Width, s.Model), Down: b.Prepare(floats(w[2]), s.Model, s.Width)})
				got = append(got, backend.ExpertGrad{Gate: b.Alloc(n), Up: b.Alloc(n), Down: b.Alloc(n)})
			}
			m := b.NewMix(s, tokens, true)
			gotY, gotX, gotL := make(floats, len(x)), make(floats, len(x)), make(floats, len(logits))
			b.Mixture(gotY, floats(x), floats(logits), experts, m)
			b.MixtureGrad(gotX, gotL, floats(dy), floats(x), experts, got, m, balance)
			compare(t, name+"y", gotY, y)
			b.Mixture(gotY, floats(x), floats(logits), experts, b.NewMix(s, tokens, false))
			compare(t, name+"y without keeping", gotY, y)
			onto := append([]float32(nil), dy...)
			for i := range onto {
				onto[i] += y[i]
			}
			b.MixtureOnto(gotY, floats(dy), floats(x), floats(logits), experts, b.NewMix(s, tokens, false))
			compare(t, name+"y on something", gotY, onto)
			compare(t, name+"dx", gotX, dx)
			compare(t, name+"dlogits", gotL, dlogits)
			for c := range e {
				compare(t, name+"dgate", host(got[c].Gate), grads[c][0])
				compare(t, name+"dup", host(got[c].Up), grads[c][1])
				compare(t, name+"ddown", host(got[c].Down), grads[c][2])
			}
		}
	}
}

// TestRoute holds the choice of experts against its definition, for logits that no model should have too.
func TestRoute(t *testing.T) {
	for draw, value := range draws {
		r := rand.New(rand.NewPCG(6, 6))
		for _, experts := range []int{3, 14, 16, 40} {
			const tokens, topK = 50, 3
			logits := fill(tokens*experts, func() float32 { return value(r) })
			logits[1] = logits[0]
			var probs []float32
			for _, b := range backends(t, 1) {
				m := b.NewMix(backend.MixtureShape{Experts: experts, TopK: topK}, tokens, false).(*mix)
				b.route(m, logits, 0, tokens)
				if probs == nil {
					probs = m.probs
				}
				name := fmt.Sprintf("%s, %s logits of %d experts", b.Name(), draw, experts)
				compare(t, name, m.probs, probs)
				for i := range tokens {
					p, taken := m.probs[i*m.padded():][:experts], map[int]bool{}
					for s := range topK {
						best := -1
						for j := range p {
							if !taken[j] && (best < 0 || p[j] > p[best]) {
								best = j
							}
						}
						taken[best] = true
						if got := m.expert[i*topK+s]; int(got) != best || !same(m.weight[i*topK+s], p[best]) {
							t.Fatalf("%s: slot %d of token %d is expert %d, want %d of %v", name, s, i, got, best, p)
						}
					}
				}
			}
		}
	}
}
