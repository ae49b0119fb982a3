package cpu

import (
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/exact"
)

// Embed gathers rows of table.
func (b *Backend) Embed(y backend.Buffer, table backend.Weight, ids []int32) {
	Y, T := host(y), table.(*weight)
	d := len(Y) / len(ids)
	T.touch()
	defer b.guard()()
	for i, id := range ids {
		if T.half == nil {
			copy(Y[i*d:][:d], T.data[int(id)*d:])
		} else {
			row, half, whole := Y[i*d:][:d], T.half[int(id)*d:][:d], d&^15
			if whole > 0 {
				b.widen(row, half, 1, whole, d, d, 16)
			}
			copyHalf(row[whole:], half[whole:])
		}
	}
}

// EmbedGrad adds rows of dy in token order; threads share the columns.
func (b *Backend) EmbedGrad(dtable, dy backend.Buffer, ids []int32) {
	T, DY := host(dtable), host(dy)
	d := len(DY) / len(ids)
	b.rowsOf(d, 48, func(lo, hi int) {
		for i, id := range ids {
			b.add(T[int(id)*d+lo:int(id)*d+hi], DY[i*d+lo:i*d+hi])
		}
	})
}

// CrossEntropy gives −log softmax(logits)[target] per row in float64, of the float32 sum of exponentials, at once.
func (b *Backend) CrossEntropy(losses []float64, logits backend.Buffer, targets []int32, scale float32) {
	L := host(logits)
	v := len(L) / len(targets)
	b.rowsOf(len(targets), normRows, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row, target := L[r*v:][:v], targets[r]
			m := b.maximum(row)
			x := row[target]
			sum := b.expSum(row, row, 1, m)
			losses[r] = exact.Log(float64(sum)) + (float64(m) - float64(x))
			if scale != 0 {
				b.kernels.scale(row, row, scale/sum)
				row[target] -= scale
			}
		}
	})
}

// AdamW updates p, m and v.
func (b *Backend) AdamW(p, m, v, g backend.Buffer, h backend.AdamW) {
	P, M, V, G := host(p), host(m), host(v), host(g)
	b.rowsOf(len(P), 1<<14, func(lo, hi int) { b.adamw(P[lo:hi], M[lo:hi], V[lo:hi], G[lo:hi], h) })
}

// SumSquares are the lane-tree sums of x².
func (b *Backend) SumSquares(x []backend.Buffer) []float32 {
	sums := make([]float32, len(x))
	b.par(len(x), func(_ *work, i int) { sums[i] = b.dot(host(x[i]), host(x[i])) })
	return sums
}
