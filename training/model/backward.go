package model

import (
	"fmt"
	"sort"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/optim"
)

// ExpertRef names an expert.
type ExpertRef struct{ Layer, Index int }

// param is what the optimizer moves and the weight that has to hear of it.
type param struct {
	optim.Param // a router row is named by its tensor with "#row" after it
	weight      backend.Weight
}

// Trainable is what a training run may change: everything (genesis), or one group's experts and router rows. What it
// does not name has no gradient buffer.
type Trainable struct {
	m      *Model
	params []param
	layers []trainLayer
	lowest int  // the lowest layer with anything to train
	whole  bool // everything, the embedding included
	grads  map[string]backend.Buffer
}

type trainLayer struct {
	rows    []int // trained router rows
	rowGrad backend.Buffer
	experts []backend.ExpertGrad
}

// TrainGroup makes the experts, and their router rows, trainable.
func (m *Model) TrainGroup(experts []ExpertRef) (*Trainable, error) {
	t := &Trainable{m: m, layers: make([]trainLayer, m.Layers), lowest: m.Layers, grads: map[string]backend.Buffer{}}
	for l := range t.layers {
		t.layers[l].experts = make([]backend.ExpertGrad, m.Experts)
	}
	sorted := append([]ExpertRef(nil), experts...)
	sort.Slice(sorted, func(i, j int) bool {
		return sorted[i].Layer < sorted[j].Layer || sorted[i].Layer == sorted[j].Layer && sorted[i].Index < sorted[j].Index
	})
	for i, e := range sorted {
		if e.Layer < 0 || e.Layer >= m.Layers || e.Index < 0 || e.Index >= m.Experts || i > 0 && sorted[i-1] == e {
			return nil, fmt.Errorf("model: expert (layer %d, index %d) is not in the model or named twice", e.Layer, e.Index)
		}
		t.layers[e.Layer].rows = append(t.layers[e.Layer].rows, e.Index)
		t.lowest = min(t.lowest, e.Layer)
	}
	if len(sorted) == 0 {
		return nil, fmt.Errorf("model: a group without experts")
	}
	for l := range t.layers {
		t.addRows(l)
		for _, e := range t.layers[l].rows {
			if m.tensors[ExpertName(l, e, "gate")] == nil {
				return nil, fmt.Errorf("model: expert (layer %d, index %d) is frozen", l, e)
			}
			t.addExpert(l, e)
		}
	}
	return t, m.b.Sync()
}

// TrainAll makes every tensor trainable, of a model that has nothing frozen.
func (m *Model) TrainAll() *Trainable {
	t := &Trainable{m: m, layers: make([]trainLayer, m.Layers), whole: true, grads: map[string]backend.Buffer{}}
	for _, s := range m.Specs() {
		g := m.b.Alloc(s.Len())
		t.grads[s.Name] = g
		t.params = append(t.params, param{optim.Param{Name: s.Name, Value: m.tensors[s.Name], Grad: g}, m.weights[s.Name]})
	}
	for l := range t.layers {
		t.layers[l].experts = make([]backend.ExpertGrad, m.Experts)
		for e := range m.Experts {
			t.layers[l].experts[e] = backend.ExpertGrad{
				Gate: t.grads[ExpertName(l, e, "gate")], Up: t.grads[ExpertName(l, e, "up")], Down: t.grads[ExpertName(l, e, "down")]}
		}
	}
	return t
}

func (t *Trainable) addRows(l int) {
	y := &t.layers[l]
	if len(y.rows) == 0 {
		return
	}
	d := t.m.Dim
	y.rowGrad = t.m.b.Alloc(len(y.rows) * d)
	router := t.m.layers[l].router
	for i, r := range y.rows {
		t.params = append(t.params, param{
			optim.Param{Name: fmt.Sprintf("%s#%d", RouterName(l), r), Value: router.Data().Slice(r*d, d), Grad: y.rowGrad.Slice(i*d, d)}, router})
	}
}

func (t *Trainable) addExpert(l, e int) {
	add := func(projection string) backend.Buffer {
		name := ExpertName(l, e, projection)
		g := t.m.b.Alloc(t.m.tensors[name].Len())
		t.grads[name] = g
		t.params = append(t.params, param{optim.Param{Name: name, Value: t.m.tensors[name], Grad: g}, t.m.weights[name]})
		return g
	}
	t.layers[l].experts[e] = backend.ExpertGrad{Gate: add("gate"), Up: add("up"), Down: add("down")}
}

// Params lists what is trained: by layer, router rows before experts, or by name when everything is.
func (t *Trainable) Params() []optim.Param {
	list := make([]optim.Param, len(t.params))
	for i, p := range t.params {
		list[i] = p.Param
	}
	return list
}

