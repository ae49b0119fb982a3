package cpu

import (
	"fmt"
	"sync"

	"github.com/blockzero-net/bzd/training/backend"
)

// blockK is the length of a k-block: a product is a sequence of fused multiply-adds within a block, and block sums are
// added in order. It is part of docs/spec/exact.md.
const blockK = 256

// view is a matrix operand: value (i, k) at data[i·row + k·col].
type view struct {
	data     []float32
	row, col int
}

// panels is a right-hand matrix [k, n] packed in panels of 16 columns: panel p holds k rows of 16 values, padded with
// zeros.
type panels struct {
	data []float32
	k, n int
	rows int // rows a panel holds, at least k
}

// sub is the matrix of n columns and rows k0 to k0+k of p.
func (p panels) sub(k0, k, n int) panels { return panels{p.data[16*k0:], k, n, p.rows} }

func panelLen(k, n int) int { return (n + 15) / 16 * k * 16 }

// packNN packs src [k, n] with row stride ld.
func packNN(dst []float32, src []float32, k, n, ld int) panels {
	for p := 0; p*16 < n; p++ {
		w := min(16, n-p*16)
		d := dst[p*k*16:]
		for r := range k {
			s := src[r*ld+p*16:]
			if w == 16 {
				*(*[16]float32)(d[r*16:]) = *(*[16]float32)(s)
				continue
			}
			copy(d[r*16:r*16+16], s[:w])
			clear(d[r*16+w : r*16+16])
		}
	}
	return panels{dst[:panelLen(k, n)], k, n, k}
}

// packNT packs the transpose of src [n, k] with row stride ld.
func packNT(dst []float32, src []float32, k, n, ld int) panels {
	for p := 0; p*16 < n; p++ {
		w := min(16, n-p*16)
		d := dst[p*k*16 : (p+1)*k*16]
		if w < 16 {
			clear(d)
		}
		for c := range w {
			s := src[(p*16+c)*ld:]
			s = s[:k]
			for r, v := range s {
				d[r*16+c] = v
			}
		}
	}
	return panels{dst[:panelLen(k, n)], k, n, k}
}

// product sets (or adds to) c [m, n] with row stride ldc the product of a [m, k] and p, for the rows lo to hi.
func (b *Backend) product(c []float32, ldc int, a view, p panels, lo, hi int, add bool) {
	m := hi - lo
	if m <= 0 || p.n == 0 {
		return
	}
	blocks := (m + b.rows - 1) / b.rows
	var edge *[14 * 32]float32 // a tile that reaches over the last column
	for k0 := 0; k0 == 0 || k0 < p.k; k0 += blockK {
		t := tile{aRow: 4 * a.row, aCol: 4 * a.col, bPanel: 64 * p.rows, k: min(blockK, p.k-k0)}
		for j := 0; j < p.n; {
			v := min(b.vectors, (p.n-j+15)/16)
			width := min(16*v, p.n-j)
			t.b = &p.data[j*p.rows+16*k0]
			i := lo
			for n := range blocks {
				h := (hi - i + blocks - n - 1) / (blocks - n)
				t.a = &a.data[i*a.row+k0*a.col]
				if width == 16*v {
					t.c, t.cRow, t.add = &c[i*ldc+j], 4*ldc, 0
					if add || k0 > 0 {
						t.add = 1
					}
					b.gemm(h, v, &t)
				} else {
					if edge == nil {
						edge = new([14 * 32]float32)
					}
					t.c, t.cRow, t.add = &edge[0], 64*v, 0
					b.gemm(h, v, &t)
					for r := range h {
						row := c[(i+r)*ldc+j:][:width]
						for x := range row {
							if add || k0 > 0 {
								row[x] += edge[r*16*v+x]
							} else {
								row[x] = edge[r*16*v+x]
							}
						}
					}
				}
				i += h
			}
			j += width
		}
	}
}

// rowGrain is how many rows of a product one work item takes.
func (b *Backend) rowGrain() int { return 4 * b.rows }

// weight is a matrix [out, in] with the two packed forms that passes need, made when first asked for.
type weight struct {
	data    floats
	frozen  bool
	out, in int
	forward onceValue // Wᵀ packed: k = in, n = out
	back    onceValue // W packed: k = out, n = in
}

type onceValue struct {
	sync.Mutex
	valid bool
	p     panels
}

func (o *onceValue) get(n int, pack func(dst []float32) panels) panels {
	o.Lock()
	defer o.Unlock()
	if !o.valid {
		if len(o.p.data) < n {
			o.p.data = make([]float32, n)
		}
		o.p = pack(o.p.data)
		o.valid = true
	}
	return o.p
}

// Prepare wraps w.
func (b *Backend) Prepare(w backend.Buffer, out, in int) backend.Weight {
	d := host(w)
	if len(d) != out*in {
		panic(fmt.Sprintf("cpu: weight of %d values is not [%d, %d]", len(d), out, in))
	}
	return &weight{data: d, out: out, in: in}
}

// Freeze keeps the values: both packed forms are made from them when first asked for.
func (b *Backend) Freeze(values []float32, out, in int, _ bool) backend.Weight {
	w := b.Prepare(append(floats(nil), values...), out, in).(*weight)
	w.frozen = true
	return w
}

func (w *weight) Data() backend.Buffer {
	if w.frozen {
		return nil
	}
	return w.data
}

func (w *weight) Shape() (out, in int) { return w.out, w.in }

func (w *weight) Refresh() {
	if w.frozen {
		return
	}
	w.forward.valid = false
	w.back.valid = false
}

func (w *weight) packedForward() panels {
	return w.forward.get(panelLen(w.in, w.out), func(d []float32) panels { return packNT(d, w.data, w.in, w.out, w.in) })
}

func (w *weight) packedBack() panels {
	return w.back.get(panelLen(w.out, w.in), func(d []float32) panels { return packNN(d, w.data, w.out, w.in, w.in) })
}

// Linear sets y = x·Wᵀ.
func (b *Backend) Linear(y, x backend.Buffer, w backend.Weight) {
	b.linear(host(y), host(x), w.(*weight))
}

func (b *Backend) linear(y, x []float32, w *weight) {
	p := w.packedForward()
	a := view{x, w.in, 1}
	b.rowsOf(len(x)/w.in, b.rowGrain(), func(lo, hi int) { b.product(y, w.out, a, p, lo, hi, false) })
}

// LinearGradInput sets dx = dy·W or adds it.
func (b *Backend) LinearGradInput(dx, dy backend.Buffer, w backend.Weight, add bool) {
	b.linearGradInput(host(dx), host(dy), w.(*weight), add)
}

func (b *Backend) linearGradInput(dx, dy []float32, w *weight, add bool) {
	p := w.packedBack()
	a := view{dy, w.out, 1}
	b.rowsOf(len(dy)/w.out, b.rowGrain(), func(lo, hi int) { b.product(dx, w.in, a, p, lo, hi, add) })
}

// LinearGradWeight adds dyᵀ·x to dw.
func (b *Backend) LinearGradWeight(dw, dy, x backend.Buffer, rows int) {
	b.gradWeight(host(dw), host(dy), host(x), rows)
}

func (b *Backend) gradWeight(dw, dy, x []float32, rows int) {
	if rows == 0 {
		return
	}
	out, in := len(dy)/rows, len(x)/rows
	s := b.scratch(panelLen(rows, in))
	p := packNN(s, x, rows, in, in)
	b.rowsOf(out, b.rowGrain(), func(lo, hi int) { b.product(dw, in, view{dy, 1, out}, p, lo, hi, true) })
	b.release(s)
}
