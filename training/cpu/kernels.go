package cpu

import (
	"errors"
	"fmt"
	"math"
)

//go:generate go run ./internal/asmgen -out .

// ISA names an instruction set. All give the same bits.
type ISA string

// The instruction sets, fastest first: two of AMD64, that of ARM64, and plain Go.
const (
	AVX512 ISA = "avx512"
	AVX2   ISA = "avx2"
	NEON   ISA = "neon"
	Scalar ISA = "scalar"
)

// ErrISA is returned for an instruction set that this processor or build does not have.
var ErrISA = errors.New("cpu: instruction set not available")

// kernels is the table of an instruction set. Slices of one call have one length.
type kernels struct {
	rows, vectors int // largest tile: rows × 16·vectors
	gemm          func(m, v int, t *tile)
	strip         func(m int, t *tile) // a row of tiles

	// move brings row r, vector p of src to dst + r·dstRow + p·dstPanel.
	move          func(dst, src []float32, rows, n, srcRow, dstRow, dstPanel int)
	widen         func(dst []float32, src []uint16, rows, n, srcRow, dstRow, dstPanel int)
	transpose     func(dst, src []float32, n, srcRow int) // 8 rows of n values, n a multiple of 16, to n rows 16 apart
	transposeHalf func(dst []float32, src []uint16, n, srcRow int)

	dot         func(x, y []float32) float32
	dot3        func(x, y, z []float32) float32
	chain       func(x, y []float32) float32 // one accumulator
	maximum     func(x []float32) float32
	expSum      func(dst, x []float32, scale, shift float32) float32
	scale       func(dst, x []float32, a float32)
	add         func(dst, x []float32)
	sum         func(dst, x, y []float32)
	axpy        func(dst, x []float32, a float32)
	mulScale    func(dst, x, w []float32, a float32)
	axpyScale   func(dst, x, w []float32, a float32)
	normGrad    func(dst, dy, w, x []float32, inv, b float32)
	softmaxGrad func(dst, p, dy []float32, d, a float32)
	rope        func(x, y, c, s []float32)
	siluMul     func(dst, g, u []float32)
	siluMulGrad func(dg, du, dy, g, u []float32)
	adamw       func(p, m, v, g []float32, c adamw)

	// Of several rows: len(inv) of len(w) values, or len(x)/(2·len(c)) heads.
	norm      func(y, inv, x, w []float32, eps float32)
	normGrads func(dx, dy, inv, x, w []float32) // adds to dx
	ropes     func(x, c, s []float32)
	// softmax sets rows of n values, n a multiple of 16, to softmax(x·a). Of the last 16 values row r has the first
	// lanes + r·more only, at least one and at most 16; the others count as −∞. more is 0 or 1.
	softmax func(x []float32, rows, stride, n, lanes, more int, a float32)
	// softmaxGrads is softmaxGrad of rows of n values, n a multiple of 16, in place of dy, d being dot(p, dy).
	softmaxGrads func(dy, p []float32, rows, stride, n int, a float32)
	// mixRows sets rows of n values of dst to base, unless that is nil, plus the weighted sum of slots rows of y, those
	// that place names; addRows adds them without weights.
	mixRows func(dst, base, y []float32, place []int32, weight []float32, n, slots int)
	addRows func(dst, y []float32, place []int32, n, slots int)
}

// tile describes one call of a tile or strip kernel: C[i,j] = Σ_k A[i,k]·B[k,j]. B is packed in panels of 16 columns.
// Strides are in bytes. The assembly reads the fields by offset.
type tile struct {
	a      *float32 // offset 0
	aRow   int      // 8
	aCol   int      // 16
	b      *float32 // 24
	bPanel int      // 32: from a panel to the next
	k      int      // 40
	c      *float32 // 48
	cRow   int      // 56
	base   *float32 // 64: what the sum is added to, with the rows of C, which it may be; nil for nothing
	n      int      // 72: columns of a strip; a tile kernel does not look
	ahead  uintptr  // 80: memory that will be wanted; a kernel may fetch it to the cache
}

// Available lists the instruction sets of this machine, fastest first.
func Available() []ISA { return append(native(), Scalar) }

func kernelsFor(isa ISA) (kernels, error) {
	for _, have := range Available() {
		if have == isa {
			if isa == Scalar {
				return scalarKernels().complete(), nil
			}
			return nativeKernels(isa).complete(), nil
		}
	}
	return kernels{}, fmt.Errorf("%w: %q (have %v)", ErrISA, isa, Available())
}

// complete makes the kernels that an instruction set has not from those that it has.
func (k kernels) complete() kernels {
	if k.strip == nil {
		k.strip = stripOf(k.rows, k.vectors, k.gemm)
	}
	if k.norm == nil {
		k.norm = func(y, inv, x, w []float32, eps float32) {
			d := len(w)
			for r := range inv {
				row := x[r*d:][:d]
				inv[r] = 1 / sqrt(float32(k.dot(row, row)/float32(d))+eps)
				k.mulScale(y[r*d:][:d], row, w, inv[r])
			}
		}
	}
	if k.normGrads == nil {
		k.normGrads = func(dx, dy, inv, x, w []float32) {
			d := len(w)
			for r, i := range inv {
				g, row := dy[r*d:][:d], x[r*d:][:d]
				c := k.dot3(g, w, row)
				k.normGrad(dx[r*d:][:d], g, w, row, i, -(float32(float32(float32(c*i)*i)*i) / float32(d)))
			}
		}
	}
	if k.ropes == nil {
		k.ropes = func(x, c, s []float32) {
			for h := len(c); len(x) > 0; x = x[2*h:] {
				k.rope(x[:h], x[h:2*h], c, s)
			}
		}
	}
	if k.softmax == nil {
		k.softmax = func(x []float32, rows, stride, n, lanes, more int, a float32) {
			for r := range rows {
				row := x[r*stride:][:n]
				for j := n - 16 + lanes + r*more; j < n; j++ {
					row[j] = float32(math.Inf(-1))
				}
				sum := k.expSum(row, row, a, float32(k.maximum(row)*a))
				k.scale(row, row, 1/sum)
			}
		}
	}
	if k.softmaxGrads == nil {
		k.softmaxGrads = func(dy, p []float32, rows, stride, n int, a float32) {
			for r := range rows {
				row, pr := dy[r*stride:][:n], p[r*stride:][:n]
				k.softmaxGrad(row, pr, row, k.dot(pr, row), a)
			}
		}
	}
	if k.mixRows == nil {
		k.mixRows = func(dst, base, y []float32, place []int32, weight []float32, n, slots int) {
			for s, p := range place {
				row := dst[s/slots*n:][:n]
				if s%slots == 0 {
					k.scale(row, y[int(p)*n:][:n], weight[s])
				} else {
					k.axpy(row, y[int(p)*n:][:n], weight[s])
				}
				if s%slots == slots-1 && base != nil {
					k.add(row, base[s/slots*n:][:n])
				}
			}
		}
	}
	if k.addRows == nil {
		k.addRows = func(dst, y []float32, place []int32, n, slots int) {
			for s, p := range place {
				k.add(dst[s/slots*n:][:n], y[int(p)*n:][:n])
			}
		}
	}
	return k
}
