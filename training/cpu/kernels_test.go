package cpu

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// kernelCase calls one kernel: v are five slices of one length that it may change, s scalars. It returns a reduction's
// result, or zero.
type kernelCase struct {
	name string
	call func(k kernels, v [5][]float32, s [2]float32) float32
}

func kernelCases() []kernelCase {
	return []kernelCase{
		{"dot", func(k kernels, v [5][]float32, _ [2]float32) float32 { return k.dot(v[0], v[1]) }},
		{"dot3", func(k kernels, v [5][]float32, _ [2]float32) float32 { return k.dot3(v[0], v[1], v[2]) }},
		{"chain", func(k kernels, v [5][]float32, _ [2]float32) float32 { return k.chain(v[0], v[1]) }},
		{"maximum", func(k kernels, v [5][]float32, _ [2]float32) float32 { return k.maximum(v[0]) }},
		{"expSum", func(k kernels, v [5][]float32, s [2]float32) float32 { return k.expSum(v[0], v[1], s[0], s[1]) }},
		{"expSum in place", func(k kernels, v [5][]float32, s [2]float32) float32 { return k.expSum(v[0], v[0], s[0], s[1]) }},
		{"norm", func(k kernels, v [5][]float32, s [2]float32) float32 {
			rows, d := rowsOf(len(v[0]))
			k.norm(v[0], v[1][:rows], v[2], v[3][:d], s[0])
			return 0
		}},
		{"normGrads", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			rows, d := rowsOf(len(v[0]))
			k.normGrads(v[0], v[1], v[2][:rows], v[3], v[4][:d])
			return 0
		}},
		{"ropes", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			if _, h := rowsOf(len(v[0]) / 2); h > 0 {
				k.ropes(v[0][:len(v[0])/(2*h)*2*h], v[1][:h], v[2][:h])
			}
			return 0
		}},
		{"softmax", func(k kernels, v [5][]float32, s [2]float32) float32 {
			if n := len(v[0]) / 3 &^ 15; n > 0 {
				k.softmax(v[0], min(16, len(v[0])/n), n, n, 1, 1, s[0])
			}
			return 0
		}},
		{"softmax of a column", func(k kernels, v [5][]float32, s [2]float32) float32 {
			if n := 16; len(v[0]) >= n {
				k.softmax(v[0], len(v[0])/n, n, n, 1+len(v[0])%n, 0, s[0])
			}
			return 0
		}},
		{"softmaxGrads", func(k kernels, v [5][]float32, s [2]float32) float32 {
			if n := len(v[0]) / 3 &^ 15; n > 0 {
				k.softmaxGrads(v[0], v[1], len(v[0])/n, n, n, s[0])
			}
			return 0
		}},
		{"mixRows", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			if rows, d := rowsOf(len(v[0])); d > 3 {
				k.mixRows(v[0], v[1], v[2], places(rows), v[3][:2*rows], d, 2)
				k.mixRows(v[4], nil, v[2], places(rows), v[3][:2*rows], d, 2)
			}
			return 0
		}},
		{"addRows", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			if rows, d := rowsOf(len(v[0])); d > 3 {
				k.addRows(v[0], v[1], places(rows), d, 2)
			}
			return 0
		}},
		{"scale", func(k kernels, v [5][]float32, s [2]float32) float32 { k.scale(v[0], v[1], s[0]); return 0 }},
		{"add", func(k kernels, v [5][]float32, _ [2]float32) float32 { k.add(v[0], v[1]); return 0 }},
		{"sum", func(k kernels, v [5][]float32, _ [2]float32) float32 { k.sum(v[0], v[1], v[2]); return 0 }},
		{"axpy", func(k kernels, v [5][]float32, s [2]float32) float32 { k.axpy(v[0], v[1], s[0]); return 0 }},
		{"mulScale", func(k kernels, v [5][]float32, s [2]float32) float32 { k.mulScale(v[0], v[1], v[2], s[0]); return 0 }},
		{"axpyScale", func(k kernels, v [5][]float32, s [2]float32) float32 { k.axpyScale(v[0], v[1], v[2], s[0]); return 0 }},
		{"normGrad", func(k kernels, v [5][]float32, s [2]float32) float32 {
			k.normGrad(v[0], v[1], v[2], v[3], s[0], s[1])
			return 0
		}},
		{"softmaxGrad", func(k kernels, v [5][]float32, s [2]float32) float32 {
			k.softmaxGrad(v[0], v[1], v[2], s[0], s[1])
			return 0
		}},
		{"softmaxGrad in place", func(k kernels, v [5][]float32, s [2]float32) float32 {
			k.softmaxGrad(v[0], v[1], v[0], s[0], s[1])
			return 0
		}},
		{"rope", func(k kernels, v [5][]float32, _ [2]float32) float32 { k.rope(v[0], v[1], v[2], v[3]); return 0 }},
		{"siluMul", func(k kernels, v [5][]float32, _ [2]float32) float32 { k.siluMul(v[0], v[1], v[2]); return 0 }},
		{"siluMulGrad", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			k.siluMulGrad(v[0], v[1], v[2], v[3], v[4])
			return 0
		}},
		{"siluMulGrad in place", func(k kernels, v [5][]float32, _ [2]float32) float32 {
			k.siluMulGrad(v[0], v[1], v[0], v[3], v[4])
			return 0
		}},
		{"adamw", func(k kernels, v [5][]float32, s [2]float32) float32 {
			k.adamw(v[0], v[1], v[2], v[3], adamw{Clip: s[0], Beta1: 0.9, One1: 0.1, Beta2: 0.95, One2: 0.05, Step: 0.01, Root: 1.5, Eps: 1e-8, Decay: s[1]})
			return 0
		}},
	}
}

