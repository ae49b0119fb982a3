package kernels_test

import (
	"math"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
)

const eps = float32(1e-5)

// perRow is the launch shape ROWS of norm.cu.
func perRow(rows, d int) (grid, block [3]int) {
	switch {
	case d <= 1024:
		return line(ceil(rows, 8)), [3]int{32, 8, 1}
	case d <= 2048:
		return line(rows), line(64)
	case d <= 4096:
		return line(rows), line(128)
	}
	return line(rows), line(256)
}

// odd is how far an address is off its alignment: two values.
func odd(letter byte, yes bool) int {
	if !yes {
		return 0
	}
	return map[byte]int{'f': 8, 'b': 4}[letter]
}

func add(x, y []float64) []float64 {
	sum := make([]float64, len(x))
	for i := range x {
		sum[i] = x[i] + y[i]
	}
	return sum
}

// normed is the reference of a norm over rows of d values.
func normed(x, w []float64) (y, inv []float64) {
	d := len(w)
	y, inv = make([]float64, len(x)), make([]float64, len(x)/d)
	for r := range inv {
		sum := 0.0
		for _, v := range x[r*d:][:d] {
			sum += v * v
		}
		inv[r] = 1 / math.Sqrt(sum/float64(d)+float64(eps))
		for i := range d {
			y[r*d+i] = x[r*d+i] * inv[r] * w[i]
		}
	}
	return y, inv
}

func normedGrad(dy, x, w []float64) (dx, dw []float64) {
	d := len(w)
	_, inv := normed(x, w)
	dx, dw = make([]float64, len(x)), make([]float64, d)
	for r, n := range inv {
		c := 0.0
		for i := range d {
			c += dy[r*d+i] * w[i] * x[r*d+i]
		}
		for i := range d {
			dx[r*d+i] = dy[r*d+i]*w[i]*n - c*n*n*n/float64(d)*x[r*d+i]
			dw[i] += dy[r*d+i] * x[r*d+i] * n
		}
	}
	return dx, dw
}

func TestRMSNorm(t *testing.T) {
	shapes := []struct {
		rows, d int
		odd     bool
	}{{3, 64, false}, {9, 512, false}, {2, 520, true}, {3, 1000, false}, {9, 1024, false}, {2, 2048, false}, {2, 4200, false}, {1, 9000, false},
		{3, 37, false}, {1, 4111, true}}
	devices(t, func(d *device) {
		for _, s := range shapes {
			n := s.rows * s.d
			grid, block := perRow(s.rows, s.d)
			w := d.random('f', s.d, odd('f', s.odd))
			for _, l := range []string{"ff", "fb", "bb"} {
				x, y, inv := d.random(l[0], n, odd(l[0], s.odd)), d.blank(l[1], n, odd(l[1], s.odd)), d.blank('f', s.rows, 0)
				d.launch("rmsnorm_"+l, grid, block, 0, y.p, inv.p, x.p, w.p, s.rows, s.d, eps)
				wantY, wantInv := normed(x.v, w.v)
				y.is("y "+l, wantY)
				inv.is("inv "+l, wantInv)
			}
			for _, l := range []string{"fff", "fbf", "bbf", "bbb"} {
				x, dy, dx := d.random(l[0], n, odd(l[0], s.odd)), d.random(l[1], n, 0), d.random(l[2], n, odd(l[2], s.odd))
				_, rms := normed(x.v, w.v)
				inv := d.array('f', rms, 0)
				want, wantW := normedGrad(dy.v, x.v, w.v)
				d.launch("rmsnorm_grad_"+l, grid, block, 0, dx.p, dx.p, dy.p, inv.p, x.p, w.p, s.rows, s.d)
				dx.is("dx added "+l, add(dx.v, want))
				d.launch("rmsnorm_grad_"+l, grid, block, 0, dx.p, cuda.Ptr(0), dy.p, inv.p, x.p, w.p, s.rows, s.d)
				dx.is("dx set "+l, want)
				if l == "bbf" {
					continue
				}
				parts := 2
				partial, dw := d.blank('f', parts*s.d, 0), d.random('f', s.d, 0)
				d.launch("rmsnorm_wgrad_"+l[:2], [3]int{ceil(s.d, 256), parts, 1}, line(256), 0, partial.p, dy.p, inv.p, x.p, s.rows, s.d)
				d.launch("reduce_rows", line(ceil(s.d, 32)), line(256), 0, dw.p, partial.p, parts, s.d, 1)
				dw.is("dw added "+l, add(dw.v, wantW))
				d.launch("reduce_rows", line(ceil(s.d, 32)), line(256), 0, dw.p, partial.p, parts, s.d, 0)
				dw.is("dw set "+l, wantW)
			}
		}
	})
}

