package protocol

import (
	"math/big"
	"math/bits"
	"slices"
)

// Apportion divides total in proportion to parts by largest remainder: element i gets ⌊total·parts[i]/Σparts⌋, and the
// units left over go one each to the largest remainders. Ties go to the element that comes first by before(i, j). The
// result sums to total exactly, or is all zero if every part is zero. Parts must not be negative; nil counts as zero.
// An element whose part is zero gets nothing.
func Apportion(total uint64, parts []*big.Int, before func(i, j int) bool) []uint64 {
	shares := make([]uint64, len(parts))
	sum := new(big.Int)
	for _, p := range parts {
		if p != nil {
			sum.Add(sum, p)
		}
	}
	if sum.Sign() == 0 {
		return shares
	}
	all := new(big.Int).SetUint64(total)
	remainders := make([]*big.Int, len(parts))
	order := make([]int, 0, len(parts))
	left := total
	for i, p := range parts {
		if p == nil || p.Sign() == 0 {
			continue
		}
		quotient, remainder := new(big.Int).QuoRem(new(big.Int).Mul(all, p), sum, new(big.Int))
		shares[i], remainders[i] = quotient.Uint64(), remainder
		left -= shares[i]
		order = append(order, i)
	}
	slices.SortFunc(order, func(i, j int) int {
		if c := remainders[j].Cmp(remainders[i]); c != 0 {
			return c
		}
		if before(i, j) {
			return -1
		}
		return 1
	})
	for _, i := range order[:left] { // Σ remainders = left·sum and each is below sum, so left < len(order)
		shares[i]++
	}
	return shares
}

// LowerMedian returns the smallest value v, by compare, such that the weight of all values up to v is at least half of
// the total. Values of weight zero do not count; ok is false if no weight is left. values is not changed. Equal values
// must be interchangeable.
func LowerMedian[T any](values []T, weight func(T) uint64, compare func(a, b T) int) (median T, ok bool) {
	sorted := slices.Clone(values)
	slices.SortStableFunc(sorted, compare)
	var total uint128
	for _, v := range sorted {
		total = total.add(weight(v))
	}
	if total == (uint128{}) {
		return median, false
	}
	var below uint128
	for _, v := range sorted {
		below = below.add(weight(v))
		if !below.double().less(total) {
			return v, true
		}
	}
	return median, false // not reached: the last value brings below to total
}

// AboveZero reports whether the lower confidence bound mean − z·stderr is above zero, z given in thousandths:
// 1000·mean > zMilli·stderr, exactly. A false answer never comes from overflow.
func AboveZero(mean int64, stderr uint64, zMilli uint32) bool {
	if mean <= 0 {
		return false
	}
	left := mul128(uint64(mean), 1000)
	return mul128(stderr, uint64(zMilli)).less(left)
}

// CeilSqrt returns the smallest integer whose square is at least x, which must not be negative.
func CeilSqrt(x *big.Int) *big.Int {
	root := new(big.Int).Sqrt(x)
	if new(big.Int).Mul(root, root).Cmp(x) < 0 {
		root.Add(root, big.NewInt(1))
	}
	return root
}

// uint128 is wide enough for the sum of 2⁶³ stakes and for the product of two fields.
type uint128 struct{ hi, lo uint64 }

func mul128(a, b uint64) uint128 {
	hi, lo := bits.Mul64(a, b)
	return uint128{hi, lo}
}

func (a uint128) add(b uint64) uint128 {
	lo, carry := bits.Add64(a.lo, b, 0)
	return uint128{a.hi + carry, lo}
}

func (a uint128) double() uint128 {
	return uint128{a.hi<<1 | a.lo>>63, a.lo << 1}
}

func (a uint128) less(b uint128) bool {
	return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo
}
