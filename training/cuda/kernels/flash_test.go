package kernels_test

import (
	"math"
	"testing"
)

// tile is a line of the tables in flash.cu.
type tile struct {
	name            string
	d, bm, bn, size int // D, BM, BN, THREADS
	shared          int
}

var (
	forwards = []tile{
		{"flash_fwd_d32", 32, 128, 64, 128, 16384},
		{"flash_fwd_d64", 64, 128, 64, 128, 32768},
		{"flash_fwd_d96", 96, 128, 64, 128, 49152},
		{"flash_fwd_d128", 128, 128, 64, 128, 65536},
	}
	keyGradients = []tile{
		{"flash_dkdv_d32", 32, 64, 128, 256, 33792},
		{"flash_dkdv_d64", 64, 64, 128, 256, 66560},
		{"flash_dkdv_d96", 96, 64, 64, 128, 49664},
		{"flash_dkdv_d128", 128, 64, 64, 128, 66048},
	}
	queryGradients = []tile{
		{"flash_dq_d32", 32, 64, 64, 128, 16384},
		{"flash_dq_d64", 64, 64, 64, 128, 32768},
		{"flash_dq_d96", 96, 64, 64, 128, 49152},
		{"flash_dq_d128", 128, 64, 64, 128, 65536},
	}
)

// attention is one problem and its solution in float64.
type attention struct {
	batch, seq, heads, kvheads, hd int
	ldq, ldk, ldv, ldo             int

	q, k, v, dout    array
	out, dq, dk, dv  []float64 // dense
	lse              []float64
	scale            float32
	outs, dqs        array
	dks, dvs, logsum array
}

func (a *attention) rows() int { return a.batch * a.seq }

// pick returns value j of head h of a row.
func pick(x []float64, ld, hd, row, h int) []float64 { return x[row*ld+h*hd:][:hd] }

func newAttention(d *device, batch, seq, heads, kvheads, hd, wider int) *attention {
	a := &attention{batch: batch, seq: seq, heads: heads, kvheads: kvheads, hd: hd,
		ldq: heads*hd + wider, ldk: kvheads*hd + 2*wider, ldv: kvheads*hd + wider, ldo: heads * hd}
	a.scale = float32(1 / math.Sqrt(float64(hd)))
	n := a.rows()
	a.q, a.k, a.v, a.dout = d.random('b', n*a.ldq, 0), d.random('b', n*a.ldk, 0), d.random('b', n*a.ldv, 0), d.random('b', n*a.ldo, 0)
	a.out, a.dq = make([]float64, n*heads*hd), make([]float64, n*heads*hd)
	a.dk, a.dv = make([]float64, n*kvheads*hd), make([]float64, n*kvheads*hd)
	a.lse = make([]float64, n*heads)
	for b := range batch {
		for h := range heads {
			a.solve(b*seq, h)
		}
	}
	a.outs, a.logsum = d.blank('b', n*a.ldo, 0), d.blank('f', n*heads, 0)
	a.dqs, a.dks, a.dvs = d.blank('b', n*a.ldq, 0), d.blank('b', n*a.ldk, 0), d.blank('b', n*a.ldv, 0)
	return a
}

func (a *attention) solve(first, h int) {
	kv, p, dp := h/(a.heads/a.kvheads), make([]float64, a.seq), make([]float64, a.seq)
	dense, densekv := a.heads*a.hd, a.kvheads*a.hd
	for i := range a.seq {
		row := first + i
		q, out := pick(a.q.v, a.ldq, a.hd, row, h), pick(a.out, dense, a.hd, row, h)
		dout, dq := pick(a.dout.v, a.ldo, a.hd, row, h), pick(a.dq, dense, a.hd, row, h)
		most := math.Inf(-1)
		for j := range i + 1 {
			p[j], dp[j] = 0, 0
			for x, k := range pick(a.k.v, a.ldk, a.hd, first+j, kv) {
				p[j] += q[x] * k * float64(a.scale)
			}
			for x, v := range pick(a.v.v, a.ldv, a.hd, first+j, kv) {
				dp[j] += dout[x] * v
			}
			most = max(most, p[j])
		}
		sum := 0.0
		for j := range i + 1 {
			sum += math.Exp(p[j] - most)
		}
		a.lse[row*a.heads+h] = most + math.Log(sum)
		mean := 0.0
		for j := range i + 1 {
			p[j] = math.Exp(p[j]-most) / sum
			mean += p[j] * dp[j]
		}
		for j := range i + 1 {
			k, v := pick(a.k.v, a.ldk, a.hd, first+j, kv), pick(a.v.v, a.ldv, a.hd, first+j, kv)
			dk, dv := pick(a.dk, densekv, a.hd, first+j, kv), pick(a.dv, densekv, a.hd, first+j, kv)
			ds := p[j] * (dp[j] - mean) * float64(a.scale)
			for x := range a.hd {
				out[x] += p[j] * v[x]
				dq[x] += ds * k[x]
				dk[x] += ds * q[x]
				dv[x] += p[j] * dout[x]
			}
		}
	}
}