// rotated turns the heads of dense rows by their positions, forwards or back.
func rotated(y, cos, sin []float64, heads, seq, hd int, sign float64) []float64 {
	h, z := hd/2, make([]float64, len(y))
	for i := range len(y) / hd {
		p := i / heads % seq
		for j := range h {
			c, s := cos[p*h+j], sign*sin[p*h+j]
			a, b := y[i*hd+j], y[i*hd+h+j]
			z[i*hd+j], z[i*hd+h+j] = a*c-b*s, b*c+a*s
		}
	}
	return z
}

// dense takes the first width values out of rows of ld.
func dense(x []float64, width, ld int) []float64 {
	y := make([]float64, len(x)/ld*width)
	for r := range len(x) / ld {
		copy(y[r*width:][:width], x[r*ld:])
	}
	return y
}

// denseIs compares the first width values of an array's rows of ld.
func denseIs(what string, a array, width, ld int, want []float64) {
	a.d.t.Helper()
	all := a.values()
	for i := range all {
		if i%ld < width {
			all[i] = want[i/ld*width+i%ld]
		} else if math.IsNaN(all[i]) {
			all[i] = 0 // never written
		}
	}
	if width == ld {
		a.is(what, all)
		return
	}
	got := dense(a.values(), width, ld)
	for i, w := range want {
		if !(math.Abs(got[i]-w) <= 5e-3*(math.Abs(w)+1)) {
			a.d.t.Fatalf("%s: value %d is %v, want %v", what, i, got[i], w)
		}
	}
}

func TestHeadNormRope(t *testing.T) {
	shapes := []struct{ rows, heads, seq, hd, wider int }{
		{6, 3, 3, 128, 0}, {10, 2, 5, 64, 8}, {7, 1, 7, 16, 0}, {5, 3, 5, 96, 0}, {4, 5, 2, 40, 0}, {3, 2, 3, 6, 3}, {2, 2, 2, 256, 0}, {17, 19, 4, 128, 8},
	}
	devices(t, func(d *device) {
		for _, s := range shapes {
			width := s.heads * s.hd
			ld, half := width+s.wider, s.hd/2
			grid := line(ceil(s.rows, 8))
			w, angles := d.random('f', s.hd, 0), make([]float64, s.seq*half)
			cosines, sines := make([]float64, len(angles)), make([]float64, len(angles))
			for i := range angles {
				angles[i] = d.r.Float64() * 7
				cosines[i], sines[i] = math.Cos(angles[i]), math.Sin(angles[i])
			}
			cos, sin := d.array('f', cosines, 0), d.array('f', sines, 0)
			for _, l := range []string{"ff", "fb", "bb"} {
				x, y, inv := d.random(l[0], s.rows*ld, 0), d.blank(l[1], s.rows*width, 0), d.blank('f', s.rows*s.heads, 0)
				d.launch("headnorm_rope_"+l, grid, line(256), 0, y.p, inv.p, x.p, w.p, cos.p, sin.p, s.rows, s.heads, s.seq, s.hd, ld, width, eps)
				want, wantInv := normed(dense(x.v, width, ld), w.v)
				y.is("y "+l, rotated(want, cos.v, sin.v, s.heads, s.seq, s.hd, 1))
				inv.is("inv "+l, wantInv)
			}
			for _, l := range []string{"fff", "bff", "bbb"} {
				x, dy, dx := d.random(l[0], s.rows*ld, 0), d.random(l[1], s.rows*width, 0), d.blank(l[2], s.rows*ld, 0)
				straight := dense(x.v, width, ld)
				_, rms := normed(straight, w.v)
				want, wantW := normedGrad(rotated(dy.v, cos.v, sin.v, s.heads, s.seq, s.hd, -1), straight, w.v)
				inv, partial, dw := d.array('f', rms, 0), d.blank('f', grid[0]*s.hd, 0), d.blank('f', s.hd, 0)
				d.launch("headnorm_rope_grad_"+l, grid, line(256), 0, dx.p, partial.p, dy.p, inv.p, x.p, w.p, cos.p, sin.p,
					s.rows, s.heads, s.seq, s.hd, ld, width)
				denseIs("dx "+l, dx, width, ld, want)
				d.launch("reduce_rows", line(ceil(s.hd, 32)), line(256), 0, dw.p, partial.p, grid[0], s.hd, 0)
				dw.within("dw "+l, wantW, 1e-5)
				if s.wider == 0 && l != "bff" { // one block goes over all of it, in place
					d.launch("headnorm_rope_grad_"+l, line(1), line(256), 0, dy.p, partial.p, dy.p, inv.p, x.p, w.p, cos.p, sin.p,
						s.rows, s.heads, s.seq, s.hd, ld, width)
					dy.is("dx in place "+l, want)
					d.launch("reduce_rows", line(ceil(s.hd, 32)), line(256), 0, dw.p, partial.p, 1, s.hd, 0)
					dw.within("dw of one block "+l, wantW, 1e-5)
				}
			}
		}
	})
}

