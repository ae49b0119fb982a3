package protocol

import "math/bits"

// Bounds of a delta's tensor table.
const (
	maxTensorName = 256
	maxTensorDims = 8
	maxTensorLen  = 1 << 40 // elements
)

// TensorEntry is one row of a delta's tensor table.
type TensorEntry struct {
	Name   string   `cbor:"name"`
	Shape  []uint64 `cbor:"shape"`
	Offset uint64   `cbor:"offset"` // first byte in the payload
	Size   uint64   `cbor:"size"`   // bytes in the payload
}

// Elements returns the product of the shape; ok is false if a dimension is zero or the product is past 2⁴⁰.
func (e TensorEntry) Elements() (n uint64, ok bool) { return Elements(e.Shape) }

// Elements returns the number of elements of a tensor of that shape; ok is false if a dimension is zero or the product
// is past 2⁴⁰.
func Elements(shape []uint64) (n uint64, ok bool) {
	n = 1
	for _, d := range shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 || lo == 0 || lo > maxTensorLen {
			return 0, false
		}
		n = lo
	}
	return n, true
}

// DeltaHeader describes the payload of a delta: which group's tensors, relative to which checkpoint, in which codec.
type DeltaHeader struct {
	Version uint32        `cbor:"version"`
	Base    Link          `cbor:"base"` // dag-pb: the checkpoint Φ(t)
	Group   string        `cbor:"group"`
	Codec   string        `cbor:"codec"`
	Tensors []TensorEntry `cbor:"tensors"` // in payload order, without gaps
	Size    uint64        `cbor:"size"`    // bytes of the payload
}

// DecodeDeltaHeader decodes and checks a delta header.
func DecodeDeltaHeader(b []byte) (DeltaHeader, error) {
	return decode[DeltaHeader]("delta header", maxHeader, b)
}

// Validate implements [Record].
func (h DeltaHeader) Validate() error { return validate("delta", h) }

func (h DeltaHeader) faults(f faults) {
	f.version(h.Version)
	f.link("base", h.Base, DagPB)
	f.name("group", h.Group)
	f.name("codec", h.Codec)
	if n := len(h.Tensors); n == 0 || n > maxElements {
		f.add("tensors", "%d tensors, want 1 to %d", n, maxElements)
	}
	var next uint64
	seen := make(map[string]bool, min(len(h.Tensors), 1024))
	for i, e := range h.Tensors {
		if f.full() {
			return
		}
		f.under(index("tensors", i), e)
		if seen[e.Name] {
			f.add(index("tensors", i)+".name", "%.40q appears twice", e.Name)
		}
		seen[e.Name] = true
		if e.Offset != next {
			f.add(index("tensors", i)+".offset", "%d, but the tensor before it ends at %d", e.Offset, next)
		}
		var carry uint64
		if next, carry = bits.Add64(next, e.Size, 0); carry != 0 {
			f.add(index("tensors", i)+".size", "the sizes sum past 2⁶⁴")
			return
		}
	}
	if h.Size != next {
		f.add("size", "%d bytes, but the tensors take %d", h.Size, next)
	}
}

func (e TensorEntry) faults(f faults) {
	f.tensorName("name", e.Name)
	if n := len(e.Shape); n == 0 || n > maxTensorDims {
		f.add("shape", "%d dimensions, want 1 to %d", n, maxTensorDims)
	} else if _, ok := e.Elements(); !ok {
		f.add("shape", "%d is empty or has more than 2⁴⁰ elements", e.Shape)
	}
	if e.Size == 0 {
		f.add("size", "a tensor has at least one byte")
	}
}

// tensorName adds a fault unless s is 1 to 256 printable ASCII characters without space.
func (f faults) tensorName(field, s string) {
	bad := s == "" || len(s) > maxTensorName
	for i := 0; i < len(s) && !bad; i++ {
		bad = s[i] <= ' ' || s[i] > '~'
	}
	if bad {
		f.add(field, "%.40q is not 1 to %d printable ASCII characters without space", s, maxTensorName)
	}
}
