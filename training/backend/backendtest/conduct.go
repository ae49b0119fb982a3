package backendtest

import (
	"fmt"
	"math"
	"sync"

	"github.com/blockzero-net/bzd/training/backend"
)

// testRefresh changes weights in place and checks that every operation sees the change.
func testRefresh(l *lab) {
	const rows, in, out = 9, 20, 33
	x, dy := l.in(l.rand.values(rows*in, 1)), l.in(l.rand.values(rows*out, 1))
	data := l.inout(l.rand.values(in*out, 1))
	w := l.b.Prepare(data, out, in)
	forward := func(w backend.Weight) []float32 {
		y := l.out(rows * out)
		l.b.Linear(y, x, w)
		return l.read(y)
	}
	back := func(w backend.Weight) []float32 {
		dx := l.out(rows * in)
		l.b.LinearGradInput(dx, dy, w, false)
		return l.read(dx)
	}
	forward(w)
	back(w)
	for range 2 {
		fresh := l.rand.values(in*out, 1)
		l.b.Write(w.Data().Slice(0, in*out), fresh)
		w.Refresh()
		l.identical("Data and the buffer it was prepared from", l.read(data), fresh)
		other := l.weight(fresh, out, in)
		l.same("Linear after Refresh", forward(w), forward(other))
		l.same("LinearGradInput after Refresh", back(w), back(other))
	}

	shape := backend.MixtureShape{Experts: 3, TopK: 2, Model: in, Width: 7}
	a := l.experts(shape)
	logits := l.route(shape, rows, "spread")
	run := func(s *expertSet) []float32 {
		m := l.b.NewMix(shape, rows, true)
		y, dx, dl := l.out(rows*in), l.inout(make([]float32, rows*in)), l.out(len(logits))
		l.b.Mixture(y, x, l.in(logits), s.experts, m)
		l.b.MixtureGrad(dx, dl, y, x, s.experts, make([]backend.ExpertGrad, shape.Experts), m, 0)
		return append(append(l.read(y), l.read(dx)...), l.read(dl)...)
	}
	run(a)
	b := l.experts(shape)
	a.experts[1].Gate, a.experts[1].Down = l.mutable(a.experts[1].Gate), l.mutable(a.experts[1].Down)
	run(a)
	for _, p := range [][2]backend.Weight{{a.experts[1].Gate, b.experts[1].Gate}, {a.experts[1].Down, b.experts[1].Down}} {
		l.b.Copy(p[0].Data(), p[1].Data())
		p[0].Refresh()
	}
	a.experts[0], a.experts[2], a.experts[1].Up = b.experts[0], b.experts[2], b.experts[1].Up
	l.same("Mixture after Refresh", run(a), run(b))
}

// mutable is a copy of w that may change.
func (l *lab) mutable(w backend.Weight) backend.Weight {
	out, in := w.Shape()
	return l.b.Prepare(l.inout(l.read(w.Data())), out, in)
}

