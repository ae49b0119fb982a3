package backendtest

import (
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
)

// expertSet is the experts of a layer with their values and gradient buffers.
type expertSet struct {
	shape   backend.MixtureShape
	values  []refExpert
	experts []backend.Expert
	base    [][3][]float32
	grads   []backend.ExpertGrad
}

func (l *lab) experts(s backend.MixtureShape) *expertSet {
	x := &expertSet{shape: s}
	n := s.Width * s.Model
	for range s.Experts {
		g, u, d := l.rand.values(n, 1), l.rand.values(n, 1), l.rand.values(n, 1)
		x.values = append(x.values, refExpert{wide(g), wide(u), wide(d)})
		x.experts = append(x.experts, backend.Expert{Gate: l.weight(g, s.Width, s.Model), Up: l.weight(u, s.Width, s.Model), Down: l.weight(d, s.Model, s.Width)})
	}
	x.newGrads(l)
	return x
}

func (x *expertSet) newGrads(l *lab) {
	n := x.shape.Width * x.shape.Model
	x.base, x.grads = nil, nil
	for range x.shape.Experts {
		b := [3][]float32{l.rand.values(n, 1), l.rand.values(n, 1), l.rand.values(n, 1)}
		x.base = append(x.base, b)
		x.grads = append(x.grads, backend.ExpertGrad{Gate: l.inout(b[0]), Up: l.inout(b[1]), Down: l.inout(b[2])})
	}
}

// route makes logits: "spread" a random order of distinct values for every token, "all" experts 0 to TopK−1 for every
// token, "skip" no token for expert 0. Values are far enough apart for any arithmetic.
func (l *lab) route(s backend.MixtureShape, tokens int, how string) []float32 {
	var logits []float32
	for range tokens {
		row := make([]float32, s.Experts)
		for e := range row {
			row[e] = float32(s.Experts-e) / 8
		}
		if how != "all" {
			for i := s.Experts - 1; i > 0; i-- {
				j := l.rand.intn(i + 1)
				row[i], row[j] = row[j], row[i]
			}
		}
		if how == "skip" {
			row[0] = -3
		}
		logits = append(logits, row...)
	}
	return logits
}

func testMixture(l *lab) {
	for _, s := range []struct {
		tokens, experts, top, model, width int
		normalize                          bool
		how                                string
	}{
		{1, 1, 1, 4, 3, false, "spread"}, {1, 2, 1, 1, 1, true, "spread"}, {7, 5, 2, 6, 10, true, "spread"}, {9, 4, 4, 5, 7, false, "spread"},
		{9, 4, 4, 5, 7, true, "spread"}, {40, 8, 2, 17, 33, true, "skip"}, {33, 20, 3, 16, 16, false, "spread"}, {300, 4, 2, 12, 20, true, "all"}, {70, 6, 2, 8, 12, false, "all"},
	} {
		name := fmt.Sprintf("%+v ", s)
		shape := backend.MixtureShape{Experts: s.experts, TopK: s.top, Model: s.model, Width: s.width, Normalize: s.normalize}
		n := s.tokens * s.model
		x, dy, logits := l.rand.values(n, 1), l.rand.values(n, 1), l.route(shape, s.tokens, s.how)
		set := l.experts(shape)
		bx, blogits, bdy := l.in(x), l.in(logits), l.in(dy)
		m := l.b.NewMix(shape, s.tokens+3, true)
		// A larger batch before must leave nothing behind.
		l.b.Mixture(l.out(n+3*s.model), l.in(l.rand.values(n+3*s.model, 1)), l.in(l.route(shape, s.tokens+3, "spread")), set.experts, m)
		y := l.out(n)
		l.b.Mixture(y, bx, blogits, set.experts, m)
		xs, ls := wide(x), wide(logits)
		wantY, load, _ := refMixture(xs, ls, set.values, shape, nil)
		l.near(name+"y", l.read(y), wantY)
		if got := m.Load(); !slices.Equal(got, load) {
			l.Errorf("%sLoad is %v, want %v", name, got, load)
		}
		eval := l.out(n)
		l.b.Mixture(eval, bx, blogits, set.experts, l.b.NewMix(shape, s.tokens, false))
		l.same(name+"y without keeping", l.read(eval), l.read(y))

		balance := float32(0.25)
		base := l.rand.values(n, 1)
		dx, dlogits := l.inout(base), l.out(len(logits))
		l.b.MixtureGrad(dx, dlogits, bdy, bx, set.experts, set.grads, m, balance)
		vars := []variable{{"x", xs, l.read(dx), base}, {"logits", ls, l.read(dlogits), nil}}
		for e := range set.values {
			for i, b := range []backend.Buffer{set.grads[e].Gate, set.grads[e].Up, set.grads[e].Down} {
				got := l.read(b)
				if load[e] == 0 {
					l.identical(fmt.Sprintf("%sgradient of idle expert %d", name, e), got, set.base[e][i])
					continue
				}
				v := set.values[e]
				vars = append(vars, variable{fmt.Sprintf("expert %d matrix %d", e, i), [][]float64{v.gate, v.up, v.down}[i], got, set.base[e][i]})
			}
		}
		l.gradients(name, func() float64 {
			y, _, lb := refMixture(xs, ls, set.values, shape, load)
			return inner(y, dy) + float64(balance)*lb
		}, vars...)
		l.frozen(name, set, m, bx, blogits, bdy, dlogits, balance)
		l.verify()
	}
}

