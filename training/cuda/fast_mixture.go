package cuda

import (
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
)

// fastMix keeps a layer's routing and what the experts' gates and ups gave, sorted by expert. The rows that went in are
// gathered again on the way back, and what came out is not needed: dot(dy, down·a) = dot(downᵀ·dy, a).
type fastMix struct {
	b *Backend
	backend.MixtureShape
	tokens  int
	probs   *buffer // [rows, Experts]
	expert  *buffer // [rows·TopK]
	weight  *buffer // [rows·TopK]
	place   *buffer // [rows·TopK]
	source  *buffer // [rows·TopK]
	offsets *buffer // [Experts+1]
	g, u    *buffer // [rows·TopK, Width]; nil if they are not kept
	lists   map[string]*buffer
}

// What the kernels of kernels/moe.cu that choose experts can do.
const mostExperts, mostSlots = 256, 16

func (b *Backend) newFastMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
	if s.Experts > mostExperts || s.TopK > mostSlots {
		b.fail(fmt.Errorf("%w: %d of %d experts, at most %d of %d in fast mode: use exact mode", ErrLaunch, s.TopK, s.Experts, mostSlots, mostExperts))
	}
	n := rows * s.TopK
	m := &fastMix{
		b: b, MixtureShape: s,
		probs: b.alloc(f32, rows*s.Experts), expert: b.alloc(f32, n), weight: b.alloc(f32, n), place: b.alloc(f32, n), source: b.alloc(f32, n),
		offsets: b.alloc(f32, s.Experts+1), lists: map[string]*buffer{},
	}
	if keep {
		m.g, m.u = b.alloc(bf16, n*s.Width), b.alloc(bf16, n*s.Width)
	}
	return m
}

// Load reads how many slots each expert got.
func (m *fastMix) Load() []int { return m.b.load(m.offsets, m.Experts) }

// load reads first rows and returns differences.
func (b *Backend) load(offsets *buffer, experts int) []int {
	b.op.Lock()
	defer b.op.Unlock()
	first := make([]int32, experts+1)
	b.read(bytesOf(first), offsets)
	n := make([]int, experts)
	for e := range n {
		n[e] = int(first[e+1] - first[e])
	}
	return n
}

// slots is how many (token, slot) pairs the batch has.
func (m *fastMix) slots() int { return m.tokens * m.TopK }

// runOf is how many slots one block counts and places.
const runOf = 1024

func (b *Backend) fastRoute(m *fastMix, logits *buffer) {
	normalize := 0
	if m.Normalize {
		normalize = 1
	}
	n, e := m.slots(), m.Experts
	runs := ceil(n, runOf)
	block := dims{256, 1, 1}
	counts, first := b.scratch(f32, runs*e), b.scratch(f32, runs*e)
	b.launch("moe_route", dims{ceil(m.tokens, 16), 1, 1}, block, 0, m.probs, m.expert, m.weight, logits, m.tokens, e, m.TopK, normalize)
	b.launch("moe_count", dims{runs, 1, 1}, block, 0, counts, m.expert, n, e)
	b.launch("moe_offsets", dims{1, 1, 1}, block, 0, m.offsets, first, counts, runs, e)
	b.launch("moe_place", dims{runs, 1, 1}, block, 0, m.place, m.source, first, m.expert, n, e)
	b.release(counts, first)
}

// perToken launches a kernel that has a token of d values to a block.
func (b *Backend) perToken(name string, tokens, d int, args ...any) {
	b.launch(name, dims{tokens, 1, 1}, dims{min(256, ceil(ceil(d, 8), 32)*32), 1, 1}, 0, args...)
}

// gather sorts the rows of x by expert, once per slot. With wanted, only those of experts it has; other rows stay undefined.
func (b *Backend) gather(m *fastMix, x, wanted *buffer) *buffer {
	y := b.scratch(bf16, m.slots()*m.Model)
	b.perToken("moe_gather_"+letters(x, y), m.tokens, m.Model, y, x, m.place, m.expert, wanted, m.tokens, m.TopK, m.Model)
	return y
}

// perSlot is the launch shape of swiglu_grad.
func perSlot(rows, width int) (grid, block dims) {
	switch {
	case width <= 512:
		return dims{ceil(rows, 8), 1, 1}, dims{32, 8, 1}
	case width <= 1024:
		return dims{rows, 1, 1}, dims{128, 1, 1}
	}
	return dims{rows, 1, 1}, dims{256, 1, 1}
}

// none is the null pointer as an argument.
var none = (*buffer)(nil)

func (b *Backend) fastMixture(y, x, logits *buffer, experts []backend.Expert, m *fastMix) {
	m.tokens = x.n / m.Model
	n, d, f := m.slots(), m.Model, m.Width
	b.fastRoute(m, logits)
	gate, up, down := b.tableOf(experts, 0), b.tableOf(experts, 1), b.tableOf(experts, 2)
	a, in := b.scratch(bf16, n*f), b.gather(m, x, none)
	b.groupedSwiglu(matrix{a, n, f}, matrix{m.g, n, f}, matrix{m.u, n, f}, matrix{in, n, d}, gate, up, m.offsets)
	b.release(in)
	o := b.scratch(bf16, n*d)
	b.grouped("nt", matrix{o, n, d}, matrix{a, n, f}, down, m.offsets, false)
	b.perToken("moe_combine_"+letters(o, y), m.tokens, d, y, none, o, m.place, m.weight, m.tokens, m.TopK, d)
	b.release(a, o)
}