func silu(g float64) (z, s float64) {
	s = 1 / (1 + math.Exp(-g))
	return g * s, s
}

func TestSwiglu(t *testing.T) {
	shapes := []struct{ rows, width, wider int }{{9, 64, 64}, {3, 520, 0}, {2, 1024, 8}, {3, 2056, 0}, {5, 33, 1}}
	devices(t, func(d *device) {
		for _, s := range shapes {
			n, ld := s.rows*s.width, s.width+s.wider
			for _, l := range []string{"ff", "fb", "bb"} {
				g, u, a := d.random(l[0], s.rows*ld, 0), d.random(l[0], s.rows*ld, 0), d.blank(l[1], n, 0)
				d.launch("swiglu_"+l, line(ceil(s.rows*ceil(s.width, 8), 256)), line(256), 0, a.p, g.p, u.p, s.rows, s.width, ld, s.width)
				want, up := dense(g.v, s.width, ld), dense(u.v, s.width, ld)
				for i := range want {
					want[i], _ = silu(want[i])
					want[i] *= up[i]
				}
				a.is("a "+l, want)
			}
			for _, l := range []byte("fb") {
				g, u, da := d.random(l, s.rows*ld, 0), d.random(l, s.rows*ld, 0), d.random(l, n, 0)
				weight, source := d.random('f', s.rows, 0), make([]int32, s.rows)
				for r, at := range d.r.Perm(s.rows) {
					source[r] = int32(at)
				}
				dw := d.blank('f', s.rows, 0)
				dg, du, wa := make([]float64, n), make([]float64, n), make([]float64, n)
				wantW := make([]float64, s.rows)
				for i := range n {
					r, j := i/s.width, i%s.width
					slot := source[r]
					z, sig := silu(g.v[r*ld+j])
					a, w, x := z*u.v[r*ld+j], weight.v[slot], da.v[i]
					wantW[slot] += x * a
					dg[i], du[i], wa[i] = x*w*u.v[r*ld+j]*(sig+z*(1-sig)), x*w*z, w*a
				}
				grid, block := line(s.rows), line(256)
				if s.width <= 512 {
					grid, block = line(ceil(s.rows, 8)), [3]int{32, 8, 1}
				}
				at := put(d, source, 0)
				if l == 'b' { // only some rows get wa, and da is not that
					expert, wanted, other := make([]int32, s.rows), []int32{0, 1}, d.random(l, n, 0)
					for r, slot := range source {
						expert[slot] = int32(r & 1)
						if r&1 == 1 {
							for i := r * s.width; i < (r+1)*s.width; i++ {
								other.v[i] = wa[i]
							}
						}
					}
					out := d.blank(l, s.rows*ld, 0)
					d.launch("swiglu_grad_b", grid, block, 0, out.p, out.p, other.p, cuda.Ptr(0), da.p, g.p, u.p, weight.p, at,
						put(d, expert, 0), put(d, wanted, 0), s.rows, s.width, ld, s.width)
					other.is("wa of some", other.v)
				}
				d.launch("swiglu_grad_"+string(l), grid, block, 0, g.p, u.p, da.p, dw.p, da.p, g.p, u.p, weight.p, at,
					cuda.Ptr(0), cuda.Ptr(0), s.rows, s.width, ld, s.width)
				denseIs("dg", array{d, g.p, l, g.v}, s.width, ld, dg)
				denseIs("du", array{d, u.p, l, u.v}, s.width, ld, du)
				da.is("wa", wa)
				dw.within("dw", wantW, 1e-5)
			}
		}
	})
}

