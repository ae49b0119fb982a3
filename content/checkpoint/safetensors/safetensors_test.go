package safetensors

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// given is a tensor of values.
func given(name string, t DType, shape []int64, v []float32) Tensor {
	return Tensor{Name: name, DType: t, Shape: shape, Data: v}
}

func bitsOf(v []float32) []uint32 {
	b := make([]uint32, len(v))
	for i := range v {
		b[i] = math.Float32bits(v[i])
	}
	return b
}

func floats(bits ...uint32) []float32 {
	v := make([]float32, len(bits))
	for i := range bits {
		v[i] = math.Float32frombits(bits[i])
	}
	return v
}

// readers opens a file both ways; every test of reading runs on both.
func readers(t *testing.T, path string) map[string]*File {
	t.Helper()
	mapped, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := New(path, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(mapped.Close(), plain.Close()); err != nil {
			t.Error(err)
		}
	})
	return map[string]*File{"mapped": mapped, "reader": plain}
}

var torchNames = map[string]DType{
	"torch.bool": BOOL, "torch.uint8": U8, "torch.int8": I8, "torch.int16": I16, "torch.int32": I32, "torch.int64": I64,
	"torch.float16": F16, "torch.bfloat16": BF16, "torch.float32": F32, "torch.float64": F64,
	"torch.float8_e4m3fn": F8E4M3, "torch.float8_e5m2": F8E5M2,
}

// TestReference reads what the reference library wrote, and writes the same bytes.
func TestReference(t *testing.T) {
	type tensor struct {
		DType string
		Shape []int64
		Raw   string
		Bits  []uint32
	}
	listing := map[string]struct {
		Metadata map[string]string
		Tensors  map[string]tensor
	}{}
	data, err := os.ReadFile("../testdata/reference/reference.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &listing); err != nil {
		t.Fatal(err)
	}
	if len(listing) < 6 {
		t.Fatalf("%d reference files", len(listing))
	}
	for name, want := range listing {
		path := filepath.Join("../testdata/reference", name+".safetensors")
		for kind, f := range readers(t, path) {
			t.Run(name+"/"+kind, func(t *testing.T) {
				if got := f.Metadata(); len(got) != len(want.Metadata) {
					t.Errorf("metadata %q, want %q", got, want.Metadata)
				} else {
					for k, v := range want.Metadata {
						if got[k] != v {
							t.Errorf("metadata %q is %q, want %q", k, got[k], v)
						}
					}
				}
				infos := f.Tensors()
				if len(infos) != len(want.Tensors) {
					t.Fatalf("%d tensors, want %d", len(infos), len(want.Tensors))
				}
				if !slices.IsSortedFunc(infos, func(a, b Info) int { return strings.Compare(a.Name, b.Name) }) {
					t.Error("not sorted by name")
				}
				var rewrite []Tensor
				for _, info := range infos {
					w := want.Tensors[info.Name]
					if info.DType != torchNames[w.DType] || !slices.Equal(info.Shape, w.Shape) {
						t.Errorf("%s: %s %v, want %s %v", info.Name, info.DType, info.Shape, w.DType, w.Shape)
					}
					raw, err := f.View(info.Name)
					if err != nil || hex.EncodeToString(raw) != w.Raw {
						t.Errorf("%s: bytes %x, %v, want %s", info.Name, raw, err, w.Raw)
					}
					dst := make([]float32, info.Elements())
					err = f.ReadF32(info.Name, dst)
					if w.Bits == nil {
						if !errors.Is(err, ErrDType) {
							t.Errorf("%s: reading %s as float32: %v", info.Name, info.DType, err)
						}
						if err := f.CheckFinite(info.Name); !errors.Is(err, ErrDType) {
							t.Errorf("%s: checking %s: %v", info.Name, info.DType, err)
						}
						continue
					}
					if err != nil || !slices.Equal(bitsOf(dst), w.Bits) {
						t.Errorf("%s: %x, %v, want %x", info.Name, bitsOf(dst), err, w.Bits)
					}
					rewrite = append(rewrite, Tensor{Name: info.Name, DType: info.DType, Shape: info.Shape, Data: dst})
				}
				if len(rewrite) != len(infos) || want.Metadata["format"] != "pt" {
					return
				}
				slices.Reverse(rewrite) // the order given does not matter
				var out bytes.Buffer
				if err := Write(&out, rewrite); err != nil {
					t.Fatal(err)
				}
				file, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(out.Bytes(), file) {
					t.Errorf("wrote\n%q\nthe reference library\n%q", out.Bytes(), file)
				}
			})
		}
	}
}

