package backendtest

import (
	"errors"
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// testBlock comes last: a backend that computes none of this has failed for good afterwards.
func testBlock(l *lab) {
	l.b.AddBias(l.inout(l.rand.values(4, 1)), l.in(l.rand.values(2, 1)))
	if err := l.b.Sync(); errors.Is(err, backend.ErrUnsupported) {
		l.Skip(err)
	}
	l.verify()
	l.bias()
	l.rotate()
	l.swiGLU()
	l.gated()
	if l.opts.Exact {
		l.digests(blockBattery)
	}
}

func (l *lab) bias() {
	for _, s := range []struct{ rows, d int }{{1, 1}, {3, 7}, {70, 33}, {130, 64}} {
		x, bias := l.rand.values(s.rows*s.d, 1), l.rand.values(s.d, 4)
		got := l.inout(x)
		l.b.AddBias(got, l.in(bias))
		want := make([]float32, len(x))
		for i := range want {
			want[i] = x[i] + bias[i%s.d]
		}
		l.same("AddBias", l.read(got), want)
		last := l.inout(x[(s.rows-1)*s.d:])
		l.b.AddBias(last, l.in(bias))
		l.same("AddBias of one row", l.read(last), l.read(got)[(s.rows-1)*s.d:])
		l.verify()
	}
}

func (l *lab) rotate() {
	for _, s := range []struct{ sequences, seq, heads, d int }{{1, 1, 1, 2}, {2, 5, 3, 6}, {2, 20, 2, 32}, {1, 300, 4, 8}, {3, 7, 1, 66}} {
		name := fmt.Sprintf("[%d %d %d %d] ", s.sequences, s.seq, s.heads, s.d)
		n := s.sequences * s.seq * s.heads * s.d
		x, dy := l.rand.values(n, 2), l.rand.values(n, 1)
		rope, cos, sin := l.rope(s.seq+3, s.d)
		y, inPlace := l.out(n), l.inout(x)
		l.b.Rotate(y, l.in(x), rope, s.d, s.heads, s.seq, false)
		l.b.Rotate(inPlace, inPlace, rope, s.d, s.heads, s.seq, false)
		l.near(name+"y", l.read(y), refRotate(wide(x), cos, sin, s.d, s.heads, s.seq))
		l.same(name+"y in place", l.read(inPlace), l.read(y))
		dx := l.out(n)
		l.b.Rotate(dx, l.in(dy), rope, s.d, s.heads, s.seq, true)
		xs := wide(x)
		l.gradients(name, func() float64 { return inner(refRotate(xs, cos, sin, s.d, s.heads, s.seq), dy) },
			variable{"x", xs, l.read(dx), nil})
		if row := s.heads * s.d; s.sequences > 1 {
			alone := l.out(s.seq * row)
			l.b.Rotate(alone, l.in(x[s.seq*row:2*s.seq*row]), rope, s.d, s.heads, s.seq, false)
			l.same(name+"the second sequence alone", l.read(alone), l.read(y)[s.seq*row:2*s.seq*row])
		}
		l.verify()
	}
}

func refRotate(x, cos, sin []float64, d, heads, seq int) []float64 {
	y := make([]float64, len(x))
	for i := range len(x) / d {
		p := i / heads % seq * d / 2
		for j := range d / 2 {
			a, b := x[i*d+j], x[i*d+d/2+j]
			y[i*d+j], y[i*d+d/2+j] = a*cos[p+j]-b*sin[p+j], b*cos[p+j]+a*sin[p+j]
		}
	}
	return y
}

func (l *lab) swiGLU() {
	for _, n := range []int{1, 15, 16, 17, 900, 9000} {
		name := fmt.Sprintf("[%d] ", n)
		g, u, dy := l.rand.values(n, 4), l.rand.values(n, 1), l.rand.values(n, 1)
		bg, bu := l.in(g), l.in(u)
		y, dg, du := l.out(n), l.out(n), l.out(n)
		l.b.SwiGLU(y, bg, bu)
		gs, us := wide(g), wide(u)
		l.near(name+"y", l.read(y), refSwiGLU(gs, us))
		l.b.SwiGLUGrad(dg, du, l.in(dy), bg, bu)
		l.gradients(name, func() float64 { return inner(refSwiGLU(gs, us), dy) },
			variable{"gate", gs, l.read(dg), nil}, variable{"up", us, l.read(du), nil})
		l.verify()
	}
}

func refSwiGLU(g, u []float64) []float64 {
	y := make([]float64, len(g))
	for i := range y {
		y[i] = g[i] / (1 + math.Exp(-g[i])) * u[i]
	}
	return y
}

func (l *lab) gated() {
	for _, s := range []struct{ rows, d int }{{1, 1}, {3, 7}, {70, 33}, {130, 64}} {
		name := fmt.Sprintf("[%d %d] ", s.rows, s.d)
		base, x, gate, dy := l.rand.values(s.rows*s.d, 1), l.rand.values(s.rows*s.d, 1), l.rand.values(s.rows, 4), l.rand.values(s.rows*s.d, 1)
		bx, bg := l.in(x), l.in(gate)
		y := l.inout(base)
		l.b.AddGated(y, bx, bg)
		xs, gs := wide(x), wide(gate)
		l.near(name+"y", l.read(y), refAddGated(base, xs, gs))
		dx, dg := l.out(len(x)), l.out(len(gate))
		l.b.AddGatedGrad(dx, dg, l.in(dy), bx, bg)
		l.gradients(name, func() float64 { return inner(refAddGated(base, xs, gs), dy) },
			variable{"x", xs, l.read(dx), nil}, variable{"gate", gs, l.read(dg), nil})
		last := l.inout(base[(s.rows-1)*s.d:])
		l.b.AddGated(last, l.in(x[(s.rows-1)*s.d:]), l.in(gate[s.rows-1:]))
		l.same(name+"one row", l.read(last), l.read(y)[(s.rows-1)*s.d:])
		l.verify()
	}
}

func refAddGated(base []float32, x, gate []float64) []float64 {
	y := make([]float64, len(x))
	d := len(x) / len(gate)
	for i := range y {
		y[i] = float64(base[i]) + x[i]/(1+math.Exp(-gate[i/d]))
	}
	return y
}

// blockBattery is the battery of testBlock.
var blockBattery = []operation{
	{"AddBias", 117, func(l *lab, d digester) {
		x := l.inout(l.rand.rough(70 * 33))
		l.b.AddBias(x, l.in(l.rand.rough(33)))
		d.buffers(x)
	}},
	{"Rotate", 118, func(l *lab, d digester) {
		for _, s := range headBattery {
			n := s.rows * s.heads * s.d
			y, back := l.out(n), l.out(n)
			r, _, _ := l.rope(s.seq, s.d)
			l.b.Rotate(y, l.in(l.rand.rough(n)), r, s.d, s.heads, s.seq, false)
			l.b.Rotate(back, y, r, s.d, s.heads, s.seq, true)
			d.buffers(y, back)
		}
	}},
	{"SwiGLU", 119, func(l *lab, d digester) {
		for _, size := range []float32{1, 16, 128} {
			y := l.out(1003)
			l.b.SwiGLU(y, l.in(l.rand.values(1003, size)), l.in(l.rand.rough(1003)))
			d.buffers(y)
		}
	}},
	{"SwiGLUGrad", 120, func(l *lab, d digester) {
		for _, size := range []float32{1, 16, 128} {
			dg, du := l.out(1003), l.out(1003)
			l.b.SwiGLUGrad(dg, du, l.in(l.rand.rough(1003)), l.in(l.rand.values(1003, size)), l.in(l.rand.rough(1003)))
			d.buffers(dg, du)
		}
	}},
	{"AddGated", 121, func(l *lab, d digester) {
		for _, s := range normBattery {
			y := l.inout(l.rand.rough(s.rows * s.d))
			l.b.AddGated(y, l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.values(s.rows, 16)))
			d.buffers(y)
		}
	}},
	{"AddGatedGrad", 122, func(l *lab, d digester) {
		for _, s := range normBattery {
			dx, dg := l.out(s.rows*s.d), l.out(s.rows)
			l.b.AddGatedGrad(dx, dg, l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.rough(s.rows*s.d)), l.in(l.rand.values(s.rows, 16)))
			d.buffers(dx, dg)
		}
	}},
}
