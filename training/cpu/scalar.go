package cpu

import (
	"math"
	"unsafe"
)

// fma returns a·b + c rounded once to float32. The product is exact in float64; the sum is rounded to odd there, so the
// second rounding cannot err.
func fma(a, b, c float32) float32 {
	p := float64(float64(a) * float64(b))
	z := float64(c)
	s := p + z
	t := s - p
	err := (p - (s - t)) + (z - t)
	if bits := math.Float64bits(s); bits&1 == 0 && (err > 0 || err < 0) {
		if (err > 0) == (s > 0) {
			bits++
		} else {
			bits--
		}
		s = math.Float64frombits(bits)
	}
	return float32(s)
}

// Constants of exp; asmgen holds the same.
const (
	expMin = -104
	expMax = 88.72
	log2e  = 0x1.715476p+0
	magic  = 0x1.8p+23
	ln2Hi  = 0x1.62e4p-1
	ln2Lo  = 0x1.7f7d1cp-20
)

var expC = [8]float32{1, 1, 0.5, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040}

// exp is the exponential of the exact arithmetic, for scalars.
func exp(x float32) float32 {
	if !(x > expMin) {
		x = expMin
	}
	if !(x < expMax) {
		x = expMax
	}
	t := fma(x, log2e, magic)
	n := t - magic
	r := fma(-n, ln2Hi, x)
	r = fma(-n, ln2Lo, r)
	p := expC[7]
	for i := 6; i >= 0; i-- {
		p = fma(p, r, expC[i])
	}
	k := int32(math.Float32bits(t)) - int32(math.Float32bits(magic))
	h := k >> 1
	return float32(p*math.Float32frombits(uint32(h+127)<<23)) * math.Float32frombits(uint32(k-h+127)<<23)
}

func sigmoid(x float32) float32 { return 1 / (1 + exp(-x)) }

func sqrt(x float32) float32 { return float32(math.Sqrt(float64(x))) }

// fold reduces 16 lanes: lane l with l+8, then +4, +2, +1.
func fold(l *[16]float32, f func(a, b float32) float32) float32 {
	for w := 8; w > 0; w /= 2 {
		for i := range w {
			l[i] = f(l[i], l[i+w])
		}
	}
	return l[0]
}

func add2(a, b float32) float32 { return a + b }

func max2(a, b float32) float32 {
	if a > b {
		return a
	}
	return b
}

