package cuda

// flashTile is how a kernel of kernels/flash.cu cuts its work: how many queries or keys a block has, and what it needs. The
// tables there say so.
type flashTile struct{ rows, threads, shared int }

// flashKernels are those for heads of up to width values.
type flashKernels struct {
	width                  int
	name                   string
	forward, keys, queries flashTile
}

var flash = []flashKernels{
	{32, "d32", flashTile{128, 128, 16384}, flashTile{128, 256, 33792}, flashTile{64, 128, 16384}},
	{64, "d64", flashTile{128, 128, 32768}, flashTile{128, 256, 66560}, flashTile{64, 128, 32768}},
	{96, "d96", flashTile{128, 128, 49152}, flashTile{64, 128, 49664}, flashTile{64, 128, 49152}},
	{128, "d128", flashTile{128, 128, 65536}, flashTile{64, 128, 66048}, flashTile{64, 128, 65536}},
}

// padded is a matrix of heads ready for the kernels: bfloat16, aligned, of a multiple of 8 values each.
type padded struct {
	*buffer
	back func() // to where it came from
	drop func()
}

// pad makes x, rows of heads of hd values, ready. With load false its values do not matter.
func (b *Backend) pad(x *buffer, hd int, load bool) padded {
	wide := (hd + 7) &^ 7
	if x.kind == bf16 && x.aligned() && wide == hd {
		return padded{x, func() {}, func() {}}
	}
	n := x.n / hd
	s := b.scratch(bf16, n*wide)
	if load {
		b.launch("widen_rows_"+letters(x, s), dims{ceil(n*wide, 256), 1, 1}, dims{256, 1, 1}, 0, s, x, int64(n), hd, wide)
	}
	drop := func() { b.release(s) }
	return padded{s, func() {
		b.launch("widen_rows_"+letters(s, x), dims{ceil(n*hd, 256), 1, 1}, dims{256, 1, 1}, 0, x, s, int64(n), wide, hd)
		drop()
	}, drop}
}

// l2Share is what the keys and values that are worked on at a time may take of a card's second-level cache.
const l2Share = 16 << 20

// flashShape is what all kernels are told, and the tiles.
func (b *Backend) flashShape(a *attn, rows int) (k flashKernels, batch, wide, pairs, kvPairs int) {
	for _, k = range flash {
		if k.width >= a.HeadDim {
			break
		}
	}
	if k.width < a.HeadDim {
		b.fail(errHeads(a.HeadDim))
	}
	batch = rows / a.Seq
	wide = (a.HeadDim + 7) &^ 7
	each := max(1, l2Share/(a.Seq*wide*4))
	return k, batch, wide, evenly(batch*a.Heads, each*(a.Heads/a.KVHeads)), evenly(batch*a.KVHeads, each)
}

// evenly is the size of groups of at most most out of n, all about as large.
func evenly(n, most int) int { return ceil(n, ceil(n, most)) }

func (b *Backend) fastAttention(out, q, k, v *buffer, a *attn) {
	hd, rows := a.HeadDim, q.n/(a.Heads*a.HeadDim)
	kernel, batch, wide, pairs, _ := b.flashShape(a, rows)
	O, Q, K, V := b.pad(out, hd, false), b.pad(q, hd, true), b.pad(k, hd, true), b.pad(v, hd, true)
	if h, ok := b.hopperHeads(a); ok {
		b.hopperAttention(h, O.buffer, Q.buffer, K.buffer, V.buffer, a, batch, pairs)
	} else {
		lq, lk, t := a.Heads*wide, a.KVHeads*wide, kernel.forward
		b.launch("flash_fwd_"+kernel.name, dims{batch * a.Heads * ceil(a.Seq, t.rows), 1, 1}, dims{t.threads, 1, 1}, t.shared,
			O.buffer, a.kept, Q.buffer, K.buffer, V.buffer, batch, a.Seq, a.Heads, a.KVHeads, wide, lq, lq, lk, lk, scaleOf(hd), pairs)
	}
	V.drop()
	K.drop()
	Q.drop()
	O.back()
}

func (b *Backend) fastAttentionGrad(dq, dk, dv, dout, out, q, k, v *buffer, a *attn) {
	hd, rows := a.HeadDim, q.n/(a.Heads*a.HeadDim)
	kernel, batch, wide, pairs, kvPairs := b.flashShape(a, rows)
	O, DO, Q, K, V := b.pad(out, hd, true), b.pad(dout, hd, true), b.pad(q, hd, true), b.pad(k, hd, true), b.pad(v, hd, true)
	DQ, DK, DV := b.pad(dq, hd, false), b.pad(dk, hd, false), b.pad(dv, hd, false)
	lq, lk := a.Heads*wide, a.KVHeads*wide
	tall := (a.Seq + 127) &^ 127
	stats := b.scratch(f32, batch*a.Heads*tall*2)
	lanes := 4
	if wide > 64 {
		lanes = 16
	} else if wide > 32 {
		lanes = 8
	}
	b.launch("flash_stats", dims{ceil(batch*tall*a.Heads*lanes, 256), 1, 1}, dims{256, 1, 1}, 0, stats, DO.buffer, O.buffer, a.kept,
		batch, a.Seq, a.Heads, wide, lq)
	if h, ok := b.hopperHeads(a); ok {
		b.hopperAttentionGrad(h, DQ.buffer, DK.buffer, DV.buffer, DO.buffer, Q.buffer, K.buffer, V.buffer, stats, a, batch, pairs, kvPairs)
	} else {
		t := kernel.keys
		b.launch("flash_dkdv_"+kernel.name, dims{batch * a.KVHeads * ceil(a.Seq, t.rows), 1, 1}, dims{t.threads, 1, 1}, t.shared,
			DK.buffer, DV.buffer, DO.buffer, Q.buffer, K.buffer, V.buffer, stats,
			batch, a.Seq, a.Heads, a.KVHeads, wide, lq, lq, lk, lk, scaleOf(hd), kvPairs)
		t = kernel.queries
		b.launch("flash_dq_"+kernel.name, dims{batch * a.Heads * ceil(a.Seq, t.rows), 1, 1}, dims{t.threads, 1, 1}, t.shared,
			DQ.buffer, DO.buffer, Q.buffer, K.buffer, V.buffer, stats,
			batch, a.Seq, a.Heads, a.KVHeads, wide, lq, lq, lk, lk, scaleOf(hd), pairs)
	}
	b.release(stats)
	V.drop()
	K.drop()
	Q.drop()
	DO.drop()
	O.drop()
	DV.back()
	DK.back()
	DQ.back()
}
