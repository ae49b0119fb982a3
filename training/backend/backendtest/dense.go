package backendtest

import (
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

func testMemory(l *lab) {
	for _, n := range []int{1, 15, 16, 17, 4095, 20000} {
		for _, x := range l.read(l.b.Alloc(n)) {
			if math.Float32bits(x) != 0 {
				l.Fatalf("Alloc(%d) is not zero", n)
			}
		}
		x, y := l.rand.values(n, 1), l.rand.values(n, 8)
		a, b := l.inout(x), l.in(y)
		l.identical("Write and Read", l.read(a), x)
		l.b.Add(a, b)
		want := make([]float32, n)
		for i := range want {
			want[i] = x[i] + y[i]
		}
		l.same("Add", l.read(a), want)
		total := l.out(n)
		l.b.Sum(total, l.in(x), b)
		l.same("Sum", l.read(total), want)
		l.activations(x)
		l.b.Copy(a, b)
		l.identical("Copy", l.read(a), y)
		l.b.Zero(a)
		l.identical("Zero", l.read(a), make([]float32, n))
	}

	x := l.rand.values(100, 1)
	whole := l.inout(x)
	part := whole.Slice(10, 50).Slice(3, 20)
	if whole.Len() != 100 || part.Len() != 20 {
		l.Errorf("lengths are %d and %d, want 100 and 20", whole.Len(), part.Len())
	}
	l.identical("slice of a slice", l.read(part), x[13:33])
	l.b.Zero(part)
	clear(x[13:33])
	l.identical("whole after its slice was cleared", l.read(whole), x)
	l.b.Write(whole, l.rand.values(100, 1))
	l.identical("slice after the whole was written", l.read(part), l.read(whole)[13:33])

	for _, s := range []struct {
		rows, width int
		cols        []int
	}{{1, 1, []int{0}}, {3, 5, []int{4, 0, 4}}, {40, 33, []int{32, 1, 16, 17, 2}}} {
		x := l.rand.values(s.rows*s.width, 1)
		dst := l.out(s.rows * len(s.cols))
		l.b.Columns(dst, l.in(x), s.cols)
		var want []float32
		for r := range s.rows {
			for _, c := range s.cols {
				want = append(want, x[r*s.width+c])
			}
		}
		l.identical("Columns", l.read(dst), want)
	}

	for name, f := range map[string]func(){
		"Write":   func() { l.b.Write(l.b.Alloc(3), make([]float32, 4)) },
		"Read":    func() { l.b.Read(make([]float32, 4), l.b.Alloc(3)) },
		"Copy":    func() { l.b.Copy(l.b.Alloc(4), l.b.Alloc(3)) },
		"Prepare": func() { l.b.Prepare(l.b.Alloc(5), 2, 3) },
		"Slice":   func() { l.b.Alloc(5).Slice(3, 3) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					l.Errorf("%s of a wrong length did not panic", name)
				}
			}()
			f()
		}()
	}
}

// activations takes values through a buffer for activations and a slice of it.
func (l *lab) activations(x []float32) {
	n := len(x)
	a, b := l.b.AllocActivation(n), l.b.AllocActivation(n)
	l.identical("AllocActivation", l.read(a), make([]float32, n))
	l.b.Write(a, x)
	l.same("activations", l.read(a), x)
	l.b.Copy(b, a)
	l.identical("Copy of activations", l.read(b), l.read(a))
	part := b.Slice(n/3, n-n/3)
	l.identical("slice of activations", l.read(part), l.read(a)[n/3:])
	l.b.Zero(part)
	l.same("activations after a slice was cleared", l.read(b), append(append([]float32(nil), x[:n/3]...), make([]float32, n-n/3)...))
}