// places names two of so many rows for each of as many.
func places(rows int) []int32 {
	p := make([]int32, 2*rows)
	for i := range p {
		p[i] = int32((i*7 + 3) % rows)
	}
	return p
}

// rowsOf cuts n values into rows of d.
func rowsOf(n int) (rows, d int) {
	d = (n + 2) / 3
	if n%2 == 1 {
		d = n
	}
	return n / max(d, 1), d
}

// draws are the ways to fill slices: ordinary values, every finite float32, the special values, and a few of those among
// ordinary ones.
var draws = map[string]func(r *rand.Rand) float32{
	"ordinary": func(r *rand.Rand) float32 { return float32(r.NormFloat64()) },
	"large":    func(r *rand.Rand) float32 { return float32(r.NormFloat64() * 100) },
	"finite":   finite,
	"special":  func(r *rand.Rand) float32 { return specials[r.IntN(len(specials))] },
	"mixed": func(r *rand.Rand) float32 {
		if r.IntN(40) == 0 {
			return specials[r.IntN(len(specials))]
		}
		return float32(r.NormFloat64())
	},
}

// TestKernels compares every vector kernel with the plain Go one, bit by bit, beyond the slices too.
func TestKernels(t *testing.T) {
	lengths := []int{1000, 1008}
	for n := range 50 {
		lengths = append(lengths, n)
	}
	reference := scalarKernels().complete()
	for _, isa := range native() {
		k := nativeKernels(isa).complete()
		for _, c := range kernelCases() {
			for draw, value := range draws {
				t.Run(fmt.Sprintf("%s/%s/%s", isa, c.name, draw), func(t *testing.T) {
					r := rand.New(rand.NewPCG(1, 1))
					for _, n := range lengths {
						compareKernel(t, reference, k, c, n, func() float32 { return value(r) })
					}
				})
			}
		}
	}
}

func compareKernel(t *testing.T, reference, k kernels, c kernelCase, n int, value func() float32) {
	t.Helper()
	const guard = 20
	var whole, want, got [5][]float32
	for i := range whole {
		whole[i] = make([]float32, n+2*guard)
		for j := range whole[i] {
			whole[i][j] = value()
		}
	}
	s := [2]float32{value(), value()}
	run := func(k kernels, all *[5][]float32) float32 {
		var v [5][]float32
		for i := range whole {
			all[i] = append([]float32(nil), whole[i]...)
			v[i] = all[i][guard : guard+n : guard+n]
		}
		return c.call(k, v, s)
	}
	if w, g := run(reference, &want), run(k, &got); !same(w, g) {
		t.Fatalf("%d values: result %v, plain Go %v", n, g, w)
	}
	for i := range want {
		for j := range want[i] {
			if !same(want[i][j], got[i][j]) {
				t.Fatalf("%d values: slice %d value %d is %v, plain Go %v", n, i, j-guard, got[i][j], want[i][j])
			}
		}
	}
}

// TestPacking compares the kernels that bring operands into order with plain Go, beyond what they write too.
func TestPacking(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	src := fill(9000, func() float32 { return math.Float32frombits(r.Uint32()) })
	half := make([]uint16, len(src))
	for i := range half {
		half[i] = uint16(r.Uint32())
	}
	reference := scalarKernels()
	for _, isa := range native() {
		native := nativeKernels(isa)
		for _, n := range []int{1, 7, 15, 16, 17, 32, 48, 255, 256} {
			for _, rows := range []int{1, 2, 16} {
				const stride, row = 300, 20 // of src, and of a row of dst
				panel := rows * row
				both := func(name string, f func(k kernels, dst []float32)) {
					t.Helper()
					want, got := make([]float32, (n+15)/16*max(panel, 256)+8), make([]float32, (n+15)/16*max(panel, 256)+8)
					f(reference, want)
					f(native, got)
					compare(t, fmt.Sprintf("%s %s, %d rows of %d", isa, name, rows, n), got, want)
				}
				both("move", func(k kernels, dst []float32) { k.move(dst, src, rows, n, stride, row, panel) })
				both("widen", func(k kernels, dst []float32) { k.widen(dst, half, rows, n, stride, row, panel) })
				if n%16 == 0 {
					both("transpose", func(k kernels, dst []float32) { k.transpose(dst, src, n, stride) })
					both("transposeHalf", func(k kernels, dst []float32) { k.transposeHalf(dst, half, n, stride) })
				}
			}
		}
	}
}

func TestISA(t *testing.T) {
	have := Available()
	if len(have) == 0 || have[len(have)-1] != Scalar {
		t.Errorf("Available is %v, must end with %s", have, Scalar)
	}
	if _, err := New(Options{ISA: "neon9"}); !errors.Is(err, ErrISA) {
		t.Errorf("unknown instruction set: %v", err)
	}
	b, err := New(Options{})
	if err != nil || b.isa != have[0] || b.threads < 1 {
		t.Errorf("defaults: %v, %v", b, err)
	}
}
