package cpu

import (
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// weight is a matrix [out, in] as it lies in checkpoints. Products pack it block by block, into the cache of the core that
// multiplies by it, so that no packed copy is kept.
type weight struct {
	data    floats   // nil if it is kept in half
	half    []uint16 // bfloat16 values
	frozen  bool
	out, in int
	mapped  *mapped // nil unless it lies in a file
}

// Prepare wraps w.
func (b *Backend) Prepare(w backend.Buffer, out, in int) backend.Weight {
	d := host(w)
	if len(d) != out*in {
		panic(fmt.Sprintf("cpu: weight of %d values is not [%d, %d]", len(d), out, in))
	}
	return &weight{data: d, out: out, in: in}
}

// Freeze keeps the values: as bfloat16 if all of them are, which changes no bit of a product.
func (b *Backend) Freeze(values []float32, out, in int, _ bool) backend.Weight {
	w := b.Prepare(floats(values), out, in).(*weight)
	w.frozen, w.half = true, narrowed(values)
	if w.half != nil {
		w.data = nil
	} else {
		w.data = append(floats(nil), values...)
	}
	return w
}

// narrowed gives values as bfloat16, or nil if one of them is none.
func narrowed(values []float32) []uint16 {
	for _, v := range values {
		if math.Float32bits(v)&0xffff != 0 {
			return nil
		}
	}
	half := make([]uint16, len(values))
	for i, v := range values {
		half[i] = uint16(math.Float32bits(v) >> 16)
	}
	return half
}

func widened(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

func (w *weight) Data() backend.Buffer {
	if w.frozen {
		return nil
	}
	return w.data
}

func (w *weight) Shape() (out, in int) { return w.out, w.in }

// Refresh has nothing to do: no copy is kept.
func (w *weight) Refresh() {}

// forward is Wᵀ as a right-hand operand: k = in, n = out.
func (w *weight) forward() right {
	w.touch()
	return right{f: w.data, half: w.half, row: w.in, turned: true, far: true}
}

// back is W as a right-hand operand: k = out, n = in.
func (w *weight) back() right {
	w.touch()
	return right{f: w.data, half: w.half, row: w.in, far: true}
}

// Linear sets y = x·Wᵀ.
func (b *Backend) Linear(y, x backend.Buffer, m backend.Weight) {
	Y, X, W := host(y), host(x), m.(*weight)
	b.grid(len(X)/W.in, W.out, func(w *work, m0, m1, n0, n1 int) {
		b.product(w, Y, W.out, view{X, W.in, 1}, W.forward(), W.in, m0, m1, n0, n1, false)
	})
}

// LinearOnto sets y = base + x·Wᵀ.
func (b *Backend) LinearOnto(y, base, x backend.Buffer, m backend.Weight) {
	Y, B, X, W := host(y), host(base), host(x), m.(*weight)
	b.grid(len(X)/W.in, W.out, func(w *work, m0, m1, n0, n1 int) {
		if W.in <= blockK {
			b.productOnto(w, Y, B, W.out, view{X, W.in, 1}, W.forward(), W.in, m0, m1, n0, n1)
			return
		}
		b.product(w, Y, W.out, view{X, W.in, 1}, W.forward(), W.in, m0, m1, n0, n1, false)
		for r := m0; r < m1; r++ {
			b.add(Y[r*W.out+n0:r*W.out+n1], B[r*W.out+n0:r*W.out+n1])
		}
	})
}

// LinearGradInput sets dx = dy·W or adds it.
func (b *Backend) LinearGradInput(dx, dy backend.Buffer, m backend.Weight, add bool) {
	DX, DY, W := host(dx), host(dy), m.(*weight)
	b.grid(len(DY)/W.out, W.in, func(w *work, m0, m1, n0, n1 int) {
		b.product(w, DX, W.in, view{DY, W.out, 1}, W.back(), W.out, m0, m1, n0, n1, add)
	})
}

// LinearGradWeight adds dyᵀ·x to dw.
func (b *Backend) LinearGradWeight(dw, dy, x backend.Buffer, rows int) {
	if rows == 0 {
		return
	}
	DW, DY, X := host(dw), host(dy), host(x)
	out, in := len(DY)/rows, len(X)/rows
	b.grid(out, in, func(w *work, m0, m1, n0, n1 int) {
		b.product(w, DW, in, view{DY, 1, out}, right{f: X, row: in}, rows, m0, m1, n0, n1, true)
	})
}
