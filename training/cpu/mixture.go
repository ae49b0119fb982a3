package cpu

import (
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// mix keeps one layer's routing and, gathered by expert, its activations. Slot s of token t is index t·TopK+s.
type mix struct {
	backend.MixtureShape
	keep   bool
	tokens int

	probs  []float32 // [tokens, Experts]
	expert []int32   // [tokens·TopK]
	weight []float32 // [tokens·TopK]
	place  []int32   // [tokens·TopK]: row of the slot in the gathered arrays
	source []int32   // the inverse: slot of a gathered row
	first  []int     // [Experts+1]: gathered rows of expert e are first[e] to first[e+1]
	load   []int

	x, y    []float32 // [tokens·TopK, Model]
	g, u, a []float32 // [tokens·TopK, Width]
	dy, da  []float32 // gradients, same shapes as y and a
}

// NewMix allocates for rows rows.
func (b *Backend) NewMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
	n := rows * s.TopK
	m := &mix{
		MixtureShape: s, keep: keep,
		probs: make([]float32, rows*s.Experts), expert: make([]int32, n), weight: make([]float32, n),
		place: make([]int32, n), source: make([]int32, n), first: make([]int, s.Experts+1), load: make([]int, s.Experts),
		x: make([]float32, n*s.Model), y: make([]float32, n*s.Model),
		g: make([]float32, n*s.Width), u: make([]float32, n*s.Width), a: make([]float32, n*s.Width),
	}
	if keep {
		m.dy, m.da = make([]float32, n*s.Model), make([]float32, n*s.Width)
	}
	return m
}

func (m *mix) Load() []int { return m.load }

// route fills probs, expert and weight for the tokens lo to hi.
func (b *Backend) route(m *mix, logits []float32, lo, hi int) {
	e := m.Experts
	row := make([]float32, (e+15)&^15)
	for t := lo; t < hi; t++ {
		copy(row, logits[t*e:][:e])
		for j := e; j < len(row); j++ {
			row[j] = float32(math.Inf(-1))
		}
		sum := b.expSum(row, row, 1, b.maximum(row))
		b.kernels.scale(row, row, 1/sum)
		p := m.probs[t*e:][:e]
		copy(p, row)
		chosen := m.expert[t*m.TopK:][:m.TopK]
		for s := range chosen {
			best := int32(-1)
		next:
			for j := range p {
				for _, c := range chosen[:s] {
					if c == int32(j) {
						continue next
					}
				}
				if best < 0 || p[j] > p[best] {
					best = int32(j)
				}
			}
			chosen[s] = best
		}
		w := m.weight[t*m.TopK:][:m.TopK]
		var total float32
		for s, c := range chosen {
			w[s] = p[c]
			total += p[c]
		}
		if m.Normalize {
			for s := range w {
				w[s] /= total
			}
		}
	}
}

// gather orders slots by expert, and by token within an expert.
func (m *mix) gather() {
	clear(m.load)
	n := m.tokens * m.TopK
	for _, e := range m.expert[:n] {
		m.load[e]++
	}
	for e, l := range m.load {
		m.first[e+1] = m.first[e] + l
	}
	next := append([]int(nil), m.first...)
	for s, e := range m.expert[:n] {
		m.place[s] = int32(next[e])
		m.source[next[e]] = int32(s)
		next[e]++
	}
}

// chunk is a run of gathered rows of one expert: the unit of parallel work.
type chunk struct{ expert, lo, hi int }

func (b *Backend) chunks(m *mix) []chunk {
	var c []chunk
	grain := m.tokens * m.TopK
	if b.threads > 1 {
		grain = 4 * b.rowGrain()
	}
	for e := range m.Experts {
		for lo := m.first[e]; lo < m.first[e+1]; lo += grain {
			c = append(c, chunk{e, lo, min(lo+grain, m.first[e+1])})
		}
	}
	return c
}

// Mixture routes and runs the experts.
func (b *Backend) Mixture(y, x, logits backend.Buffer, experts []backend.Expert, mx backend.Mix) {
	Y, X, L, m := host(y), host(x), host(logits), mx.(*mix)
	d, f, k := m.Model, m.Width, m.TopK
	m.tokens = len(X) / d
	b.rowsOf(m.tokens, normRows, func(lo, hi int) { b.route(m, L, lo, hi) })
	m.gather()
	chunks := b.chunks(m)
	b.par(len(chunks), func(i int) {
		c := chunks[i]
		gate, up, down := expertWeights(experts[c.expert])
		for r := c.lo; r < c.hi; r++ {
			t := int(m.source[r]) / k
			copy(m.x[r*d:][:d], X[t*d:][:d])
		}
		b.product(m.g, f, view{m.x, d, 1}, gate.packedForward(), c.lo, c.hi, false)
		b.product(m.u, f, view{m.x, d, 1}, up.packedForward(), c.lo, c.hi, false)
		b.siluMul(m.a[c.lo*f:c.hi*f], m.g[c.lo*f:c.hi*f], m.u[c.lo*f:c.hi*f])
		b.product(m.y, d, view{m.a, f, 1}, down.packedForward(), c.lo, c.hi, false)
	})
	b.rowsOf(m.tokens, normRows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			out := Y[t*d:][:d]
			for s := t * k; s < (t+1)*k; s++ {
				row := m.y[int(m.place[s])*d:][:d]
				if s == t*k {
					b.kernels.scale(out, row, m.weight[s])
				} else {
					b.axpy(out, row, m.weight[s])
				}
			}
		}
	})
}

