package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"math/bits"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Why bytes were refused: always the sender's fault. They arrive wrapped, with the tensor and element where there is
// one.
var (
	ErrMagic     = errors.New("delta: not a delta file")
	ErrTruncated = errors.New("delta: cut short")
	ErrTrailing  = errors.New("delta: bytes after the end")
	ErrHeader    = errors.New("delta: bad header") // wraps the protocol error
	ErrBase      = errors.New("delta: made for another checkpoint")
	ErrGroup     = errors.New("delta: made for another group")
	ErrCodec     = errors.New("delta: unknown codec")
	ErrTensor    = errors.New("delta: wrong tensor")
	ErrValue     = errors.New("delta: bad value")
)

// ErrUnits is returned by [New]: the caller's units do not fit its tensors or its codec.
var ErrUnits = errors.New("delta: units do not fit")

// magic opens a delta file; its last byte is the version of the framing.
const magic = "bzdelta\x01"

const frame = len(magic) + 4 // magic and header length

// Delta is a decoded update: units per tensor. It does not change after it was made, so it may be read concurrently.
type Delta struct {
	header protocol.DeltaHeader
	coded  [][]byte // what is sent of each tensor
	dense  [][]int32
	sparse []sparse // instead of dense, for CodecTopK
}

// Expect is what the receiver knows must be true of a delta: one base checkpoint, one group, exactly these tensors, one
// codec.
type Expect struct {
	Base    protocol.Link
	Group   string
	Tensors []Tensor
	// TopK is how many of 4096 consecutive values the codec topk-2bit sends; 0 means the codec dense-bf16, which sends all.
	TopK int
}

// Codec names the codec.
func (w Expect) Codec() string {
	if w.TopK == 0 {
		return CodecDenseBF16
	}
	return CodecTopK
}

// New makes a delta of units, one slice per tensor of want, flattened row by row. It may keep the slices. They must be units
// that the codec can carry: what came out of [Quantize] for dense-bf16, out of [Send] for topk-2bit.
func New(want Expect, units [][]int32) (*Delta, error) {
	header, err := want.header()
	if err != nil {
		return nil, err
	}
	if len(units) != len(want.Tensors) {
		return nil, fmt.Errorf("%w: %d slices for %d tensors", ErrUnits, len(units), len(want.Tensors))
	}
	d := &Delta{header: header, coded: make([][]byte, len(units))}
	d.header.Size = 0
	for i, t := range want.Tensors {
		n, _ := protocol.Elements(t.Shape)
		if uint64(len(units[i])) != n {
			return nil, fmt.Errorf("%w: tensor %s of shape %d has %d units", ErrUnits, t.Name, t.Shape, len(units[i]))
		}
		var at uint64
		if want.TopK == 0 {
			d.coded[i], at, err = appendDense(make([]byte, 0, 2*n), units[i])
			d.dense = append(d.dense, units[i])
		} else {
			s := sparsify(units[i])
			d.coded[i], at, err = appendTopK(nil, s, n, want.TopK)
			d.sparse = append(d.sparse, s)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: tensor %s, element %d: %w", ErrUnits, t.Name, at, err)
		}
		e := &d.header.Tensors[i]
		e.Offset, e.Size = d.header.Size, uint64(len(d.coded[i]))
		d.header.Size += e.Size
	}
	return d, d.header.Validate()
}

// sizes are the fewest and the most bytes of a tensor of n elements.
func (w Expect) sizes(n uint64) (least, most uint64) {
	if w.TopK == 0 {
		return 2 * n, 2 * n
	}
	return topKSizes(n, w.TopK)
}

// header is that of a delta as expected in which every tensor takes the most bytes that it can.
func (w Expect) header() (protocol.DeltaHeader, error) {
	h := protocol.DeltaHeader{
		Version: protocol.Version,
		Base:    w.Base,
		Group:   w.Group,
		Codec:   w.Codec(),
		Tensors: make([]protocol.TensorEntry, len(w.Tensors)),
	}
	if w.TopK < 0 || w.TopK > TopKChunk {
		return h, fmt.Errorf("%w: %d of %d values are to be sent", ErrUnits, w.TopK, TopKChunk)
	}
	for i, t := range w.Tensors {
		n, ok := protocol.Elements(t.Shape)
		if !ok || w.TopK > 0 && n > maxSparse {
			return h, fmt.Errorf("%w: expected tensor %s has shape %d", ErrUnits, t.Name, t.Shape)
		}
		_, most := w.sizes(n)
		h.Tensors[i] = protocol.TensorEntry{Name: t.Name, Shape: slices.Clone(t.Shape), Offset: h.Size, Size: most}
		h.Size += most
	}
	if err := h.Validate(); err != nil {
		return h, fmt.Errorf("expected delta: %w", err)
	}
	return h, nil
}