func testLinear(l *lab) {
	for _, s := range []struct{ rows, in, out int }{
		{1, 1, 1}, {1, 16, 16}, {3, 5, 7}, {17, 33, 31}, {14, 256, 32}, {15, 257, 33}, {40, 600, 50}, {64, 96, 192}, {29, 512, 17}, {2, 300, 1}, {300, 19, 21},
	} {
		name := fmt.Sprintf("[%d %d %d] ", s.rows, s.in, s.out)
		x, w, dy := l.rand.values(s.rows*s.in, 1), l.rand.values(s.out*s.in, 1), l.rand.values(s.rows*s.out, 1)
		bx, bdy, bw := l.in(x), l.in(dy), l.weight(w, s.out, s.in)
		if out, in := bw.Shape(); out != s.out || in != s.in {
			l.Errorf("%sShape is [%d, %d]", name, out, in)
		}
		y := l.out(s.rows * s.out)
		l.b.Linear(y, bx, bw)
		l.near(name+"y", l.read(y), refLinear(wide(x), wide(w), s.out, s.in))

		frozen := l.b.Freeze(w, s.out, s.in, s.rows%2 == 0)
		if out, in := frozen.Shape(); out != s.out || in != s.in || frozen.Data() != nil {
			l.Errorf("%sa frozen weight has shape [%d, %d] and data %v", name, out, in, frozen.Data())
		}
		frozen.Refresh()
		yf, dxf := l.out(s.rows*s.out), l.out(s.rows*s.in)
		l.b.Linear(yf, bx, frozen)
		l.same(name+"y of a frozen weight", l.read(yf), l.read(y))

		half := make([]float32, len(w)) // of values that are bfloat16, which a backend may keep as such
		for i, v := range w {
			half[i] = math.Float32frombits(math.Float32bits(v) &^ 0xffff)
		}
		for _, transposed := range []bool{false, true} {
			from, op := bx, l.b.Linear
			n := s.rows * s.out
			if transposed {
				from, n, op = bdy, s.rows*s.in, func(y, x backend.Buffer, w backend.Weight) { l.b.LinearGradInput(y, x, w, false) }
			}
			want, got := l.out(n), l.out(n)
			op(want, from, l.weight(half, s.out, s.in))
			op(got, from, l.b.Freeze(half, s.out, s.in, false))
			l.same(name+"product with a frozen weight of bfloat16 values", l.read(got), l.read(want))
		}

		wantX := refLinear(wide(dy), transpose(wide(w), s.out, s.in), s.in, s.out)
		dx := l.out(s.rows * s.in)
		l.b.LinearGradInput(dx, bdy, bw, false)
		l.near(name+"dx, set", l.read(dx), wantX)
		l.b.LinearGradInput(dxf, bdy, frozen, false)
		l.same(name+"dx of a frozen weight", l.read(dxf), l.read(dx))
		base := l.rand.values(s.rows*s.in, 4)
		added := l.inout(base)
		l.b.LinearGradInput(added, bdy, bw, true)
		l.near(name+"dx, added", l.read(added), sum(wantX, base))

		wantW := refLinear(transpose(wide(dy), s.rows, s.out), transpose(wide(x), s.rows, s.in), s.in, s.rows)
		base = l.rand.values(s.out*s.in, 4)
		dw := l.inout(base)
		l.b.LinearGradWeight(dw, bdy, bx, s.rows)
		l.near(name+"dw", l.read(dw), sum(wantW, base))

		xs, ws := wide(x), wide(w)
		if s.rows*s.in*s.out < 2000 {
			l.gradients(name, func() float64 { return inner(refLinear(xs, ws, s.out, s.in), dy) },
				variable{"x", xs, l.read(dx), nil}, variable{"w", ws, l.read(dw), base})
		}
		l.verify()
	}
}

func sum(a []float64, b []float32) []float64 {
	s := make([]float64, len(a))
	for i := range s {
		s[i] = a[i] + float64(b[i])
	}
	return s
}

func testRMSNorm(l *lab) {
	for _, s := range []struct {
		rows, d int
		eps     float32
	}{{1, 1, 1e-6}, {1, 16, 1e-5}, {3, 7, 1e-6}, {5, 33, 1e-5}, {65, 48, 1e-6}, {130, 64, 1e-2}, {2, 1030, 1e-6}} {
		name := fmt.Sprintf("[%d %d] ", s.rows, s.d)
		x, w, dy := l.rand.values(s.rows*s.d, 2), l.rand.values(s.d, 1), l.rand.values(s.rows*s.d, 1)
		bx, bw, bdy := l.in(x), l.in(w), l.in(dy)
		y, inv := l.out(s.rows*s.d), l.out(s.rows)
		l.b.RMSNorm(y, inv, bx, bw, s.eps)
		wantY, wantInv := refRMSNorm(wide(x), wide(w), float64(s.eps))
		l.near(name+"y", l.read(y), wantY)
		l.near(name+"inv", l.read(inv), wantInv)

		baseX, baseW := l.rand.values(len(x), 1), l.rand.values(len(w), 1)
		dx, dw, alone := l.inout(baseX), l.inout(baseW), l.inout(baseX)
		l.b.RMSNormGrad(dx, dw, bdy, inv, bx, bw)
		l.b.RMSNormGrad(alone, nil, bdy, inv, bx, bw)
		l.same(name+"dx without dw", l.read(alone), l.read(dx))
		xs, ws := wide(x), wide(w)
		l.gradients(name, func() float64 { y, _ := refRMSNorm(xs, ws, float64(s.eps)); return inner(y, dy) },
			variable{"x", xs, l.read(dx), baseX}, variable{"w", ws, l.read(dw), baseW})
		l.verify()
	}
	zero, inv := l.out(16), l.out(1)
	l.b.RMSNorm(zero, inv, l.in(make([]float32, 16)), l.in(l.rand.values(16, 1)), 1e-6)
	l.near("row of zeros", l.read(zero), make([]float64, 16))
	l.near("row of zeros, inv", l.read(inv), []float64{1000})
}

