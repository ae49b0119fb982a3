package cpu

import "github.com/blockzero-net/bzd/training/backend"

// mix keeps one layer's routing and, gathered by expert, what the way back needs and does not compute again. Slot s of
// token t is index t·TopK+s.
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

	y    []float32 // [tokens·TopK, Model]: outputs of the experts, in the end what they add to dx
	g, u []float32 // [tokens·TopK, Width], nil without keep
	dw   []float32 // [tokens·TopK]: gradients of weight, nil without keep
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
		m.g, m.u, m.dw = make([]float32, n*s.Width), make([]float32, n*s.Width), make([]float32, n)
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
		chosen, w := m.expert[t*m.TopK:][:m.TopK], m.weight[t*m.TopK:][:m.TopK]
		b.choose(chosen, w, m.probs[t*pad:][:e])
		if !m.Normalize {
			continue
		}
		var total float32
		for _, p := range w {
			total += p
		}
		for s := range w {
			w[s] /= total
		}
	}
}

// choose sets chosen to where the largest values of p are, the first of equal ones first, and w to the values. They are
// probabilities, or all of them are NaN.
func (b *Backend) choose(chosen []int32, w, p []float32) {
	for s := range chosen {
		j := s
		if v := b.maximum(p); v >= 0 {
			for j = 0; p[j] != v; j++ {
			}
		}
		chosen[s], w[s], p[j] = int32(j), p[j], -1
	}
	for s, j := range chosen {
		p[j] = w[s]
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

// part is a run of an expert's gathered rows. next is the expert that the same goroutine will probably work for after it.
type part struct{ expert, lo, hi, next int }

// partValues is how many values a part has between its products, so that they stay in the cache; but as long as there are
// so many it has no fewer than partRows rows, for every part packs the weights.
const (
	partValues = 1 << 17
	partRows   = 256
)

// parts cuts the rows of all experts so that all threads are busy.
func (b *Backend) parts(m *mix) (parts []part) {
	grain := max(partRows, partValues/(m.Model+2*m.Width))
	for e := range m.Experts {
		lo, hi := m.first[e], m.first[e+1]
		n := max((hi-lo+grain-1)/grain, min((hi-lo)/(4*b.rows), (4*b.threads+m.Experts-1)/m.Experts))
		for i := range n {
			parts = append(parts, part{e, lo + (hi-lo)*i/n, lo + (hi-lo)*(i+1)/n, e})
		}
	}
	for i := range max(0, len(parts)-b.threads) {
		parts[i].next = parts[i+b.threads].expert
	}
	return parts
}

// Mixture routes and runs the experts.
func (b *Backend) Mixture(y, x, logits backend.Buffer, experts []backend.Expert, mx backend.Mix) {
	b.MixtureOnto(y, nil, x, logits, experts, mx)
}

// MixtureOnto is Mixture added to base, unless that is nil.
func (b *Backend) MixtureOnto(y, base, x, logits backend.Buffer, experts []backend.Expert, mx backend.Mix) {
	Y, B, X, L, m := host(y), host(base), host(x), host(logits), mx.(*mix)
	d, k := m.Model, m.TopK
	m.tokens = len(X) / d
	b.rowsOf(m.tokens, normRows, func(lo, hi int) { b.route(m, L, lo, hi) })
	m.gather()
	b.experts(m, X, experts)
	b.rowsOf(m.tokens, normRows, func(lo, hi int) {
		var onto []float32
		if B != nil {
			onto = B[lo*d : hi*d]
		}
		b.mixRows(Y[lo*d:hi*d], onto, m.y, m.place[lo*k:hi*k], m.weight[lo*k:hi*k], d, k)
	})
}

// experts sets y.
func (b *Backend) experts(m *mix, x []float32, experts []backend.Expert) {
	d, f := m.Model, m.Width
	parts := b.parts(m)
	b.par(len(parts), func(w *work, i int) {
		c := parts[i]
		n := c.hi - c.lo
		gate, up, down := expertWeights(experts[c.expert])
		buf := w.scratch(n * (d + 2*f))
		xs, a, u := buf[:n*d], buf[n*d:n*(d+f)], buf[n*(d+f):]
		g := a
		if m.keep {
			g, u = m.g[c.lo*f:c.hi*f], m.u[c.lo*f:c.hi*f]
		}
		m.rows(xs, x, c.lo, c.hi)
		w.then, _ = up.forward().span(d, 0, f)
		b.product(w, g, f, view{xs, d, 1}, gate.forward(), d, 0, n, 0, f, false)
		w.then, _ = down.forward().span(f, 0, d)
		b.product(w, u, f, view{xs, d, 1}, up.forward(), d, 0, n, 0, f, false)
		b.siluMul(a, g, u)
		gate, _, _ = expertWeights(experts[c.next])
		w.then, _ = gate.forward().span(d, 0, f)
		b.product(w, m.y[c.lo*d:], d, view{a, f, 1}, down.forward(), f, 0, n, 0, d, false)
	})
}

// rows gathers the rows lo to hi.
func (m *mix) rows(dst, x []float32, lo, hi int) {
	d := m.Model
	for r := lo; r < hi; r++ {
		copy(dst[(r-lo)*d:][:d], x[int(m.source[r])/m.TopK*d:])
	}
}

func expertWeights(e backend.Expert) (gate, up, down *weight) {
	return e.Gate.(*weight), e.Up.(*weight), e.Down.(*weight)
}

// groupRows are the gathered rows of the experts that are trained.
type groupRows struct {
	first     []int     // rows of expert e are first[e] to first[e+1]: none if it is frozen
	x, dy     []float32 // [rows, Model]
	a, dg, du []float32 // [rows, Width]
}

func (m *mix) groupRows(b *Backend, grads []backend.ExpertGrad) (g groupRows, release func()) {
	g.first = make([]int, m.Experts+1)
	for e := range m.Experts {
		g.first[e+1] = g.first[e]
		if grads[e].Gate != nil {
			g.first[e+1] += m.load[e]
		}
	}
	n, d, f := g.first[m.Experts], m.Model, m.Width
	all := b.borrow(n * (2*d + 3*f))
	room := all
	next := func(n int) (v []float32) {
		v, room = room[:n], room[n:]
		return v
	}
	g.x, g.dy, g.a, g.dg, g.du = next(n*d), next(n*d), next(n*f), next(n*f), next(n*f)
	return g, func() { b.giveBack(all) }
}

// expertGrads adds the product of dyᵀ and x, of an expert's gathered rows, to the gradient that of chooses.
func (b *Backend) expertGrads(g groupRows, grads []backend.ExpertGrad, out, in int, dy, x []float32, of func(g backend.ExpertGrad) backend.Buffer) {
	type cell struct{ expert, m0, m1, n0, n1 int }
	var cells []cell
	trained := 0
	for e := range grads {
		if g.first[e] < g.first[e+1] {
			trained++
		}
	}
	for e := range grads {
		if g.first[e] == g.first[e+1] {
			continue
		}
		rows, cols := b.cut(out, in, (8*b.threads+trained-1)/trained)
		for r := 0; r < out; r += rows {
			for j := 0; j < in; j += cols {
				cells = append(cells, cell{e, r, min(r+rows, out), j, min(j+cols, in)})
			}
		}
	}
	b.par(len(cells), func(w *work, i int) {
		c := cells[i]
		lo, hi := g.first[c.expert], g.first[c.expert+1]
		b.product(w, host(of(grads[c.expert])), in, view{dy[lo*out:], 1, out}, right{f: x[lo*in : hi*in], row: in}, hi-lo, c.m0, c.m1, c.n0, c.n1, true)
	})
}

// MixtureGrad is the gradient of Mixture.
func (b *Backend) MixtureGrad(dx, dlogits, dy, x backend.Buffer, experts []backend.Expert, grads []backend.ExpertGrad, mx backend.Mix, balance float32) {
	DX, DL, DY, X, m := host(dx), host(dlogits), host(dy), host(x), mx.(*mix)
	d, f, k := m.Model, m.Width, m.TopK
	group, release := m.groupRows(b, grads)
	defer release()
	parts := b.parts(m)
	b.par(len(parts), func(w *work, i int) {
		c := parts[i]
		n := c.hi - c.lo
		ys, own := m.y[c.lo*d:c.hi*d], group.first[c.expert] < group.first[c.expert+1]
		for r, s := range m.source[c.lo:c.hi] {
			m.dw[s] = b.dot(DY[int(s)/k*d:][:d], ys[r*d:][:d])
		}
		if DX == nil && !own {
			return
		}
		gate, up, down := expertWeights(experts[c.expert])
		g, u := m.g[c.lo*f:c.hi*f], m.u[c.lo*f:c.hi*f]
		var dy, dg, du []float32
		if own {
			lo := group.first[c.expert] + c.lo - m.first[c.expert]
			hi := lo + n
			m.rows(group.x[lo*d:hi*d], X, c.lo, c.hi)
			b.siluMul(group.a[lo*f:hi*f], g, u)
			dy, dg, du = group.dy[lo*d:hi*d], group.dg[lo*f:hi*f], group.du[lo*f:hi*f]
		} else {
			buf := w.scratch(n * (d + 2*f))
			dy, dg, du = buf[:n*d], buf[n*d:n*(d+f)], buf[n*(d+f):]
		}
		for r, s := range m.source[c.lo:c.hi] {
			b.kernels.scale(dy[r*d:][:d], DY[int(s)/k*d:][:d], m.weight[s])
		}
		w.then, _ = gate.back().span(f, 0, d)
		b.product(w, dg, f, view{dy, d, 1}, down.back(), d, 0, n, 0, f, false)
		b.siluMulGrad(dg, du, dg, g, u)
		if DX == nil {
			return
		}
		w.then, _ = up.back().span(f, 0, d)
		b.product(w, ys, d, view{dg, f, 1}, gate.back(), f, 0, n, 0, d, false)
		_, _, down = expertWeights(experts[c.next])
		w.then, _ = down.back().span(d, 0, f)
		b.product(w, ys, d, view{du, f, 1}, up.back(), f, 0, n, 0, d, true)
	})
	b.rowsOf(m.tokens, normRows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			b.routeGrad(m, DL[t*m.Experts:][:m.Experts], m.dw[t*k:][:k], t, balance)
		}
		if DX != nil {
			b.addRows(DX[lo*d:hi*d], m.y, m.place[lo*k:hi*k], d, k)
		}
	})
	b.expertGrads(group, grads, d, f, group.dy, group.a, func(g backend.ExpertGrad) backend.Buffer { return g.Down })
	b.expertGrads(group, grads, f, d, group.dg, group.x, func(g backend.ExpertGrad) backend.Buffer { return g.Gate })
	b.expertGrads(group, grads, f, d, group.du, group.x, func(g backend.ExpertGrad) backend.Buffer { return g.Up })
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
