package cuda

import (
	"fmt"
	"math"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
)

// The fast mode launches the kernels of kernels/norm.cu, fast.cu, moe.cu, flash.cu and gemm_bf16*.cu; their headers say with what.

// letters is the suffix of a kernel's name for these types of arguments.
func letters(all ...*buffer) string {
	s := make([]byte, len(all))
	for i, b := range all {
		s[i] = "fb"[b.kind]
	}
	return string(s)
}

// perRow is the launch shape of the norms of rows, which have a row to a warp or a block.
func perRow(rows, d int) (grid, block dims) {
	switch {
	case d <= 1024:
		return dims{ceil(rows, 8), 1, 1}, dims{32, 8, 1}
	case d <= 2048:
		return dims{rows, 1, 1}, dims{64, 1, 1}
	case d <= 4096:
		return dims{rows, 1, 1}, dims{128, 1, 1}
	}
	return dims{rows, 1, 1}, dims{256, 1, 1}
}

// as returns x in another type: itself, or a copy in scratch. back copies it to x and forgets it, drop only forgets it.
func (b *Backend) as(k kind, x *buffer) (y *buffer, back, drop func()) {
	if x.kind == k {
		return x, func() {}, func() {}
	}
	s := b.scratch(k, x.n)
	return s, func() { b.cast(x, s); b.release(s) }, func() { b.release(s) }
}

func (b *Backend) fastSum(y, p, q *buffer) {
	if p.kind == bf16 && q.kind == f32 {
		p, q = q, p
	}
	if y.kind == bf16 && q.kind != bf16 || y.kind == bf16 && p.kind != bf16 {
		s := b.scratch(f32, y.n)
		b.fastSum(s, p, q)
		b.cast(y, s)
		b.release(s)
		return
	}
	b.launch("sum_"+letters(y, p, q), dims{ceil(y.n, 2048), 1, 1}, dims{256, 1, 1}, 0, y, p, q, int64(y.n))
}

func (b *Backend) fastLinear(y, x *buffer, w *weight) {
	rows := x.n / w.in
	x, drop := b.narrow(x)
	b.product("nt", matrix{y, rows, w.out}, matrix{x, rows, w.in}, matrix{b.operand(w), w.out, w.in}, false)
	drop()
}

func (b *Backend) fastLinearGradInput(dx, dy *buffer, w *weight, add bool) {
	rows := dy.n / w.out
	dy, drop := b.narrow(dy)
	b.product("nn", matrix{dx, rows, w.in}, matrix{dy, rows, w.out}, matrix{b.operand(w), w.out, w.in}, add)
	drop()
}

func (b *Backend) fastLinearGradWeight(dw, dy, x *buffer, rows int) {
	out, in := dy.n/rows, x.n/rows
	dy, dropY := b.narrow(dy)
	x, dropX := b.narrow(x)
	b.product("tn", matrix{dw, out, in}, matrix{dy, rows, out}, matrix{x, rows, in}, true)
	dropX()
	dropY()
}

func (b *Backend) fastRMSNorm(y, inv, x, w *buffer, eps float32) {
	rows, d := inv.n, w.n
	grid, block := perRow(rows, d)
	target, back, _ := b.as(max(x.kind, y.kind), y)
	b.launch("rmsnorm_"+letters(x, target), grid, block, 0, target, inv, x, w, rows, d, eps)
	back()
}

// weightShares is how many shares of rows a weight's gradient is summed in before the shares are.
const weightShares = 64

func (b *Backend) fastRMSNormGrad(dx, dw, dy, inv, x, w *buffer) {
	rows, d := inv.n, w.n
	grid, block := perRow(rows, d)
	// fff, fbf, bbf and bbb are there
	g, drop := dy, func() {}
	if x.kind == bf16 && dy.kind == f32 {
		g, _, drop = b.as(bf16, dy)
	}
	if x.kind == f32 && dx.kind == bf16 {
		s := b.scratch(f32, dx.n)
		b.launch("rmsnorm_grad_"+letters(x, g, s), grid, block, 0, s, none, g, inv, x, w, rows, d)
		b.fastSum(dx, dx, s)
		b.release(s)
	} else {
		b.launch("rmsnorm_grad_"+letters(x, g, dx), grid, block, 0, dx, dx, g, inv, x, w, rows, d)
	}
	if dw != nil {
		parts := min(weightShares, rows)
		partial := b.scratch(f32, parts*d)
		b.launch("rmsnorm_wgrad_"+letters(x, g), dims{ceil(d, 256), parts, 1}, dims{256, 1, 1}, 0, partial, g, inv, x, rows, d)
		b.reduceRows(dw, partial, parts, d)
		b.release(partial)
	}
	drop()
}