func (b *Backend) fastMixtureGrad(dx, dlogits, dy, x *buffer, experts []backend.Expert, grads []backend.ExpertGrad, m *fastMix, balance float32) {
	n, d, f := m.slots(), m.Model, m.Width
	gate, up, down := b.tableOf(experts, 0), b.tableOf(experts, 1), b.tableOf(experts, 2)
	out := b.gather(m, dy, none)
	trained := m.trained(b, grads)
	dw, wa := b.scratch(f32, n), b.scratch(bf16, n*f)
	b.activationGrad(m, dw, wa, matrix{out, n, d}, down, trained)
	normalize := 0
	if m.Normalize {
		normalize = 1
	}
	b.launch("moe_route_grad", dims{ceil(m.tokens, 16), 1, 1}, dims{256, 1, 1}, 0, dlogits, m.probs, m.expert, m.weight, dw, m.offsets, m.tokens,
		m.Experts, m.TopK, normalize, balance)
	b.release(dw)
	if trained != nil {
		b.groupedGrad(trained.down, trained.list, matrix{out, n, d}, matrix{wa, n, f}, m.offsets)
	}
	b.release(wa, out)
	if trained != nil {
		in := b.gather(m, x, trained.wanted)
		b.groupedGrad(trained.gate, trained.list, matrix{m.g, n, f}, matrix{in, n, d}, m.offsets)
		b.groupedGrad(trained.up, trained.list, matrix{m.u, n, f}, matrix{in, n, d}, m.offsets)
		b.release(in)
	}
	if dx == nil {
		return
	}
	dxs := b.scratch(bf16, n*d)
	b.groupedSum(matrix{dxs, n, d}, matrix{m.g, n, f}, matrix{m.u, n, f}, gate, up, m.offsets)
	b.perToken("moe_scatter_"+letters(dxs, dx), m.tokens, d, dx, dx, dxs, m.place, m.tokens, m.TopK, d)
	b.release(dxs)
}

// activationGrad turns g and u into their gradients, given those of the experts' outputs; dw becomes the gradient of the slots'
// weights, and wa, for the experts that are trained, what was multiplied by down, times the slot's weight.
func (b *Backend) activationGrad(m *fastMix, dw, wa *buffer, dy matrix, down *table, trained *trainedExperts) {
	n, f := dy.rows, m.Width
	keep, wanted := none, none
	if trained != nil {
		keep, wanted = wa, trained.wanted
	}
	g, u, a := matrix{m.g, n, f}, matrix{m.u, n, f}, matrix{wa, n, f}
	if b.untried && down.maps != nil && b.err == nil && b.hopper(g, u, a, dy) {
		tiles, parts := (ceil(n, hopperM)+len(down.at))*ceil(f, hopperN), ceil(f, hopperN)
		dots := b.scratch(f32, n*parts)
		b.persistent("gemm_nn_grouped_swiglu_grad_sm90", tiles, b.tensorMap(dy), down.maps, b.tensorMap(g), b.tensorMap(u), b.tensorMap(a),
			m.g, m.u, keep, dots, m.weight, m.source, wanted, m.offsets, len(down.at), f, dy.cols, f)
		b.launch("gemm_row_dots", dims{ceil(n, 256), 1, 1}, dims{256, 1, 1}, 0, dw, dots, m.source, n, parts)
		b.release(dots)
		return
	}
	b.grouped("nn", a, dy, down, m.offsets, false)
	grid, block := perSlot(n, f)
	b.launch("swiglu_grad_b", grid, block, 0, m.g, m.u, keep, dw, wa, m.g, m.u, m.weight, m.source, m.expert, wanted, n, f, f, f)
}

// trainedExperts are those with gradients, and where these are.
type trainedExperts struct {
	list           *buffer // numbers of the experts
	wanted         *buffer // [Experts], 1 for them, 0 for others; nil if there are no others
	gate, up, down []*buffer
}

// trained lists the experts that have gradients, nil if none has. The list on the device is kept: a group does not change.
func (m *fastMix) trained(b *Backend, grads []backend.ExpertGrad) *trainedExperts {
	var t trainedExperts
	var list []int32
	for e, g := range grads {
		if g.Gate != nil {
			list = append(list, int32(e))
			t.gate, t.up, t.down = append(t.gate, on(g.Gate)), append(t.up, on(g.Up)), append(t.down, on(g.Down))
		}
	}
	if list == nil {
		return nil
	}
	key := string(bytesOf(list))
	if m.lists[key] == nil {
		wanted := make([]int32, m.Experts)
		for _, e := range list {
			wanted[e] = 1
		}
		m.lists[key] = upload(b.device, slices.Concat(list, wanted))
	}
	both := m.lists[key]
	t.list = both.slice(0, len(list))
	if len(list) < m.Experts {
		t.wanted = both.slice(len(list), m.Experts)
	}
	return &t
}
