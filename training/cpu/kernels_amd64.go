package cpu

import "golang.org/x/sys/cpu"

func native() []ISA {
	var s []ISA
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL {
		s = append(s, AVX512)
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		s = append(s, AVX2)
	}
	return s
}

// nativeKernels wraps the assembly of an instruction set. The assembly takes multiples of 16 values; a reduction over
// another length and the tail of an element-wise operation run in plain Go, with the same bits.
func nativeKernels(isa ISA) kernels {
	z := scalarKernels()
	k := kernels{rows: 14, vectors: 2, strip: stripAVX512}
	move, widen := moveAVX512, widenAVX512
	dot, dot3, maximum, expSum := dotAVX512, dot3AVX512, maximumAVX512, expSumAVX512
	scale, add, axpy, mulScale, axpyScale := scaleAVX512, addAVX512, axpyAVX512, mulScaleAVX512, axpyScaleAVX512
	normGrad, softmaxGrad, rope := normGradAVX512, softmaxGradAVX512, ropeAVX512
	siluMul, siluMulGrad, adam := siluMulAVX512, siluMulGradAVX512, adamwAVX512
	if isa == AVX2 {
		k = kernels{rows: 6, vectors: 1, strip: stripAVX2}
		move, widen = moveAVX2, widenAVX2
		dot, dot3, maximum, expSum = dotAVX2, dot3AVX2, maximumAVX2, expSumAVX2
		scale, add, axpy, mulScale, axpyScale = scaleAVX2, addAVX2, axpyAVX2, mulScaleAVX2, axpyScaleAVX2
		normGrad, softmaxGrad, rope = normGradAVX2, softmaxGradAVX2, ropeAVX2
		siluMul, siluMulGrad, adam = siluMulAVX2, siluMulGradAVX2, adamwAVX2
	}
	whole := func(n int) bool { return n&15 == 0 && n > 0 }
	k.gemm = func(m, v int, t *tile) {
		s := *t
		s.n = 16 * v
		k.strip(m, &s)
	}
	k.move = func(dst, src []float32, rows, n, srcRow, dstRow, dstPanel int) {
		_, _ = src[(rows-1)*srcRow+n-1], dst[(rows-1)*dstRow+(n-1)/16*dstPanel+15]
		move(&dst[0], &src[0], rows, n, 4*srcRow, 4*dstRow, 4*dstPanel)
	}
	k.widen = func(dst []float32, src []uint16, rows, n, srcRow, dstRow, dstPanel int) {
		_, _ = src[(rows-1)*srcRow+n-1], dst[(rows-1)*dstRow+(n-1)/16*dstPanel+15]
		whole := n
		if isa == AVX2 {
			whole = n &^ 15
		}
		if whole > 0 {
			widen(&dst[0], &src[0], rows, whole, 2*srcRow, 4*dstRow, 4*dstPanel)
		}
		if whole < n {
			for r := range rows {
				d := dst[r*dstRow+whole/16*dstPanel:][:16]
				clear(d[copyHalf(d, src[r*srcRow+whole:][:n-whole]):])
			}
		}
	}
	k.transpose = func(dst, src []float32, n, srcRow int) {
		if n > 0 {
			_, _ = src[7*srcRow+n-1], dst[16*(n-1)+7]
			transposeAVX2(&dst[0], &src[0], n, 4*srcRow)
		}
	}
	k.transposeHalf = func(dst []float32, src []uint16, n, srcRow int) {
		if n > 0 {
			_, _ = src[7*srcRow+n-1], dst[16*(n-1)+7]
			transposeHalfAVX2(&dst[0], &src[0], n, 2*srcRow)
		}
	}
	k.dot = func(x, y []float32) float32 {
		if !whole(len(x)) {
			return z.dot(x, y)
		}
		return dot(&x[0], &y[0], len(x))
	}
	k.dot3 = func(x, y, w []float32) float32 {
		if !whole(len(x)) {
			return z.dot3(x, y, w)
		}
		return dot3(&x[0], &y[0], &w[0], len(x))
	}
	k.maximum = func(x []float32) float32 {
		if !whole(len(x)) {
			return z.maximum(x)
		}
		return maximum(&x[0], len(x))
	}
	k.expSum = func(dst, x []float32, s, t float32) float32 {
		if !whole(len(x)) {
			return z.expSum(dst, x, s, t)
		}
		return expSum(&dst[0], &x[0], len(x), s, t)
	}
	k.scale = func(dst, x []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			scale(&dst[0], &x[0], n, a)
		}
		z.scale(dst[n:], x[n:], a)
	}
	k.add = func(dst, x []float32) {
		n := len(x) &^ 15
		if n > 0 {
			add(&dst[0], &x[0], n)
		}
		z.add(dst[n:], x[n:])
	}
	k.axpy = func(dst, x []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			axpy(&dst[0], &x[0], n, a)
		}
		z.axpy(dst[n:], x[n:], a)
	}
	k.mulScale = func(dst, x, w []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			mulScale(&dst[0], &x[0], &w[0], n, a)
		}
		z.mulScale(dst[n:], x[n:], w[n:], a)
	}
	k.axpyScale = func(dst, x, w []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			axpyScale(&dst[0], &x[0], &w[0], n, a)
		}
		z.axpyScale(dst[n:], x[n:], w[n:], a)
	}
	k.normGrad = func(dst, dy, w, x []float32, inv, b float32) {
		n := len(x) &^ 15
		if n > 0 {
			normGrad(&dst[0], &dy[0], &w[0], &x[0], n, inv, b)
		}
		z.normGrad(dst[n:], dy[n:], w[n:], x[n:], inv, b)
	}
	k.softmaxGrad = func(dst, p, dy []float32, d, a float32) {
		n := len(p) &^ 15
		if n > 0 {
			softmaxGrad(&dst[0], &p[0], &dy[0], n, d, a)
		}
		z.softmaxGrad(dst[n:], p[n:], dy[n:], d, a)
	}
	k.rope = func(x, y, c, s []float32) {
		n := len(x) &^ 15
		if n > 0 {
			rope(&x[0], &y[0], &c[0], &s[0], n)
		}
		z.rope(x[n:], y[n:], c[n:], s[n:])
	}
	k.siluMul = func(dst, g, u []float32) {
		n := len(g) &^ 15
		if n > 0 {
			siluMul(&dst[0], &g[0], &u[0], n)
		}
		z.siluMul(dst[n:], g[n:], u[n:])
	}
	k.siluMulGrad = func(dg, du, dy, g, u []float32) {
		n := len(g) &^ 15
		if n > 0 {
			siluMulGrad(&dg[0], &du[0], &dy[0], &g[0], &u[0], n)
		}
		z.siluMulGrad(dg[n:], du[n:], dy[n:], g[n:], u[n:])
	}
	k.adamw = func(p, m, v, g []float32, c adamw) {
		n := len(p) &^ 15
		if n > 0 {
			adam(&p[0], &m[0], &v[0], &g[0], n, c.Clip, c.Beta1, c.One1, c.Beta2, c.One2, c.Step, c.Root, c.Eps, c.Decay)
		}
		z.adamw(p[n:], m[n:], v[n:], g[n:], c)
	}
	return k
}