// scalarKernels is the reference implementation of every kernel.
func scalarKernels() kernels {
	return kernels{
		rows: 4, vectors: 1, gemm: scalarTile,
		move: func(dst, src []float32, rows, n, srcRow, dstRow, dstPanel int) {
			for r := range rows {
				for p := 0; p < n; p += 16 {
					d := dst[r*dstRow+p/16*dstPanel:][:16]
					clear(d[copy(d, src[r*srcRow+p:r*srcRow+n]):])
				}
			}
		},
		widen: func(dst []float32, src []uint16, rows, n, srcRow, dstRow, dstPanel int) {
			for r := range rows {
				for p := 0; p < n; p += 16 {
					d := dst[r*dstRow+p/16*dstPanel:][:16]
					clear(d[copyHalf(d, src[r*srcRow+p:r*srcRow+n]):])
				}
			}
		},
		transpose: func(dst, src []float32, n, srcRow int) {
			for x := range n {
				for r := range 8 {
					dst[16*x+r] = src[r*srcRow+x]
				}
			}
		},
		transposeHalf: func(dst []float32, src []uint16, n, srcRow int) {
			for x := range n {
				for r := range 8 {
					dst[16*x+r] = widened(src[r*srcRow+x])
				}
			}
		},
		dot: func(x, y []float32) float32 {
			var l [16]float32
			for i := range x {
				l[i&15] = fma(x[i], y[i], l[i&15])
			}
			return fold(&l, add2)
		},
		dot3: func(x, y, z []float32) float32 {
			var l [16]float32
			for i := range x {
				l[i&15] = fma(float32(x[i]*y[i]), z[i], l[i&15])
			}
			return fold(&l, add2)
		},
		chain: func(x, y []float32) (s float32) {
			for i := range x {
				s = fma(x[i], y[i], s)
			}
			return s
		},
		maximum: func(x []float32) float32 {
			var l [16]float32
			for i := range l {
				l[i] = float32(math.Inf(-1))
			}
			for i := range x {
				l[i&15] = max2(l[i&15], x[i])
			}
			return fold(&l, max2)
		},
		expSum: func(dst, x []float32, scale, shift float32) float32 {
			var l [16]float32
			for i := range x {
				dst[i] = exp(fma(x[i], scale, -shift))
				l[i&15] += dst[i]
			}
			return fold(&l, add2)
		},
		scale: func(dst, x []float32, a float32) {
			for i := range x {
				dst[i] = x[i] * a
			}
		},
		add: func(dst, x []float32) {
			for i := range x {
				dst[i] += x[i]
			}
		},
		sum: func(dst, x, y []float32) {
			for i := range x {
				dst[i] = x[i] + y[i]
			}
		},
		axpy: func(dst, x []float32, a float32) {
			for i := range x {
				dst[i] = fma(a, x[i], dst[i])
			}
		},
		mulScale: func(dst, x, w []float32, a float32) {
			for i := range x {
				dst[i] = float32(x[i]*a) * w[i]
			}
		},
		axpyScale: func(dst, x, w []float32, a float32) {
			for i := range x {
				dst[i] = fma(x[i], float32(w[i]*a), dst[i])
			}
		},
		normGrad: func(dst, dy, w, x []float32, inv, b float32) {
			for i := range x {
				dst[i] += fma(b, x[i], float32(float32(dy[i]*w[i])*inv))
			}
		},
		softmaxGrad: func(dst, p, dy []float32, d, a float32) {
			for i := range p {
				dst[i] = float32(p[i]*float32(dy[i]-d)) * a
			}
		},
		rope: func(x, y, c, s []float32) {
			for i := range x {
				a, b := x[i], y[i]
				x[i] = fma(a, c[i], -float32(b*s[i]))
				y[i] = fma(b, c[i], float32(a*s[i]))
			}
		},
		siluMul: func(dst, g, u []float32) {
			for i := range g {
				dst[i] = float32(g[i]*sigmoid(g[i])) * u[i]
			}
		},
		siluMulGrad: func(dg, du, dy, g, u []float32) {
			for i := range g {
				s := sigmoid(g[i])
				silu := float32(g[i] * s)
				d := dy[i]
				du[i] = d * silu
				dg[i] = float32(d*u[i]) * fma(silu, 1-s, s)
			}
		},
		adamw: func(p, m, v, g []float32, c adamw) {
			for i := range p {
				x := float32(g[i] * c.Clip)
				m[i] = fma(c.Beta1, m[i], float32(c.One1*x))
				v[i] = fma(c.Beta2, v[i], float32(float32(c.One2*x)*x))
				den := fma(sqrt(v[i]), c.Root, c.Eps)
				p[i] = fma(-c.Decay, p[i], p[i]) - float32(m[i]*c.Step)/den
			}
		},
	}
}

// copyHalf widens bfloat16 values; it returns how many, the smaller length.
func copyHalf(dst []float32, src []uint16) int {
	n := min(len(dst), len(src))
	for i := range n {
		dst[i] = widened(src[i])
	}
	return n
}

// scalarTile is the tile kernel in plain Go.
func scalarTile(m, v int, t *tile) {
	at := func(p *float32, bytes int) *float32 { return (*float32)(unsafe.Add(unsafe.Pointer(p), bytes)) }
	for i := range m {
		for j := range 16 * v {
			var s float32
			b := at(t.b, j/16*t.bPanel+j%16*4)
			for k := range t.k {
				s = fma(*at(t.a, i*t.aRow+k*t.aCol), *at(b, 64*k), s)
			}
			c := at(t.c, i*t.cRow+4*j)
			if t.base != nil {
				s = *at(t.base, i*t.cRow+4*j) + s
			}
			*c = s
		}
	}
}