func expertWeights(e backend.Expert) (gate, up, down *weight) {
	return e.Gate.(*weight), e.Up.(*weight), e.Down.(*weight)
}

// MixtureGrad is the gradient of Mixture.
func (b *Backend) MixtureGrad(dx, dlogits, dy, _ backend.Buffer, experts []backend.Expert, grads []backend.ExpertGrad, mx backend.Mix, balance float32) {
	DX, DL, DY, m := host(dx), host(dlogits), host(dy), mx.(*mix)
	d, f, k := m.Model, m.Width, m.TopK
	b.rowsOf(m.tokens, normRows, func(lo, hi int) {
		dw := make([]float32, k)
		for t := lo; t < hi; t++ {
			g := DY[t*d:][:d]
			for s := range k {
				r := int(m.place[t*k+s])
				dw[s] = b.dot(g, m.y[r*d:][:d])
				b.kernels.scale(m.dy[r*d:][:d], g, m.weight[t*k+s])
			}
			m.routeGrad(DL[t*m.Experts:][:m.Experts], dw, t, balance)
		}
	})
	for e, g := range grads {
		if g.Down != nil {
			lo, hi := m.first[e], m.first[e+1]
			b.gradWeight(host(g.Down), m.dy[lo*d:hi*d], m.a[lo*f:hi*f], hi-lo)
		}
	}
	chunks := b.chunks(m)
	b.par(len(chunks), func(i int) {
		c := chunks[i]
		trained := grads[c.expert].Gate != nil
		if DX == nil && !trained {
			return
		}
		gate, up, down := expertWeights(experts[c.expert])
		b.product(m.da, f, view{m.dy, d, 1}, down.packedBack(), c.lo, c.hi, false)
		lo, hi := c.lo*f, c.hi*f
		// m.a is not needed any more: it takes the gradient of u, and m.da that of g.
		b.siluMulGrad(m.da[lo:hi], m.a[lo:hi], m.da[lo:hi], m.g[lo:hi], m.u[lo:hi])
		if DX != nil {
			b.product(m.y, d, view{m.da, f, 1}, gate.packedBack(), c.lo, c.hi, false)
			b.product(m.y, d, view{m.a, f, 1}, up.packedBack(), c.lo, c.hi, true)
		}
	})
	for e, g := range grads {
		if g.Gate != nil {
			lo, hi := m.first[e], m.first[e+1]
			b.gradWeight(host(g.Gate), m.da[lo*f:hi*f], m.x[lo*d:hi*d], hi-lo)
			b.gradWeight(host(g.Up), m.a[lo*f:hi*f], m.x[lo*d:hi*d], hi-lo)
		}
	}
	if DX == nil {
		return
	}
	b.rowsOf(m.tokens, normRows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			for s := t * k; s < (t+1)*k; s++ {
				b.add(DX[t*d:][:d], m.y[int(m.place[s])*d:][:d])
			}
		}
	})
}

// routeGrad sets dl, the gradient of token t's router logits, from dw, that of its slots' weights.
func (m *mix) routeGrad(dl, dw []float32, t int, balance float32) {
	p := m.probs[t*m.Experts:][:m.Experts]
	chosen, w := m.expert[t*m.TopK:][:m.TopK], m.weight[t*m.TopK:][:m.TopK]
	for e := range dl {
		dl[e] = 0
		if balance != 0 {
			share := float32(m.load[e]) / float32(m.tokens)
			dl[e] = float32(float32(balance*float32(m.Experts))*share) / float32(m.tokens)
		}
	}
	if m.Normalize {
		var total, mean float32
		for s, c := range chosen {
			total += p[c]
			mean = fma(dw[s], w[s], mean)
		}
		for s, c := range chosen {
			dl[c] += (dw[s] - mean) / total
		}
	} else {
		for s, c := range chosen {
			dl[c] += dw[s]
		}
	}
	var mean float32
	for e := range dl {
		mean = fma(p[e], dl[e], mean)
	}
	for e := range dl {
		dl[e] = p[e] * (dl[e] - mean)
	}
}
