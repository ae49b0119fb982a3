package cpu

import "github.com/blockzero-net/bzd/training/backend"

// mix keeps one layer's routing and, gathered by expert, its activations. Slot s of token t is index t·TopK+s.
type mix struct {
	backend.MixtureShape
	keep   bool
	tokens int

	probs  []float32 // [tokens, Experts], rows padded to a multiple of 16
	expert []int32   // [tokens·TopK]
	weight []float32 // [tokens·TopK]
	place  []int32   // [tokens·TopK]: row of the slot in the gathered arrays
	source []int32   // the inverse: slot of a gathered row
	first  []int     // [Experts+1]: gathered rows of expert e are first[e] to first[e+1]
	load   []int

	y       []float32 // [tokens·TopK, Model]
	x       []float32 // [tokens·TopK, Model], nil without keep
	g, u, a []float32 // [tokens·TopK, Width], nil without keep
	dy, da  []float32 // gradients, same shapes as y and a
}

// NewMix allocates for rows rows.
func (b *Backend) NewMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
	n := rows * s.TopK
	m := &mix{
		MixtureShape: s, keep: keep,
		probs: make([]float32, rows*((s.Experts+15)&^15)), expert: make([]int32, n), weight: make([]float32, n),
		place: make([]int32, n), source: make([]int32, n), first: make([]int, s.Experts+1), load: make([]int, s.Experts),
		y: make([]float32, n*s.Model),
	}
	if keep {
		m.x = make([]float32, n*s.Model)
		m.g, m.u, m.a = make([]float32, n*s.Width), make([]float32, n*s.Width), make([]float32, n*s.Width)
		m.dy, m.da = make([]float32, n*s.Model), make([]float32, n*s.Width)
	}
	return m
}

func (m *mix) Load() []int { return m.load }

// padded is the length of a row of probs.
func (m *mix) padded() int { return (m.Experts + 15) &^ 15 }