// Zero clears the gradients.
func (t *Trainable) Zero() {
	for _, p := range t.params {
		t.m.b.Zero(p.Grad)
	}
}

// Refresh must be called after parameters were changed.
func (t *Trainable) Refresh() {
	for _, p := range t.params {
		if p.weight != nil {
			p.weight.Refresh()
		}
	}
}

// Load returns how many slots each expert of the layer got in the last forward pass.
func (p *Pass) Load(layer int) []int { return p.layer(layer).mix.Load() }

// Step runs forward and backward: it writes the losses of all targets, where they are after the backend's next Sync, and
// adds to the gradients those of scale times their sum, plus balance times each layer's load-balance loss.
func (p *Pass) Step(losses []float64, tokens, targets []int32, scale, balance float32) {
	m, t, b, c := p.m, p.t, p.m.b, p.m.Config
	if t == nil {
		panic("model: Step on a pass made for evaluation")
	}
	p.trunk(tokens, nil, nil)
	name := "lm_head.weight"
	if m.Tied {
		name = "model.embed_tokens.weight"
	}
	p.head(func(lo, hi int, logits, final backend.Buffer) {
		b.CrossEntropy(losses[lo:hi], logits, targets[lo:hi], scale)
		b.LinearGradInput(p.dx.Slice(lo*c.Dim, (hi-lo)*c.Dim), logits, m.head, false)
		if t.whole {
			b.LinearGradWeight(t.grads[name], logits, final, hi-lo)
		}
	})
	dx, dh := p.cut(p.dx, c.Dim), p.cut(p.dh, c.Dim)
	b.Zero(dh)
	b.RMSNormGrad(dh, p.grad("model.norm.weight"), dx, p.cut(p.invF, 1), p.stream(c.Layers), m.norm)
	for l := c.Layers - 1; l >= t.lowest; l-- {
		if p.Recompute && l < c.Layers-1 {
			p.attend(l)
			p.mix(l, nil)
		}
		p.layerGrad(l, balance)
	}
	if t.whole {
		b.EmbedGrad(t.grads["model.embed_tokens.weight"], dh, tokens)
	}
}

// grad is the gradient buffer of a tensor, nil when it is frozen.
func (p *Pass) grad(name string) backend.Buffer {
	if g, ok := p.t.grads[name]; ok {
		return g
	}
	return nil
}

// layerGrad takes p.dh from the output of layer l to its input. At the lowest trained layer of a frozen hub nothing
// below is needed, and it stops at the mixture.
func (p *Pass) layerGrad(l int, balance float32) {
	m, t, b, c := p.m, p.t, p.m.b, p.m.Config
	y, a, g := &m.layers[l], p.layer(l), &t.layers[l]
	stop := l == t.lowest && !t.whole
	dx, dh, dr := p.cut(p.dx, c.Dim), p.cut(p.dh, c.Dim), p.cut(p.drouter, c.Experts)
	var x2 backend.Buffer
	if t.whole || len(g.rows) > 0 {
		x2 = p.norm2(l)
	}
	if stop {
		b.MixtureGrad(nil, dr, dh, x2, y.experts, g.experts, a.mix, balance)
	} else {
		b.Zero(dx)
		b.MixtureGrad(dx, dr, dh, x2, y.experts, g.experts, a.mix, balance)
		b.LinearGradInput(dx, dr, y.router, true)
		if c.Shared > 0 {
			p.sharedGrad(l, dx, dh, x2)
		}
	}
	if t.whole {
		b.LinearGradWeight(t.grads[RouterName(l)], dr, x2, p.rows)
	} else if len(g.rows) > 0 {
		cols := p.cut(p.drows[l], len(g.rows))
		b.Columns(cols, dr, g.rows)
		b.LinearGradWeight(g.rowGrad, cols, x2, p.rows)
	}
	if stop {
		return
	}
	name := func(n string) string { return fmt.Sprintf("model.layers.%d.%s.weight", l, n) }
	b.RMSNormGrad(dh, p.grad(name("post_attention_layernorm")), dx, p.cut(a.inv2, 1), p.cut(a.h2, c.Dim), y.norm2)
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	do, dq, dk, dv := p.cut(p.do, qw), p.cut(p.dq, qw), p.cut(p.dk, kw), p.cut(p.dv, kw)
	dqn, dkn, o := p.cut(p.dqn, qw), p.cut(p.dkn, kw), p.cut(a.o, qw)
	b.LinearGradInput(do, dh, y.o, false)
	qn, kn := p.rotated(l)
	b.AttentionGrad(dqn, dkn, dv, do, o, qn, kn, p.cut(a.v, kw), a.attn)
	p.rotateGrad(dq, p.grad(name("self_attn.q_norm")), dqn, a.invQ, p.cut(a.q, qw), y.qNorm, c.Heads)
	p.rotateGrad(dk, p.grad(name("self_attn.k_norm")), dkn, a.invK, p.cut(a.k, kw), y.kNorm, c.KVHeads)
	b.LinearGradInput(dx, dq, y.q, false)
	b.LinearGradInput(dx, dk, y.k, true)
	b.LinearGradInput(dx, dv, y.v, true)
	if t.whole {
		x1 := p.norm1(l)
		b.LinearGradWeight(t.grads[name("self_attn.o_proj")], dh, o, p.rows)
		b.LinearGradWeight(t.grads[name("self_attn.q_proj")], dq, x1, p.rows)
		b.LinearGradWeight(t.grads[name("self_attn.k_proj")], dk, x1, p.rows)
		b.LinearGradWeight(t.grads[name("self_attn.v_proj")], dv, x1, p.rows)
		if c.Bias {
			for n, d := range map[string]backend.Buffer{"q": dq, "k": dk, "v": dv} {
				b.LinearGradWeight(t.grads[fmt.Sprintf("model.layers.%d.self_attn.%s_proj.bias", l, n)], d, p.cut(p.ones, 1), p.rows)
			}
		}
	}
	b.RMSNormGrad(dh, p.grad(name("input_layernorm")), dx, p.cut(a.inv1, 1), p.stream(l), y.norm1)
}

