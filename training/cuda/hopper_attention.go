package cuda

import "github.com/blockzero-net/bzd/training/cuda/kernels"

// hopperFlash are the kernels of kernels/flash_sm90.cu for heads of exactly width values.
type hopperFlash struct {
	name                   string
	forward, keys, queries flashTile
}

var hopperFlashes = map[int]hopperFlash{
	64:  {"d64", flashTile{192, 512, 115712}, flashTile{128, 384, 117760}, flashTile{128, 384, 115712}},
	128: {"d128", flashTile{128, 384, 197632}, flashTile{128, 384, 232448}, flashTile{128, 384, 230400}},
}

// hopperHeads gives the kernels for these heads, if the card has any.
func (b *Backend) hopperHeads(a *attn) (hopperFlash, bool) {
	k, ok := hopperFlashes[a.HeadDim]
	if !ok || !b.untried || b.err != nil || b.info.Major != 9 || b.info.Minor != 0 {
		return k, false
	}
	_, ok = kernels.Find("flash_fwd_sm90_"+k.name, b.info.Major, b.info.Minor)
	return k, ok
}

// counters are what blocks take their next tile from: zeros, which every kernel leaves behind.
func (b *Backend) counters() *buffer {
	if b.turns == nil {
		b.turns = b.alloc(f32, 2)
		b.clear(b.turns)
	}
	return b.turns
}

// everySM is the grid of kernels whose blocks take one tile after another.
func (b *Backend) everySM(tiles int) dims { return dims{min(b.info.SMs, tiles), 1, 1} }

func (b *Backend) hopperAttention(h hopperFlash, out, q, k, v *buffer, a *attn, batch, pairs int) {
	rows, lq, lk := batch*a.Seq, a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	t := h.forward
	b.launch("flash_fwd_sm90_"+h.name, b.everySM(batch*a.Heads*ceil(a.Seq, t.rows)), dims{t.threads, 1, 1}, t.shared,
		b.tensorMap(matrix{q, rows, lq}), b.tensorMap(matrix{k, rows, lk}), b.tensorMap(matrix{v, rows, lk}), out, a.kept, b.counters(),
		batch, a.Seq, a.Heads, a.KVHeads, lq, scaleOf(a.HeadDim), pairs)
}

func (b *Backend) hopperAttentionGrad(h hopperFlash, dq, dk, dv, dout, q, k, v, stats *buffer, a *attn, batch, pairs, kvPairs int) {
	rows, lq, lk := batch*a.Seq, a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
	mq, mk, mv, mo := b.tensorMap(matrix{q, rows, lq}), b.tensorMap(matrix{k, rows, lk}), b.tensorMap(matrix{v, rows, lk}), b.tensorMap(matrix{dout, rows, lq})
	t := h.keys
	b.launch("flash_dkdv_sm90_"+h.name, b.everySM(batch*a.KVHeads*ceil(a.Seq, t.rows)), dims{t.threads, 1, 1}, t.shared,
		mq, mk, mv, mo, dk, dv, stats, b.counters(), batch, a.Seq, a.Heads, a.KVHeads, lk, lk, scaleOf(a.HeadDim), kvPairs)
	t = h.queries
	b.launch("flash_dq_sm90_"+h.name, b.everySM(batch*a.Heads*ceil(a.Seq, t.rows)), dims{t.threads, 1, 1}, t.shared,
		mq, mk, mv, mo, dq, stats, b.counters(), batch, a.Seq, a.Heads, a.KVHeads, lq, scaleOf(a.HeadDim), pairs)
}