func TestSums(t *testing.T) {
	devices(t, func(d *device) {
		for _, n := range []int{1, 7, 2048, 5003} {
			for _, l := range []string{"fff", "ffb", "fbb", "bbb"} {
				y, a, b := d.blank(l[0], n, 0), d.random(l[1], n, odd(l[1], n == 7)), d.random(l[2], n, 0)
				d.launch("sum_"+l, line(ceil(n, 2048)), line(256), 0, y.p, a.p, b.p, int64(n))
				y.is("sum_"+l, add(a.v, b.v))
			}
			x, y, partial := d.random('f', n, odd('f', n == 5003)), d.random('f', 3*n, 0), d.alloc(8*3*2)
			d.launch("square_sums", [3]int{3, 2, 1}, line(256), 0, partial, put(d, []uint64{uint64(x.p), uint64(y.p)}, 0), put(d, []int64{int64(n), int64(3 * n)}, 0))
			shares := get[float64](d, partial, 6)
			for k, a := range []array{x, y} {
				want, got := 0.0, 0.0
				for _, v := range a.v {
					want += v * v
				}
				for _, v := range shares[3*k:][:3] {
					got += v
				}
				if !(math.Abs(got-want) < 1e-6*want) {
					d.t.Fatalf("sum of %d squares is %v, want %v", len(a.v), got, want)
				}
			}
		}
	})
}

func TestCrossEntropy(t *testing.T) {
	const scale = float32(0.25)
	devices(t, func(d *device) {
		shapes := []struct{ rows, vocab, offset int }{{3, 64, 0}, {4, 5003, 0}, {2, 11, 4}, {3, 3, 0}, {2, 9000, 8}, {1, 40007, 0}}
		for _, s := range shapes {
			for _, l := range []byte("fb") {
				threads := map[byte]int{'f': 1024, 'b': 512}[l]
				n := s.rows * s.vocab
				x := make([]float64, n)
				for i := range x {
					x[i] = 5 * d.r.NormFloat64()
				}
				x[1] = math.Inf(-1)
				logits, targets := d.array(l, x, s.offset), make([]int32, s.rows)
				want, losses := make([]float64, n), make([]float64, s.rows)
				for r := range s.rows {
					row, sum := logits.v[r*s.vocab:][:s.vocab], 0.0
					target := d.r.IntN(s.vocab)
					if r == 0 {
						target = s.vocab - 1
					}
					targets[r] = int32(target)
					for _, v := range row {
						sum += math.Exp(v)
					}
					for i, v := range row {
						want[r*s.vocab+i] = float64(scale) * math.Exp(v) / sum
					}
					want[r*s.vocab+target] -= float64(scale)
					losses[r] = math.Log(sum) - row[target]
				}
				if s.rows == 4 {
					targets[2], losses[2] = -1, 0
					clear(want[2*s.vocab:][:s.vocab])
				}
				out, ids := d.alloc(8*s.rows), put(d, targets, 0)
				launch := func(scale float32) {
					d.launch("cross_entropy_"+string(l), line(s.rows), line(threads), 0, out, logits.p, ids, s.rows, s.vocab, scale)
					for r, got := range get[float64](d, out, s.rows) {
						if !(math.Abs(got-losses[r]) < 2e-6*(1+losses[r])) {
							d.t.Fatalf("loss of row %d of %d is %v, want %v", r, s.vocab, got, losses[r])
						}
					}
				}
				launch(0)
				launch(scale)
				tolerance := 2e-5
				if l == 'b' {
					tolerance = 4.5e-3
				}
				logits.within("gradient", want, tolerance)
			}
		}
	})
}

