package emu_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
)

// hopperOrders are all orders in which the emulator can do what a block does.
var hopperOrders = []emu.Config{{Major: 9}, {Major: 9, Reverse: true}, {Major: 9, Prompt: true}, {Major: 9, Reverse: true, Prompt: true}}

func (b bench) tensorMap(p cuda.Ptr, wide bool, rows, cols, ld int) cuda.TensorMap {
	b.t.Helper()
	s := cuda.TensorSpec{Base: p, Wide: wide, Rows: rows, Cols: cols, Stride: ld, BoxRows: 64, BoxCols: 64}
	if wide {
		s.BoxCols = 32
	}
	m, err := b.TensorMap(s)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// faults are those of testdata/emulator_sm90.cu: what the emulator says in one order at least, or nothing where the result is
// wrong.
var faults = []struct{ name, says string }{
	{"none", ""},
	{"no wait for a load", ""},
	{"stage released before its products", ""},
	{"no wait for products", ""},
	{"no wgmma_fence", "a product without wgmma_fence"},
	{"no async_fence", ""},
	{"no named barrier", ""},
	{"no wait for the read of a store", ""},
	{"no wait at the end", "may still read shared memory"},
	{"no commit", "ends without a commit of its store"},
	{"map not acquired", "has not acquired the tensor map"},
	{"too few bytes", ""},
	{"too many bytes", "wait at barrier (full + t % 2, "},
	{"too many arrivals", "deadlock"},
	{"an arrival lacks", "wait at barrier (empty + t % 2, "},
	{"wrong leading offset", ""},
	{"wrong stride", ""},
	{"wrong swizzle", "is not of 128-byte swizzle"},
	{"wrong named barrier", "of 128 threads are at named barrier 1"},
	{"box not aligned", "at a multiple of 1024"},
	{"a warp multiplies less", "differ in their products"},
	{"too many registers", "the warps want"},
	{"result touched", "is written while it is under way"},
	{"box touched", "is written while it is under way"},
	{"barrier overwritten", "it was overwritten"},
	{"wrong phase of what is full", ""},
	{"wrong phase of what is empty", "wait at barrier (empty + t % 2, "},
	{"operand outside", "outside of dynamic shared memory"},
}

func TestHopperFaults(t *testing.T) {
	const steps = 4
	r := newRand(8)
	x, w := newMatrix16(r, 64, 64*steps, 0), newMatrix16(r, 64*steps, 128, 0)
	want := product("nn", x, w, 0, 64)
	for fault, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			var caught []string
			for _, c := range hopperOrders {
				c.Extra = []string{"testdata/emulator_sm90.cu"}
				b := bench{emu.Test(t, c), t}
				out := b.put(make([]uint16, 128*128))
				maps := b.tensorMap(b.put(w.v), false, w.rows, w.cols, w.ld)
				err := b.try("test_product", 1, hopperThreads, 7*8192+1024, b.tensorMap(b.put(x.v), false, x.rows, x.cols, x.ld), b.put(maps),
					b.tensorMap(out, false, 128, 128, 128), int32(steps), int32(fault))
				wrong := 0
				if err == nil {
					for i, got := range get[uint16](b, out, 128*128) {
						if e := want[i/128%64][i%128]; !(math.Abs(float64(fromBF16(got))-e) <= math.Abs(e)/200+1e-4) {
							wrong++
						}
					}
				}
				if err != nil && strings.Contains(err.Error(), f.says) || wrong > 0 && f.says == "" {
					caught = append(caught, fmt.Sprintf("reverse %v, prompt %v: %d wrong, %v", c.Reverse, c.Prompt, wrong, err))
				} else if err != nil {
					t.Log(err)
				}
			}
			if (len(caught) > 0) != (fault > 0) {
				t.Errorf("caught: %q", caught)
			}
			t.Log(strings.Join(caught, "\n"))
		})
	}
}