// MaxPayload is the most bytes that the payload of an expected delta takes.
func (w Expect) MaxPayload() (uint64, error) {
	h, err := w.header()
	return h.Size, err
}

// Header returns the description that travels with the payload. Its slices belong to the delta.
func (d *Delta) Header() protocol.DeltaHeader { return d.header }

// Units returns the units of a tensor, flattened row by row. The slice is not to be changed.
func (d *Delta) Units(tensor int) []int32 {
	if d.sparse == nil {
		return d.dense[tensor]
	}
	n, _ := d.header.Tensors[tensor].Elements()
	units := make([]int32, n)
	for i, u := range d.Codes(tensor) {
		units[i] = u
	}
	return units
}

// Codes iterates over (index, unit) of a tensor, indices ascending, zero units left out.
func (d *Delta) Codes(tensor int) iter.Seq2[int, int32] {
	return func(yield func(int, int32) bool) {
		if d.sparse != nil {
			s := d.sparse[tensor]
			for j, i := range s.at {
				if !yield(int(i), s.units[j]) {
					return
				}
			}
			return
		}
		for i, u := range d.dense[tensor] {
			if u != 0 && !yield(i, u) {
				return
			}
		}
	}
}

// SquaredNorm returns the sum of all squared units, exactly: ‖Δ‖²·2⁴⁸.
func (d *Delta) SquaredNorm() *big.Int {
	var hi, lo, carry uint64
	for i := range d.header.Tensors {
		for _, u := range d.Codes(i) {
			lo, carry = bits.Add64(lo, uint64(int64(u)*int64(u)), 0)
			hi += carry
		}
	}
	sum := new(big.Int).SetUint64(hi)
	return sum.Or(sum.Lsh(sum, 64), new(big.Int).SetUint64(lo))
}

// Payload returns the code bytes of all tensors in table order: what the network seals.
func (d *Delta) Payload() []byte { return d.appendPayload(make([]byte, 0, d.header.Size)) }

func (d *Delta) appendPayload(b []byte) []byte {
	for _, c := range d.coded {
		b = append(b, c...)
	}
	return b
}

// Encode returns the delta as a file: magic ‖ header length, uint32 little-endian ‖ header ‖ payload.
func (d *Delta) Encode() ([]byte, error) {
	header, err := protocol.Encode(d.header)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, uint64(frame+len(header))+d.header.Size)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(header)))
	return d.appendPayload(append(b, header...)), nil
}

// Decode reads what [Delta.Encode] wrote and refuses everything else, and everything but what is expected.
func Decode(b []byte, want Expect) (*Delta, error) {
	expected, err := want.header()
	if err != nil {
		return nil, err
	}
	length, err := headerLength(b, headerLimit(expected))
	if err != nil {
		return nil, err
	}
	b = b[frame:]
	if uint64(len(b)) < length {
		return nil, fmt.Errorf("%w: %d bytes of a header of %d", ErrTruncated, len(b), length)
	}
	header, err := protocol.DecodeDeltaHeader(b[:length])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	return decodePayload(header, b[length:], expected, want)
}

// headerLength reads the frame at the start of b.
func headerLength(b []byte, limit uint64) (uint64, error) {
	if len(b) < frame {
		return 0, fmt.Errorf("%w: %d bytes are no frame", ErrTruncated, len(b))
	}
	if string(b[:len(magic)]) != magic {
		return 0, ErrMagic
	}
	length := uint64(binary.LittleEndian.Uint32(b[len(magic):]))
	if length > limit {
		return 0, fmt.Errorf("%w: it claims %d bytes, at most %d can be right", ErrHeader, length, limit)
	}
	return length, nil
}

// headerLimit bounds the encoded header of any codec from what is expected: names, shapes and a little for each entry.
func headerLimit(expected protocol.DeltaHeader) uint64 {
	limit := uint64(256)
	for _, e := range expected.Tensors {
		limit += 64 + uint64(len(e.Name)) + 9*uint64(len(e.Shape))
	}
	return limit
}

// DecodePayload decodes a payload that arrived beside its header. The header need not have been checked.
func DecodePayload(header protocol.DeltaHeader, payload []byte, want Expect) (*Delta, error) {
	expected, err := want.header()
	if err != nil {
		return nil, err
	}
	return decodePayload(header, payload, expected, want)
}

