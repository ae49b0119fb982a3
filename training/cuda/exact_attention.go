package cuda

import (
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// The kernels are in kernels/attention_exact.cu, with their arguments.

const (
	attentionTile = 64
	// attentionScratch is about how many values the gradient of scores may take at a time.
	attentionScratch = 64 << 20
)

var attentionBlock = dims{128, 1, 1}

// heads are those of every sequence that a launch takes: count of them, stride apart, from member.
type heads struct {
	backend.AttentionShape
	sequences             int
	count, stride, member int
}

func (h heads) pairs() int { return h.sequences * h.count }

// axes are the arguments that the kernels share.
func (h heads) axes() []any {
	return []any{h.pairs(), h.Seq, h.Padded(), h.HeadDim, h.Heads, h.KVHeads, h.count, h.stride, h.member}
}

func (h heads) squareGrid() dims {
	t := ceil(h.Seq, attentionTile)
	return dims{h.pairs(), t, t}
}

func (h heads) rowGrid() dims {
	return dims{h.pairs(), ceil(h.Seq, attentionTile), ceil(h.HeadDim, attentionTile)}
}

// launchHeads starts a kernel with the arguments before, the axes, and those behind.
func (b *Backend) launchHeads(name string, grid dims, h heads, before []*buffer, behind ...any) {
	var args []any
	for _, x := range before {
		args = append(args, x)
	}
	b.launch(name, grid, attentionBlock, 0, append(append(args, h.axes()...), behind...)...)
}

// attentionScale is 1/√headDim, both rounded to float32.
func attentionScale(headDim int) float32 { return 1 / float32(math.Sqrt(float64(headDim))) }

func (b *Backend) exactAttention(out, q, k, v *buffer, a *attn) {
	s := a.AttentionShape
	rows := q.n / (s.Heads * s.HeadDim)
	h := heads{s, rows / s.Seq, s.Heads, 1, 0}
	b.launchHeads("attention_exact_scores", h.squareGrid(), h, []*buffer{a.kept, q, k}, 0)
	n := h.pairs() * s.Seq
	b.launch("attention_exact_softmax", rowsGrid(n), rowsBlock, 0, a.kept, n, s.Seq, s.Padded(), attentionScale(s.HeadDim))
	b.launchHeads("attention_exact_values", h.rowGrid(), h, []*buffer{out, a.kept, v}, 0)
}

// exactAttentionGrad takes some sequences at a time, for the gradient of their scores needs memory, and of these one head
// of every group at a time, for the heads of a group add to dk and dv in their order.
func (b *Backend) exactAttentionGrad(dq, dk, dv, dout, q, k, v *buffer, a *attn) {
	s := a.AttentionShape
	qw, kw, pad, group := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim, s.Padded(), s.Heads/s.KVHeads
	sequences := q.n / qw / s.Seq
	each := s.KVHeads * s.Seq * pad
	most := min(sequences, max(1, attentionScratch/each))
	ds := b.scratch(f32, most*each)
	for from := 0; from < sequences; from += most {
		n := min(most, sequences-from)
		part := func(x *buffer, row int) *buffer { return x.slice(from*s.Seq*row, n*s.Seq*row) }
		Q, K, V, DO, DQ, DK, DV := part(q, qw), part(k, kw), part(v, kw), part(dout, qw), part(dq, qw), part(dk, kw), part(dv, kw)
		P := a.kept.slice(from*s.Heads*s.Seq*pad, n*s.Heads*s.Seq*pad)
		for member := range group {
			h := heads{s, n, s.KVHeads, group, member}
			b.launchHeads("attention_exact_scores", h.squareGrid(), h, []*buffer{ds, DO, V}, 1)
			b.launchHeads("attention_exact_softmax_grad", rowsGrid(h.pairs()*s.Seq), h, []*buffer{ds, P}, attentionScale(s.HeadDim))
			b.launchHeads("attention_exact_values", h.rowGrid(), h, []*buffer{DQ, ds, K}, 1)
			b.launchHeads("attention_exact_columns", h.rowGrid(), h, []*buffer{DV, P, DO}, 0, flag(member > 0))
			b.launchHeads("attention_exact_columns", h.rowGrid(), h, []*buffer{DK, ds, Q}, 1, flag(member > 0))
		}
	}
	b.release(ds)
}
