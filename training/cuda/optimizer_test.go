package cuda_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

// steps are ways in which the data of a weight [4, 8] change, and how often they are copied for it then.
var steps = []struct {
	name  string
	casts int
	do    func(b *cuda.Backend, data, other backend.Buffer)
}{
	{"all", 0, func(b *cuda.Backend, data, _ backend.Buffer) { adamW(b, data) }},
	{"a row", 0, func(b *cuda.Backend, data, _ backend.Buffer) { adamW(b, data.Slice(8, 8)) }},
	{"an odd part", 0, func(b *cuda.Backend, data, _ backend.Buffer) { adamW(b, data.Slice(3, 7)) }},
	{"nothing", 0, func(*cuda.Backend, backend.Buffer, backend.Buffer) {}},
	{"a row, then written", 1, func(b *cuda.Backend, data, _ backend.Buffer) {
		adamW(b, data.Slice(0, 8))
		b.Write(data.Slice(16, 2), []float32{5, 6})
	}},
	{"copied, then a row", 1, func(b *cuda.Backend, data, other backend.Buffer) {
		b.Copy(data, other)
		adamW(b, data.Slice(24, 8))
	}},
	{"zeroed", 1, func(b *cuda.Backend, data, _ backend.Buffer) { b.Zero(data.Slice(1, 1)) }},
	{"a sum", 1, func(b *cuda.Backend, data, other backend.Buffer) { b.Add(data, other) }},
}

func adamW(b *cuda.Backend, p backend.Buffer) {
	n := p.Len()
	g := b.Alloc(n)
	b.Write(g, slices.Repeat([]float32{0.5}, n))
	b.AdamW(p, b.Alloc(n), b.Alloc(n), g, backend.AdamW{Clip: 1, Beta1: 0.9, One1: 0.1, Beta2: 0.9, One2: 0.1, Step: 0.3, Root: 1, Eps: 1e-8})
}

// TestCopies: a weight multiplies by its data as they are after Refresh, whoever changed them, and what the optimiser changed
// needs no other pass.
func TestCopies(t *testing.T) {
	casts := 0
	fake := cudatest.New(cudatest.Options{OnLaunch: func(kernel string, _ []any, _ func(cuda.Ptr) []byte) {
		if strings.HasPrefix(kernel, "cast_f32") {
			casts++
		}
	}})
	for name, d := range map[string]cuda.Driver{"fake": fake, "emulated": emu.Test(t, emu.Config{})} {
		b, err := cuda.New(d, cuda.Options{Mode: cuda.Fast})
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(3, 5))
		random := func(n int) backend.Buffer {
			v := make([]float32, n)
			for i := range v {
				v[i] = float32(r.NormFloat64())
			}
			x := b.Alloc(n)
			b.Write(x, v)
			return x
		}
		data, other, x := random(32), random(32), b.AllocActivation(16)
		b.Copy(x, random(16))
		w := b.Prepare(data, 4, 8)
		twin := b.Prepare(data, 4, 8)
		result := func(w backend.Weight) []float32 {
			y := b.Alloc(8)
			b.Linear(y, x, w)
			v := make([]float32, 8)
			b.Read(v, y)
			return v
		}
		result(w)
		for i := range 40 {
			s := steps[r.IntN(len(steps))]
			s.do(b, data, other)
			w.Refresh()
			casts = 0
			got := result(w)
			if name == "fake" {
				if casts != s.casts {
					t.Errorf("%s: copied %d times, want %d", s.name, casts, s.casts)
				}
				continue
			}
			if twin.Refresh(); i%5 == 0 {
				if again := result(twin); !slices.Equal(got, again) {
					t.Errorf("%s: two weights of the same data give %v and %v", s.name, got, again)
				}
			}
			now := b.Alloc(32) // a weight of the data themselves would make w copy them again
			b.Copy(now, data)
			if want := result(b.Prepare(now, 4, 8)); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", s.name, got, want)
			}
		}
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}
