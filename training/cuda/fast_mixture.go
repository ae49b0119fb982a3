package cuda

import "github.com/blockzero-net/bzd/training/backend"

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

func (b *Backend) newFastMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
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
	counts := b.scratch(f32, runs*e)
	b.launch("moe_route", dims{ceil(m.tokens, 16), 1, 1}, block, 0, m.probs, m.expert, m.weight, logits, m.tokens, e, m.TopK, normalize)
	b.launch("moe_count", dims{runs, 1, 1}, block, 0, counts, m.expert, n, e)
	b.launch("moe_offsets", dims{1, 1, 1}, block, 0, m.offsets, counts, runs, e)
	b.launch("moe_place", dims{runs, 1, 1}, block, 0, m.place, m.source, counts, m.expert, n, e)
	b.release(counts)
}

// perToken is the launch shape of kernels that have a token to a block.
func perToken(tokens, d int) (grid, block dims) {
	return dims{tokens, 1, 1}, dims{min(256, ceil(ceil(d, 8), 32)*32), 1, 1}
}

// gather sorts the rows of x by expert, once per slot.
func (b *Backend) gather(m *fastMix, x *buffer) *buffer {
	y := b.scratch(bf16, m.slots()*m.Model)
	grid, block := perToken(m.tokens, m.Model)
	b.launch("moe_gather_"+letters(x, y), grid, block, 0, y, x, m.place, none, m.tokens, m.TopK, m.Model)
	return y
}

// none is the null pointer as an argument.
var none = (*buffer)(nil)

func (b *Backend) fastMixture(y, x, logits *buffer, experts []backend.Expert, m *fastMix) {
	m.tokens = x.n / m.Model
	n, d, f := m.slots(), m.Model, m.Width
	b.fastRoute(m, logits)
	gate, up, down := b.tableOf(experts, 0), b.tableOf(experts, 1), b.tableOf(experts, 2)
	g, u := m.g, m.u
	if g == nil {
		g, u = b.scratch(bf16, n*f), b.scratch(bf16, n*f)
	}
	in := b.gather(m, x)
	b.grouped("nt", matrix{g, n, f}, matrix{in, n, d}, gate, m.offsets, false)
	b.grouped("nt", matrix{u, n, f}, matrix{in, n, d}, up, m.offsets, false)
	b.release(in)
	a := b.scratch(bf16, n*f)
	b.launch("swiglu_bb", dims{ceil(n*ceil(f, 8), 256), 1, 1}, dims{256, 1, 1}, 0, a, g, u, n, f, f, f)
	if m.g == nil {
		b.release(g, u)
	}
	o := b.scratch(bf16, n*d)
	b.grouped("nt", matrix{o, n, d}, matrix{a, n, f}, down, m.offsets, false)
	grid, block := perToken(m.tokens, d)
	b.launch("moe_combine_"+letters(o, y), grid, block, 0, y, none, o, m.place, m.weight, m.tokens, m.TopK, d)
	b.release(a, o)
}

func (b *Backend) fastMixtureGrad(dx, dlogits, dy, x *buffer, experts []backend.Expert, grads []backend.ExpertGrad, m *fastMix, balance float32) {
	n, d, f := m.slots(), m.Model, m.Width
	gate, up, down := b.tableOf(experts, 0), b.tableOf(experts, 1), b.tableOf(experts, 2)
	out := b.gather(m, dy)
	da := b.scratch(bf16, n*f)
	b.grouped("nn", matrix{da, n, f}, matrix{out, n, d}, down, m.offsets, false)

	trained := m.trained(b, grads)
	var wa *buffer
	if trained != nil {
		wa = b.scratch(bf16, n*f)
	}
	dw := b.scratch(f32, n)
	grid, block := perRow(n, f)
	b.launch("swiglu_grad_b", grid, block, 0, m.g, m.u, wa, dw, da, m.g, m.u, m.weight, m.source, n, f, f, f)
	b.release(da)
	normalize := 0
	if m.Normalize {
		normalize = 1
	}
	b.launch("moe_route_grad", dims{ceil(m.tokens, 16), 1, 1}, dims{256, 1, 1}, 0, dlogits, m.probs, m.expert, m.weight, dw, m.offsets, m.tokens,
		m.Experts, m.TopK, normalize, balance)
	b.release(dw)
	if trained != nil {
		b.groupedGrad(trained.down, trained.list, matrix{out, n, d}, matrix{wa, n, f}, m.offsets)
		b.release(wa)
	}
	b.release(out)
	if trained != nil {
		in := b.gather(m, x)
		b.groupedGrad(trained.gate, trained.list, matrix{m.g, n, f}, matrix{in, n, d}, m.offsets)
		b.groupedGrad(trained.up, trained.list, matrix{m.u, n, f}, matrix{in, n, d}, m.offsets)
		b.release(in)
	}
	if dx == nil {
		return
	}
	dxs := b.scratch(bf16, n*d)
	b.grouped("nn", matrix{dxs, n, d}, matrix{m.g, n, f}, gate, m.offsets, false)
	b.grouped("nn", matrix{dxs, n, d}, matrix{m.u, n, f}, up, m.offsets, true)
	grid, block = perToken(m.tokens, d)
	b.launch("moe_scatter_"+letters(dxs, dx), grid, block, 0, dx, dx, dxs, m.place, m.tokens, m.TopK, d)
	b.release(dxs)
}

// trainedExperts are those with gradients, and where these are.
type trainedExperts struct {
	list           *buffer // numbers of the experts
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
		m.lists[key] = upload(b.device, list)
	}
	t.list = m.lists[key]
	return &t
}
