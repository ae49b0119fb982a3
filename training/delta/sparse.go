package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// CodecTopK names the codec that sends some of every 4096 consecutive values, in 2 bits each, and where they lie.
const CodecTopK = "topk-2bit"

// maxSparse bounds the elements of a tensor of this codec, so that their numbers fit 32 bits.
const maxSparse = 1 << 32

// sparse is what is sent of a tensor: ascending elements, all below maxSparse, and their units, none of them zero.
type sparse struct {
	at    []uint32
	units []int32
}

// sparsify collects the units that are not zero.
func sparsify(units []int32) sparse {
	var s sparse
	for i, u := range units {
		if u != 0 {
			s.at, s.units = append(s.at, uint32(i)), append(s.units, u)
		}
	}
	return s
}

// chunkCount is the number of chunks of n values, and sent how many of them are sent if no chunk is empty, k of a whole one.
func chunkCount(n uint64, k int) (count, sent uint64) {
	whole, rest := n/TopKChunk, int(n%TopKChunk)
	if count, sent = whole, whole*uint64(k); rest > 0 {
		count, sent = count+1, sent+uint64(TopKCount(rest, k))
	}
	return count, sent
}

// topKSizes are the fewest and the most bytes that a tensor of n values takes: with nothing sent, and with gaps as long as
// they can be. n is at most maxSparse.
func topKSizes(n uint64, k int) (least, most uint64) {
	c, sent := chunkCount(n, k)
	p := riceBits(k)
	gaps := sent*uint64(p+1) + n>>p
	return 2 * c, 2*c + (2*sent+7)/8 + (gaps+7)/8
}

// Why units are no top-k code, and why bytes are not the ones of any units.
var (
	errCount     = errors.New("a chunk sends neither nothing nor its number of values")
	errLevels    = errors.New("the values of a chunk are not ±2 and ±3 times a scale")
	errScale     = errors.New("its scale is too large")
	errLevel     = errors.New("all levels are 3 where 2 of a larger scale says the same")
	errLeftOver  = errors.New("unused bits of the codes are set")
	errShortCode = errors.New("it is too short for its codes")
)

// scaleFrom is the scale of u units, if there is one.
func scaleFrom(u uint64) (uint16, bool) {
	shift := max(0, bits.Len64(u)-11)
	if u>>shift<<shift != u {
		return 0, false
	}
	scale := uint64(shift)<<10 + u>>shift
	return uint16(scale), scale > 0 && scale <= maxScale
}

// alike is the scale of which level 2 is what level 3 of scale s is, if there is one.
func alike(s uint16) (uint16, bool) {
	u := 3 * scaleUnits(s)
	if u%2 != 0 {
		return 0, false
	}
	return scaleFrom(u / 2)
}

// fitScale is the scale of a chunk's units: that of which they are 2 or 3 times, 2 if all are alike and either will do.
func fitScale(units []int32) (uint16, error) {
	least, most := uint64(MaxUnit)+1, uint64(0)
	for _, u := range units {
		m := uint64(max(u, -u))
		least, most = min(least, m), max(most, m)
	}
	if least == most {
		if s, ok := scaleFrom(least / 2); ok && least%2 == 0 {
			return s, nil
		}
		if s, ok := scaleFrom(least / 3); ok && least%3 == 0 {
			return s, nil
		}
		return 0, errLevels
	}
	s, ok := scaleFrom(most - least)
	if !ok {
		return 0, errLevels
	}
	for _, u := range units {
		if m := uint64(max(u, -u)); m != 2*(most-least) && m != 3*(most-least) {
			return 0, errLevels
		}
	}
	return s, nil
}

// appendTopK appends the bytes of a tensor of n values; on failure it names the first element of the chunk.
func appendTopK(b []byte, s sparse, n uint64, k int) ([]byte, uint64, error) {
	count, _ := chunkCount(n, k)
	scales := len(b)
	b = append(b, make([]byte, 2*count)...)
	codes := bitWriter{b: b}
	var gaps bitWriter
	p := riceBits(k)
	at, units := s.at, s.units
	for c := range count {
		start := c * TopKChunk
		length := min(n-start, TopKChunk)
		sent := 0
		for sent < len(at) && uint64(at[sent]) < start+length {
			sent++
		}
		if sent == 0 {
			continue
		}
		if sent != TopKCount(int(length), k) {
			return nil, start, errCount
		}
		scale, err := fitScale(units[:sent])
		if err != nil {
			return nil, start, err
		}
		binary.LittleEndian.PutUint16(b[scales+2*int(c):], scale)
		three := 3 * int32(scaleUnits(scale))
		next := uint32(start)
		for i, u := range units[:sent] {
			var code uint64
			if u < 0 {
				code, u = 2, -u
			}
			if u == three {
				code |= 1
			}
			codes.put(code, 2)
			gaps.rice(at[i]-next, p)
			next = at[i] + 1
		}
		at, units = at[sent:], units[sent:]
	}
	copy(codes.b[scales:], b[scales:]) // codes may have moved to another array
	return append(codes.bytes(), gaps.bytes()...), 0, nil
}

// decodeTopK decodes the bytes of a tensor of n values; on failure it names the first element of the chunk.
func decodeTopK(b []byte, n uint64, k int) (s sparse, at uint64, err error) {
	count, _ := chunkCount(n, k)
	if uint64(len(b)) < 2*count {
		return s, 0, ErrTruncated
	}
	scales, rest := b[:2*count], b[2*count:]
	var sent uint64
	for c := range count {
		scale := binary.LittleEndian.Uint16(scales[2*c:])
		if scale > maxScale {
			return s, c * TopKChunk, fmt.Errorf("scale 0x%04x: %w", scale, errScale)
		}
		if scale != 0 {
			sent += uint64(TopKCount(int(min(n-c*TopKChunk, TopKChunk)), k))
		}
	}
	size := (2*sent + 7) / 8
	if uint64(len(rest)) < size {
		return s, 0, errShortCode
	}
	codes, gaps := rest[:size], bitReader{b: rest[size:]}
	if used := sent % 4 * 2; used != 0 && codes[size-1]>>used != 0 {
		return s, 0, errLeftOver
	}
	// A value that is sent takes more than 2 bits of the bytes held.
	s.at, s.units = make([]uint32, 0, sent), make([]int32, 0, sent)
	p := riceBits(k)
	for c := range count {
		scale := binary.LittleEndian.Uint16(scales[2*c:])
		if scale == 0 {
			continue
		}
		start := c * TopKChunk
		length := min(n-start, TopKChunk)
		unit, level3 := int32(scaleUnits(scale)), true
		next := uint32(0)
		for range TopKCount(int(length), k) {
			gap, err := gaps.rice(p, uint32(length)-next)
			if err != nil {
				return s, start, err
			}
			i := len(s.at)
			code := codes[i/4] >> (i % 4 * 2)
			u := (2 + int32(code&1)) * unit
			level3 = level3 && code&1 == 1
			if code&2 != 0 {
				u = -u
			}
			s.at, s.units = append(s.at, uint32(start)+next+gap), append(s.units, u)
			next += gap + 1
		}
		if _, same := alike(scale); level3 && same {
			return s, start, errLevel
		}
	}
	return s, 0, gaps.end()
}