func TestTensorMapRefusals(t *testing.T) {
	for _, s := range []cuda.TensorSpec{
		{Rows: 1, Cols: 8, Stride: 4, BoxRows: 64, BoxCols: 64}, {Rows: 1, Cols: 12, Stride: 12, BoxRows: 64, BoxCols: 64},
		{Cols: 8, Stride: 8, BoxRows: 64, BoxCols: 64}, {Rows: 2, Cols: 8, Stride: 8, BoxRows: 64, BoxCols: 32},
		{Rows: 100, Cols: 64, Stride: 64, BoxRows: 64, BoxCols: 64}, {Base: 8, Rows: 1, Cols: 8, Stride: 8, BoxRows: 64, BoxCols: 64},
	} {
		b := bench{emu.Test(t, emu.Config{Major: 9}), t}
		s.Base += b.alloc(4096)
		if _, err := b.TensorMap(s); err == nil {
			t.Errorf("%+v gives a map", s)
		}
	}
}

// The constants of kernels/gemm_bf16_sm90.cu.
const (
	hopperThreads = 384
	hopperShared  = 230400
)

func hopperTiles(m, n int) int { return (m + 127) / 128 * ((n + 255) / 256) }

func (g gemmBench) operand(m matrix16) cuda.TensorMap {
	return g.tensorMap(g.put(m.v), false, m.rows, m.cols, m.ld)
}

// device puts maps into global memory.
func (g gemmBench) device(maps []cuda.TensorMap) cuda.Ptr {
	var raw []byte
	for _, m := range maps {
		raw = append(raw, m[:]...)
	}
	return g.put(raw)
}

// TestHopperGemm checks every product, and that nothing around results is written. Blocks are fewer than tiles.
func TestHopperGemm(t *testing.T) {
	for _, c := range hopperOrders {
		if os.Getenv("BZD_EMULATE") != "all" && c.Reverse == c.Prompt {
			continue
		}
		b := start(t, c)
		r := newRand(9)
		for _, s := range []struct {
			m, n, k, pad, parts int
			add                 bool
		}{{200, 264, 136, 8, 2, false}, {8, 72, 328, 0, 3, true}, {64, 8, 16, 16, 1, true}} {
			for _, layout := range []string{"nt", "nn", "tn"} {
				x, w, rows := newMatrix16(r, s.m, s.k, s.pad), newMatrix16(r, s.k, s.n, s.pad), s.m
				switch layout {
				case "nt":
					w = newMatrix16(r, s.n, s.k, s.pad)
				case "tn":
					x, rows = newMatrix16(r, s.k, s.m, s.pad), s.k
				}
				want, ld, grid := product(layout, x, w, 0, rows), s.n+s.pad, min(2, hopperTiles(s.m, s.n))
				for _, kind := range []string{"bf16", "f32"} {
					t.Run(fmt.Sprintf("reverse %v prompt %v %s %s %v", c.Reverse, c.Prompt, layout, kind, s), func(t *testing.T) {
						g := gemmBench{bench: bench{b.Emulator, t}, r: r, twice: true}
						y, old := g.result(kind, s.m+1, ld)
						g.run("gemm_"+layout+"_"+kind+"_sm90", grid, hopperThreads, hopperShared, g.operand(x), g.operand(w),
							g.tensorMap(y, kind == "f32", s.m, s.n, ld), int32(s.m), int32(s.n), int32(s.k), gemmFlags(s.add, false))
						g.check(kind, y, old, want, ld, s.add)
					})
				}
				t.Run(fmt.Sprintf("reverse %v prompt %v %s parts %v", c.Reverse, c.Prompt, layout, s), func(t *testing.T) {
					g := gemmBench{bench: bench{b.Emulator, t}, r: r, twice: true}
					tall := (s.m + 63) / 64 * 64
					y, old := g.result("f32", s.parts*tall+1, s.n)
					g.run("gemm_"+layout+"_parts_sm90", grid, hopperThreads, hopperShared, g.operand(x), g.operand(w),
						g.tensorMap(y, true, s.parts*tall, s.n, s.n), int32(s.m), int32(s.n), int32(s.k), int32(s.parts))
					got := get[float32](g.bench, y, len(old))
					if last := len(old) - 1; got[last] != old[last] {
						t.Error("written beyond the last part")
					}
					for i := range s.m * s.n {
						sum := 0.0
						for p := range s.parts {
							sum += float64(got[p*tall*s.n+i])
						}
						if e := want[i/s.n][i%s.n]; !(math.Abs(sum-e) <= 1e-4) {
							t.Fatalf("value %d is %v, want %v", i, sum, e)
						}
					}
				})
			}
		}
	}
}