// check compares the rows of an array with a dense result, by the norm of the difference.
func (a *attention) check(d *device, what string, x array, ld, heads int, want []float64) {
	d.t.Helper()
	got, width := x.values(), heads*a.hd
	diff, norm := 0.0, 1.0 // with one row, the gradients of q and k are 0
	for row := range a.rows() {
		for j := range width {
			g, w := got[row*ld+j], want[row*width+j]
			diff += (g - w) * (g - w)
			norm += w * w
		}
	}
	if e := math.Sqrt(diff / norm); !(e < 8e-3) {
		d.t.Fatalf("%s of %d×%d, %d/%d heads of %d: relative error %v", what, a.batch, a.seq, a.heads, a.kvheads, a.hd, e)
	}
}

func (a *attention) shape(group int) []any {
	return []any{a.batch, a.seq, a.heads, a.kvheads, a.hd, a.ldo, a.ldq, a.ldk, a.ldv, a.scale, group}
}

func line(n int) [3]int { return [3]int{n, 1, 1} }

func (a *attention) forward(d *device, t tile, group int) {
	d.launch(t.name, line(a.batch*a.heads*ceil(a.seq, t.bm)), line(t.size), t.shared,
		append([]any{a.outs.p, a.logsum.p, a.q.p, a.k.p, a.v.p}, a.shape(group)...)...)
	a.check(d, t.name, a.outs, a.ldo, a.heads, a.out)
	a.logsum.within(t.name+" lse", a.lse, 2e-6)
}

func (a *attention) backward(d *device, k, q tile, group int) {
	padded, lanes := ceil(a.seq, 128)*128, 4
	for lanes*8 < min(a.hd, 128) {
		lanes *= 2
	}
	stats := d.alloc(a.batch * a.heads * padded * 8)
	d.launch("flash_stats", line(ceil(a.batch*padded*a.heads*lanes, 256)), line(256), 0,
		stats, a.dout.p, a.outs.p, a.logsum.p, a.batch, a.seq, a.heads, a.hd, a.ldo)
	d.launch(k.name, line(a.batch*a.kvheads*ceil(a.seq, k.bn)), line(k.size), k.shared,
		append([]any{a.dks.p, a.dvs.p, a.dout.p, a.q.p, a.k.p, a.v.p, stats}, a.shape(group)...)...)
	d.launch(q.name, line(a.batch*a.heads*ceil(a.seq, q.bm)), line(q.size), q.shared,
		append([]any{a.dqs.p, a.dout.p, a.q.p, a.k.p, a.v.p, stats}, a.shape(group)...)...)
	a.check(d, k.name+" dv", a.dvs, a.ldv, a.kvheads, a.dv)
	a.check(d, k.name+" dk", a.dks, a.ldk, a.kvheads, a.dk)
	a.check(d, q.name+" dq", a.dqs, a.ldq, a.heads, a.dq)
}

func TestAttention(t *testing.T) {
	shapes := []struct{ batch, seq, heads, kvheads, hd, wider, group int }{
		{2, 5, 2, 1, 16, 0, 1},
		{1, 70, 2, 2, 32, 8, 3},
		{2, 130, 2, 1, 40, 0, 3},
		{1, 257, 2, 1, 64, 24, 2},
		{1, 129, 1, 1, 96, 0, 1},
		{2, 64, 2, 2, 80, 0, 4},
		{2, 200, 4, 2, 128, 8, 3},
		{1, 1, 1, 1, 128, 0, 1},
	}
	devices(t, func(d *device) {
		for _, s := range shapes {
			a := newAttention(d, s.batch, s.seq, s.heads, s.kvheads, s.hd, s.wider)
			for i, x := range forwards {
				if x.d >= s.hd && (x.d < s.hd+32 || s.hd < 32) {
					a.forward(d, x, s.group)
					a.backward(d, keyGradients[i], queryGradients[i], s.group)
				}
			}
		}
	})
}