// reduceRows adds the sum of parts rows of partial to y.
func (b *Backend) reduceRows(y, partial *buffer, parts, n int) {
	b.launch("reduce_rows", dims{ceil(n, 32), 1, 1}, dims{256, 1, 1}, 0, y, partial, parts, n, 1)
}

func (b *Backend) fastHeadNormRope(y, inv, x, w *buffer, r backend.Rope, heads, seq int, eps float32) {
	d := w.n
	rows, width := inv.n/heads, heads*d
	target, back, _ := b.as(max(x.kind, y.kind), y)
	b.launch("headnorm_rope_"+letters(x, target), dims{ceil(rows, 8), 1, 1}, dims{256, 1, 1}, 0,
		target, inv, x, w, on(r.Cos), on(r.Sin), rows, heads, seq, d, width, width, eps)
	back()
}

func (b *Backend) fastHeadNormRopeGrad(dx, dw, dy, inv, x, w *buffer, r backend.Rope, heads, seq int) {
	d := w.n
	rows, width := inv.n/heads, heads*d
	grid := ceil(rows, 8)
	var partial *buffer
	if dw != nil {
		grid = min(grid, 4*b.info.SMs)
		partial = b.scratch(f32, grid*d)
	}
	// fff, bff and bbb are there
	want := f32
	if x.kind == bf16 && dy.kind == bf16 && dx.kind == bf16 {
		want = bf16
	}
	g, _, dropG := b.as(want, dy)
	out, back, _ := b.as(want, dx)
	b.launch("headnorm_rope_grad_"+letters(x, g, out), dims{grid, 1, 1}, dims{256, 1, 1}, 0,
		out, partial, g, inv, x, w, on(r.Cos), on(r.Sin), rows, heads, seq, d, width, width)
	if dw != nil {
		b.reduceRows(dw, partial, grid, d)
		b.release(partial)
	}
	back()
	dropG()
}

func (b *Backend) fastEmbed(y *buffer, w *weight, ids []int32) {
	table := w.value
	if w.data != nil {
		table = w.data
	}
	at := upload(b.device, ids)
	target, back, _ := b.as(max(table.kind, y.kind), y)
	b.launch("embed_"+letters(table, target), dims{len(ids), 1, 1}, dims{256, 1, 1}, 0, target, table, at, len(ids), w.in)
	back()
}

// embedGrad adds the rows of each id in their order: in float32 it is what docs/spec/exact.md says.
func (b *Backend) embedGrad(dtable, dy *buffer, ids []int32) {
	d := dy.n / len(ids)
	list, first, order := byID(ids, dtable.n/d)
	at := upload(b.device, slices.Concat(list, first, order))
	b.launch("embed_grad_"+letters(dy), dims{len(list), ceil(d, 512), 1}, dims{64, 1, 1}, 0, dtable, dy,
		at.slice(0, len(list)), at.slice(len(list), len(first)), at.slice(len(list)+len(first), len(order)), d)
}

// byID lists the different ids below n, and the places of each in order: those of list[i] are order[first[i]:first[i+1]].
func byID(ids []int32, n int) (list, first, order []int32) {
	next := make([]int32, n) // how often an id comes, then where its next place goes
	for _, id := range ids {
		next[id]++
	}
	sum := int32(0)
	for id, count := range next {
		if count > 0 {
			list, first = append(list, int32(id)), append(first, sum)
			next[id], sum = sum, sum+count
		}
	}
	order = make([]int32, len(ids))
	for i, id := range ids {
		order[next[id]] = int32(i)
		next[id]++
	}
	return list, append(first, sum), order
}

// lossThreads is how many threads share a row of logits: as many as keep most of it in registers, by type.
var lossThreads = [...]int{f32: 1024, bf16: 512}

func (b *Backend) fastCrossEntropy(losses, logits, targets *buffer, rows int, scale float32) {
	b.launch("cross_entropy_"+letters(logits), dims{rows, 1, 1}, dims{lossThreads[logits.kind], 1, 1}, 0, losses, logits, targets, rows, logits.n/rows,
		scale)
}

// scaleOf is 1/√headDim as in exact mode.
func scaleOf(headDim int) float32 { return 1 / float32(math.Sqrt(float64(headDim))) }

// errHeads says which heads the fast attention cannot do.
func errHeads(d int) error {
	return fmt.Errorf("%w: heads of %d values, at most %d in fast mode: use exact mode", ErrLaunch, d, flash[len(flash)-1].width)
}