// frozen repeats a backward pass with gradients left out: those asked for must stay the same.
func (l *lab) frozen(name string, set *expertSet, m backend.Mix, x, logits, dy, dlogits backend.Buffer, balance float32) {
	all := set.grads
	base := set.base
	want := l.read(dlogits)
	for _, withInput := range []bool{true, false} {
		set.newGrads(l)
		set.base = base
		for e := range set.grads {
			if e%2 == 1 {
				set.grads[e] = backend.ExpertGrad{}
				continue
			}
			for i, b := range []backend.Buffer{set.grads[e].Gate, set.grads[e].Up, set.grads[e].Down} {
				l.b.Write(b, base[e][i])
			}
		}
		y, got := l.out(x.Len()), l.out(logits.Len())
		l.b.Mixture(y, x, logits, set.experts, m)
		var dx backend.Buffer
		if withInput {
			dx = l.inout(make([]float32, x.Len()))
		}
		l.b.MixtureGrad(dx, got, dy, x, set.experts, set.grads, m, balance)
		l.same(name+"dlogits, half frozen", l.read(got), want)
		for e, g := range set.grads {
			if g.Gate == nil {
				continue
			}
			l.same(name+"dgate, half frozen", l.read(g.Gate), l.read(all[e].Gate))
			l.same(name+"dup, half frozen", l.read(g.Up), l.read(all[e].Up))
			l.same(name+"ddown, half frozen", l.read(g.Down), l.read(all[e].Down))
		}
	}
}

// testRouting checks choices that only Load shows: ties go to the lower index.
func testRouting(l *lab) {
	for _, c := range []struct {
		logits []float32
		top    int
		want   []int
	}{
		{[]float32{0, 0, 0, 0}, 1, []int{1, 0, 0, 0}},
		{[]float32{0, 0, 0, 0}, 3, []int{1, 1, 1, 0}},
		{[]float32{1, 3, 3, 2, 3}, 2, []int{0, 1, 1, 0, 0}},
		{[]float32{1, 3, 2, 2, 2}, 3, []int{0, 1, 1, 1, 0}},
		{[]float32{-5, -5, -9, -5}, 2, []int{1, 1, 0, 0}},
		// Probabilities decide, not logits: those that underflow to zero are equal.
		{[]float32{-300, 0, -200, -250}, 2, []int{1, 1, 0, 0}},
		{append(make([]float32, 17), 1), 2, append([]int{1}, append(make([]int, 16), 1)...)},
	} {
		shape := backend.MixtureShape{Experts: len(c.logits), TopK: c.top, Model: 3, Width: 2}
		set := l.experts(shape)
		m := l.b.NewMix(shape, 1, false)
		l.b.Mixture(l.out(3), l.in(l.rand.values(3, 1)), l.in(c.logits), set.experts, m)
		if got := m.Load(); !slices.Equal(got, c.want) {
			l.Errorf("logits %v, top %d: went to %v, want %v", c.logits, c.top, got, c.want)
		}
	}
}
