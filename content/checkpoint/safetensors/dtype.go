package safetensors

import (
	"encoding/binary"
	"math"
)

// DType is an element type, spelt as in the header.
type DType string

// The dtypes of the format. Only F32 and BF16 convert to float32 and can be written.
const (
	BOOL   DType = "BOOL"
	U8     DType = "U8"
	I8     DType = "I8"
	F8E5M2 DType = "F8_E5M2"
	F8E4M3 DType = "F8_E4M3"
	I16    DType = "I16"
	U16    DType = "U16"
	F16    DType = "F16"
	BF16   DType = "BF16"
	I32    DType = "I32"
	U32    DType = "U32"
	F32    DType = "F32"
	F64    DType = "F64"
	I64    DType = "I64"
	U64    DType = "U64"
)

// Size is the number of bytes of one element, 0 for a dtype this package does not know.
func (t DType) Size() int64 {
	switch t {
	case BOOL, U8, I8, F8E5M2, F8E4M3:
		return 1
	case I16, U16, F16, BF16:
		return 2
	case I32, U32, F32:
		return 4
	case F64, I64, U64:
		return 8
	}
	return 0
}

// RoundBF16 returns the BF16 number nearest to v, ties to the even significand. Beyond the largest BF16 number plus
// half a step the result is infinite, as IEEE 754 rounding has it. NaN stays NaN; refuse it before rounding.
func RoundBF16(v float32) float32 {
	b := math.Float32bits(v)
	if b&0x7fffffff > 0x7f800000 {
		return math.Float32frombits(b&0xffff0000 | 0x00400000)
	}
	b += 0x7fff + b>>16&1
	return math.Float32frombits(b & 0xffff0000)
}

// FirstNotFinite returns the index of the first NaN or infinity in v, or -1.
func FirstNotFinite(v []float32) int {
	for i, x := range v {
		if math.Float32bits(x)&0x7f800000 == 0x7f800000 {
			return i
		}
	}
	return -1
}

// decode converts the elements in b, of dtype F32 or BF16, to dst. BF16 is the upper half of a float32, so the
// conversion is exact; b need not be aligned.
func decode(dst []float32, b []byte, t DType) {
	if t == BF16 {
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
		}
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

// encode converts src to the bytes of dtype F32 or BF16 and appends them to b. It returns the index of the first
// element that BF16 cannot hold, or -1.
func encode(b []byte, src []float32, t DType) ([]byte, int) {
	if t == BF16 {
		for i, v := range src {
			bits := math.Float32bits(v)
			if bits&0xffff != 0 {
				return b, i
			}
			b = binary.LittleEndian.AppendUint16(b, uint16(bits>>16))
		}
		return b, -1
	}
	for _, v := range src {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b, -1
}
