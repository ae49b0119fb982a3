package cpu

// native is NEON, which every ARM64 processor has.
func native() []ISA { return []ISA{NEON} }

// nativeKernels wraps the assembly. The assembly takes multiples of 16 values; a reduction over another length and the
// tail of an element-wise operation run in plain Go, with the same bits.
func nativeKernels(ISA) kernels {
	z := scalarKernels()
	k := z
	k.rows, k.vectors, k.gemm = 6, 1, gemmNEON
	k.widen = func(dst []float32, src []uint16, rows, n, srcRow, dstRow, dstPanel int) {
		whole := n &^ 15
		_, _ = src[(rows-1)*srcRow+n-1], dst[(rows-1)*dstRow+(n-1)/16*dstPanel+15]
		if whole > 0 {
			for r := range rows {
				widenNEON(&dst[r*dstRow], &src[r*srcRow], whole, 4*dstPanel)
			}
		}
		if whole < n {
			z.widen(dst[whole/16*dstPanel:], src[whole:], rows, n-whole, srcRow, dstRow, dstPanel)
		}
	}
	k.transpose = func(dst, src []float32, n, srcRow int) {
		if n > 0 {
			_, _ = src[7*srcRow+n-1], dst[16*(n-1)+7]
			transposeNEON(&dst[0], &src[0], n, 4*srcRow)
		}
	}
	k.transposeHalf = func(dst []float32, src []uint16, n, srcRow int) {
		if n > 0 {
			_, _ = src[7*srcRow+n-1], dst[16*(n-1)+7]
			transposeHalfNEON(&dst[0], &src[0], n, 2*srcRow)
		}
	}
	whole := func(n int) bool { return n&15 == 0 && n > 0 }
	k.dot = func(x, y []float32) float32 {
		if !whole(len(x)) {
			return z.dot(x, y)
		}
		return dotNEON(&x[0], &y[:len(x)][0], len(x))
	}
	k.dot3 = func(x, y, w []float32) float32 {
		if !whole(len(x)) {
			return z.dot3(x, y, w)
		}
		return dot3NEON(&x[0], &y[:len(x)][0], &w[:len(x)][0], len(x))
	}
	k.chain = func(x, y []float32) float32 {
		if len(x) == 0 {
			return 0
		}
		return chainNEON(&x[0], &y[:len(x)][0], len(x))
	}
	k.maximum = func(x []float32) float32 {
		if !whole(len(x)) {
			return z.maximum(x)
		}
		return maximumNEON(&x[0], len(x))
	}
	k.expSum = func(dst, x []float32, s, t float32) float32 {
		if !whole(len(x)) {
			return z.expSum(dst, x, s, t)
		}
		return expSumNEON(&dst[:len(x)][0], &x[0], len(x), s, t)
	}
	k.scale = func(dst, x []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			scaleNEON(&dst[:n][0], &x[:n][0], n, a)
		}
		z.scale(dst[n:], x[n:], a)
	}
	k.add = func(dst, x []float32) {
		n := len(x) &^ 15
		if n > 0 {
			addNEON(&dst[:n][0], &x[:n][0], n)
		}
		z.add(dst[n:], x[n:])
	}
	k.sum = func(dst, x, y []float32) {
		n := len(x) &^ 15
		if n > 0 {
			sumNEON(&dst[:n][0], &x[:n][0], &y[:n][0], n)
		}
		z.sum(dst[n:], x[n:], y[n:])
	}
	k.axpy = func(dst, x []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			axpyNEON(&dst[:n][0], &x[:n][0], n, a)
		}
		z.axpy(dst[n:], x[n:], a)
	}
	k.mulScale = func(dst, x, w []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			mulScaleNEON(&dst[:n][0], &x[:n][0], &w[:n][0], n, a)
		}
		z.mulScale(dst[n:], x[n:], w[n:], a)
	}
	k.axpyScale = func(dst, x, w []float32, a float32) {
		n := len(x) &^ 15
		if n > 0 {
			axpyScaleNEON(&dst[:n][0], &x[:n][0], &w[:n][0], n, a)
		}
		z.axpyScale(dst[n:], x[n:], w[n:], a)
	}
	k.normGrad = func(dst, dy, w, x []float32, inv, b float32) {
		n := len(x) &^ 15
		if n > 0 {
			normGradNEON(&dst[:n][0], &dy[:n][0], &w[:n][0], &x[:n][0], n, inv, b)
		}
		z.normGrad(dst[n:], dy[n:], w[n:], x[n:], inv, b)
	}
	k.softmaxGrad = func(dst, p, dy []float32, d, a float32) {
		n := len(p) &^ 15
		if n > 0 {
			softmaxGradNEON(&dst[:n][0], &p[:n][0], &dy[:n][0], n, d, a)
		}
		z.softmaxGrad(dst[n:], p[n:], dy[n:], d, a)
	}
	k.rope = func(x, y, c, s []float32) {
		n := len(x) &^ 15
		if n > 0 {
			ropeNEON(&x[:n][0], &y[:n][0], &c[:n][0], &s[:n][0], n)
		}
		z.rope(x[n:], y[n:], c[n:], s[n:])
	}
	k.siluMul = func(dst, g, u []float32) {
		n := len(g) &^ 15
		if n > 0 {
			siluMulNEON(&dst[:n][0], &g[:n][0], &u[:n][0], n)
		}
		z.siluMul(dst[n:], g[n:], u[n:])
	}
	k.siluMulGrad = func(dg, du, dy, g, u []float32) {
		n := len(g) &^ 15
		if n > 0 {
			siluMulGradNEON(&dg[:n][0], &du[:n][0], &dy[:n][0], &g[:n][0], &u[:n][0], n)
		}
		z.siluMulGrad(dg[n:], du[n:], dy[n:], g[n:], u[n:])
	}
	k.adamw = func(p, m, v, g []float32, c adamw) {
		n := len(p) &^ 15
		if n > 0 {
			adamwNEON(&p[:n][0], &m[:n][0], &v[:n][0], &g[:n][0], n, c.Clip, c.Beta1, c.One1, c.Beta2, c.One2, c.Step, c.Root, c.Eps, c.Decay)
		}
		z.adamw(p[n:], m[n:], v[n:], g[n:], c)
	}
	return k
}
