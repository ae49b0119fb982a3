package emu_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

// The constants of kernels/gemm_bf16.cu.
const (
	gemmTile    = 128
	gemmThreads = 128
	gemmShared  = 65536
	gemmAdd     = 1
	gemmVector  = 2
)

func toBF16(x float32) uint16 {
	b := math.Float32bits(x)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func fromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// matrix16 is a bfloat16 matrix with ld values per row, of which cols count; the others hold NaNs.
type matrix16 struct {
	rows, cols, ld int
	v              []uint16
}

func newMatrix16(r *rand.Rand, rows, cols, pad int) matrix16 {
	m := matrix16{rows, cols, cols + pad, make([]uint16, rows*(cols+pad))}
	for i := range m.v {
		m.v[i] = 0x7fc0
		if i%m.ld < cols {
			m.v[i] = toBF16(float32(r.NormFloat64()))
		}
	}
	return m
}

func (m matrix16) at(r, c int) float64 { return float64(fromBF16(m.v[r*m.ld+c])) }

// product is the matrix product of a layout over the rows from lo to hi of a.
func product(layout string, a, b matrix16, lo, hi int) [][]float64 {
	m, n, k := hi-lo, b.cols, a.cols
	switch layout {
	case "nt":
		n = b.rows
	case "tn":
		m, k = a.cols, hi-lo
	}
	y := make([][]float64, m)
	for i := range y {
		y[i] = make([]float64, n)
		for j := range y[i] {
			for x := range k {
				switch layout {
				case "nt":
					y[i][j] += a.at(lo+i, x) * b.at(j, x)
				case "nn":
					y[i][j] += a.at(lo+i, x) * b.at(x, j)
				case "tn":
					y[i][j] += a.at(lo+x, i) * b.at(lo+x, j)
				}
			}
		}
	}
	return y
}

// gemmBench launches the kernels.
type gemmBench struct {
	bench
	r     *rand.Rand
	twice bool // what is added to a bfloat16 has been rounded before
}

// result allocates a matrix of random values in the type of a kernel's suffix.
func (g gemmBench) result(kind string, rows, ld int) (cuda.Ptr, []float32) {
	old := make([]float32, rows*ld)
	bits := make([]uint16, len(old))
	for i := range old {
		bits[i] = toBF16(float32(g.r.NormFloat64()))
		old[i] = fromBF16(bits[i])
	}
	if kind == "f32" {
		return g.put(old), old
	}
	return g.put(bits), old
}

// check compares a result with want, and everything around it with what was there.
func (g gemmBench) check(kind string, p cuda.Ptr, old []float32, want [][]float64, ld int, add bool) {
	g.t.Helper()
	var y []float32
	if kind == "f32" {
		y = get[float32](g.bench, p, len(old))
	} else {
		for _, b := range get[uint16](g.bench, p, len(old)) {
			y = append(y, fromBF16(b))
		}
	}
	for i := range y {
		expect, tolerance := float64(old[i]), 0.0
		if r, c := i/ld, i%ld; r < len(want) && c < len(want[r]) {
			expect, tolerance = want[r][c], 1e-4
			if add {
				expect += float64(old[i])
			}
			if kind == "bf16" {
				tolerance += math.Abs(expect) / 200
			}
			if kind == "bf16" && add && g.twice {
				tolerance += math.Abs(want[r][c]) / 200
			}
		}
		if got := float64(y[i]); !(math.Abs(got-expect) <= tolerance) {
			g.t.Fatalf("value (%d, %d) is %v, want %v", i/ld, i%ld, got, expect)
		}
	}
}

func gemmFlags(add, vector bool) (flags int32) {
	if add {
		flags |= gemmAdd
	}
	if vector {
		flags |= gemmVector
	}
	return flags
}

func tiles(n int) int { return (n + gemmTile - 1) / gemmTile }

func TestGemm(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(3)
	for _, s := range []struct {
		m, n, k, pad int
		vector, add  bool
	}{
		{8, 8, 8, 0, true, false}, {136, 144, 72, 8, true, true}, {24, 264, 264, 0, true, false},
		{1, 1, 1, 0, false, false}, {33, 130, 37, 3, false, true}, {129, 5, 70, 1, false, false},
	} {
		for _, layout := range []string{"nt", "nn", "tn"} {
			for _, kind := range []string{"bf16", "f32"} {
				t.Run(fmt.Sprintf("%s %s %v", layout, kind, s), func(t *testing.T) {
					g := gemmBench{bench: bench{b.Emulator, t}, r: r}
					x, w := newMatrix16(r, s.m, s.k, s.pad), newMatrix16(r, s.k, s.n, s.pad)
					rows := s.m
					switch layout {
					case "nt":
						w = newMatrix16(r, s.n, s.k, s.pad)
					case "tn":
						x, rows = newMatrix16(r, s.k, s.m, s.pad), s.k
					}
					ld := s.n + s.pad
					y, old := g.result(kind, s.m+1, ld)
					g.run("gemm_"+layout+"_"+kind, tiles(s.m)*tiles(s.n), gemmThreads, gemmShared, y, g.put(x.v), g.put(w.v),
						int32(s.m), int32(s.n), int32(s.k), int32(x.ld), int32(w.ld), int32(ld), gemmFlags(s.add, s.vector))
					g.check(kind, y, old, product(layout, x, w, 0, rows), ld, s.add)
				})
			}
		}
	}
}

func TestGemmGrouped(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(4)
	sizes := make([]int, 40) // more experts than a warp has lanes
	sizes[1], sizes[2], sizes[35], sizes[38] = 5, 130, 1, 65
	offsets := []int32{0}
	for _, s := range sizes {
		offsets = append(offsets, offsets[len(offsets)-1]+int32(s))
	}
	rows := int(offsets[len(sizes)])
	for _, s := range []struct {
		n, k, pad   int
		vector, add bool
	}{{136, 40, 8, true, false}, {24, 72, 0, true, true}, {13, 35, 3, false, true}} {
		for _, kind := range []string{"bf16", "f32"} {
			for _, layout := range []string{"nt", "nn"} {
				t.Run(fmt.Sprintf("%s %s %v", layout, kind, s), func(t *testing.T) {
					g := gemmBench{bench: bench{b.Emulator, t}, r: r}
					x, ld := newMatrix16(r, rows, s.k, s.pad), s.n+s.pad
					var pointers []cuda.Ptr
					var want [][]float64
					for e := range sizes {
						w := newMatrix16(r, s.k, s.n, s.pad)
						if layout == "nt" {
							w = newMatrix16(r, s.n, s.k, s.pad)
						}
						pointers = append(pointers, g.put(w.v))
						want = append(want, product(layout, x, w, int(offsets[e]), int(offsets[e+1]))...)
					}
					ldb := s.k + s.pad
					if layout == "nn" {
						ldb = s.n + s.pad
					}
					y, old := g.result(kind, rows+1, ld)
					g.run("gemm_"+layout+"_grouped_"+kind, tiles(s.n)*(tiles(rows)+len(sizes)), gemmThreads, gemmShared, y, g.put(x.v),
						g.put(pointers), g.put(offsets), int32(len(sizes)), int32(s.n), int32(s.k), int32(x.ld), int32(ldb), int32(ld),
						gemmFlags(s.add, s.vector))
					g.check(kind, y, old, want, ld, s.add)
				})
			}
			t.Run(fmt.Sprintf("tn %s %v", kind, s), func(t *testing.T) {
				g := gemmBench{bench: bench{b.Emulator, t}, r: r}
				dy, x, ld := newMatrix16(r, rows, s.n, s.pad), newMatrix16(r, rows, s.k, s.pad), s.k+s.pad
				list := []int32{38, 0, 2}
				var pointers []cuda.Ptr
				var olds [][]float32
				for range list {
					y, old := g.result(kind, s.n+1, ld)
					pointers, olds = append(pointers, y), append(olds, old)
				}
				g.run("gemm_tn_grouped_"+kind, tiles(s.n)*tiles(s.k)*len(list), gemmThreads, gemmShared, g.put(pointers), g.put(dy.v),
					g.put(x.v), g.put(offsets), g.put(list), int32(len(list)), int32(s.n), int32(s.k), int32(dy.ld), int32(x.ld),
					int32(ld), gemmFlags(s.add, s.vector))
				for i, e := range list {
					want := product("tn", dy, x, int(offsets[e]), int(offsets[e+1]))
					g.check(kind, pointers[i], olds[i], want, ld, s.add)
				}
			})
		}
	}
}

func TestGemmSumParts(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(6)
	for _, s := range []struct {
		parts, n, gap, shift int
		add                  bool
	}{{1, 1, 0, 0, true}, {7, 3000, 8, 0, true}, {33, 1027, 5, 1, false}, {3, 1024, 0, 0, false}, {2, 1023, 1, 0, true}} {
		stride := s.n + s.gap
		x, y := floats(s.shift+s.parts*stride, r), floats(s.n+1, r)
		short := make([]uint16, len(y))
		for i, v := range y {
			short[i] = toBF16(v)
		}
		px, p32, p16 := b.put(x)+cuda.Ptr(4*s.shift), b.put(y), b.put(short)
		b.run("gemm_sum_parts_f32", (s.n+1023)/1024, 256, 0, p32, px, int32(s.parts), int64(stride), int64(s.n), gemmFlags(s.add, false))
		b.run("gemm_sum_parts_bf16", (s.n+1023)/1024, 256, 0, p16, px, int32(s.parts), int64(stride), int64(s.n), gemmFlags(s.add, false))
		got32, got16 := get[float32](b, p32, s.n+1), get[uint16](b, p16, s.n+1)
		for i := range s.n + 1 {
			want, want16 := y[i], fromBF16(short[i])
			if i < s.n {
				if !s.add {
					want, want16 = 0, 0
				}
				for p := range s.parts {
					want += x[s.shift+p*stride+i]
					want16 += x[s.shift+p*stride+i]
				}
			}
			if got32[i] != want || got16[i] != toBF16(want16) {
				t.Fatalf("%v: value %d is %v and %v, want %v and %v", s, i, got32[i], fromBF16(got16[i]), want, want16)
			}
		}
	}
}

func TestCast(t *testing.T) {
	b := start(t, emu.Config{})
	r := newRand(5)
	for _, s := range []struct{ n, shift int }{{1, 0}, {8, 0}, {3001, 0}, {77, 1}, {2048, 4}} {
		x := floats(s.n+s.shift, r)
		x[s.shift] = float32(math.Inf(-1))
		px, p16, p32 := b.put(x), b.alloc(2*(s.n+s.shift)), b.alloc(4*(s.n+s.shift))
		grid := (s.n + 2047) / 2048
		half, whole := cuda.Ptr(2*s.shift), cuda.Ptr(4*s.shift)
		b.run("cast_f32_bf16", grid, 256, 0, p16+half, px+whole, int64(s.n))
		b.run("cast_bf16_f32", grid, 256, 0, p32+whole, p16+half, int64(s.n))
		for i, got := range get[float32](b, p32+whole, s.n) {
			if want := fromBF16(toBF16(x[s.shift+i])); got != want {
				t.Fatalf("%v: value %d is %v, want %v", s, i, got, want)
			}
		}
	}
}
