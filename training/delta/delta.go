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
	units  [][]int32
}

// Expect is what the receiver knows must be true of a delta: one base checkpoint, one group, exactly these tensors.
type Expect struct {
	Base    protocol.Link
	Group   string
	Tensors []Tensor
}

// New makes a delta of units, one slice per tensor of want, flattened row by row. It keeps the slices. Every unit value
// must be one that the codec, dense-bf16, can carry: one that came out of [Quantize].
func New(want Expect, units [][]int32) (*Delta, error) {
	header, err := denseHeader(want)
	if err != nil {
		return nil, err
	}
	if len(units) != len(want.Tensors) {
		return nil, fmt.Errorf("%w: %d slices for %d tensors", ErrUnits, len(units), len(want.Tensors))
	}
	for i, t := range want.Tensors {
		if n, _ := protocol.Elements(t.Shape); uint64(len(units[i])) != n {
			return nil, fmt.Errorf("%w: tensor %s of shape %d has %d units", ErrUnits, t.Name, t.Shape, len(units[i]))
		}
		for at, u := range units[i] {
			if _, ok := bf16OfUnits(u); !ok {
				return nil, fmt.Errorf("%w: tensor %s, element %d: %d units have no bfloat16; use Quantize", ErrUnits, t.Name, at, u)
			}
		}
	}
	return &Delta{header, units}, nil
}

// denseHeader is the one header that a dense-bf16 delta of what is expected can have.
func denseHeader(want Expect) (protocol.DeltaHeader, error) {
	h := protocol.DeltaHeader{
		Version: protocol.Version,
		Base:    want.Base,
		Group:   want.Group,
		Codec:   CodecDenseBF16,
		Tensors: make([]protocol.TensorEntry, len(want.Tensors)),
	}
	for i, t := range want.Tensors {
		n, ok := protocol.Elements(t.Shape)
		if !ok {
			return h, fmt.Errorf("%w: expected tensor %s has shape %d", ErrUnits, t.Name, t.Shape)
		}
		h.Tensors[i] = protocol.TensorEntry{Name: t.Name, Shape: slices.Clone(t.Shape), Offset: h.Size, Size: 2 * n}
		h.Size += 2 * n
	}
	if err := h.Validate(); err != nil {
		return h, fmt.Errorf("expected delta: %w", err)
	}
	return h, nil
}

// Header returns the description that travels with the payload. Its slices belong to the delta.
func (d *Delta) Header() protocol.DeltaHeader { return d.header }

// Units returns the units of a tensor, flattened row by row. The slice belongs to the delta.
func (d *Delta) Units(tensor int) []int32 { return d.units[tensor] }

// Codes iterates over (index, unit) of a tensor, indices ascending, zero units left out.
func (d *Delta) Codes(tensor int) iter.Seq2[int, int32] {
	return func(yield func(int, int32) bool) {
		for i, u := range d.units[tensor] {
			if u != 0 && !yield(i, u) {
				return
			}
		}
	}
}

// SquaredNorm returns the sum of all squared units, exactly: ‖Δ‖²·2⁴⁸.
func (d *Delta) SquaredNorm() *big.Int {
	var hi, lo, carry uint64
	for _, units := range d.units {
		for _, u := range units {
			lo, carry = bits.Add64(lo, uint64(int64(u)*int64(u)), 0)
			hi += carry
		}
	}
	sum := new(big.Int).SetUint64(hi)
	return sum.Or(sum.Lsh(sum, 64), new(big.Int).SetUint64(lo))
}

// Payload returns the code bytes of all tensors in table order: what the network seals.
func (d *Delta) Payload() ([]byte, error) {
	return d.appendPayload(make([]byte, 0, d.header.Size))
}

func (d *Delta) appendPayload(b []byte) ([]byte, error) {
	for i, units := range d.units {
		next, at, err := appendDense(b, units)
		if err != nil {
			return nil, fmt.Errorf("%w: tensor %s, element %d: %w", ErrUnits, d.header.Tensors[i].Name, at, err)
		}
		b = next
	}
	return b, nil
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
	return d.appendPayload(append(b, header...))
}

// Decode reads what [Delta.Encode] wrote and refuses everything else, and everything but what is expected.
func Decode(b []byte, want Expect) (*Delta, error) {
	expected, err := denseHeader(want)
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
	return decodePayload(header, b[length:], expected)
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
	expected, err := denseHeader(want)
	if err != nil {
		return nil, err
	}
	return decodePayload(header, payload, expected)
}

func decodePayload(header protocol.DeltaHeader, payload []byte, expected protocol.DeltaHeader) (*Delta, error) {
	if err := matches(header, expected); err != nil {
		return nil, err
	}
	switch size := uint64(len(payload)); {
	case size < header.Size:
		return nil, fmt.Errorf("%w: %d bytes of a payload of %d", ErrTruncated, size, header.Size)
	case size > header.Size:
		return nil, fmt.Errorf("%w: %d bytes for a payload of %d", ErrTrailing, size, header.Size)
	}
	d := &Delta{header: expected, units: make([][]int32, len(expected.Tensors))}
	for i, e := range expected.Tensors {
		d.units[i] = make([]int32, e.Size/2) // as large as the bytes already held, twice over
		at, err := decodeDense(d.units[i], payload[e.Offset:e.Offset+e.Size])
		if err != nil {
			return nil, fmt.Errorf("%w: tensor %s, element %d: %w", ErrValue, e.Name, at, err)
		}
	}
	return d, nil
}

// matches compares a header with the only acceptable one, so that the error says what differs.
func matches(h, expected protocol.DeltaHeader) error {
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
	for i, e := range expected.Tensors {
		got := h.Tensors[i]
		switch {
		case got.Name != e.Name:
			return fmt.Errorf("%w: entry %d is %.80q, want %s", ErrTensor, i, got.Name, e.Name)
		case !slices.Equal(got.Shape, e.Shape):
			return fmt.Errorf("%w: %s has shape %d, want %d", ErrTensor, e.Name, got.Shape, e.Shape)
		case got.Offset != e.Offset || got.Size != e.Size:
			return fmt.Errorf("%w: %s takes bytes %d+%d, want %d+%d", ErrTensor, e.Name, got.Offset, got.Size, e.Offset, e.Size)
		}
	}
	if h.Size != expected.Size {
		return fmt.Errorf("%w: payload of %d bytes, want %d", ErrHeader, h.Size, expected.Size)
	}
	return nil
}
