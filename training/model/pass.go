package model

import (
	"fmt"
	"math/bits"

	"github.com/blockzero-net/bzd/training/backend"
)

// Layout is the size of a pass.
type Layout struct {
	Sequences, Seq int // batches of up to Sequences sequences of Seq tokens
	// Recompute keeps one layer's activations instead of all, and computes the others' again on the way back: a third more
	// work for a fraction of the memory. It changes no bit.
	Recompute bool
	// HeadRows is how many rows go through the head at a time: a multiple of 256, the length of a k-block, so that it shows
	// in no gradient. 0 keeps the logits below 2²⁷ values.
	HeadRows int
}

// Pass holds the activations of a batch of sequences of one length. It is for one goroutine.
type Pass struct {
	m      *Model
	config Config          // of the model it was made for
	back   backend.Backend // likewise
	Layout
	rows int // rows of the current batch
	t    *Trainable

	h      []backend.Buffer // residual stream before each layer and after the last, or one for all: [rows, Dim]
	acts   []acts           // one per layer, or a single one shared by all
	x      backend.Buffer   // normalised input of a matrix: [rows, Dim]
	qn, kn backend.Buffer   // normalised and rotated queries and keys
	moe    backend.Buffer   // output of the mixture: [rows, Dim]
	router backend.Buffer   // router logits: [rows, Experts]
	final  backend.Buffer   // final norm: [rows, Dim]
	invF   backend.Buffer
	logits backend.Buffer // of at most HeadRows rows: [HeadRows, Vocab]

	act backend.Buffer // of the shared expert: [rows, Shared]

	dh, dx      backend.Buffer
	dq, dk, dv  backend.Buffer
	dqn, dkn    backend.Buffer
	do, drouter backend.Buffer
	dsh         sharedActs       // gradients of the shared expert's
	ones        backend.Buffer   // of biases that are trained
	drows       []backend.Buffer // per layer: the trained columns of drouter
	tokens      []int32
	probe       func(l int)
}

// acts is what the backward pass of one layer needs, besides the residual stream before it.
type acts struct {
	h2         backend.Buffer // residual stream before the mixture
	inv1, inv2 backend.Buffer
	q, k, v    backend.Buffer
	invQ, invK backend.Buffer
	attn       backend.Attn
	o          backend.Buffer
	mix        backend.Mix
	shared     sharedActs
}

// sharedActs are the activations of a shared expert.
type sharedActs struct {
	gate, up backend.Buffer // [rows, Shared]
	out      backend.Buffer // [rows, Dim]
	logit    backend.Buffer // [rows, 1]: its sigmoid weighs out
}

func (m *Model) newSharedActs(n int) sharedActs {
	if m.Shared == 0 {
		return sharedActs{}
	}
	a := m.b.AllocActivation
	return sharedActs{gate: a(n * m.Shared), up: a(n * m.Shared), out: a(n * m.Dim), logit: m.b.Alloc(n)}
}

// NewPass allocates for batches of up to sequences·seq tokens. With t nil it can only go forward.
func (m *Model) NewPass(sequences, seq int, t *Trainable) *Pass {
	return m.NewPassOf(Layout{Sequences: sequences, Seq: seq}, t)
}

// NewPassOf allocates for batches of that layout. With t nil it can only go forward. A lack of memory shows in the
// backend's next Sync.
func (m *Model) NewPassOf(size Layout, t *Trainable) *Pass {
	if size.Seq > m.Positions {
		panic(fmt.Sprintf("model: sequence of %d, positions end at %d", size.Seq, m.Positions))
	}
	n := size.Sequences * size.Seq
	c, wide, a := m.Config, m.b.Alloc, m.b.AllocActivation
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	p := &Pass{
		m: m, config: c, back: m.b, Layout: size, t: t,
		x: a(n * c.Dim), qn: a(n * qw), kn: a(n * kw), moe: a(n * c.Dim), router: wide(n * c.Experts), final: a(n * c.Dim), invF: wide(n),
	}
	if p.HeadRows == 0 {
		p.HeadRows = max(256, 1<<(bits.Len(uint(1<<27/c.Vocab))-1))
	}
	p.logits = a(min(n, p.HeadRows) * c.Vocab)
	if c.Shared > 0 {
		p.act = a(n * c.Shared)
	}
	layers, streams := 1, 1
	if t != nil {
		layers, streams = c.Layers, c.Layers+1
		if size.Recompute {
			layers = 1
		}
		p.dh, p.dx, p.do = wide(n*c.Dim), a(n*c.Dim), a(n*qw)
		p.dq, p.dk, p.dv, p.dqn, p.dkn = a(n*qw), a(n*kw), a(n*kw), a(n*qw), a(n*kw)
		p.drouter = wide(n * c.Experts)
		p.dsh = m.newSharedActs(n)
		if t.whole && c.Bias {
			p.ones = m.onesOf(n)
		}
		for _, l := range t.layers {
			p.drows = append(p.drows, wide(n*len(l.rows)))
		}
	}
	for range streams {
		p.h = append(p.h, wide(n*c.Dim))
	}
	for range layers {
		p.acts = append(p.acts, acts{
			h2: wide(n * c.Dim), inv1: wide(n), inv2: wide(n),
			q: a(n * qw), k: a(n * kw), v: a(n * kw), invQ: wide(n * c.Heads), invK: wide(n * c.KVHeads),
			o:      a(n * qw),
			attn:   m.b.NewAttn(p.shape(), n, t != nil),
			mix:    m.b.NewMix(backend.MixtureShape{Experts: c.Experts, TopK: c.TopK, Model: c.Dim, Width: c.Width, Normalize: c.Normalize}, n, t != nil),
			shared: m.newSharedActs(n),
		})
	}
	return p
}

