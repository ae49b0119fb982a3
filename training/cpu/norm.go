package cpu

import "github.com/blockzero-net/bzd/training/backend"

// grain of row-wise operations.
const normRows = 64

// RMSNorm normalises rows.
func (b *Backend) RMSNorm(y, inv, x, w backend.Buffer, eps float32) {
	Y, I, X, W := host(y), host(inv), host(x), host(w)
	d := len(W)
	b.rowsOf(len(X)/d, normRows, func(lo, hi int) {
		b.norm(Y[lo*d:hi*d], I[lo:hi], X[lo*d:hi*d], W, eps)
	})
}

// RMSNormGrad adds to dx and dw.
func (b *Backend) RMSNormGrad(dx, dw, dy, inv, x, w backend.Buffer) {
	DX, DW, DY, I, X, W := host(dx), host(dw), host(dy), host(inv), host(x), host(w)
	d := len(W)
	b.rowsOf(len(X)/d, normRows, func(lo, hi int) {
		b.normGrads(DX[lo*d:hi*d], DY[lo*d:hi*d], I[lo:hi], X[lo*d:hi*d], W)
	})
	if DW != nil {
		b.normWeightGrad(DW, DY, X, I)
	}
}

// normWeightGrad adds Σ_rows dy·(x·inv) to dw, rows in order; threads share the columns.
func (b *Backend) normWeightGrad(dw, dy, x, inv []float32) {
	d := len(dw)
	b.rowsOf(d, 48, func(lo, hi int) {
		for r := range inv {
			b.axpyScale(dw[lo:hi], dy[r*d+lo:r*d+hi], x[r*d+lo:r*d+hi], inv[r])
		}
	})
}

// HeadNormRope normalises and rotates heads. A row of x is a position; a head is len(w) values of it.
func (b *Backend) HeadNormRope(y, inv, x, w backend.Buffer, rope backend.Rope, heads, seq int, eps float32) {
	Y, I, X, W := host(y), host(inv), host(x), host(w)
	cos, sin := host(rope.Cos), host(rope.Sin)
	d, h := len(W), len(W)/2
	b.rowsOf(len(X)/d/heads, normRows, func(lo, hi int) {
		n := heads * d
		b.norm(Y[lo*n:hi*n], I[lo*heads:hi*heads], X[lo*n:hi*n], W, eps)
		for r := lo; r < hi; r++ {
			p := r % seq * h
			b.ropes(Y[r*n:][:n], cos[p:p+h], sin[p:p+h])
		}
	})
}

// HeadNormRopeGrad is its gradient: the rotation is undone on dy, then the norm.
func (b *Backend) HeadNormRopeGrad(dx, dw, dy, inv, x, w backend.Buffer, rope backend.Rope, heads, seq int) {
	DX, DW, DY, I, X, W := host(dx), host(dw), host(dy), host(inv), host(x), host(w)
	cos, sin := host(rope.Cos), host(rope.NegSin)
	d, h := len(W), len(W)/2
	b.rowsOf(len(X)/d/heads, normRows, func(lo, hi int) {
		n := heads * d
		clear(DX[lo*n : hi*n])
		for r := lo; r < hi; r++ {
			p := r % seq * h
			b.ropes(DY[r*n:][:n], cos[p:p+h], sin[p:p+h])
		}
		b.normGrads(DX[lo*n:hi*n], DY[lo*n:hi*n], I[lo*heads:hi*heads], X[lo*n:hi*n], W)
	})
	if DW != nil {
		b.normWeightGrad(DW, DY, X, I)
	}
}
