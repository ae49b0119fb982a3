package cpu

import "github.com/blockzero-net/bzd/training/backend"

// grain of row-wise operations.
const normRows = 64

func (b *Backend) normRow(y, x, w []float32, eps float32) float32 {
	inv := 1 / sqrt(float32(b.dot(x, x)/float32(len(x)))+eps)
	b.mulScale(y, x, w, inv)
	return inv
}

// normGradRow adds the input gradient of y = x·inv·w to dx.
func (b *Backend) normGradRow(dx, dy, x, w []float32, inv float32) {
	c := b.dot3(dy, w, x)
	b.normGrad(dx, dy, w, x, inv, -(float32(float32(float32(c*inv)*inv)*inv) / float32(len(x))))
}

// RMSNorm normalises rows.
func (b *Backend) RMSNorm(y, inv, x, w backend.Buffer, eps float32) {
	Y, I, X, W := host(y), host(inv), host(x), host(w)
	d := len(W)
	b.rowsOf(len(X)/d, normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			I[r] = b.normRow(Y[r*d:][:d], X[r*d:][:d], W, eps)
		}
	})
}

// RMSNormGrad adds to dx and dw.
func (b *Backend) RMSNormGrad(dx, dw, dy, inv, x, w backend.Buffer) {
	DX, DW, DY, I, X, W := host(dx), host(dw), host(dy), host(inv), host(x), host(w)
	d := len(W)
	b.rowsOf(len(X)/d, normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			b.normGradRow(DX[r*d:][:d], DY[r*d:][:d], X[r*d:][:d], W, I[r])
		}
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
		for i := lo * heads; i < hi*heads; i++ {
			row := Y[i*d:][:d]
			I[i] = b.normRow(row, X[i*d:][:d], W, eps)
			p := i / heads % seq * h
			b.rope(row[:h], row[h:], cos[p:p+h], sin[p:p+h])
		}
	})
}

// HeadNormRopeGrad is its gradient: the rotation is undone on dy, then the norm.
func (b *Backend) HeadNormRopeGrad(dx, dw, dy, inv, x, w backend.Buffer, rope backend.Rope, heads, seq int) {
	DX, DW, DY, I, X, W := host(dx), host(dw), host(dy), host(inv), host(x), host(w)
	cos, sin := host(rope.Cos), host(rope.NegSin)
	d, h := len(W), len(W)/2
	b.rowsOf(len(X)/d/heads, normRows, func(lo, hi int) {
		for i := lo * heads; i < hi*heads; i++ {
			row := DY[i*d:][:d]
			p := i / heads % seq * h
			b.rope(row[:h], row[h:], cos[p:p+h], sin[p:p+h])
			out := DX[i*d:][:d]
			clear(out)
			b.normGradRow(out, row, X[i*d:][:d], W, I[i])
		}
	})
	if DW != nil {
		b.normWeightGrad(DW, DY, X, I)
	}
}