func decodePayload(header protocol.DeltaHeader, payload []byte, expected protocol.DeltaHeader, want Expect) (*Delta, error) {
	if err := matches(header, expected, want); err != nil {
		return nil, err
	}
	switch size := uint64(len(payload)); {
	case size < header.Size:
		return nil, fmt.Errorf("%w: %d bytes of a payload of %d", ErrTruncated, size, header.Size)
	case size > header.Size:
		return nil, fmt.Errorf("%w: %d bytes for a payload of %d", ErrTrailing, size, header.Size)
	}
	expected.Size = header.Size
	d := &Delta{header: expected, coded: make([][]byte, len(expected.Tensors))}
	for i, e := range header.Tensors {
		t, err := decodeTensor(e, payload[e.Offset:e.Offset+e.Size], want)
		if err != nil {
			return nil, err
		}
		expected.Tensors[i].Offset, expected.Tensors[i].Size = e.Offset, e.Size
		d.coded[i] = payload[e.Offset : e.Offset+e.Size]
		if want.TopK == 0 {
			d.dense = append(d.dense, t.units)
		} else {
			d.sparse = append(d.sparse, t)
		}
	}
	return d, nil
}

// decodeTensor decodes the bytes of one tensor, whose entry is one of a header that matches. Of dense-bf16 it leaves at nil.
func decodeTensor(e protocol.TensorEntry, b []byte, want Expect) (s sparse, err error) {
	var at uint64
	n, _ := e.Elements()
	if want.TopK == 0 {
		s.units = make([]int32, n) // as large as the bytes already held, twice over
		at, err = decodeDense(s.units, b)
	} else {
		s, at, err = decodeTopK(b, n, want.TopK)
	}
	if err != nil {
		err = fmt.Errorf("%w: tensor %s, element %d: %w", ErrValue, e.Name, at, err)
	}
	return s, err
}

// DecodeTensor decodes one tensor of a delta from its bytes alone, those that its entry in the header names. The header need
// not have been checked. Units are as [Delta.Units] gives them.
func DecodeTensor(header protocol.DeltaHeader, tensor int, b []byte, want Expect) ([]int32, error) {
	expected, err := want.header()
	if err != nil {
		return nil, err
	}
	if err := matches(header, expected, want); err != nil {
		return nil, err
	}
	if tensor < 0 || tensor >= len(header.Tensors) {
		return nil, fmt.Errorf("%w: tensor %d of %d", ErrTensor, tensor, len(header.Tensors))
	}
	e := header.Tensors[tensor]
	switch size := uint64(len(b)); {
	case size < e.Size:
		return nil, fmt.Errorf("%w: tensor %s: %d bytes of %d", ErrTruncated, e.Name, size, e.Size)
	case size > e.Size:
		return nil, fmt.Errorf("%w: tensor %s: %d bytes for %d", ErrTrailing, e.Name, size, e.Size)
	}
	s, err := decodeTensor(e, b, want)
	if err != nil || want.TopK == 0 {
		return s.units, err
	}
	n, _ := e.Elements()
	units := make([]int32, n)
	for j, i := range s.at {
		units[i] = s.units[j]
	}
	return units, nil
}

// matches compares a header with what is expected, so that the error says what differs. Sizes may vary within what the codec
// can need.
func matches(h, expected protocol.DeltaHeader, want Expect) error {
	switch {
	case h.Version != expected.Version:
		return fmt.Errorf("%w: version %d, want %d", ErrHeader, h.Version, expected.Version)
	case h.Base != expected.Base:
		return fmt.Errorf("%w: base %s, want %s", ErrBase, h.Base, expected.Base)
	case h.Group != expected.Group:
		return fmt.Errorf("%w: group %.40q, want %q", ErrGroup, h.Group, expected.Group)
	case h.Codec != expected.Codec:
		return fmt.Errorf("%w: %.40q, want %q", ErrCodec, h.Codec, expected.Codec)
	case len(h.Tensors) != len(expected.Tensors):
		return fmt.Errorf("%w: %d tensors, want %d", ErrTensor, len(h.Tensors), len(expected.Tensors))
	}
	var next uint64
	for i, e := range expected.Tensors {
		got := h.Tensors[i]
		n, _ := e.Elements()
		least, most := want.sizes(n)
		switch {
		case got.Name != e.Name:
			return fmt.Errorf("%w: entry %d is %.80q, want %s", ErrTensor, i, got.Name, e.Name)
		case !slices.Equal(got.Shape, e.Shape):
			return fmt.Errorf("%w: %s has shape %d, want %d", ErrTensor, e.Name, got.Shape, e.Shape)
		case got.Offset != next || got.Size < least || got.Size > most:
			return fmt.Errorf("%w: %s takes bytes %d+%d, want %d+%d to %d", ErrTensor, e.Name, got.Offset, got.Size, next, least, most)
		}
		next += got.Size
	}
	if h.Size != next {
		return fmt.Errorf("%w: payload of %d bytes, want %d", ErrHeader, h.Size, next)
	}
	return nil
}
