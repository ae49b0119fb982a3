package cpu

import (
	"errors"
	"fmt"
)

//go:generate go run ./internal/asmgen -out .

// ISA names an instruction set. All give the same bits.
type ISA string

// The instruction sets, fastest first.
const (
	AVX512 ISA = "avx512"
	AVX2   ISA = "avx2"
	Scalar ISA = "scalar"
)

// ErrISA is returned for an instruction set that this processor or build does not have.
var ErrISA = errors.New("cpu: instruction set not available")

// kernels is the table of an instruction set. Slices of one call have one length.
type kernels struct {
	rows, vectors int // largest tile: rows × 16·vectors
	gemm          func(m, v int, t *tile)
	strip         func(m int, t *tile) // a row of tiles

	move          func(dst, src []float32, rows, n, srcRow, dstRow, dstPanel int) // row r, vector p of src to dst + r·dstRow + p·dstPanel
	widen         func(dst []float32, src []uint16, rows, n, srcRow, dstRow, dstPanel int)
	transpose     func(dst, src []float32, n, srcRow int)          // 8 rows of n values, n a multiple of 8, to n rows 16 apart
	transposeHalf func(dst []float32, src []uint16, n, srcRow int) // n a multiple of 16

	dot         func(x, y []float32) float32
	dot3        func(x, y, z []float32) float32
	maximum     func(x []float32) float32
	expSum      func(dst, x []float32, scale, shift float32) float32
	scale       func(dst, x []float32, a float32)
	add         func(dst, x []float32)
	axpy        func(dst, x []float32, a float32)
	mulScale    func(dst, x, w []float32, a float32)
	axpyScale   func(dst, x, w []float32, a float32)
	normGrad    func(dst, dy, w, x []float32, inv, b float32)
	softmaxGrad func(dst, p, dy []float32, d, a float32)
	rope        func(x, y, c, s []float32)
	siluMul     func(dst, g, u []float32)
	siluMulGrad func(dg, du, dy, g, u []float32)
	adamw       func(p, m, v, g []float32, c adamw)
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
	add    int      // 64: not zero adds the sum to C
	n      int      // 72: columns of a strip; a tile kernel does not look
}

// Available lists the instruction sets of this machine, fastest first.
func Available() []ISA { return append(native(), Scalar) }

func kernelsFor(isa ISA) (kernels, error) {
	for _, have := range Available() {
		if have == isa {
			if isa == Scalar {
				return scalarKernels(), nil
			}
			k := nativeKernels(isa)
			if k.strip == nil {
				k.strip = stripOf(k.rows, k.vectors, k.gemm)
			}
			return k, nil
		}
	}
	return kernels{}, fmt.Errorf("%w: %q (have %v)", ErrISA, isa, Available())
}
