package delta

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// TopKChunk is the number of consecutive values that share a scale in the top-k code; the last chunk of a tensor has what
// is left.
const TopKChunk = 4096

// maxScale is the largest scale as a binary16: three of it are at most 2.
const maxScale = 0x3955

// ErrTopK wraps why a top-k code was refused.
var ErrTopK = errors.New("delta: bad top-k code")

// TopKCode is what is sent of a chunk: docs/spec/topk.md.
type TopKCode struct {
	Indices []uint16 // ascending
	Codes   []byte   // 2 bits for each index, in their order, low bits first; unused bits are zero
	Scale   uint16   // bits of a binary16, at most maxScale
}

// TopKCount is how many of the n values of a chunk are sent if k of a whole chunk are: ⌈n·k/4096⌉.
func TopKCount(n, k int) int { return (n*k + TopKChunk - 1) / TopKChunk }

// TopK codes a chunk of 1 to 4096 values and leaves in x what was not sent. k, 1 to 4096, counts those sent of a whole chunk. A
// value that is not finite or above 2 in magnitude, sent or not, is an error that wraps [ErrRange]; x is then as it was.
func TopK(x []float32, k int) (TopKCode, error) {
	if len(x) < 1 || len(x) > TopKChunk || k < 1 || k > TopKChunk {
		return TopKCode{}, fmt.Errorf("top %d of a chunk of %d values", k, len(x))
	}
	var c chooser
	sent, err := c.choose(make([]uint16, 0, TopKCount(len(x), k)), x, nil, TopKCount(len(x), k))
	if err != nil {
		return TopKCode{}, err
	}
	return codeOf(x, sent, make([]uint64, len(sent))), nil
}

// magnitude is the integer by which values are compared.
func magnitude(v float32) uint32 { return math.Float32bits(v) &^ (1 << 31) }

// largestMagnitude is that of 2.
const largestMagnitude = 0x40000000

// chooser picks the values of chunks that are sent. Chunks of a tensor are alike, so it looks first at the values above
// where the last chunk's chosen ones ended.
type chooser struct {
	guess uint32
	above []uint16 // indices of the keys from guess on
	keys  []uint32 // and these keys
	bins  [1 << 11]uint16
	tied  []int // places in above
}

// keyBits is the width of a key's bin.
const keyBits = 20

// choose appends to sent the indices of the count values of x with the largest keys, the first ones of equal keys, ascending.
// The key is the magnitude; with v, which has as many values as x, all of them at least 0, it is magnitude + ⌊bits of v / 4⌋.
// The bits of a float are a piecewise linear logarithm: this orders by about |x|·v^¼.
func (c *chooser) choose(sent []uint16, x, v []float32, count int) ([]uint16, error) {
	err := c.look(x, v)
	if err == nil && len(c.above) < count {
		c.guess = 0
		err = c.look(x, v)
	}
	if err != nil {
		return nil, err
	}
	clear(c.bins[:])
	for _, key := range c.keys {
		c.bins[key>>keyBits]++
	}
	bin, left := len(c.bins)-1, count // left of them lie in bin or below
	for ; int(c.bins[bin]) < left; bin-- {
		left -= int(c.bins[bin])
	}
	c.tied = c.tied[:0]
	for j, key := range c.keys {
		switch high := int(key >> keyBits); {
		case high > bin:
			sent = append(sent, c.above[j])
		case high == bin:
			c.tied = append(c.tied, j)
		}
	}
	if left < len(c.tied) {
		slices.SortFunc(c.tied, func(a, b int) int { return cmp.Or(cmp.Compare(c.keys[b], c.keys[a]), cmp.Compare(a, b)) })
	}
	for _, j := range c.tied[:left] {
		sent = append(sent, c.above[j])
	}
	slices.Sort(sent)
	c.guess = uint32(max(0, bin-2)) << keyBits
	return sent, nil
}

// look fills above and keys.
func (c *chooser) look(x, v []float32) error {
	c.above, c.keys = c.above[:0], c.keys[:0]
	guess, beyond := c.guess, uint32(0)
	if v == nil {
		for i, f := range x {
			key := magnitude(f)
			beyond |= largestMagnitude - key
			if key >= guess {
				c.above, c.keys = append(c.above, uint16(i)), append(c.keys, key)
			}
		}
	} else {
		for i, f := range x {
			key := magnitude(f)
			beyond |= largestMagnitude - key
			if key += magnitude(v[i]) >> 2; key >= guess {
				c.above, c.keys = append(c.above, uint16(i)), append(c.keys, key)
			}
		}
	}
	if beyond>>31 == 0 {
		return nil
	}
	i := slices.IndexFunc(x, func(f float32) bool { return magnitude(f) > largestMagnitude })
	return fmt.Errorf("element %d is %v: %w", i, x[i], ErrRange)
}