// route fills probs, expert and weight for the tokens lo to hi.
func (b *Backend) route(m *mix, logits []float32, lo, hi int) {
	e, pad := m.Experts, m.padded()
	probs := m.probs[lo*pad : hi*pad]
	b.move(probs, logits[lo*e:], hi-lo, e, e, pad, 16)
	b.softmax(probs, hi-lo, pad, pad, e-pad+16, 0, 1)
	for t := lo; t < hi; t++ {
		p, chosen, w := m.probs[t*pad:][:e], m.expert[t*m.TopK:][:m.TopK], m.weight[t*m.TopK:][:m.TopK]
		choose(chosen, p)
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

// choose sets chosen to where the largest values of p are, the first of equal ones first.
func choose(chosen []int32, p []float32) {
	for j, v := range p {
		s := min(j, len(chosen))
		if s == len(chosen) {
			if s--; !(v > p[chosen[s]]) {
				continue
			}
		}
		for ; s > 0 && v > p[chosen[s-1]]; s-- {
			chosen[s] = chosen[s-1]
		}
		chosen[s] = int32(j)
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

// chunk is a part of an expert's product: gathered rows, and columns of the result. next is the expert that the same
// goroutine will probably work for after it.
type chunk struct{ expert, lo, hi, n0, n1, next int }

// chunks cuts the products with n columns of all experts that use has into parts that keep all threads busy.
func (b *Backend) chunks(m *mix, n int, use func(e int) bool) (c []chunk, split bool) {
	for e := range m.Experts {
		lo, hi := m.first[e], m.first[e+1]
		if lo == hi || !use(e) {
			continue
		}
		rows, cols := b.cut(hi-lo, n, (8*b.threads+m.Experts-1)/m.Experts)
		split = split || cols < n
		for r := lo; r < hi; r += rows {
			for j := 0; j < n; j += cols {
				c = append(c, chunk{e, r, min(r+rows, hi), j, min(j+cols, n), e})
			}
		}
	}
	b.order(c)
	return c, split
}

// order fills in next.
func (b *Backend) order(c []chunk) {
	for i := range max(0, len(c)-b.threads) {
		c[i].next = c[i+b.threads].expert
	}
}

// stages runs first over products with n1 columns and second over products with n2 columns of the same rows, for all
// experts that use has. Rows whose columns are not cut go through both while they are in the cache.
func (b *Backend) stages(m *mix, n1, n2 int, use func(e int) bool, first, second func(w *work, c chunk)) {
	c, split := b.chunks(m, n1, use)
	b.par(len(c), func(w *work, i int) {
		first(w, c[i])
		if !split {
			c[i].n1 = n2
			second(w, c[i])
		}
	})
	if split {
		c, _ = b.chunks(m, n2, use)
		b.par(len(c), func(w *work, i int) { second(w, c[i]) })
	}
}

// Mixture routes and runs the experts.
func (b *Backend) Mixture(y, x, logits backend.Buffer, experts []backend.Expert, mx backend.Mix) {
	Y, X, L, m := host(y), host(x), host(logits), mx.(*mix)
	d, k := m.Model, m.TopK
	m.tokens = len(X) / d
	b.rowsOf(m.tokens, normRows, func(lo, hi int) { b.route(m, L, lo, hi) })
	m.gather()
	if m.keep {
		b.gathered(m, X, experts)
	} else {
		b.passing(m, X, experts)
	}
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

// gathered runs the experts and keeps what the backward pass needs.
func (b *Backend) gathered(m *mix, x []float32, experts []backend.Expert) {
	d, f := m.Model, m.Width
	b.rowsOf(m.tokens*m.TopK, normRows, func(lo, hi int) { m.rows(m.x[lo*d:], x, lo, hi) })
	b.stages(m, f, d, func(int) bool { return true }, func(w *work, c chunk) {
		gate, up, down := expertWeights(experts[c.expert])
		w.then, _ = up.forward().span(d, c.n0, c.n1)
		b.product(w, m.g, f, view{m.x, d, 1}, gate.forward(), d, c.lo, c.hi, c.n0, c.n1, false)
		if c.n0 == 0 && c.n1 == f {
			w.then, _ = down.forward().span(f, 0, d)
		}
		b.product(w, m.u, f, view{m.x, d, 1}, up.forward(), d, c.lo, c.hi, c.n0, c.n1, false)
		c.runs(f, func(lo, hi int) { b.siluMul(m.a[lo:hi], m.g[lo:hi], m.u[lo:hi]) })
	}, func(w *work, c chunk) {
		_, _, down := expertWeights(experts[c.expert])
		gate, _, _ := expertWeights(experts[c.next])
		w.then, _ = gate.forward().span(d, 0, f)
		b.product(w, m.y, d, view{m.a, f, 1}, down.forward(), f, c.lo, c.hi, c.n0, c.n1, false)
	})
}

// passing runs the experts over so few rows at a time that what lies between stays in the cache.
func (b *Backend) passing(m *mix, x []float32, experts []backend.Expert) {
	d, f := m.Model, m.Width
	var parts []chunk
	grain := max(passingRows, passingValues/(d+2*f))
	for e := range m.Experts {
		lo, hi := m.first[e], m.first[e+1]
		n := max(1, (hi-lo+grain-1)/grain, min((hi-lo)/(4*b.rows), (4*b.threads+m.Experts-1)/m.Experts))
		for i := range n {
			parts = append(parts, chunk{expert: e, lo: lo + (hi-lo)*i/n, hi: lo + (hi-lo)*(i+1)/n, next: e})
		}
	}
	b.order(parts)
	b.par(len(parts), func(w *work, i int) {
		c := parts[i]
		n := c.hi - c.lo
		gate, up, down := expertWeights(experts[c.expert])
		buf := w.scratch(n * (d + 2*f))
		xs, g, u := buf[:n*d], buf[n*d:n*(d+f)], buf[n*(d+f):]
		m.rows(xs, x, c.lo, c.hi)
		w.then, _ = up.forward().span(d, 0, f)
		b.product(w, g, f, view{xs, d, 1}, gate.forward(), d, 0, n, 0, f, false)
		w.then, _ = down.forward().span(f, 0, d)
		b.product(w, u, f, view{xs, d, 1}, up.forward(), d, 0, n, 0, f, false)
		b.siluMul(g, g, u)
		gate, _, _ = expertWeights(experts[c.next])
		w.then, _ = gate.forward().span(d, 0, f)
		b.product(w, m.y[c.lo*d:], d, view{g, f, 1}, down.forward(), f, 0, n, 0, d, false)
	})
}

// A part of passing has passingValues values between its products, but not fewer than passingRows rows: every part packs
// the weights.
const (
	passingValues = 1 << 17
	passingRows   = 128
)

// rows gathers the rows lo to hi.
func (m *mix) rows(dst, x []float32, lo, hi int) {
	d := m.Model
	for r := lo; r < hi; r++ {
		copy(dst[(r-lo)*d:][:d], x[int(m.source[r])/m.TopK*d:])
	}
}

// runs visits the values of c in a matrix of n columns.
func (c chunk) runs(n int, f func(lo, hi int)) {
	if c.n0 == 0 && c.n1 == n {
		f(c.lo*n, c.hi*n)
		return
	}
	for r := c.lo; r < c.hi; r++ {
		f(r*n+c.n0, r*n+c.n1)
	}
}

func expertWeights(e backend.Expert) (gate, up, down *weight) {
	return e.Gate.(*weight), e.Up.(*weight), e.Down.(*weight)
}

// expertGrads adds the product of dyᵀ and x, of an expert's gathered rows, to the gradient that of chooses.
func (b *Backend) expertGrads(m *mix, grads []backend.ExpertGrad, out, in int, dy, x []float32, of func(g backend.ExpertGrad) backend.Buffer) {
	var parts []chunk
	trained := 0
	for _, g := range grads {
		if of(g) != nil {
			trained++
		}
	}
	for e, g := range grads {
		if of(g) == nil || m.first[e] == m.first[e+1] {
			continue
		}
		rows, cols := b.cut(out, in, (8*b.threads+trained-1)/trained)
		for r := 0; r < out; r += rows {
			for j := 0; j < in; j += cols {
				parts = append(parts, chunk{e, r, min(r+rows, out), j, min(j+cols, in), e})
			}
		}
	}
	b.par(len(parts), func(w *work, i int) {
		c := parts[i]
		lo, hi := m.first[c.expert], m.first[c.expert+1]
		b.product(w, host(of(grads[c.expert])), in, view{dy[lo*out:], 1, out}, right{f: x[lo*in : hi*in], row: in}, hi-lo, c.lo, c.hi, c.n0, c.n1, true)
	})
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
			b.routeGrad(m, DL[t*m.Experts:][:m.Experts], dw, t, balance)
		}
	})
	b.expertGrads(m, grads, d, f, m.dy, m.a, func(g backend.ExpertGrad) backend.Buffer { return g.Down })
	b.stages(m, f, d, func(e int) bool { return DX != nil || grads[e].Gate != nil }, func(w *work, c chunk) {
		gate, _, down := expertWeights(experts[c.expert])
		w.then, _ = gate.back().span(f, 0, d)
		b.product(w, m.da, f, view{m.dy, d, 1}, down.back(), d, c.lo, c.hi, c.n0, c.n1, false)
		// m.a is not needed any more: it takes the gradient of u, and m.da that of g.
		c.runs(f, func(lo, hi int) { b.siluMulGrad(m.da[lo:hi], m.a[lo:hi], m.da[lo:hi], m.g[lo:hi], m.u[lo:hi]) })
	}, func(w *work, c chunk) {
		if DX == nil {
			return
		}
		gate, up, _ := expertWeights(experts[c.expert])
		w.then, _ = up.back().span(f, c.n0, c.n1)
		b.product(w, m.y, d, view{m.da, f, 1}, gate.back(), f, c.lo, c.hi, c.n0, c.n1, false)
		_, _, down := expertWeights(experts[c.next])
		w.then, _ = down.back().span(d, 0, f)
		b.product(w, m.y, d, view{m.a, f, 1}, up.back(), f, c.lo, c.hi, c.n0, c.n1, true)
	})
	b.expertGrads(m, grads, f, d, m.da, m.x, func(g backend.ExpertGrad) backend.Buffer { return g.Gate })
	b.expertGrads(m, grads, f, d, m.a, m.x, func(g backend.ExpertGrad) backend.Buffer { return g.Up })
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
func (b *Backend) routeGrad(m *mix, dl, dw []float32, t int, balance float32) {
	p := m.probs[t*m.padded():][:m.Experts]
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
	b.softmaxGrad(dl, p, dl, b.chain(p, dl), 1)
}
