package cuda

import (
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
)

// The optimiser in fast mode: kernels/optimizer.cu.

// fastAdamW updates p, and in the same pass the copy of p that is multiplied by.
func (b *Backend) fastAdamW(p, m, v, g *buffer, h backend.AdamW) {
	w, mirror := b.mirrorOf(p)
	if w == nil {
		b.adamW(p, m, v, g, h)
		return
	}
	b.launch("adamw_copy", dims{ceil(p.n, 2048), 1, 1}, dims{256, 1, 1}, 0, p, m, v, g, mirror, int64(p.n), h.Clip, h.Beta1, h.One1, h.Beta2,
		h.One2, h.Step, h.Root, h.Eps, h.Decay)
	w.mirror = true
}

// squares is where the tensors of a sum of squares are, for the kernel: an optimizer asks for the same ones in every step.
type squares struct {
	at               []Ptr
	n                []int64
	tensors, lengths *buffer
}

func (b *Backend) squaresOf(x []*buffer) *squares {
	s := &squares{at: make([]Ptr, len(x)), n: make([]int64, len(x))}
	at, n := make([]uint64, len(x)), make([]uint64, len(x))
	for i, p := range x {
		if p.ptr == 0 {
			b.fail(fmt.Errorf("%w: a sum over a buffer there was no memory for", ErrOutOfMemory))
		}
		s.at[i], s.n[i] = p.ptr, int64(p.n)
		at[i], n[i] = uint64(p.ptr), uint64(p.n)
	}
	if old := b.squares; old != nil && slices.Equal(old.at, s.at) && slices.Equal(old.n, s.n) {
		return old
	}
	s.tensors, s.lengths = upload(b.device, at), upload(b.device, n)
	if b.err == nil {
		b.squares = s
	}
	return s
}

// fastSumSquares returns the sums itself, made of shares on the host. How many shares depends on nothing but lengths.
func (b *Backend) fastSumSquares(x []*buffer) []float32 {
	const most, share, blocks = 1 << 15, 1 << 15, 4096
	if len(x) > most { // what a grid can have
		return append(b.fastSumSquares(x[:most]), b.fastSumSquares(x[most:])...)
	}
	s := b.squaresOf(x)
	shares := max(1, min(ceil(int(slices.Max(s.n)), share), max(16, ceil(blocks, len(x)))))
	partial := b.scratch(f32, 2*shares*len(x))
	b.launch("square_sums", dims{shares, len(x), 1}, dims{256, 1, 1}, 0, partial, s.tensors, s.lengths)
	parts := make([]float64, shares*len(x))
	b.read(bytesOf(parts), partial)
	b.release(partial)
	sums := make([]float32, len(x))
	for i := range sums {
		sum := 0.0
		for _, p := range parts[i*shares:][:shares] {
			sum += p
		}
		sums[i] = float32(sum)
	}
	return sums
}