// Adopt makes a pass that was made for forward passes of another model work for m. It reports false, and changes nothing,
// if the two differ in configuration, backend or size.
func (m *Model) Adopt(p *Pass, sequences, seq int) bool {
	if p.t != nil || p.config != m.Config || p.back != m.b || p.Seq != seq || p.Sequences != sequences {
		return false
	}
	p.m = m
	return true
}

// Release lets go of the model, not of the memory: the pass is good for Adopt only.
func (p *Pass) Release() { p.m, p.tokens = nil, nil }

func (p *Pass) shape() backend.AttentionShape {
	c := p.m.Config
	return backend.AttentionShape{Seq: p.Seq, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim}
}

// cut returns the first rows·width values of b.
func (p *Pass) cut(b backend.Buffer, width int) backend.Buffer { return b.Slice(0, p.rows*width) }

func (p *Pass) layer(l int) *acts { return &p.acts[min(l, len(p.acts)-1)] }

// stream is the residual stream before layer l.
func (p *Pass) stream(l int) backend.Buffer { return p.cut(p.h[min(l, len(p.h)-1)], p.m.Dim) }

// norm1 and norm2 set x to the normalised input of the attention and of the mixture.
func (p *Pass) norm1(l int) backend.Buffer {
	x := p.cut(p.x, p.m.Dim)
	p.m.b.RMSNorm(x, p.cut(p.layer(l).inv1, 1), p.stream(l), p.m.layers[l].norm1, float32(p.m.NormEps))
	return x
}

func (p *Pass) norm2(l int) backend.Buffer {
	x, a := p.cut(p.x, p.m.Dim), p.layer(l)
	p.m.b.RMSNorm(x, p.cut(a.inv2, 1), p.cut(a.h2, p.m.Dim), p.m.layers[l].norm2, float32(p.m.NormEps))
	return x
}

// rotated sets queries and keys to what attention takes.
func (p *Pass) rotated(l int) (qn, kn backend.Buffer) {
	c, y, a := p.m.Config, &p.m.layers[l], p.layer(l)
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	qn, kn = p.cut(p.qn, qw), p.cut(p.kn, kw)
	p.rotate(qn, a.invQ, p.cut(a.q, qw), y.qNorm, c.Heads)
	p.rotate(kn, a.invK, p.cut(a.k, kw), y.kNorm, c.KVHeads)
	return qn, kn
}

// rotate normalises x as the family does, keeping inv, and rotates it.
func (p *Pass) rotate(y, inv, x, w backend.Buffer, heads int) {
	b, c, r := p.m.b, p.m.Config, p.m.rope
	switch c.Family.facts().norm {
	case perHead:
		b.HeadNormRope(y, p.cut(inv, heads), x, w, r, heads, p.Seq, float32(c.NormEps))
		return
	case perRow:
		b.RMSNorm(y, p.cut(inv, 1), x, w, float32(c.NormEps))
		x = y
	}
	b.Rotate(y, x, r, c.HeadDim, heads, p.Seq, false)
}

// shared adds the shared expert's output for x to y.
func (p *Pass) shared(l int, y, x backend.Buffer) {
	b, e, a := p.m.b, &p.m.layers[l], p.layer(l).shared
	gate, up, act := p.cut(a.gate, p.m.Shared), p.cut(a.up, p.m.Shared), p.cut(p.act, p.m.Shared)
	out, logit := p.cut(a.out, p.m.Dim), p.cut(a.logit, 1)
	b.Linear(gate, x, e.shared.Gate)
	b.Linear(up, x, e.shared.Up)
	b.SwiGLU(act, gate, up)
	b.Linear(out, act, e.shared.Down)
	b.Linear(logit, x, e.sharedGate)
	b.AddGated(y, out, logit)
}

// attend runs layer l up to its mixture: it sets h2, the residual stream before that.
func (p *Pass) attend(l int) {
	m, c, b := p.m, p.m.Config, p.m.b
	y, a := &m.layers[l], p.layer(l)
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	h2, q, k, v := p.cut(a.h2, c.Dim), p.cut(a.q, qw), p.cut(a.k, kw), p.cut(a.v, kw)
	x1 := p.norm1(l)
	b.Linear(q, x1, y.q)
	b.Linear(k, x1, y.k)
	b.Linear(v, x1, y.v)
	if c.Bias {
		b.AddBias(q, y.qBias)
		b.AddBias(k, y.kBias)
		b.AddBias(v, y.vBias)
	}
	qn, kn := p.rotated(l)
	o := p.cut(a.o, qw)
	b.Attention(o, qn, kn, v, a.attn)
	if onto, ok := b.(backend.Onto); ok {
		onto.LinearOnto(h2, p.stream(l), o, y.o)
		return
	}
	b.Linear(h2, o, y.o)
	b.Add(h2, p.stream(l))
}