// rotateGrad sets dx to the gradient of rotate for dy, which it overwrites.
func (p *Pass) rotateGrad(dx, dw, dy, inv, x, w backend.Buffer, heads int) {
	b, c, r := p.m.b, p.m.Config, p.m.rope
	switch c.Family.facts().norm {
	case perHead:
		b.HeadNormRopeGrad(dx, dw, dy, p.cut(inv, heads), x, w, r, heads, p.Seq)
	case perRow:
		b.Rotate(dy, dy, r, c.HeadDim, heads, p.Seq, true)
		b.Zero(dx)
		b.RMSNormGrad(dx, dw, dy, p.cut(inv, 1), x, w)
	default:
		b.Rotate(dx, dy, r, c.HeadDim, heads, p.Seq, true)
	}
}

// sharedGrad adds the gradient of shared for dy to dx. x is the layer's input of the mixture if everything is trained.
func (p *Pass) sharedGrad(l int, dx, dy, x backend.Buffer) {
	b, c, e, t, a, d := p.m.b, p.m.Config, &p.m.layers[l], p.t, p.layer(l).shared, p.dsh
	gate, up, out, logit := p.cut(a.gate, c.Shared), p.cut(a.up, c.Shared), p.cut(a.out, c.Dim), p.cut(a.logit, 1)
	dgate, dup, dact := p.cut(d.gate, c.Shared), p.cut(d.up, c.Shared), p.cut(p.act, c.Shared)
	dout, dlogit := p.cut(d.out, c.Dim), p.cut(d.logit, 1)
	b.AddGatedGrad(dout, dlogit, dy, out, logit)
	if t.whole {
		b.SwiGLU(dact, gate, up)
		b.LinearGradWeight(t.grads[fmt.Sprintf("model.layers.%d.mlp.shared_expert.down_proj.weight", l)], dout, dact, p.rows)
	}
	b.LinearGradInput(dact, dout, e.shared.Down, false)
	b.SwiGLUGrad(dgate, dup, dact, gate, up)
	b.LinearGradInput(dx, dgate, e.shared.Gate, true)
	b.LinearGradInput(dx, dup, e.shared.Up, true)
	b.LinearGradInput(dx, dlogit, e.sharedGate, true)
	if t.whole {
		b.LinearGradWeight(t.grads[fmt.Sprintf("model.layers.%d.mlp.shared_expert.gate_proj.weight", l)], dgate, x, p.rows)
		b.LinearGradWeight(t.grads[fmt.Sprintf("model.layers.%d.mlp.shared_expert.up_proj.weight", l)], dup, x, p.rows)
		b.LinearGradWeight(t.grads[fmt.Sprintf("model.layers.%d.mlp.shared_expert_gate.weight", l)], dlogit, x, p.rows)
	}
}

// onesOf is a column of ones: the product of a gradient with it is that of a bias.
func (m *Model) onesOf(n int) backend.Buffer {
	ones := make([]float32, n)
	for i := range ones {
		ones[i] = 1
	}
	b := m.b.Alloc(n)
	m.b.Write(b, ones)
	return b
}
