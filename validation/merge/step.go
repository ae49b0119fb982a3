package merge

import (
	"fmt"
	"iter"
	"math"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// MaxUnit is the largest magnitude of a code: |Δ| ≤ 2 in units of 2⁻²⁴.
const MaxUnit = 1 << 25

// Codes is a decoded delta as the merge reads it.
type Codes interface {
	// Codes iterates over (element, units of 2⁻²⁴) of one tensor, elements ascending, each at most once; those left out
	// are zero. It must yield the same every time and may be called concurrently with itself.
	Codes(tensor int) iter.Seq2[int, int32]
}

// Step writes Φ′ = Φ + α·Σ w·Δ of one tensor to dst:
//
//	s  = half-even(α_num · Σ w·Δ / (α_den · 2¹⁶))   in int64
//	Φ′ = float32(float64(Φ) + s·2⁻²⁴)               and Φ bit for bit where s = 0
//
// base is the tensor's Φ, row by row; dst has its length and may be base itself. tensor is its index in every delta.
// weights are those of [Weights], one per delta, and sum to [Mass]. The order of deltas does not matter.
//
// No step overflows: |Σ w·Δ| ≤ 2¹⁶·2²⁵ = 2⁴¹ and the terms of α are below 2¹⁶, so the numerator stays below 2⁵⁷ and
// α_den·2¹⁶ below 2³². s is below 2⁴¹, so s·2⁻²⁴ is exact in float64, and the sum is finite because Φ is; a Φ that is not
// is refused. The product being exact, a fused multiply-add gives the same bits.
func Step(dst, base []float32, tensor int, deltas []Codes, weights []uint32, alpha protocol.Rational) error {
	if len(dst) != len(base) || len(deltas) != len(weights) {
		return fmt.Errorf("%w: %d results for %d elements, %d weights for %d deltas", ErrInput, len(dst), len(base), len(weights), len(deltas))
	}
	if err := alpha.Validate(); err != nil {
		return fmt.Errorf("%w: scale: %w", ErrInput, err)
	}
	var mass uint64
	for _, w := range weights {
		mass += uint64(w)
	}
	if mass != Mass {
		return fmt.Errorf("%w: weights sum to %d, not %d", ErrInput, mass, Mass)
	}
	for i, v := range base {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%w: element %d of the base is %v", ErrInput, i, v)
		}
	}
	sums := make([]int64, len(base))
	for i, d := range deltas {
		if weights[i] == 0 {
			continue
		}
		w, next := int64(weights[i]), 0
		for at, unit := range d.Codes(tensor) {
			if at < next || at >= len(sums) || unit < -MaxUnit || unit > MaxUnit {
				return fmt.Errorf("%w: delta %d gives element %d of %d the value %d", ErrInput, i, at, len(sums), unit)
			}
			sums[at] += w * int64(unit)
			next = at + 1
		}
	}
	num, den := int64(alpha.Num), int64(alpha.Den)*Mass
	for i, sum := range sums {
		dst[i] = base[i]
		if s := halfEven(num*sum, den); s != 0 {
			dst[i] = float32(float64(base[i]) + math.Ldexp(float64(s), -24))
		}
	}
	return nil
}

// halfEven returns n/d rounded to the nearest integer, ties to even. d is positive and below 2⁶².
func halfEven(n, d int64) int64 {
	q, r := n/d, n%d
	if r < 0 { // floor, so that 0 ≤ r < d
		q, r = q-1, r+d
	}
	if 2*r > d || 2*r == d && q&1 != 0 {
		q++
	}
	return q
}