// testComposition computes a batch whole, then its sequences one by one: the results of a row must be the same.
func testComposition(l *lab) {
	const sequences, seq, dim, heads, kv, d, vocab = 5, 19, 24, 4, 2, 6, 37
	const rows = sequences * seq
	mixture := backend.MixtureShape{Experts: 5, TopK: 2, Model: dim, Width: 11, Normalize: true}
	attention := backend.AttentionShape{Seq: seq, Heads: heads, KVHeads: kv, HeadDim: d}
	x, dy := l.rand.values(rows*dim, 1), l.rand.values(rows*dim, 1)
	norm, head := l.in(l.rand.values(dim, 1)), l.in(l.rand.values(d, 1))
	w := l.weight(l.rand.values(vocab*dim, 1), vocab, dim)
	k, v := l.rand.values(rows*kv*d, 2), l.rand.values(rows*kv*d, 1)
	logits, router := l.rand.values(rows*vocab, 4), l.route(mixture, rows, "spread")
	targets := l.rand.ids(rows, vocab)
	set := l.experts(mixture)
	rope, _, _ := l.rope(seq, d)

	run := func(lo, hi int) map[string][]float32 {
		n := hi - lo
		got := map[string][]float32{}
		bx, bdy := l.in(x[lo*dim:hi*dim]), l.in(dy[lo*dim:hi*dim])
		y, inv := l.out(n*dim), l.out(n)
		l.b.RMSNorm(y, inv, bx, norm, 1e-6)
		got["RMSNorm"], got["RMSNorm inv"] = l.read(y), l.read(inv)
		dx := l.inout(x[lo*dim : hi*dim])
		l.b.RMSNormGrad(dx, nil, bdy, inv, bx, norm)
		got["RMSNormGrad"] = l.read(dx)

		long := l.out(n * vocab)
		l.b.Linear(long, bx, w)
		got["Linear"] = l.read(long)
		l.b.LinearGradInput(y, long, w, false)
		got["LinearGradInput"] = l.read(y)

		bq, bk, bv := l.out(n*dim), l.in(k[lo*kv*d:hi*kv*d]), l.in(v[lo*kv*d:hi*kv*d])
		hinv := l.out(n * heads)
		l.b.HeadNormRope(bq, hinv, bx, head, rope, heads, seq, 1e-6)
		got["HeadNormRope"] = l.read(bq)
		l.b.HeadNormRopeGrad(y, nil, l.inout(dy[lo*dim:hi*dim]), hinv, bx, head, rope, heads, seq)
		got["HeadNormRopeGrad"] = l.read(y)

		state, out := l.b.NewAttn(attention, n, true), l.out(n*dim)
		l.b.Attention(out, bq, bk, bv, state)
		got["Attention"] = l.read(out)
		dk, dv := l.out(n*kv*d), l.out(n*kv*d)
		l.b.AttentionGrad(y, dk, dv, bdy, out, bq, bk, bv, state)
		got["AttentionGrad dq"], got["AttentionGrad dk"], got["AttentionGrad dv"] = l.read(y), l.read(dk), l.read(dv)

		m := l.b.NewMix(mixture, n, true)
		l.b.Mixture(out, bx, l.in(router[lo*mixture.Experts:hi*mixture.Experts]), set.experts, m)
		got["Mixture"] = l.read(out)
		dlogits := l.out(n * mixture.Experts)
		dx = l.inout(x[lo*dim : hi*dim])
		l.b.MixtureGrad(dx, dlogits, bdy, bx, set.experts, make([]backend.ExpertGrad, mixture.Experts), m, 0)
		got["MixtureGrad dx"], got["MixtureGrad dlogits"] = l.read(dx), l.read(dlogits)

		b, losses := l.inout(logits[lo*vocab:hi*vocab]), make([]float64, n)
		l.b.CrossEntropy(losses, b, targets[lo:hi], 0.5)
		l.sync()
		got["CrossEntropy gradient"] = l.read(b)
		got["CrossEntropy"] = halves(losses)
		return got
	}
	whole := run(0, rows)
	for i := range sequences {
		for name, got := range run(i*seq, (i+1)*seq) {
			n := len(got)
			l.same(fmt.Sprintf("%s of sequence %d alone and in a batch", name, i), got, whole[name][i*n:(i+1)*n])
		}
	}
	// Row-wise operations, by single rows.
	for r := 0; r < rows; r += 7 {
		y, long := l.out(dim), l.out(vocab)
		l.b.Mixture(y, l.in(x[r*dim:(r+1)*dim]), l.in(router[r*mixture.Experts:(r+1)*mixture.Experts]), set.experts, l.b.NewMix(mixture, 1, false))
		l.same("Mixture of one row", l.read(y), whole["Mixture"][r*dim:(r+1)*dim])
		l.b.Linear(long, l.in(x[r*dim:(r+1)*dim]), w)
		l.same("Linear of one row", l.read(long), whole["Linear"][r*vocab:(r+1)*vocab])
	}
}

