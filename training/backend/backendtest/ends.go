package backendtest

import (
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

func testEmbed(l *lab) {
	for _, s := range []struct{ rows, vocab, d int }{{1, 1, 1}, {5, 3, 7}, {40, 9, 50}, {3, 1000, 16}} {
		table, ids := l.rand.values(s.vocab*s.d, 1), l.rand.ids(s.rows, s.vocab)
		y := l.out(s.rows * s.d)
		l.b.Embed(y, l.weight(table, s.vocab, s.d), ids)
		frozen := l.out(s.rows * s.d)
		l.b.Embed(frozen, l.b.Freeze(table, s.vocab, s.d, false), ids)
		var want []float32
		for _, id := range ids {
			want = append(want, table[int(id)*s.d:][:s.d]...)
		}
		l.same("Embed", l.read(y), want)
		l.same("Embed of a frozen table", l.read(frozen), want)
		dy, base := l.rand.values(s.rows*s.d, 1), l.rand.values(s.vocab*s.d, 1)
		grad := l.inout(base)
		l.b.EmbedGrad(grad, l.in(dy), ids)
		total := wide(base)
		for i, id := range ids {
			for j := range s.d {
				total[int(id)*s.d+j] += float64(dy[i*s.d+j])
			}
		}
		l.near("EmbedGrad", l.read(grad), total)
		l.verify()
	}
}

func testCrossEntropy(l *lab) {
	for _, s := range []struct {
		rows, vocab int
		size        float32
	}{{1, 1, 1}, {1, 2, 1}, {3, 7, 2}, {5, 16, 8}, {70, 33, 2}, {4, 1000, 4}, {3, 50, 64}} {
		name := fmt.Sprintf("[%d %d] ", s.rows, s.vocab)
		logits, targets := l.rand.values(s.rows*s.vocab, s.size), l.rand.ids(s.rows, s.vocab)
		ls := wide(logits)
		want := refCrossEntropy(ls, targets)
		const scale = 0.3
		for _, k := range []float32{scale, 0} {
			b, losses := l.inout(logits), make([]float64, s.rows)
			l.b.CrossEntropy(losses, b, targets, k)
			l.sync()
			for i := range losses {
				if !(math.Abs(losses[i]-want[i]) <= l.opts.Tolerance*math.Max(1, want[i])) {
					l.Errorf("%sloss %d is %v, want %v", name, i, losses[i], want[i])
				}
			}
			if k != 0 {
				l.gradients(name, func() float64 {
					var sum float64
					for _, x := range refCrossEntropy(ls, targets) {
						sum += x
					}
					return float64(float32(scale)) * sum
				}, variable{"logits", ls, l.read(b), nil})
			}
		}
		l.verify()
	}
}

func testAdamW(l *lab) {
	h := backend.AdamW{Clip: 0.5, Beta1: 0.9, One1: 0.1, Beta2: 0.95, One2: 0.05, Step: 0.01, Root: 1.5, Eps: 1e-3, Decay: 0.02}
	for _, n := range []int{1, 15, 16, 17, 1000, 40000} {
		p, m, v, g := l.rand.values(n, 1), l.rand.values(n, 1), l.rand.values(n, 1), l.rand.values(n, 1)
		for i := range v {
			v[i] *= v[i]
		}
		bp, bm, bv := l.inout(p), l.inout(m), l.inout(v)
		ps, ms, vs := wide(p), wide(m), wide(v)
		for range 3 {
			l.b.AdamW(bp, bm, bv, l.in(g), h)
			refAdamW(ps, ms, vs, wide(g), h)
		}
		l.near("p", l.read(bp), ps)
		l.near("m", l.read(bm), ms)
		l.near("v", l.read(bv), vs)
		l.verify()
	}
}

func testSumSquares(l *lab) {
	var all []backend.Buffer
	var wants []float64
	for _, n := range []int{1, 16, 31, 1000, 70000} {
		x := l.rand.values(n, 1)
		var want float64
		for _, v := range x {
			want += float64(v) * float64(v)
		}
		all, wants = append(all, l.in(x)), append(wants, want)
		l.near("SumSquares", l.b.SumSquares(all[len(all)-1:]), []float64{want})
	}
	for i, got := range l.b.SumSquares(all) {
		l.near("SumSquares of several", []float32{got}, wants[i:i+1])
	}
}
