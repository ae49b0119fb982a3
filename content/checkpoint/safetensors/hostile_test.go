package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// hostile is every file of testdata/hostile with the tensor and field that its refusal must name.
var hostile = map[string]struct{ tensor, field, reason string }{
	"empty":                 {"", "header length", "0 bytes, want at least 8"},
	"short":                 {"", "header length", "7 bytes, want at least 8"},
	"no-header":             {"", "header", "begin with '{'"},
	"length-huge":           {"", "header length", "18446744073709551615"},
	"length-over-cap":       {"", "header length", "100000001"},
	"length-past-end":       {"", "header length", "3 bytes"},
	"length-negative":       {"", "header length", "9223372036854775808"},
	"truncated":             {"a", "data_offsets", "may be truncated"},
	"trailing":              {"", "data_offsets", "ends at 4, but the data section has 5 bytes"},
	"trailing-json":         {"", "header", "more data"},
	"overlap":               {"b", "data_offsets", `overlaps tensor "a"`},
	"same-range":            {"b", "data_offsets", `overlaps tensor "a"`},
	"hole":                  {"b", "data_offsets", "hole of 4 bytes at 4"},
	"hole-at-start":         {"a", "data_offsets", "hole of 4 bytes at 0"},
	"offsets-reversed":      {"a", "data_offsets", "begin 4 is after end 0"},
	"offsets-negative":      {"a", "data_offsets", "negative"},
	"offsets-one":           {"a", "data_offsets", "1 numbers, want 2"},
	"offsets-three":         {"a", "data_offsets", "more than 2"},
	"offsets-outside":       {"a", "data_offsets", "outside"},
	"offsets-above-63-bits": {"a", "data_offsets", "larger than 2^63-1"},
	"size-mismatch":         {"a", "data_offsets", "spans 8 bytes, but shape [1] of F32 takes 4"},
	"shape-negative":        {"a", "shape", "negative"},
	"shape-fraction":        {"a", "shape", "integer"},
	"shape-overflow":        {"a", "shape", "overflows"},
	"shape-overflow-zero":   {"a", "shape", "overflows"},
	"shape-overflow-bytes":  {"a", "shape", "overflows"},
	"shape-long":            {"a", "shape", "more than 16"},
	"shape-null":            {"a", "shape", "want an array, got null"},
	"dtype-unknown":         {"a", "dtype", `unknown dtype "F31"`},
	"dtype-number":          {"a", "dtype", "want a string"},
	"dtype-case":            {"a", "dtype", `unknown dtype "f32"`},
	"field-missing":         {"a", "data_offsets", "missing"},
	"field-unknown":         {"a", "x", "unknown field"},
	"duplicate-tensor":      {"a", "", "duplicate key"},
	"duplicate-escaped":     {"a", "", "duplicate key"},
	"duplicate-field":       {"a", "dtype", "duplicate key"},
	"duplicate-metadata":    {"", "__metadata__.k", "duplicate key"},
	"metadata-number":       {"", "__metadata__.k", "want a string"},
	"metadata-array":        {"", "__metadata__", "want an object"},
	"name-empty":            {"", "header", "name of 0 bytes"},
	"name-long":             {strings.Repeat("a", 1025), "header", "name of 1025 bytes"},
	"not-an-object":         {"", "header", "begin with '{'"},
	"leading-space":         {"", "header", "begin with '{'"},
	"unfinished":            {"", "header", "ends early"},
	"comma":                 {"", "header", "not valid JSON"},
	"nested":                {"a", "", "want an object, got an array"},
	"nested-field":          {"a", "shape", "got an array"},
	"utf8":                  {"", "header", "UTF-8"},
	"surrogate":             {"", "header", "surrogate"},
}