// halves splits float64 into two float32 that keep nearly all of it.
func halves(v []float64) []float32 {
	var s []float32
	for _, x := range v {
		hi := float32(x)
		s = append(s, hi, float32(x-float64(hi)))
	}
	return s
}

// testConcurrency runs whole layers at once on one backend with shared weights that nobody used before.
func testConcurrency(l *lab) {
	const seq, dim, heads, kv, d, vocab, workers = 40, 32, 4, 2, 8, 50, 4
	mixture := backend.MixtureShape{Experts: 4, TopK: 2, Model: dim, Width: 20}
	attention := backend.AttentionShape{Seq: seq, Heads: heads, KVHeads: kv, HeadDim: d}
	x := l.rand.values(2*seq*dim, 1)
	wk, wh, wr := l.rand.values(kv*d*dim, 1), l.rand.values(vocab*dim, 1), l.rand.values(mixture.Experts*dim, 1)
	norm := l.in(l.rand.values(dim, 1))
	targets := l.rand.ids(2*seq, vocab)
	set := l.experts(mixture)
	b := l.b
	type weights struct{ key, head, router backend.Weight }
	fresh := func() weights {
		return weights{l.weight(wk, kv*d, dim), l.weight(wh, vocab, dim), l.weight(wr, mixture.Experts, dim)}
	}
	// layer uses no lab: that one is for a single goroutine.
	layer := func(w weights, sequences int) []float32 {
		n := sequences * seq
		values := func(v []float32) backend.Buffer { d := b.Alloc(len(v)); b.Write(d, v); return d }
		h, y, inv := values(x[:n*dim]), b.Alloc(n*dim), b.Alloc(n)
		b.RMSNorm(y, inv, h, norm, 1e-6)
		k, out, state := b.Alloc(n*kv*d), b.Alloc(n*dim), b.NewAttn(attention, n, true)
		b.Linear(k, y, w.key)
		b.Attention(out, y, k, k, state)
		r, m := b.Alloc(n*mixture.Experts), b.NewMix(mixture, n, true)
		b.Linear(r, out, w.router)
		b.Mixture(y, out, r, set.experts, m)
		logits, losses := b.Alloc(n*vocab), make([]float64, n)
		b.Linear(logits, y, w.head)
		b.CrossEntropy(losses, logits, targets[:n], 1)
		if err := b.Sync(); err != nil {
			panic(err)
		}
		dx, dq, dk, dv, dl := b.Alloc(n*dim), b.Alloc(n*dim), b.Alloc(n*kv*d), b.Alloc(n*kv*d), b.Alloc(n*mixture.Experts)
		b.LinearGradInput(y, logits, w.head, false)
		grads := make([]backend.ExpertGrad, mixture.Experts)
		size := mixture.Model * mixture.Width
		grads[1] = backend.ExpertGrad{Gate: b.Alloc(size), Up: b.Alloc(size), Down: b.Alloc(size)}
		b.MixtureGrad(dx, dl, y, out, set.experts, grads, m, 0.1)
		b.LinearGradInput(dx, dl, w.router, true)
		b.AttentionGrad(dq, dk, dv, dx, out, y, k, k, state)
		gw := b.Alloc(kv * d * dim)
		b.LinearGradWeight(gw, dk, h, n)
		all := halves(losses)
		for _, buf := range []backend.Buffer{dq, dk, dv, dl, gw, grads[1].Gate, grads[1].Up, grads[1].Down} {
			v := make([]float32, buf.Len())
			b.Read(v, buf)
			all = append(all, v...)
		}
		return all
	}
	serial := fresh()
	want := [3][]float32{1: layer(serial, 1), 2: layer(serial, 2)}
	for _, v := range want[2] {
		if math.IsNaN(float64(v)) {
			l.Fatal("the layer gives NaN")
		}
	}
	shared := fresh()
	var got [workers][]float32
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for range 2 {
				got[i] = layer(shared, 1+i%2)
			}
		})
	}
	wg.Wait()
	for i := range got {
		l.same(fmt.Sprintf("goroutine %d of %d", i, workers), got[i], want[1+i%2])
	}
}
