package cpu

import "github.com/blockzero-net/bzd/training/backend"

// AddBias adds bias to every row.
func (b *Backend) AddBias(x, bias backend.Buffer) {
	X, B := host(x), host(bias)
	d := len(B)
	b.rowsOf(len(X)/d, normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			b.add(X[r*d:][:d], B)
		}
	})
}

// Rotate rotates heads by their row's position, or back.
func (b *Backend) Rotate(y, x backend.Buffer, rope backend.Rope, dim, heads, seq int, back bool) {
	Y, X, cos, sin := host(y), host(x), host(rope.Cos), host(rope.Sin)
	if back {
		sin = host(rope.NegSin)
	}
	h := dim / 2
	b.rowsOf(len(X)/dim/heads, normRows, func(lo, hi int) {
		copy(Y[lo*heads*dim:hi*heads*dim], X[lo*heads*dim:hi*heads*dim])
		for i := lo * heads; i < hi*heads; i++ {
			row := Y[i*dim:][:dim]
			p := i / heads % seq * h
			b.rope(row[:h], row[h:], cos[p:p+h], sin[p:p+h])
		}
	})
}

// SwiGLU sets y = silu(gate)·up.
func (b *Backend) SwiGLU(y, gate, up backend.Buffer) {
	Y, G, U := host(y), host(gate), host(up)
	b.rowsOf(len(Y), 4096, func(lo, hi int) { b.siluMul(Y[lo:hi], G[lo:hi], U[lo:hi]) })
}

// SwiGLUGrad is its gradient.
func (b *Backend) SwiGLUGrad(dgate, dup, dy, gate, up backend.Buffer) {
	DG, DU, DY, G, U := host(dgate), host(dup), host(dy), host(gate), host(up)
	b.rowsOf(len(DY), 4096, func(lo, hi int) { b.siluMulGrad(DG[lo:hi], DU[lo:hi], DY[lo:hi], G[lo:hi], U[lo:hi]) })
}

// AddGated adds sigmoid(gate)·x to y.
func (b *Backend) AddGated(y, x, gate backend.Buffer) {
	Y, X, G := host(y), host(x), host(gate)
	d := len(X) / len(G)
	b.rowsOf(len(G), normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			b.axpy(Y[r*d:][:d], X[r*d:][:d], sigmoid(G[r]))
		}
	})
}

// AddGatedGrad is its gradient.
func (b *Backend) AddGatedGrad(dx, dgate, dy, x, gate backend.Buffer) {
	DX, DG, DY, X, G := host(dx), host(dgate), host(dy), host(x), host(gate)
	d := len(X) / len(G)
	b.rowsOf(len(G), normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			s, g := sigmoid(G[r]), DY[r*d:][:d]
			DG[r] = b.dot(g, X[r*d:][:d]) * float32(s*(1-s))
			b.kernels.scale(DX[r*d:][:d], g, s)
		}
	})
}
