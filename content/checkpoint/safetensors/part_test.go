package safetensors

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestParts reads every part of a tensor, mapped and not, and what lies outside.
func TestParts(t *testing.T) {
	values := make([]float32, 40)
	for i := range values {
		values[i] = float32(i)
	}
	loads := 0
	load := func() ([]float32, error) { loads++; return values, nil }
	tensors := []Tensor{{Name: "a", DType: F32, Shape: []int64{5, 8}, Load: load}, {Name: "b", DType: BF16, Shape: []int64{40}, Data: values}}
	var b, plain bytes.Buffer
	if err := Write(&b, tensors); err != nil {
		t.Fatal(err)
	}
	tensors[0].Data, tensors[0].Load = values, nil
	if err := Write(&plain, tensors); err != nil || !bytes.Equal(b.Bytes(), plain.Bytes()) || loads != 1 {
		t.Errorf("loaded %d times, %v; the same bytes: %v", loads, err, bytes.Equal(b.Bytes(), plain.Bytes()))
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	mapped, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer mapped.Close()
	read, err := New("x", bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*File{mapped, read} {
		for _, name := range []string{"a", "b"} {
			for first := 0; first <= len(values); first++ {
				for n := 0; n <= len(values)-first; n += 3 {
					dst := make([]float32, n)
					if err := f.ReadFinitePart(name, int64(first), dst); err != nil || !slices.Equal(dst, values[first:first+n]) {
						t.Fatalf("%s from %d: %v, %v", name, first, dst, err)
					}
				}
			}
			for _, bad := range []struct {
				first int64
				n     int
			}{{-1, 2}, {39, 2}, {41, 0}, {math.MaxInt64, 1}, {math.MinInt64, 1}} {
				if err := f.ReadFinitePart(name, bad.first, make([]float32, bad.n)); !errors.Is(err, ErrTensor) {
					t.Errorf("%d values from %d: %v", bad.n, bad.first, err)
				}
			}
		}
	}
	values[30] = float32(math.NaN())
	b.Reset()
	if err := Write(&b, tensors[:1]); err != nil {
		t.Fatal(err)
	}
	spoilt, err := New("y", bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	var where *NotFiniteError
	if err := spoilt.ReadFinitePart("a", 28, make([]float32, 5)); !errors.As(err, &where) || where.Index != 30 {
		t.Errorf("NaN at 30: %v", err)
	}
	if err := spoilt.ReadFinitePart("a", 0, make([]float32, 30)); err != nil {
		t.Errorf("before the NaN: %v", err)
	}

	// What Load does wrong.
	failed := errors.New("no disk")
	for name, bad := range map[string]Tensor{
		"an error":    {Load: func() ([]float32, error) { return nil, failed }},
		"too few":     {Load: func() ([]float32, error) { return make([]float32, 2), nil }},
		"both given":  {Load: load, Data: make([]float32, 3)},
		"not in BF16": {DType: BF16, Load: func() ([]float32, error) { return []float32{1, 0.1, 1}, nil }},
	} {
		bad.Name, bad.Shape = "t", []int64{3}
		if bad.DType == "" {
			bad.DType = F32
		}
		if err := Write(&bytes.Buffer{}, []Tensor{bad}); !errors.Is(err, failed) && !errors.Is(err, ErrTensor) && !errors.Is(err, ErrNotExact) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