// mix runs layer l's mixture on h2. It sets next, unless that is nil, to the residual stream after it.
func (p *Pass) mix(l int, next backend.Buffer) {
	c, b, y, a := p.m.Config, p.m.b, &p.m.layers[l], p.layer(l)
	r, moe, h2 := p.cut(p.router, c.Experts), p.cut(p.moe, c.Dim), p.cut(a.h2, c.Dim)
	x2 := p.norm2(l)
	b.Linear(r, x2, y.router)
	if onto, ok := b.(backend.Onto); ok && c.Shared == 0 && next != nil {
		onto.MixtureOnto(next, h2, x2, r, y.experts, a.mix)
		return
	}
	b.Mixture(moe, x2, r, y.experts, a.mix)
	if c.Shared > 0 {
		p.shared(l, moe, x2)
	}
	if next != nil {
		b.Sum(next, h2, moe)
	}
}

// Prefix is the residual stream before the mixture of a layer, [tokens, Dim], by which models that are equal up to there
// share what they compute below.
type Prefix struct {
	Layer  int
	Stream backend.Buffer
}

// trunk runs everything up to the final norm. With from, what is below is not computed; to takes what is before the
// mixture of its layer.
func (p *Pass) trunk(tokens []int32, from, to *Prefix) {
	m, c, b := p.m, p.m.Config, p.m.b
	if len(tokens)%p.Seq != 0 || len(tokens) > p.Sequences*p.Seq || len(tokens) == 0 {
		panic(fmt.Sprintf("model: batch of %d tokens for sequences of %d, at most %d", len(tokens), p.Seq, p.Sequences*p.Seq))
	}
	p.rows, p.tokens = len(tokens), tokens
	first := 0
	if from != nil {
		first = from.Layer
		b.Copy(p.cut(p.layer(first).h2, c.Dim), from.Stream)
	} else {
		b.Embed(p.stream(0), m.embed, tokens)
	}
	for l := first; l < c.Layers; l++ {
		if from == nil || l > first {
			p.attend(l)
		}
		if to != nil && l == to.Layer {
			b.Copy(to.Stream, p.cut(p.layer(l).h2, c.Dim))
		}
		p.mix(l, p.stream(l+1))
		if p.probe != nil {
			p.probe(l)
		}
	}
	b.RMSNorm(p.cut(p.final, c.Dim), p.cut(p.invF, 1), p.stream(c.Layers), m.norm, float32(c.NormEps))
}

// head visits the logits in runs of rows: visit gets those of the rows lo to hi, and the final norm of the same.
func (p *Pass) head(visit func(lo, hi int, logits, final backend.Buffer)) {
	c := p.m.Config
	for lo := 0; lo < p.rows; lo += p.HeadRows {
		hi := min(lo+p.HeadRows, p.rows)
		logits, final := p.logits.Slice(0, (hi-lo)*c.Vocab), p.final.Slice(lo*c.Dim, (hi-lo)*c.Dim)
		p.m.b.Linear(logits, final, p.m.head)
		visit(lo, hi, logits, final)
	}
}

// Loss writes the loss in nats of every target to losses, where they are after the backend's next Sync. tokens and
// targets are whole sequences one after another.
func (p *Pass) Loss(losses []float64, tokens, targets []int32) {
	p.LossBetween(losses, tokens, targets, nil, nil)
}

// LossBetween is Loss that begins at from, which a model equal to this one up to there has filled, and fills to, for
// others. Both may be nil. It changes no bit.
func (p *Pass) LossBetween(losses []float64, tokens, targets []int32, from, to *Prefix) {
	p.trunk(tokens, from, to)
	p.head(func(lo, hi int, logits, _ backend.Buffer) {
		p.m.b.CrossEntropy(losses[lo:hi], logits, targets[lo:hi], 0)
	})
}

// Logits runs forward and returns the logits [tokens, Vocab].
func (p *Pass) Logits(tokens []int32) []float32 {
	p.trunk(tokens, nil, nil)
	out := make([]float32, p.rows*p.m.Vocab)
	p.head(func(lo, hi int, logits, _ backend.Buffer) {
		p.m.b.Read(out[lo*p.m.Vocab:hi*p.m.Vocab], logits)
	})
	return out
}

// Probe runs forward and shows visit every layer's router input [tokens, Dim] and how many slots went to each expert.
func (p *Pass) Probe(tokens []int32, visit func(layer int, x []float32, load []int)) {
	x := make([]float32, len(tokens)*p.m.Dim)
	p.probe = func(l int) {
		p.m.b.Read(x, p.cut(p.x, p.m.Dim))
		visit(l, x, p.layer(l).mix.Load())
	}
	defer func() { p.probe = nil }()
	p.trunk(tokens, nil, nil)
}
