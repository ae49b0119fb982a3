package safetensors

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// Tensor is a tensor to be written: F32 or BF16, row-major.
type Tensor struct {
	Name  string
	DType DType
	Shape []int64
	Data  []float32 // BF16 values must be exact; see RoundBF16
	// Load gives the values instead of Data, when they are written: a file may be longer than memory. It may be called more
	// than once.
	Load func() ([]float32, error)
}

// writeChunk is the number of elements converted at a time.
const writeChunk = 1 << 14

// CheckName says why a tensor name cannot be written. Names are 1 to 1024 printable ASCII characters without space,
// quote and backslash, so that header and index have one spelling; "__metadata__" is the format's own.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: name of %d bytes, want 1 to %d", ErrTensor, len(name), maxName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return fmt.Errorf("%w: name %q holds %q, want printable ASCII without space, quote and backslash",
				ErrTensor, shorten(name), c)
		}
	}
	if name == metadataKey {
		return fmt.Errorf("%w: name %q is the format's own", ErrTensor, name)
	}
	return nil
}

// Check says why a tensor cannot be written, without looking at its values.
func (t *Tensor) Check() error {
	if err := CheckName(t.Name); err != nil {
		return err
	}
	if t.DType != F32 && t.DType != BF16 {
		return fmt.Errorf("%w: tensor %q: dtype %q, want F32 or BF16", ErrTensor, t.Name, t.DType)
	}
	if len(t.Shape) > MaxDims {
		return fmt.Errorf("%w: tensor %q: %d dimensions, want at most %d", ErrTensor, t.Name, len(t.Shape), MaxDims)
	}
	for _, d := range t.Shape {
		if d < 0 {
			return fmt.Errorf("%w: tensor %q: negative dimension in shape %v", ErrTensor, t.Name, t.Shape)
		}
	}
	size, ok := byteSize(t.DType, t.Shape)
	if t.Load != nil && t.Data != nil {
		return fmt.Errorf("%w: tensor %q has both Data and Load", ErrTensor, t.Name)
	}
	if !ok || t.Load == nil && size != int64(len(t.Data))*t.DType.Size() {
		return fmt.Errorf("%w: tensor %q: shape %v does not fit %d values", ErrTensor, t.Name, t.Shape, len(t.Data))
	}
	return nil
}

// Bytes is the length in a file of a tensor that passes Check.
func (t *Tensor) Bytes() int64 {
	size, _ := byteSize(t.DType, t.Shape)
	return size
}

// values returns the values to be written.
func (t *Tensor) values() ([]float32, error) {
	if t.Load == nil {
		return t.Data, nil
	}
	v, err := t.Load()
	if err == nil && int64(len(v))*t.DType.Size() != t.Bytes() {
		err = fmt.Errorf("%w: tensor %q: shape %v does not fit %d values", ErrTensor, t.Name, t.Shape, len(v))
	}
	return v, err
}

// Write writes tensors as one file to w. The bytes depend on the set of tensors only, not on their order, and are those
// that the reference library writes with the metadata {"format": "pt"}: larger dtypes first, so that every tensor is
// aligned, then by name. Everything but the values is checked before the first byte is written.
//
// It fails with [ErrTensor] for tensors that cannot be written, with [ErrNotExact] for a value that BF16 cannot hold,
// and with w's errors as they are.
func Write(w io.Writer, tensors []Tensor) error {
	order := make([]*Tensor, len(tensors))
	for i := range tensors {
		if err := tensors[i].Check(); err != nil {
			return err
		}
		order[i] = &tensors[i]
	}
	slices.SortFunc(order, func(a, b *Tensor) int {
		return cmp.Or(cmp.Compare(b.DType.Size(), a.DType.Size()), cmp.Compare(a.Name, b.Name))
	})
	names := make(map[string]struct{}, len(order))
	for _, t := range order {
		if _, twice := names[t.Name]; twice {
			return fmt.Errorf("%w: tensor %q is given twice", ErrTensor, t.Name)
		}
		names[t.Name] = struct{}{}
	}
	header := encodeHeader(order)
	if len(header)-8 > MaxHeader {
		return fmt.Errorf("%w: header of %d bytes, want at most %d; use more files", ErrTensor, len(header)-8, MaxHeader)
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	buf := make([]byte, 0, 4*writeChunk)
	for _, t := range order {
		data, err := t.values()
		if err != nil {
			return err
		}
		for i := 0; i < len(data); i += writeChunk {
			b, bad := encode(buf, data[i:min(i+writeChunk, len(data))], t.DType)
			if bad >= 0 {
				return fmt.Errorf("%w: tensor %q, index %d: %v", ErrNotExact, t.Name, i+bad, data[i+bad])
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

// encodeHeader returns the length prefix and the header of tensors that have been checked and ordered. The header is
// padded with spaces to a multiple of 8 bytes.
func encodeHeader(order []*Tensor) []byte {
	b := make([]byte, 8, 8+64+128*len(order))
	b = append(b, `{"`+metadataKey+`":{"format":"pt"}`...)
	var at int64
	for _, t := range order {
		b = append(b, `,"`+t.Name+`":{"dtype":"`+string(t.DType)+`","shape":[`...)
		for i, d := range t.Shape {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, d, 10)
		}
		b = append(b, `],"data_offsets":[`...)
		b = strconv.AppendInt(b, at, 10)
		b = append(b, ',')
		at += t.Bytes()
		b = strconv.AppendInt(b, at, 10)
		b = append(b, "]}"...)
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-8))
	return b
}
