package delta

import (
	"math"
	"math/rand/v2"
	"testing"
)

func BenchmarkChoose(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	x, v := make([]float32, 1<<20), make([]float32, 1<<20)
	for i := range x {
		x[i], v[i] = float32(r.NormFloat64()*r.ExpFloat64()*1e-4), float32(math.Exp(2*r.NormFloat64())*1e-9)
	}
	units := make([]int32, len(x))
	rest := make([]float32, len(x))
	at, _ := Choose(x, v, 41)
	b.Run("choose", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			Choose(x, v, 41)
		}
	})
	b.Run("send", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			copy(rest, x)
			Send(units, rest, at, 41)
		}
	})
	b.Run("sparsify", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			sparsify(units)
		}
	})
	s := sparsify(units)
	b.Run("append", func(b *testing.B) {
		b.SetBytes(4 << 20)
		for b.Loop() {
			appendTopK(nil, s, 1<<20, 41)
		}
	})
}
