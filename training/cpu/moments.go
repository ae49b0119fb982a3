package cpu

import (
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

var _ backend.HalfMoments = (*Backend)(nil)

// halfGrain is how many values AdamWHalf holds in float32 at a time: few enough for the cache next to the core.
const halfGrain = 1024

// AdamWHalf updates p, m and v. What is written back of m and v is rounded to nearest, ties to even.
func (b *Backend) AdamWHalf(p backend.Buffer, m, v []uint16, g backend.Buffer, h backend.AdamW) {
	P, G := host(p), host(g)
	b.rowsOf(len(P), 1<<14, func(lo, hi int) {
		var wide [2][halfGrain]float32
		for ; lo < hi; lo += halfGrain {
			n := min(halfGrain, hi-lo)
			M, V := wide[0][:n], wide[1][:n]
			copyHalf(M, m[lo:])
			copyHalf(V, v[lo:])
			b.adamw(P[lo:lo+n], M, V, G[lo:lo+n], h)
			roundHalf(m[lo:lo+n], M)
			roundHalf(v[lo:lo+n], V)
		}
	})
}

// roundHalf rounds to bfloat16, to nearest, ties to even. A NaN stays one.
func roundHalf(dst []uint16, src []float32) {
	src = src[:len(dst)]
	for i, x := range src {
		bits := math.Float32bits(x)
		if x != x {
			bits = 0x7fc00000
		} else {
			bits += 0x7fff + bits>>16&1
		}
		dst[i] = uint16(bits >> 16)
	}
}
