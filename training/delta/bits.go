package delta

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// riceBits is the parameter of the Rice code of gaps when k of 4096 values are sent: ⌊log₂(ln 2 · 4096/k)⌋, at least 0.
func riceBits(k int) uint { return uint(max(0, bits.Len(uint(2839/k))-1)) }

// bitWriter appends fields of bits to bytes, low bits first.
type bitWriter struct {
	b    []byte
	acc  uint64
	held uint // bits of acc, below 32 between calls
}

// put writes the low n bits of v, n at most 32; the others are zero.
func (w *bitWriter) put(v uint64, n uint) {
	w.acc |= v << w.held
	w.held += n
	if w.held >= 32 {
		w.b = binary.LittleEndian.AppendUint32(w.b, uint32(w.acc))
		w.acc >>= 32
		w.held -= 32
	}
}

// rice writes v: ⌊v/2ᵖ⌋ zeros, a one, and the p low bits of v.
func (w *bitWriter) rice(v uint32, p uint) {
	q := uint(v >> p)
	for ; q >= 32; q -= 32 {
		w.put(0, 32)
	}
	if q+1+p > 32 {
		w.put(0, q)
		q = 0
	}
	w.put(1<<q|uint64(v&(1<<p-1))<<(q+1), q+1+p)
}

// bytes ends the stream with zeros to a whole byte.
func (w *bitWriter) bytes() []byte {
	for ; w.held > 0; w.held -= min(8, w.held) {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
	return w.b
}

// Reasons that a bit stream is not one that a bitWriter made.
var (
	errShort = errors.New("its gaps are cut short")
	errGap   = errors.New("a gap leads out of its chunk")
	errEnd   = errors.New("bits after its last gap")
)

// bitReader reads what a bitWriter wrote.
type bitReader struct {
	b    []byte
	acc  uint64
	held uint
}

// fill holds at least 57 bits, or all that are left.
func (r *bitReader) fill() {
	if len(r.b) >= 8 {
		r.acc |= binary.LittleEndian.Uint64(r.b) << r.held
		n := (63 - r.held) >> 3
		r.b = r.b[n:]
		r.held += n << 3
		return
	}
	for ; r.held <= 56 && len(r.b) > 0; r.b = r.b[1:] {
		r.acc |= uint64(r.b[0]) << r.held
		r.held += 8
	}
}

// rice reads a value below limit, which is at most 4096.
func (r *bitReader) rice(p uint, limit uint32) (uint32, error) {
	var high uint32
	for {
		r.fill()
		zeros := uint(bits.TrailingZeros64(r.acc))
		if zeros < r.held {
			high += uint32(zeros)
			r.acc >>= zeros + 1
			r.held -= zeros + 1
			break
		}
		high += uint32(r.held)
		switch {
		case high<<p >= limit:
			return 0, errGap
		case len(r.b) == 0:
			return 0, errShort
		}
		r.acc, r.held = 0, 0
	}
	r.fill()
	if r.held < p {
		return 0, errShort
	}
	v := high<<p | uint32(r.acc)&(1<<p-1)
	r.acc >>= p
	r.held -= p
	if v >= limit {
		return 0, errGap
	}
	return v, nil
}

// end checks that nothing but the zeros of a last byte is left.
func (r *bitReader) end() error {
	if len(r.b) > 0 || r.held >= 8 || r.acc != 0 {
		return errEnd
	}
	return nil
}