func TestAdamW(t *testing.T) {
	f := func(a, b, c float32) float32 { // these sums do not round twice in the wrong way
		return float32(math.FMA(float64(a), float64(b), float64(c)))
	}
	const clip, beta1, one1, beta2, one2, step, root, tiny, decay = float32(0.7), float32(0.9), float32(0.1), float32(0.95), float32(0.05),
		float32(3e-3), float32(1.5), float32(1e-8), float32(1e-4)
	devices(t, func(d *device) {
		for _, n := range []int{5, 4096 + 3} {
			p, m, v, g := d.random('f', n, odd('f', n == 5)), d.random('f', n, 0), d.random('f', n, 0), d.random('f', n, 0)
			want := [3][]float64{make([]float64, n), make([]float64, n), make([]float64, n)}
			for i := range n {
				v.v[i] = math.Abs(v.v[i])
			}
			v = d.array('f', v.v, 0)
			for i := range n {
				x := float32(g.v[i]) * clip
				nm := f(beta1, float32(m.v[i]), one1*x)
				nv := f(beta2, float32(v.v[i]), float32(one2*x)*x)
				np := f(-decay, float32(p.v[i]), float32(p.v[i])) - float32(nm*step)/f(float32(math.Sqrt(float64(nv))), root, tiny)
				want[0][i], want[1][i], want[2][i] = float64(np), float64(nm), float64(nv)
			}
			scalars := []any{int64(n), clip, beta1, one1, beta2, one2, step, root, tiny, decay}
			if n > 8 {
				c := d.blank('b', n, 0)
				d.launch("adamw_copy", line(ceil(n, 2048)), line(256), 0, append([]any{p.p, m.p, v.p, g.p, c.p}, scalars...)...)
				for i, got := range get[uint16](d, c.p, n) {
					if got != bf16(float32(want[0][i])) {
						d.t.Fatalf("copy %d is %x of %v", i, got, want[0][i])
					}
				}
			} else {
				d.launch("adamw", line(ceil(n, 2048)), line(256), 0, append([]any{p.p, m.p, v.p, g.p}, scalars...)...)
			}
			for k, a := range []array{p, m, v} {
				for i, got := range a.values() {
					if got != want[k][i] {
						d.t.Fatalf("value %d of array %d is %v, want %v", i, k, got, want[k][i])
					}
				}
			}
		}
	})
}

func TestEmbedding(t *testing.T) {
	devices(t, func(d *device) {
		for _, width := range []int{64, 2600, 13} {
			const vocab, rows = 6, 150
			ids := make([]int32, rows)
			for i := range ids {
				ids[i] = int32(d.r.IntN(vocab - 1))
			}
			at := put(d, ids, 0)
			for _, l := range []string{"ff", "fb", "bb"} {
				table, y := d.random(l[0], vocab*width, 0), d.blank(l[1], 20*width, 0)
				d.launch("embed_"+l, line(20), line(256), 0, y.p, table.p, at, 20, width)
				want := make([]float64, 20*width)
				for i := range 20 {
					copy(want[i*width:], table.v[int(ids[i])*width:][:width])
				}
				y.is("embed_"+l, want)
			}
			var list, first, order []int32
			for id := range int32(vocab) {
				if at := slices.Index(ids, id); at < 0 {
					continue
				}
				list, first = append(list, id), append(first, int32(len(order)))
				for i, other := range ids {
					if other == id {
						order = append(order, int32(i))
					}
				}
			}
			first = append(first, rows)
			listAt, firstAt, orderAt := put(d, list, 0), put(d, first, 0), put(d, order, 0)
			for _, l := range []byte("fb") {
				table, dy := d.random('f', vocab*width, 0), d.random(l, rows*width, 0)
				want := make([]float32, vocab*width)
				for i, v := range table.v {
					want[i] = float32(v)
				}
				for i := range rows {
					for j := range width {
						want[int(ids[i])*width+j] += float32(dy.v[i*width+j])
					}
				}
				d.launch("embed_grad_"+string(l), [3]int{len(list), ceil(width, 512), 1}, line(64), 0, table.p, dy.p, listAt, firstAt, orderAt, width)
				for i, got := range table.values() {
					if got != float64(want[i]) {
						d.t.Fatalf("embed_grad_%c: value %d is %v, want %v", l, i, got, want[i])
					}
				}
			}
		}
	})
}
