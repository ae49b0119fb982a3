package cuda

import "github.com/blockzero-net/bzd/training/backend"

// The kernels are in kernels/exact.cu, with their arguments; what serves both modes is in kernels/fast.cu
// and optimizer.cu.

// rowsGrid is for kernels with 16 threads a row, elementsGrid for those with four elements a thread, columnsGrid for those
// with a block for 512 values of a row.
func rowsGrid(rows int) dims       { return dims{ceil(rows, 8), 1, 1} }
func elementsGrid(n int) dims      { return dims{ceil(n, 1024), 1, 1} }
func columnsGrid(rows, d int) dims { return dims{rows, ceil(d, 512), 1} }

var (
	rowsBlock     = dims{128, 1, 1}
	elementsBlock = dims{256, 1, 1}
)

func (b *Backend) exactSum(dst, x, y *buffer) {
	b.launch("sum_fff", dims{ceil(dst.n, 2048), 1, 1}, elementsBlock, 0, dst, x, y, int64(dst.n))
}

func (b *Backend) exactColumns(dst, x *buffer, cols []int) {
	if dst.n == 0 {
		return
	}
	list := make([]int32, len(cols))
	for i, c := range cols {
		list[i] = int32(c)
	}
	rows := dst.n / len(cols)
	mustBelow("column", list, x.n/rows)
	b.launch("exact_columns", elementsGrid(dst.n), elementsBlock, 0, dst, x, upload(b.device, list), rows, x.n/rows, len(cols))
}

func (b *Backend) exactRMSNorm(y, inv, x, w *buffer, eps float32) {
	b.launch("exact_rms_norm", rowsGrid(inv.n), rowsBlock, 0, y, inv, x, w, inv.n, w.n, eps)
}

func (b *Backend) exactRMSNormGrad(dx, dw, dy, inv, x, w *buffer) {
	b.launch("exact_rms_norm_grad", rowsGrid(inv.n), rowsBlock, 0, dx, dy, inv, x, w, inv.n, w.n)
	b.exactNormWeightGrad(dw, dy, inv, x)
}

func (b *Backend) exactNormWeightGrad(dw, dy, inv, x *buffer) {
	if dw != nil {
		b.launch("exact_norm_weight_grad", dims{ceil(dw.n, 32), 1, 1}, dims{256, 1, 1}, 0, dw, dy, inv, x, inv.n, dw.n)
	}
}

func (b *Backend) exactHeadNormRope(y, inv, x, w *buffer, r backend.Rope, heads, seq int, eps float32) {
	b.launch("exact_head_norm_rope", rowsGrid(inv.n), rowsBlock, 0, y, inv, x, w, on(r.Cos), on(r.Sin), inv.n, w.n, heads, seq, eps)
}

func (b *Backend) exactHeadNormRopeGrad(dx, dw, dy, inv, x, w *buffer, r backend.Rope, heads, seq int) {
	b.launch("exact_head_norm_rope_grad", rowsGrid(inv.n), rowsBlock, 0, dx, dy, inv, x, w, on(r.Cos), on(r.NegSin), inv.n, w.n, heads, seq)
	b.exactNormWeightGrad(dw, dy, inv, x)
}

func (b *Backend) exactEmbed(y *buffer, table *weight, ids []int32) {
	v := b.operand(table)
	b.launch("exact_embed_"+v.kind.String(), columnsGrid(len(ids), table.in), rowsBlock, 0, y, v, upload(b.device, ids), len(ids), table.in)
}

// exactCrossEntropy puts rows float64 losses into out.
func (b *Backend) exactCrossEntropy(out, logits, targets *buffer, rows int, scale float32) {
	b.launch("exact_cross_entropy", rowsGrid(rows), rowsBlock, 0, out, logits, targets, rows, logits.n/rows, scale)
}

// adamW is the same in both modes: parameters and moments are float32 in each.
func (b *Backend) adamW(p, m, v, g *buffer, h backend.AdamW) {
	b.launch("adamw", dims{ceil(p.n, 2048), 1, 1}, elementsBlock, 0, p, m, v, g, int64(p.n), h.Clip, h.Beta1, h.One1, h.Beta2, h.One2, h.Step, h.Root,
		h.Eps, h.Decay)
}

func (b *Backend) exactSumSquares(out *buffer, all []*buffer) {
	at, lengths := make([]uint64, len(all)), make([]uint64, len(all))
	for i, x := range all {
		at[i], lengths[i] = uint64(x.ptr), uint64(x.n)
	}
	b.launch("exact_sum_squares", dims{len(all), 1, 1}, rowsBlock, 0, out, upload(b.device, at), upload(b.device, lengths))
}
