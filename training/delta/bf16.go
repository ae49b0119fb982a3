package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// UnitBits is the number of binary places of a unit: one unit is 2⁻²⁴.
const UnitBits = 24

// MaxUnit is the largest magnitude of a unit value: |v| ≤ 2.
const MaxUnit = 2 << UnitBits

// CodecDenseBF16 names the codec that stores every value as a little-endian bfloat16.
const CodecDenseBF16 = "dense-bf16"

// ErrRange is returned by [Quantize] for a value that no delta can hold.
var ErrRange = errors.New("value is not finite or its magnitude is above 2")

// Quantize rounds src to the units that dense-bf16 can carry, element by element, in two exact steps: to the nearest
// multiple of 2⁻²⁴, then to 8 significant bits; both round half to even. dst and src have equal length. A value that
// is not finite or above 2 in magnitude ends it with an error that names the index and wraps [ErrRange]; dst is then
// partly written. What rounding loses is the miner's to keep: src[i] − [Value](dst[i]).
func Quantize(dst []int32, src []float32) error {
	if len(dst) != len(src) {
		return fmt.Errorf("quantize %d values into %d units", len(src), len(dst))
	}
	for i, v := range src {
		if !(v >= -2 && v <= 2) { // so that NaN is caught
			return fmt.Errorf("element %d is %v: %w", i, v, ErrRange)
		}
		dst[i] = roundBF16(int32(math.RoundToEven(float64(v) * (1 << UnitBits)))) // the product is exact
	}
	return nil
}

// Value returns the number that u units stand for. It is exact; rounded, it is not fused into a sum.
func Value(u int32) float64 { return float64(float64(u) / (1 << UnitBits)) }

// roundBF16 rounds u to 8 significant bits, half to even.
func roundBF16(u int32) int32 {
	magnitude := uint32(max(u, -u))
	drop := bits.Len32(magnitude) - 8
	if drop <= 0 {
		return u
	}
	kept, rest, half := magnitude>>drop, magnitude&(1<<drop-1), uint32(1)<<(drop-1)
	if rest > half || rest == half && kept&1 == 1 {
		kept++
	}
	magnitude = kept << drop
	if u < 0 {
		return -int32(magnitude)
	}
	return int32(magnitude)
}

// bf16OfUnits returns the bfloat16 of u units; ok is false if none has exactly that value.
func bf16OfUnits(u int32) (b uint16, ok bool) {
	if u < -MaxUnit || u > MaxUnit {
		return 0, false
	}
	f := math.Float32bits(float32(u) / (1 << UnitBits)) // |u| ≤ 2²⁵: inexact only if it has more than 24 bits
	if roundBF16(u) != u {
		return 0, false
	}
	return uint16(f >> 16), true
}

// Reasons that a bfloat16 is not the code of any unit value.
var (
	errNotFinite    = errors.New("is not finite")
	errOutOfRange   = errors.New("has a magnitude above 2")
	errNegativeZero = errors.New("is a negative zero")
	errNotUnits     = errors.New("is not a multiple of 2⁻²⁴")
)

// unitsOfBF16 is the inverse of bf16OfUnits. In integers: a normal bfloat16 is (128 + fraction)·2^(exponent−134).
func unitsOfBF16(b uint16) (int32, error) {
	exponent, fraction := int(b>>7&0xff), int32(b&0x7f)
	switch {
	case exponent == 0xff:
		return 0, errNotFinite
	case b == 0:
		return 0, nil
	case b == 0x8000:
		return 0, errNegativeZero
	case exponent > 128 || exponent == 128 && fraction > 0:
		return 0, errOutOfRange
	}
	units, shift := 128+fraction, exponent-134+UnitBits
	switch {
	case exponent == 0 || shift <= -8 || shift < 0 && units&(1<<-shift-1) != 0:
		return 0, errNotUnits
	case shift < 0:
		units >>= -shift
	default:
		units <<= shift
	}
	if b&0x8000 != 0 {
		units = -units
	}
	return units, nil
}

// appendDense appends the codes of units; on failure it names the element.
func appendDense(b []byte, units []int32) ([]byte, uint64, error) {
	for i, u := range units {
		code, ok := bf16OfUnits(u)
		if !ok {
			return nil, uint64(i), fmt.Errorf("%d units have no bfloat16; use Quantize", u)
		}
		b = binary.LittleEndian.AppendUint16(b, code)
	}
	return b, 0, nil
}

// decodeDense fills units from exactly 2·len(units) bytes; on failure it names the element.
func decodeDense(units []int32, b []byte) (uint64, error) {
	for i := range units {
		code := binary.LittleEndian.Uint16(b[2*i:])
		u, err := unitsOfBF16(code)
		if err != nil {
			return uint64(i), fmt.Errorf("bfloat16 0x%04x %w", code, err)
		}
		units[i] = u
	}
	return 0, nil
}