func TestHopperGemmGrouped(t *testing.T) {
	sizes := make([]int, 12)
	sizes[1], sizes[2], sizes[7], sizes[10] = 5, 200, 64, 129
	offsets := []int32{0}
	for _, s := range sizes {
		offsets = append(offsets, offsets[len(offsets)-1]+int32(s))
	}
	rows := int(offsets[len(sizes)])
	for _, c := range hopperOrders {
		if os.Getenv("BZD_EMULATE") != "all" && c.Reverse == c.Prompt {
			continue
		}
		b := start(t, c)
		r := newRand(10)
		for _, s := range []struct {
			n, k, pad int
			add       bool
		}{{264, 72, 8, false}, {40, 200, 0, true}} {
			for _, kind := range []string{"bf16", "f32"} {
				for _, layout := range []string{"nt", "nn"} {
					t.Run(fmt.Sprintf("reverse %v prompt %v %s %s %v", c.Reverse, c.Prompt, layout, kind, s), func(t *testing.T) {
						g := gemmBench{bench: bench{b.Emulator, t}, r: r, twice: true}
						x, ld := newMatrix16(r, rows, s.k, s.pad), s.n+s.pad
						var maps []cuda.TensorMap
						var want [][]float64
						for e := range sizes {
							w := newMatrix16(r, s.k, s.n, s.pad)
							if layout == "nt" {
								w = newMatrix16(r, s.n, s.k, s.pad)
							}
							maps = append(maps, g.operand(w))
							want = append(want, product(layout, x, w, int(offsets[e]), int(offsets[e+1]))...)
						}
						y, old := g.result(kind, rows+1, ld)
						g.run("gemm_"+layout+"_grouped_"+kind+"_sm90", 4, hopperThreads, hopperShared, g.operand(x), g.device(maps),
							g.tensorMap(y, kind == "f32", rows, s.n, ld), y, g.put(offsets), int32(len(sizes)), int32(s.n), int32(s.k), int32(ld),
							gemmFlags(s.add, false))
						g.check(kind, y, old, want, ld, s.add)
					})
				}
				t.Run(fmt.Sprintf("reverse %v prompt %v tn %s %v", c.Reverse, c.Prompt, kind, s), func(t *testing.T) {
					g := gemmBench{bench: bench{b.Emulator, t}, r: r, twice: true}
					dy, x, ld := newMatrix16(r, rows, s.n, s.pad), newMatrix16(r, rows, s.k, s.pad), s.k+s.pad
					list := []int32{10, 0, 2, 1}
					var maps []cuda.TensorMap
					var results []cuda.Ptr
					var olds [][]float32
					for range list {
						y, old := g.result(kind, s.n+1, ld)
						results, olds = append(results, y), append(olds, old)
						maps = append(maps, g.tensorMap(y, kind == "f32", s.n, s.k, ld))
					}
					g.run("gemm_tn_grouped_"+kind+"_sm90", 3, hopperThreads, hopperShared, g.operand(dy), g.operand(x), g.device(maps), g.put(offsets),
						g.put(list), int32(len(list)), int32(s.n), int32(s.k), gemmFlags(s.add, false))
					for i, e := range list {
						want := product("tn", dy, x, int(offsets[e]), int(offsets[e+1]))
						g.check(kind, results[i], olds[i], want, ld, s.add)
					}
				})
			}
		}
	}
}