func TestHostile(t *testing.T) {
	files, err := filepath.Glob("../testdata/hostile/*.safetensors")
	if err != nil || len(files) != len(hostile) {
		t.Fatalf("%d files, want %d, %v", len(files), len(hostile), err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".safetensors")
		want, ok := hostile[name]
		if !ok {
			t.Errorf("%s: no expectation", name)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, mapped := Open(path)
		_, plain := New(path, bytes.NewReader(data), int64(len(data)))
		for _, err := range []error{mapped, plain} {
			var e *FormatError
			if !errors.As(err, &e) || !errors.Is(err, ErrFormat) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if e.File != path || e.Tensor != want.tensor || e.Field != want.field || !strings.Contains(e.Reason, want.reason) {
				t.Errorf("%s: got %q, %q, %q; want %q, %q, %q", name, e.Tensor, e.Field, e.Reason, want.tensor, want.field, want.reason)
			}
			msg := err.Error()
			if !strings.Contains(msg, path) || !strings.Contains(msg, want.field) || len(msg) > 1000 {
				t.Errorf("%s: message %q", name, msg)
			}
		}
	}
}

// TestHeaderCap: a large file does not make a large header acceptable.
func TestHeaderCap(t *testing.T) {
	prefix := binary.LittleEndian.AppendUint64(nil, MaxHeader+1)
	_, err := New("f", bytes.NewReader(prefix), 1<<40)
	var e *FormatError
	if !errors.As(err, &e) || e.Field != "header length" {
		t.Errorf("%v", err)
	}
}

// TestAllocation: a small file never makes the reader allocate what its numbers claim.
func TestAllocation(t *testing.T) {
	for name := range hostile {
		data, err := os.ReadFile(filepath.Join("../testdata/hostile", name+".safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = New(name, bytes.NewReader(data), int64(len(data)))
		runtime.ReadMemStats(&after)
		if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(64*len(data)+1<<16); got > limit {
			t.Errorf("%s: a file of %d bytes allocated %d", name, len(data), got)
		}
	}
}

// FuzzOpen: no input panics; what opens covers its file exactly, is JSON to encoding/json too, and survives a rewrite.
func FuzzOpen(f *testing.F) {
	for _, dir := range []string{"hostile", "reference"} {
		files, err := filepath.Glob(filepath.Join("../testdata", dir, "*.safetensors"))
		if err != nil || len(files) == 0 {
			f.Fatal(err)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := New("f", bytes.NewReader(data), int64(len(data)))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not a format error: %v", err)
			}
			return
		}
		if !json.Valid(data[8:file.data]) {
			t.Fatalf("opened a header that is not JSON: %q", data[8:file.data])
		}
		total := file.data
		var rewrite []Tensor
		writable := true
		for _, info := range file.Tensors() {
			raw, err := file.View(info.Name)
			if err != nil || int64(len(raw)) != info.Bytes() {
				t.Fatalf("%q: %d bytes, %v", info.Name, len(raw), err)
			}
			total += info.Bytes()
			if info.DType != F32 && info.DType != BF16 {
				writable = false
				continue
			}
			x := Tensor{Name: info.Name, DType: info.DType, Shape: info.Shape, Data: make([]float32, info.Elements())}
			if err := file.ReadF32(info.Name, x.Data); err != nil {
				t.Fatal(err)
			}
			if (file.CheckFinite(info.Name) == nil) != (FirstNotFinite(x.Data) < 0) {
				t.Fatalf("%q: finite or not?", info.Name)
			}
			writable = writable && x.Check() == nil
			rewrite = append(rewrite, x)
		}
		if total != int64(len(data)) {
			t.Fatalf("tensors and header cover %d of %d bytes", total, len(data))
		}
		if !writable {
			return
		}
		var out bytes.Buffer
		if err := Write(&out, rewrite); err != nil {
			t.Fatal(err)
		}
		again, err := New("again", bytes.NewReader(out.Bytes()), int64(out.Len()))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range rewrite {
			dst := make([]float32, len(x.Data))
			if err := again.ReadF32(x.Name, dst); err != nil || !slices.Equal(bitsOf(dst), bitsOf(x.Data)) {
				t.Fatalf("%q: %v, or not the same bits", x.Name, err)
			}
		}
	})
}
