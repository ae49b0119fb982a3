package cuda

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// The kernels are in kernels/mixture_exact.cu, with their arguments; those that move rows are those of the fast mode.

// runSlots is how many slots the kernels that order them take at a time.
const runSlots = 256

// exactMix keeps one layer's routing and, gathered by expert, its activations.
type exactMix struct {
	backend.MixtureShape
	b            *Backend
	rows, tokens int

	probs   *buffer // [tokens, Experts]
	chosen  *buffer // [tokens, TopK] int32
	weights *buffer // [tokens, TopK]
	place   *buffer // [tokens, TopK] int32: the gathered row of a slot
	source  *buffer // its inverse
	counts  *buffer // [runs of slots, Experts] int32
	offsets *buffer // [Experts+1] int32: gathered rows of each expert

	o       *buffer // [slots, Model]: outputs of experts; nil unless kept for a backward pass
	g, u, a *buffer // [slots, Width]
	tables  exactTables
}

func (b *Backend) newExactMix(s backend.MixtureShape, rows int, keep bool) *exactMix {
	n := rows * s.TopK
	m := &exactMix{
		MixtureShape: s, b: b, rows: rows, tables: exactTables{},
		probs: b.alloc(f32, rows*s.Experts), chosen: b.alloc(f32, n), weights: b.alloc(f32, n), place: b.alloc(f32, n), source: b.alloc(f32, n),
		counts: b.alloc(f32, ceil(n, runSlots)*s.Experts), offsets: b.alloc(f32, s.Experts+1),
	}
	b.clear(m.offsets)
	if keep {
		m.o, m.g, m.u, m.a = b.alloc(f32, n*s.Model), b.alloc(f32, n*s.Width), b.alloc(f32, n*s.Width), b.alloc(f32, n*s.Width)
	}
	return m
}

// Load waits for the routing.
func (m *exactMix) Load() []int {
	m.b.op.Lock()
	defer m.b.op.Unlock()
	offsets := make([]int32, m.Experts+1)
	m.b.read(bytesOf(offsets), m.offsets)
	load := make([]int, m.Experts)
	for e := range load {
		load[e] = int(offsets[e+1] - offsets[e])
	}
	return load
}

func (m *exactMix) slots() int { return m.tokens * m.TopK }

func gateOf(e backend.Expert) backend.Weight { return e.Gate }
func upOf(e backend.Expert) backend.Weight   { return e.Up }
func downOf(e backend.Expert) backend.Weight { return e.Down }

func all(int) bool { return true }

func (b *Backend) exactMixture(y, x, logits *buffer, experts []backend.Expert, m *exactMix) {
	m.tokens = x.n / m.Model
	if m.tokens > m.rows {
		panic(fmt.Sprintf("cuda: Mixture of %d rows, made for %d", m.tokens, m.rows))
	}
	mustMatch("Mixture", logits.n, m.tokens*m.Experts)
	mustMatch("Mixture", len(experts), m.Experts)
	n, d, f := m.slots(), m.Model, m.Width
	b.exactRoute(logits, m)
	o, g, u, a := m.o, m.g, m.u, m.a
	if o == nil {
		o, g, u = b.scratch(f32, n*d), b.scratch(f32, n*f), b.scratch(f32, n*f)
		a = g
		defer b.release(o, g, u)
	}
	rows := b.exactGather(x, m)
	b.exactExperts(exactProduct{form: formNT, c: g, a: rows, m: n, n: f, k: d}, m, experts, gateOf, all)
	b.exactExperts(exactProduct{form: formNT, c: u, a: rows, m: n, n: f, k: d}, m, experts, upOf, all)
	b.release(rows)
	b.launch("mixture_exact_silumul", elementsGrid(n*f), elementsBlock, 0, a, g, u, int64(n*f))
	b.exactExperts(exactProduct{form: formNT, c: o, a: a, m: n, n: d, k: f}, m, experts, downOf, all)
	b.perToken("moe_combine_ff", m.tokens, d, y, none, o, m.place, m.weights, m.tokens, m.TopK, d)
}