func TestFinite(t *testing.T) {
	for kind, f := range readers(t, "../testdata/reference/f32.safetensors") {
		dst := make([]float32, 12)
		for _, err := range []error{f.ReadFiniteF32("model.b.weight", dst), f.CheckFinite("model.b.weight")} {
			var bad *NotFiniteError
			if !errors.Is(err, ErrNotFinite) || !errors.As(err, &bad) || bad.Tensor != "model.b.weight" || bad.Index != 8 {
				t.Errorf("%s: %v", kind, err)
			}
		}
		if err := errors.Join(f.CheckFinite("model.a.weight"), f.ReadFiniteF32("model.a.weight", dst[:5])); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	// A NaN beyond the first piece that is read.
	const n = 3*readChunk/4 + 7
	data := make([]float32, n)
	data[n-2] = float32(math.NaN())
	var out bytes.Buffer
	if err := Write(&out, []Tensor{given("w", F32, []int64{n}, data)}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, f := range readers(t, path) {
		for _, err := range []error{f.CheckFinite("w"), f.ReadFiniteF32("w", make([]float32, n))} {
			var bad *NotFiniteError
			if !errors.As(err, &bad) || bad.Index != n-2 {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var tensors []Tensor
		for i := range 1 + rng.IntN(5) {
			n := rng.IntN(3 * writeChunk)
			x := Tensor{Name: strings.Repeat("n", i+1), DType: F32, Shape: []int64{int64(n)}, Data: make([]float32, n)}
			mask := uint32(math.MaxUint32)
			if rng.IntN(2) == 0 {
				x.DType, mask = BF16, 0xffff0000
			}
			for j := range x.Data {
				x.Data[j] = math.Float32frombits(rng.Uint32() & mask)
			}
			tensors = append(tensors, x)
		}
		var out bytes.Buffer
		if err := Write(&out, tensors); err != nil {
			t.Fatal(err)
		}
		f, err := New("f", bytes.NewReader(out.Bytes()), int64(out.Len()))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tensors {
			dst := make([]float32, len(x.Data))
			if err := f.ReadF32(x.Name, dst); err != nil || !slices.Equal(bitsOf(dst), bitsOf(x.Data)) {
				t.Fatalf("%s %s of %d: %v, or not the same bits", x.Name, x.DType, len(x.Data), err)
			}
		}
	}
}

func TestRoundBF16(t *testing.T) {
	for _, c := range []struct{ in, want uint32 }{
		{0x00000000, 0x00000000},
		{0x80000000, 0x80000000},
		{0x3f800000, 0x3f800000},
		{0x3f807fff, 0x3f800000}, // below half
		{0x3f808000, 0x3f800000}, // half, to even
		{0x3f808001, 0x3f810000},
		{0x3f818000, 0x3f820000}, // half, to even
		{0xbf818000, 0xbf820000},
		{0x00000001, 0x00000000}, // denormals
		{0x00008000, 0x00000000},
		{0x00018000, 0x00020000},
		{0x007fffff, 0x00800000},
		{0x7f7f7fff, 0x7f7f0000}, // the largest that stays finite
		{0x7f7f8000, 0x7f800000},
		{0x7f800000, 0x7f800000},
		{0xff800000, 0xff800000},
		{0x7f800001, 0x7fc00000}, // NaN stays NaN
		{0xffffffff, 0xffff0000},
	} {
		if got := math.Float32bits(RoundBF16(math.Float32frombits(c.in))); got != c.want {
			t.Errorf("%08x rounds to %08x, want %08x", c.in, got, c.want)
		}
	}
	// Against the definition: no BF16 neighbour is nearer, and a tie has an even result.
	rng := rand.New(rand.NewPCG(3, 4))
	for range 100_000 {
		in := math.Float32frombits(rng.Uint32())
		if math.IsNaN(float64(in)) || math.Abs(float64(in)) > 3e38 {
			continue
		}
		got := math.Float32bits(RoundBF16(in))
		err := math.Abs(float64(in) - float64(math.Float32frombits(got)))
		for _, other := range []uint32{got - 0x10000, got + 0x10000} {
			o := math.Float32frombits(other)
			if math.IsNaN(float64(o)) || math.IsInf(float64(o), 0) || math.Signbit(float64(o)) != math.Signbit(float64(in)) {
				continue
			}
			d := math.Abs(float64(in) - float64(o))
			if d < err || d == err && got&0x10000 != 0 {
				t.Fatalf("%v rounds to %08x, but %08x is nearer or even", in, got, other)
			}
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	one := []float32{1}
	for name, c := range map[string]struct {
		tensors []Tensor
		want    error
		text    string
	}{
		"inexact":     {[]Tensor{given("w", BF16, []int64{3}, floats(0, 0x3f800000, 0x3f800001))}, ErrNotExact, `tensor "w", index 2`},
		"inexact NaN": {[]Tensor{given("w", BF16, []int64{1}, floats(0x7f800001))}, ErrNotExact, `tensor "w", index 0`},
		"twice":       {[]Tensor{given("w", F32, []int64{1}, one), given("w", F32, []int64{1}, one)}, ErrTensor, "twice"},
		"twice, two dtypes": {[]Tensor{given("w", F32, []int64{1}, one), given("v", F32, []int64{1}, one), given("w", BF16, []int64{1}, one)},
			ErrTensor, "twice"},
		"dtype":     {[]Tensor{given("w", F16, []int64{1}, one)}, ErrTensor, `dtype "F16"`},
		"shape":     {[]Tensor{given("w", F32, []int64{2}, one)}, ErrTensor, "does not fit"},
		"negative":  {[]Tensor{given("w", F32, []int64{-1}, one)}, ErrTensor, "negative"},
		"negatives": {[]Tensor{given("w", F32, []int64{-1, -1}, one)}, ErrTensor, "negative"},
		"overflow":  {[]Tensor{given("w", F32, []int64{1 << 32, 1 << 32}, nil)}, ErrTensor, "does not fit"},
		"dims":      {[]Tensor{given("w", F32, make([]int64, 17), nil)}, ErrTensor, "dimensions"},
		"quote":     {[]Tensor{given(`a"b`, F32, []int64{1}, one)}, ErrTensor, "printable"},
		"unicode":   {[]Tensor{given("é", F32, []int64{1}, one)}, ErrTensor, "printable"},
		"no name":   {[]Tensor{given("", F32, []int64{1}, one)}, ErrTensor, "0 bytes"},
		"metadata":  {[]Tensor{given("__metadata__", F32, []int64{1}, one)}, ErrTensor, "own"},
	} {
		var out bytes.Buffer
		err := Write(&out, c.tensors)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if c.want == ErrTensor && out.Len() > 0 {
			t.Errorf("%s: wrote %d bytes before it was refused", name, out.Len())
		}
	}
	full := errors.New("full")
	if err := Write(&limited{n: 100, err: full}, []Tensor{given("w", F32, []int64{1000}, make([]float32, 1000))}); !errors.Is(err, full) {
		t.Errorf("the writer's error: %v", err)
	}
}

type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, l.err
	}
	return len(p), nil
}

func TestMisuse(t *testing.T) {
	for kind, f := range readers(t, "../testdata/reference/f32.safetensors") {
		if err := f.ReadF32("nobody", nil); !errors.Is(err, ErrNoTensor) || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("%s: %v", kind, err)
		}
		if err := f.ReadF32("model.a.weight", make([]float32, 4)); !errors.Is(err, ErrTensor) {
			t.Errorf("%s: %v", kind, err)
		}
		if err := errors.Join(f.Close(), f.Close()); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if err := f.ReadF32("model.a.weight", make([]float32, 5)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: after Close: %v", kind, err)
		}
		if _, err := f.View("model.a.weight"); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: after Close: %v", kind, err)
		}
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrFormat) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open("nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestShrunk truncates a mapped file. Without the guard, touching a page that is gone ends the process.
func TestShrunk(t *testing.T) {
	const n = 100_000
	var out bytes.Buffer
	if err := Write(&out, []Tensor{given("w", F32, []int64{n}, make([]float32, n))}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, 10_000); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadF32("w", make([]float32, n)); !errors.Is(err, ErrUnreadable) {
		t.Errorf("%v", err)
	}
	if err := f.CheckFinite("w"); !errors.Is(err, ErrUnreadable) {
		t.Errorf("%v", err)
	}

	// The same through a reader, at every length.
	for cut := range 300 {
		src := bytes.NewReader(out.Bytes()[:cut])
		f, err := New("f", src, int64(out.Len()))
		if err == nil {
			err = f.ReadF32("w", make([]float32, n))
		}
		if !errors.Is(err, ErrUnreadable) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if _, err := New("f", src, int64(cut)); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}
