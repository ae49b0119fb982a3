package safetensors

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/blockzero-net/bzd/content/checkpoint/internal/strictjson"
)

const (
	// MaxHeader is the longest header accepted, as in the reference library.
	MaxHeader = 100_000_000
	// MaxDims is the most dimensions a tensor may have.
	MaxDims = 16
	// maxName is the longest tensor name accepted.
	maxName = 1024

	metadataKey = "__metadata__"
)

// Info describes one tensor of a file.
type Info struct {
	Name  string
	DType DType
	Shape []int64

	begin, end int64 // within the data section
}

// Elements is the product of the shape: 1 for a scalar.
func (i Info) Elements() int64 { return (i.end - i.begin) / i.DType.Size() }

// Bytes is the length of the tensor in the file.
func (i Info) Bytes() int64 { return i.end - i.begin }

// headerParser remembers where it stands, so that every refusal names its tensor and field.
type headerParser struct {
	file, tensor, field string
	dec                 *strictjson.Decoder
}

func (p *headerParser) refuse(format string, args ...any) error {
	return &FormatError{File: p.file, Tensor: p.tensor, Field: p.field, Reason: fmt.Sprintf(format, args...)}
}

// wrap turns a reason of the JSON reader into a FormatError at the present place.
func (p *headerParser) wrap(err error) error {
	var format *FormatError
	if err == nil || errors.As(err, &format) {
		return err
	}
	var dup *strictjson.DuplicateKeyError
	if errors.As(err, &dup) {
		switch {
		case p.tensor == "" && p.field == "":
			p.tensor = dup.Key
		case p.tensor == "":
			p.field += "." + dup.Key
		default:
			p.field = dup.Key
		}
	}
	if p.tensor == "" && p.field == "" {
		p.field = "header"
	}
	return p.refuse("%v", err)
}

// parseHeader reads the JSON header of a file whose data section has dataLen bytes. The tensors come back sorted by
// name.
func parseHeader(file string, header []byte, dataLen int64) ([]Info, map[string]string, error) {
	p := &headerParser{file: file, field: "header"}
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, p.refuse("does not begin with '{'")
	}
	var err error
	if p.dec, err = strictjson.New(header); err != nil {
		return nil, nil, p.wrap(err)
	}
	var (
		infos []Info
		meta  map[string]string
	)
	p.field = ""
	err = p.dec.Object(func(key string) error {
		if key == metadataKey {
			p.field = metadataKey
			meta = make(map[string]string)
			err := p.dec.Object(func(key string) error {
				v, err := p.dec.String()
				if err != nil {
					p.field += "." + key
					return p.wrap(err)
				}
				meta[key] = v
				return nil
			})
			if err != nil {
				return p.wrap(err)
			}
			p.field = ""
			return nil
		}
		info, err := p.tensorInfo(key)
		if err != nil {
			return err
		}
		infos = append(infos, info)
		return nil
	})
	if err == nil {
		p.field = "header"
		err = p.dec.End()
	}
	if err != nil {
		return nil, nil, p.wrap(err)
	}
	if err := p.cover(infos, dataLen); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return infos, meta, nil
}

// tensorInfo reads one tensor's entry and checks it by itself.
func (p *headerParser) tensorInfo(name string) (Info, error) {
	info := Info{Name: name, Shape: []int64{}}
	p.tensor = name
	if name == "" || len(name) > maxName {
		p.field = "header"
		return info, p.refuse("tensor name of %d bytes, want 1 to %d", len(name), maxName)
	}
	var offsets []int64
	var seen [3]bool
	err := p.dec.Object(func(key string) error {
		p.field = key
		var err error
		switch key {
		case "dtype":
			seen[0] = true
			var s string
			if s, err = p.dec.String(); err == nil {
				info.DType = DType(s)
				if info.DType.Size() == 0 {
					return p.refuse("unknown dtype %q", shorten(s))
				}
			}
		case "shape":
			seen[1] = true
			err = p.counts(&info.Shape, MaxDims)
		case "data_offsets":
			seen[2] = true
			err = p.counts(&offsets, 2)
		default:
			return p.refuse("unknown field")
		}
		if err != nil {
			return p.wrap(err)
		}
		p.field = ""
		return nil
	})
	if err != nil {
		return info, p.wrap(err)
	}
	for i, field := range []string{"dtype", "shape", "data_offsets"} {
		if !seen[i] {
			p.field = field
			return info, p.refuse("missing")
		}
	}

	p.field = "shape"
	size, ok := byteSize(info.DType, info.Shape)
	if !ok {
		return info, p.refuse("%v of %s overflows 63 bits", info.Shape, info.DType)
	}
	p.field = "data_offsets"
	if len(offsets) != 2 {
		return info, p.refuse("%d numbers, want 2", len(offsets))
	}
	info.begin, info.end = offsets[0], offsets[1]
	if info.begin > info.end {
		return info, p.refuse("begin %d is after end %d", info.begin, info.end)
	}
	if got := info.end - info.begin; got != size {
		return info, p.refuse("[%d, %d] spans %d bytes, but shape %v of %s takes %d",
			info.begin, info.end, got, info.Shape, info.DType, size)
	}
	p.tensor, p.field = "", ""
	return info, nil
}

// counts reads an array of at most limit non-negative integers.
func (p *headerParser) counts(dst *[]int64, limit int) error {
	return p.dec.Array(func(i int) error {
		if i == limit {
			return p.refuse("more than %d numbers", limit)
		}
		n, err := p.dec.Count()
		if err != nil {
			return err
		}
		*dst = append(*dst, n)
		return nil
	})
}

// cover checks that the tensors fill the data section exactly, in whatever order, with neither hole nor overlap.
func (p *headerParser) cover(infos []Info, dataLen int64) error {
	order := slices.Clone(infos)
	slices.SortFunc(order, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end), cmp.Compare(a.Name, b.Name))
	})
	p.field = "data_offsets"
	var at int64
	last := ""
	for _, i := range order {
		p.tensor = i.Name
		switch {
		case i.end > dataLen:
			return p.refuse("[%d, %d] ends outside the data section of %d bytes; the file may be truncated",
				i.begin, i.end, dataLen)
		case i.begin < at:
			return p.refuse("[%d, %d] overlaps tensor %q, which ends at %d", i.begin, i.end, shorten(last), at)
		case i.begin > at:
			return p.refuse("[%d, %d] leaves a hole of %d bytes at %d", i.begin, i.end, i.begin-at, at)
		}
		at, last = i.end, i.Name
	}
	p.tensor = ""
	if at != dataLen {
		return p.refuse("the last tensor ends at %d, but the data section has %d bytes", at, dataLen)
	}
	return nil
}

// byteSize is the length of a tensor, and false where it does not fit an int64. Like the reference library it refuses
// an overflowing product even where a later dimension is zero.
func byteSize(t DType, shape []int64) (int64, bool) {
	size := t.Size()
	if size == 0 {
		return 0, false
	}
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 0 && n > math.MaxInt64/d {
			return 0, false
		}
		n *= d
	}
	if n > math.MaxInt64/size {
		return 0, false
	}
	return n * size, true
}
