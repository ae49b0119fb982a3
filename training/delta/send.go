package delta

import (
	"fmt"
	"math"
)

// Choose returns the elements of a tensor of values x that topk-2bit sends, ascending: of every chunk the k of 4096 that are
// largest in magnitude, or with v, the second moments of their gradients, largest by about |x|·v^¼. v may be nil. A value that
// is not finite or above 2 in magnitude is an error that names the element and wraps [ErrRange].
func Choose(x, v []float32, k int) ([]uint32, error) {
	if k < 1 || k > TopKChunk || v != nil && len(v) != len(x) || uint64(len(x)) > maxSparse {
		return nil, fmt.Errorf("choose %d of %d from %d values with %d moments", k, TopKChunk, len(x), len(v))
	}
	var c chooser
	_, most := chunkCount(uint64(len(x)), k)
	at := make([]uint32, 0, most)
	sent := make([]uint16, 0, k)
	for lo := 0; lo < len(x); lo += TopKChunk {
		hi := min(lo+TopKChunk, len(x))
		var moments []float32
		if v != nil {
			moments = v[lo:hi]
		}
		var err error
		if sent, err = c.choose(sent[:0], x[lo:hi], moments, TopKCount(hi-lo, k)); err != nil {
			return nil, fmt.Errorf("in the chunk from element %d: %w", lo, err)
		}
		for _, i := range sent {
			at = append(at, uint32(lo)+uint32(i))
		}
	}
	return at, nil
}

// Send codes the chosen values of a tensor: units, of equal length, gets what topk-2bit sends and x keeps the rest. at are
// elements as [Choose] gives them for k.
func Send(units []int32, x []float32, at []uint32, k int) error {
	if _, most := chunkCount(uint64(len(x)), k); len(units) != len(x) || uint64(len(at)) != most {
		return fmt.Errorf("send %d of %d values into %d units", len(at), len(x), len(units))
	}
	clear(units)
	sent, fixed := make([]uint16, 0, k), make([]uint64, k)
	for lo := 0; lo < len(x); lo += TopKChunk {
		hi := min(lo+TopKChunk, len(x))
		count := TopKCount(hi-lo, k)
		sent = sent[:0]
		for j, i := range at[:count] {
			if int(i) < lo || int(i) >= hi || j > 0 && i <= at[j-1] {
				return fmt.Errorf("element %d is not one of those chosen from %d to %d", i, lo, hi-1)
			}
			if magnitude(x[i]) > largestMagnitude {
				return fmt.Errorf("element %d is %v: %w", i, x[i], ErrRange)
			}
			sent = append(sent, uint16(int(i)-lo))
		}
		code := codeOf(x[lo:hi], sent, fixed[:count])
		if unit := int32(scaleUnits(code.Scale)); unit != 0 {
			for j, i := range code.Indices {
				units[lo+int(i)] = code.units(j, unit)
			}
		}
		at = at[count:]
	}
	return nil
}

// units is the value of the j-th code with a scale of unit.
func (c TopKCode) units(j int, unit int32) int32 {
	b := c.Codes[j/4] >> (j % 4 * 2) & 3
	u := (2 + int32(b&1)) * unit
	if b&2 != 0 {
		u = -u
	}
	return u
}

// clampTo returns moved, or the end of the way from 0 to sent that is nearest to it.
func clampTo(moved, sent float64) float64 {
	return math.Max(math.Min(0, sent), math.Min(moved, math.Max(0, sent)))
}
