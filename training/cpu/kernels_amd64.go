package cpu

import "golang.org/x/sys/cpu"

func native() []ISA {
	var s []ISA
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL && cpu.X86.HasAVX2 {
		s = append(s, AVX512)
	}
	if cpu.X86.HasAVX2 && cpu.X86.HasFMA {
		s = append(s, AVX2)
	}
	return s
}

// nativeKernels wraps the assembly of an instruction set.
func nativeKernels(isa ISA) kernels {
	z := scalarKernels()
	k := z
	k.rows, k.vectors, k.strip = 14, 2, stripAVX512
	move, widen := moveAVX512, widenAVX512
	dot, chain, maximum, expSum := dotAVX512, chainAVX512, maximumAVX512, expSumAVX512
	scale, add, sum, axpy, axpyScale := scaleAVX512, addAVX512, sumAVX512, axpyAVX512, axpyScaleAVX512
	norm, normGrads, ropes := normAVX512, normGradsAVX512, ropesAVX512
	softmax, softmaxGrad, softmaxGrads := softmaxAVX512, softmaxGradAVX512, softmaxGradsAVX512
	mixRows, addRows := mixRowsAVX512, addRowsAVX512
	siluMul, siluMulGrad, adam := siluMulAVX512, siluMulGradAVX512, adamwAVX512
	if isa == AVX2 {
		k.rows, k.vectors, k.strip = 6, 1, stripAVX2
		move, widen = moveAVX2, widenAVX2
		dot, chain, maximum, expSum = dotAVX2, chainAVX2, maximumAVX2, expSumAVX2
		scale, add, sum, axpy, axpyScale = scaleAVX2, addAVX2, sumAVX2, axpyAVX2, axpyScaleAVX2
		norm, normGrads, ropes = normAVX2, normGradsAVX2, ropesAVX2
		softmax, softmaxGrad, softmaxGrads = softmaxAVX2, softmaxGradAVX2, softmaxGradsAVX2
		mixRows, addRows = mixRowsAVX2, addRowsAVX2
		siluMul, siluMulGrad, adam = siluMulAVX2, siluMulGradAVX2, adamwAVX2
	}
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
		if isa == AVX2 { // which has no masks for 16 bits
			whole = n &^ 15
		}
		if whole > 0 {
			widen(&dst[0], &src[0], rows, whole, 2*srcRow, 4*dstRow, 4*dstPanel)
		}
		if whole < n {
			z.widen(dst[whole/16*dstPanel:], src[whole:], rows, n-whole, srcRow, dstRow, dstPanel)
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
		if len(x) == 0 {
			return 0
		}
		return dot(&x[0], &y[:len(x)][0], len(x))
	}
	k.chain = func(x, y []float32) float32 {
		if len(x) == 0 {
			return 0
		}
		return chain(&x[0], &y[:len(x)][0], len(x))
	}
	k.maximum = func(x []float32) float32 {
		if len(x) == 0 {
			return z.maximum(x)
		}
		return maximum(&x[0], len(x))
	}
	k.expSum = func(dst, x []float32, s, t float32) float32 {
		if len(x) == 0 {
			return 0
		}
		return expSum(&dst[:len(x)][0], &x[0], len(x), s, t)
	}
	k.scale = func(dst, x []float32, a float32) {
		if n := len(x); n > 0 {
			scale(&dst[:n][0], &x[0], n, a)
		}
	}
	k.add = func(dst, x []float32) {
		if n := len(x); n > 0 {
			add(&dst[:n][0], &x[0], n)
		}
	}
	k.sum = func(dst, x, y []float32) {
		if n := len(x); n > 0 {
			sum(&dst[:n][0], &x[0], &y[:n][0], n)
		}
	}
	k.axpy = func(dst, x []float32, a float32) {
		if n := len(x); n > 0 {
			axpy(&dst[:n][0], &x[0], n, a)
		}
	}
	k.axpyScale = func(dst, x, w []float32, a float32) {
		if n := len(x); n > 0 {
			axpyScale(&dst[:n][0], &x[0], &w[:n][0], n, a)
		}
	}
	k.norm = func(y, inv, x, w []float32, eps float32) {
		if rows, n := len(inv), len(w); rows > 0 {
			norm(&y[:rows*n][0], &inv[0], &x[:rows*n][0], &w[0], rows, n, eps, float32(n))
		}
	}
	k.normGrads = func(dx, dy, inv, x, w []float32) {
		if rows, n := len(inv), len(w); rows > 0 {
			normGrads(&dx[:rows*n][0], &dy[:rows*n][0], &inv[0], &x[:rows*n][0], &w[0], rows, n, float32(n))
		}
	}
	k.ropes = func(x, c, s []float32) {
		if h := len(c); len(x) > 0 {
			ropes(&x[0], &c[0], &s[:h][0], len(x)/(2*h), h)
		}
	}
	k.softmax = func(x []float32, rows, stride, n, lanes, more int, a float32) {
		if rows > 0 {
			_, _ = x[(rows-1)*stride+n-1], [16]int{}[lanes-1+(rows-1)*more]
			softmax(&x[0], rows, 4*stride, n, lanes, more, a)
		}
	}
	k.softmaxGrads = func(dy, p []float32, rows, stride, n int, a float32) {
		if rows > 0 {
			_, _ = dy[(rows-1)*stride+n-1], p[(rows-1)*stride+n-1]
			softmaxGrads(&dy[0], &p[0], rows, 4*stride, n, a)
		}
	}
	plain := k.complete()
	k.mixRows = func(dst, base, y []float32, place []int32, weight []float32, n, slots int) {
		if n%16 != 0 || len(place) == 0 {
			plain.mixRows(dst, base, y, place, weight, n, slots)
			return
		}
		var at *float32
		if rows := len(place) / slots; base != nil {
			at = &base[:rows*n][0]
		}
		mixRows(&dst[:len(place)/slots*n][0], &y[0], &place[0], len(place)/slots, n, slots, at, &weight[:len(place)][0])
	}
	k.addRows = func(dst, y []float32, place []int32, n, slots int) {
		if n%16 != 0 || len(place) == 0 {
			plain.addRows(dst, y, place, n, slots)
			return
		}
		addRows(&dst[:len(place)/slots*n][0], &y[0], &place[0], len(place)/slots, n, slots)
	}
	k.softmaxGrad = func(dst, p, dy []float32, d, a float32) {
		if n := len(p); n > 0 {
			softmaxGrad(&dst[:n][0], &p[0], &dy[:n][0], n, d, a)
		}
	}
	k.siluMul = func(dst, g, u []float32) {
		if n := len(g); n > 0 {
			siluMul(&dst[:n][0], &g[0], &u[:n][0], n)
		}
	}
	k.siluMulGrad = func(dg, du, dy, g, u []float32) {
		if n := len(g); n > 0 {
			siluMulGrad(&dg[:n][0], &du[:n][0], &dy[:n][0], &g[0], &u[:n][0], n)
		}
	}
	k.adamw = func(p, m, v, g []float32, c adamw) {
		if n := len(p); n > 0 {
			adam(&p[0], &m[:n][0], &v[:n][0], &g[:n][0], n, c.Clip, c.Beta1, c.One1, c.Beta2, c.One2, c.Step, c.Root, c.Eps, c.Decay)
		}
	}
	return k
}
