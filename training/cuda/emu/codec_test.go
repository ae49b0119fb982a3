package emu_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/delta"
)

// codecInput is chunks of all kinds, one after the other.
func codecInput() []float32 {
	r := rand.New(rand.NewPCG(1, 2))
	var x []float32
	add := func(f func(i int) float64) {
		for i := range delta.TopKChunk {
			x = append(x, float32(f(i)))
		}
	}
	add(func(int) float64 { return r.NormFloat64() * 1e-4 })
	add(func(int) float64 { return math.Ldexp(r.Float64()*2-1, -r.IntN(40)) })
	add(func(int) float64 { return float64(r.IntN(3)-1) * 0.01 })                // tied
	add(func(int) float64 { return -0.125 })                                     // constant
	add(func(int) float64 { return 2 })                                          // the largest, above the largest scale
	add(func(int) float64 { return math.Ldexp(r.Float64()-0.5, -127) })          // denormal
	add(func(int) float64 { return r.NormFloat64() * 1e-8 })                     // scales of a few units
	add(func(int) float64 { return 0 })                                          // nothing
	add(func(i int) float64 { return math.Copysign(0, float64(i%2)-0.5) })       // nothing, of both signs
	add(func(i int) float64 { return float64(i/4095) * 1.5 })                    // one value
	add(func(i int) float64 { return math.Ldexp(float64(r.IntN(5)), -24-i%10) }) // around half a unit
	for range 40 {
		size := -float64(r.IntN(30))
		heavy := r.Float64() * 4
		add(func(int) float64 {
			v := math.Ldexp(r.NormFloat64()*math.Exp(heavy*r.NormFloat64()), int(size))
			return max(-2, min(2, v))
		})
	}
	for range 777 {
		x = append(x, float32(r.NormFloat64()*0.01))
	}
	return x
}

// TestCodec: kernel and definition agree to the bit, on the code and on what is left.
func TestCodec(t *testing.T) {
	x := codecInput()
	orders(t, func(t *testing.T, b bench) {
		for _, k := range []int{1, 41, 64, 1000, 4096} {
			for _, offset := range []int{0, 1} { // the second is not aligned
				checkCodec(t, b, x, k, offset)
			}
		}
		checkCodec(t, b, x[:1], 41, 0)
		checkCodec(t, b, x[:5], 4096, 0)
	})
}

func checkCodec(t *testing.T, b bench, x []float32, k, offset int) {
	t.Helper()
	chunks := (len(x) + delta.TopKChunk - 1) / delta.TopKChunk
	stride := (k + 3) / 4
	px := b.put(slices.Concat(make([]float32, offset), x))
	indices, codes, scales := b.alloc(2*k*chunks), b.alloc(stride*chunks), b.alloc(2*chunks)
	flags := b.put([]int32{0})
	b.run("topk_code", chunks, 256, 0, indices, codes, scales, flags, px+cuda.Ptr(4*offset), int64(len(x)), int32(k))
	gotIndices, gotCodes, gotScales := get[uint16](b, indices, k*chunks), get[byte](b, codes, stride*chunks), get[uint16](b, scales, chunks)
	rest := get[float32](b, px, len(x)+offset)[offset:]
	if f := get[int32](b, flags, 1)[0]; f != 0 {
		t.Fatalf("flags %d", f)
	}
	for c := range chunks {
		want := slices.Clone(x[c*delta.TopKChunk : min(len(x), (c+1)*delta.TopKChunk)])
		code, err := delta.TopK(want, k)
		if err != nil {
			t.Fatal(err)
		}
		n := len(code.Indices)
		if i, c := gotIndices[c*k:(c+1)*k], gotCodes[c*stride:(c+1)*stride]; !slices.Equal(i[:n], code.Indices) || !zero(i[n:]) ||
			!slices.Equal(c[:len(code.Codes)], code.Codes) || !zero(c[len(code.Codes):]) {
			t.Fatalf("top %d, chunk %d: indices %v codes %x, want %v %x", k, c, i, c, code.Indices, code.Codes)
		}
		if gotScales[c] != code.Scale {
			t.Fatalf("top %d, chunk %d: scale %#x, want %#x", k, c, gotScales[c], code.Scale)
		}
		for i, w := range want {
			if got := rest[c*delta.TopKChunk+i]; math.Float32bits(got) != math.Float32bits(w) {
				t.Fatalf("top %d, chunk %d: residual %d is %v, want %v", k, c, i, got, w)
			}
		}
	}
	for _, p := range []cuda.Ptr{px, indices, codes, scales, flags} {
		if err := b.Free(p); err != nil {
			t.Fatal(err)
		}
	}
}

func zero[T comparable](x []T) bool {
	var none T
	return !slices.ContainsFunc(x, func(v T) bool { return v != none })
}

// TestCodecRefuses: a bad value stops its own chunk only.
func TestCodecRefuses(t *testing.T) {
	b := start(t, emu.Config{})
	for value, want := range map[float32]int32{float32(math.NaN()): 1, float32(math.Inf(-1)): 1, 2.0000002: 2, 2: 0} {
		x := floats(3*delta.TopKChunk, newRand(8))
		for i := range x {
			x[i] *= 0.1
		}
		x[2*delta.TopKChunk-1] = value
		px := b.put(x)
		indices, codes, scales, flags := b.alloc(2*3*41), b.alloc(3*11), b.alloc(6), b.put([]int32{0})
		b.run("topk_code", 3, 256, 0, indices, codes, scales, flags, px, int64(len(x)), int32(41))
		if got := get[int32](b, flags, 1)[0]; got != want {
			t.Errorf("%v: flags %d, want %d", value, got, want)
		}
		rest := get[uint32](b, px, len(x))
		for c := range 3 {
			sent := 0
			for i := c * delta.TopKChunk; i < (c+1)*delta.TopKChunk; i++ {
				sent += b2i(rest[i] != math.Float32bits(x[i]))
			}
			if wantSent := 41 * b2i(c != 1 || want == 0); sent != wantSent {
				t.Errorf("%v: %d values of chunk %d changed, want %d", value, sent, c, wantSent)
			}
		}
	}
}