func testHeadNormRope(l *lab) {
	const eps = 1e-6
	for _, s := range []struct{ sequences, seq, heads, d int }{{1, 1, 1, 2}, {2, 5, 3, 6}, {2, 20, 2, 32}, {1, 300, 4, 8}, {3, 7, 1, 66}, {70, 1, 2, 4}} {
		name := fmt.Sprintf("[%d %d %d %d] ", s.sequences, s.seq, s.heads, s.d)
		n := s.sequences * s.seq * s.heads * s.d
		x, w, dy := l.rand.values(n, 2), l.rand.values(s.d, 1), l.rand.values(n, 1)
		rope, cos, sin := l.rope(s.seq+3, s.d)
		bx, bw := l.in(x), l.in(w)
		y, inv := l.out(n), l.out(n/s.d)
		l.b.HeadNormRope(y, inv, bx, bw, rope, s.heads, s.seq, eps)
		wantY, wantInv := refHeadNormRope(wide(x), wide(w), cos, sin, s.heads, s.seq, eps)
		l.near(name+"y", l.read(y), wantY)
		l.near(name+"inv", l.read(inv), wantInv)

		base := l.rand.values(s.d, 1)
		dx, dw, alone := l.out(n), l.inout(base), l.out(n)
		l.b.HeadNormRopeGrad(dx, dw, l.inout(dy), inv, bx, bw, rope, s.heads, s.seq)
		l.b.HeadNormRopeGrad(alone, nil, l.inout(dy), inv, bx, bw, rope, s.heads, s.seq)
		l.same(name+"dx without dw", l.read(alone), l.read(dx))
		xs, ws := wide(x), wide(w)
		l.gradients(name, func() float64 {
			y, _ := refHeadNormRope(xs, ws, cos, sin, s.heads, s.seq, eps)
			return inner(y, dy)
		}, variable{"x", xs, l.read(dx), nil}, variable{"w", ws, l.read(dw), base})
		l.verify()
	}
}

// rope makes tables of arbitrary values: no operation may rely on cos² + sin² = 1.
func (l *lab) rope(positions, headDim int) (r backend.Rope, cos, sin []float64) {
	c, s := l.rand.values(positions*headDim/2, 1), l.rand.values(positions*headDim/2, 1)
	neg := make([]float32, len(s))
	for i := range s {
		neg[i] = -s[i]
	}
	return backend.Rope{Cos: l.in(c), Sin: l.in(s), NegSin: l.in(neg)}, wide(c), wide(s)
}

func testAttention(l *lab) {
	for _, s := range []struct{ sequences, seq, heads, kv, d int }{
		{1, 1, 1, 1, 2}, {3, 5, 2, 1, 4}, {2, 16, 2, 2, 8}, {2, 17, 4, 2, 6}, {1, 33, 3, 1, 10}, {1, 48, 4, 4, 16}, {1, 300, 2, 1, 8}, {1, 270, 1, 1, 20},
	} {
		name := fmt.Sprintf("[%d %d %d %d %d] ", s.sequences, s.seq, s.heads, s.kv, s.d)
		shape := backend.AttentionShape{Seq: s.seq, Heads: s.heads, KVHeads: s.kv, HeadDim: s.d}
		rows := s.sequences * s.seq
		nq, nk := rows*s.heads*s.d, rows*s.kv*s.d
		q, k, v, dout := l.rand.values(nq, 4), l.rand.values(nk, 4), l.rand.values(nk, 1), l.rand.values(nq, 1)
		bq, bk, bv, bdout := l.in(q), l.in(k), l.in(v), l.in(dout)
		out, state := l.out(nq), l.b.NewAttn(shape, rows, true)
		l.b.Attention(out, bq, bk, bv, state)
		qs, ks, vs := wide(q), wide(k), wide(v)
		l.near(name+"out", l.read(out), refAttention(qs, ks, vs, shape))
		forward := l.out(nq)
		l.b.Attention(forward, bq, bk, bv, l.b.NewAttn(shape, rows, false))
		l.same(name+"out without keeping", l.read(forward), l.read(out))
		dq, dk, dv := l.out(nq), l.out(nk), l.out(nk)
		l.b.AttentionGrad(dq, dk, dv, bdout, out, bq, bk, bv, state)
		l.gradients(name, func() float64 { return inner(refAttention(qs, ks, vs, shape), dout) },
			variable{"q", qs, l.read(dq), nil}, variable{"k", ks, l.read(dk), nil}, variable{"v", vs, l.read(dv), nil})
		l.verify()
	}
	// One key far above the others: the probability of the rest underflows to zero, and nothing becomes NaN.
	shape := backend.AttentionShape{Seq: 20, Heads: 1, KVHeads: 1, HeadDim: 4}
	q, k, v := l.rand.values(80, 1), l.rand.values(80, 1), l.rand.values(80, 1)
	for i := range 4 {
		k[i] = 4000
	}
	for i := range q {
		q[i] = float32(math.Abs(float64(q[i]))) + 1
	}
	out := l.out(80)
	l.b.Attention(out, l.in(q), l.in(k), l.in(v), l.b.NewAttn(shape, 20, false))
	l.near("one key above all", l.read(out), refAttention(wide(q), wide(k), wide(v), shape))
}