// exactRoute chooses experts and orders the slots.
func (b *Backend) exactRoute(logits *buffer, m *exactMix) {
	n := m.slots()
	runs := ceil(n, runSlots)
	block := dims{runSlots, 1, 1}
	b.launch("mixture_exact_route", rowsGrid(m.tokens), rowsBlock, 0, m.probs, m.chosen, m.weights, logits, m.tokens, m.Experts, m.TopK, flag(m.Normalize))
	b.launch("mixture_exact_count", dims{runs, 1, 1}, block, 0, m.counts, m.chosen, n, m.Experts)
	b.launch("mixture_exact_offsets", dims{1, 1, 1}, block, 0, m.offsets, m.counts, runs, m.Experts)
	b.launch("mixture_exact_place", dims{runs, 1, 1}, block, 0, m.place, m.source, m.chosen, m.counts, m.offsets, n, m.Experts)
}

// exactGather returns scratch with the rows of x in the order of slots.
func (b *Backend) exactGather(x *buffer, m *exactMix) *buffer {
	rows := b.scratch(f32, m.slots()*m.Model)
	b.perToken("moe_gather_ff", m.tokens, m.Model, rows, x, m.place, none, none, m.tokens, m.TopK, m.Model)
	return rows
}

func (b *Backend) exactMixtureGrad(dx, dlogits, dy, x *buffer, experts []backend.Expert, grads []backend.ExpertGrad, m *exactMix, balance float32) {
	if m.o == nil {
		panic("cuda: MixtureGrad of a mixture that kept nothing")
	}
	mustMatch("MixtureGrad", dy.n, m.tokens*m.Model)
	mustMatch("MixtureGrad", dlogits.n, m.tokens*m.Experts)
	mustMatch("MixtureGrad", len(grads), m.Experts)
	n, d, f := m.slots(), m.Model, m.Width
	dweights, dout := b.scratch(f32, n), b.scratch(f32, n*d)
	b.launch("mixture_exact_slot_grad", rowsGrid(n), rowsBlock, 0, dweights, dout, dy, m.o, m.place, m.weights, n, m.TopK, d)
	b.launch("mixture_exact_route_grad", dims{ceil(m.tokens, 64), 1, 1}, dims{64, 1, 1}, 0, dlogits, m.probs, m.chosen, m.weights, dweights, m.offsets,
		m.tokens, m.Experts, m.TopK, flag(m.Normalize), balance)
	b.release(dweights)
	defer b.release(dout)
	trained := false
	for _, g := range grads {
		trained = trained || g.Gate != nil || g.Up != nil || g.Down != nil
	}
	if dx == nil && !trained {
		return
	}
	b.exactExpertSums(exactProduct{a: dout, b: m.a, m: d, n: f}, m, grads, func(g backend.ExpertGrad) backend.Buffer { return g.Down })

	use := all
	if dx == nil {
		use = func(e int) bool { return grads[e].Gate != nil || grads[e].Up != nil }
	}
	dg, du := b.scratch(f32, n*f), m.a // the activations are not needed any more
	defer b.release(dg)
	b.exactExperts(exactProduct{form: formNN, c: dg, a: dout, m: n, n: f, k: d}, m, experts, downOf, use)
	b.launch("mixture_exact_silumul_grad", elementsGrid(n*f), elementsBlock, 0, dg, du, dg, m.g, m.u, int64(n*f))
	if trained {
		mustMatch("MixtureGrad", x.n, m.tokens*m.Model)
		rows := b.exactGather(x, m)
		b.exactExpertSums(exactProduct{a: dg, b: rows, m: f, n: d}, m, grads, func(g backend.ExpertGrad) backend.Buffer { return g.Gate })
		b.exactExpertSums(exactProduct{a: du, b: rows, m: f, n: d}, m, grads, func(g backend.ExpertGrad) backend.Buffer { return g.Up })
		b.release(rows)
	}
	if dx == nil {
		return
	}
	dxs := dout // used up by now
	b.exactExperts(exactProduct{form: formNN, c: dxs, a: dg, m: n, n: d, k: f}, m, experts, gateOf, use)
	b.exactExperts(exactProduct{form: formNN, c: dxs, a: du, m: n, n: d, k: f, add: true}, m, experts, upOf, use)
	b.perToken("moe_scatter_ff", m.tokens, d, dx, dx, dxs, m.place, m.tokens, m.TopK, d)
}