// codeOf codes the chosen values of a chunk, whose ascending indices it keeps, and leaves the residual in x. fixed is scratch
// for one value of each.
func codeOf(x []float32, sent []uint16, fixed []uint64) TopKCode {
	code := TopKCode{Indices: sent, Codes: make([]byte, (len(sent)+3)/4)}
	for j, i := range sent {
		fixed[j] = uint64(math.Abs(float64(x[i])) * (1 << 32)) // exact but for the truncation
	}
	code.Scale = scaleOf(fixed)
	if code.Scale == 0 {
		for j := range sent {
			sent[j] = uint16(j)
		}
		return code
	}
	unit := scaleUnits(code.Scale)
	for j, i := range sent {
		level, b := uint64(2), byte(0)
		if 2*fixed[j] > 5*unit<<8 {
			level, b = 3, 1
		}
		v := float32(level*unit) / (1 << UnitBits) // at most 13 significant bits: exact
		if math.Signbit(float64(x[i])) {
			v, b = -v, b|2
		}
		code.Codes[j/4] |= b << (j % 4 * 2)
		x[i] -= v
	}
	return code
}

// scaleOf returns the scale of magnitudes in units of 2⁻³²: the least squares fit of levels 2 and 3, where 3 stands for what
// is above the mean, rounded to a binary16.
func scaleOf(fixed []uint64) uint16 {
	var sum, high, count uint64
	for _, q := range fixed {
		sum += q
	}
	for _, q := range fixed {
		if q*uint64(len(fixed)) > sum {
			high += q
			count++
		}
	}
	numerator := 2*sum + high
	divisor := (4*uint64(len(fixed)) + 5*count) << 8 // the quotient is in units of 2⁻²⁴
	shift := max(0, bits.Len64(numerator/divisor)-11)
	divisor <<= shift
	r, rest := numerator/divisor, numerator%divisor
	if 2*rest > divisor || 2*rest == divisor && r&1 == 1 {
		r++ // 2048 is 1024 of the next exponent, as the sum below has it
	}
	if r < 1024 {
		return uint16(r)
	}
	return uint16(min(maxScale, uint64(shift)<<10+r))
}

// scaleUnits is the value of a scale in units of 2⁻²⁴.
func scaleUnits(scale uint16) uint64 {
	exponent, fraction := scale>>10, uint64(scale&0x3ff)
	if exponent == 0 {
		return fraction
	}
	return (1024 + fraction) << (exponent - 1)
}

// Units sets units, one for each value of the chunk, to what a code says; k as in [TopK]. A code that TopK cannot have made is
// refused with an error that wraps [ErrTopK], and units is then partly written.
func (c TopKCode) Units(units []int32, k int) error {
	if len(units) < 1 || len(units) > TopKChunk || k < 1 || k > TopKChunk {
		return fmt.Errorf("top %d of a chunk of %d values", k, len(units))
	}
	want := TopKCount(len(units), k)
	switch {
	case len(c.Indices) != want:
		return fmt.Errorf("%w: %d indices, want %d", ErrTopK, len(c.Indices), want)
	case len(c.Codes) != (want+3)/4:
		return fmt.Errorf("%w: %d bytes of codes, want %d", ErrTopK, len(c.Codes), (want+3)/4)
	case c.Scale > maxScale:
		return fmt.Errorf("%w: scale %#04x is above %#04x", ErrTopK, c.Scale, maxScale)
	case want%4 != 0 && c.Codes[len(c.Codes)-1]>>(want%4*2) != 0:
		return fmt.Errorf("%w: unused bits of the codes are set", ErrTopK)
	}
	clear(units)
	unit := int32(scaleUnits(c.Scale))
	for j, i := range c.Indices {
		b := c.Codes[j/4] >> (j % 4 * 2) & 3
		switch {
		case int(i) >= len(units):
			return fmt.Errorf("%w: index %d of a chunk of %d values", ErrTopK, i, len(units))
		case j > 0 && i <= c.Indices[j-1]:
			return fmt.Errorf("%w: index %d after %d", ErrTopK, i, c.Indices[j-1])
		case unit == 0 && (int(i) != j || b != 0):
			return fmt.Errorf("%w: scale 0 with index %d, code %d", ErrTopK, i, b)
		}
		units[i] = c.units(j, unit)
	}
	return nil
}
