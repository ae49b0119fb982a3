package model

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// Pass holds the activations of a batch of sequences of one length. It is for one goroutine.
type Pass struct {
	m      *Model
	config Config          // of the model it was made for
	back   backend.Backend // likewise
	seq    int
	most   int // rows it was made for
	rows   int // rows of the current batch
	t      *Trainable

	h, final    backend.Buffer // residual stream, its final norm: [rows, Dim]
	invF        backend.Buffer
	logits      backend.Buffer // [rows, Vocab]
	acts        []acts         // one per layer, or a single one shared by all when nothing is trained
	dh, dx      backend.Buffer
	dq, dk, dv  backend.Buffer
	dqn, dkn    backend.Buffer
	do, drouter backend.Buffer
	drows       []backend.Buffer // per layer: the trained columns of drouter
	tokens      []int32
	probe       func(l int, a *acts)
}

// acts is what the backward pass of one layer needs.
type acts struct {
	h1, h2     backend.Buffer // residual stream before attention and before the mixture
	inv1, inv2 backend.Buffer
	x1, x2     backend.Buffer // normalised
	q, k, v    backend.Buffer
	qn, kn     backend.Buffer
	invQ, invK backend.Buffer
	probs, o   backend.Buffer
	router     backend.Buffer
	mix        backend.Mix
	moe        backend.Buffer
}

// NewPass allocates for batches of up to sequences·seq tokens. With t nil it can only go forward.
func (m *Model) NewPass(sequences, seq int, t *Trainable) *Pass {
	if seq > m.Positions {
		panic(fmt.Sprintf("model: sequence of %d, positions end at %d", seq, m.Positions))
	}
	n := sequences * seq
	c, a := m.Config, m.b.Alloc
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	p := &Pass{m: m, config: c, back: m.b, seq: seq, most: n, t: t, final: a(n * c.Dim), invF: a(n), logits: a(n * c.Vocab), h: a(n * c.Dim)}
	count := 1
	if t != nil {
		count = c.Layers
		p.dh, p.dx, p.do = a(n*c.Dim), a(n*c.Dim), a(n*qw)
		p.dq, p.dk, p.dv, p.dqn, p.dkn = a(n*qw), a(n*kw), a(n*kw), a(n*qw), a(n*kw)
		p.drouter = a(n * c.Experts)
		for _, l := range t.layers {
			p.drows = append(p.drows, a(n*len(l.rows)))
		}
	}
	shape := p.shape()
	for range count {
		p.acts = append(p.acts, acts{
			h1: a(n * c.Dim), h2: a(n * c.Dim), inv1: a(n), inv2: a(n), x1: a(n * c.Dim), x2: a(n * c.Dim),
			q: a(n * qw), k: a(n * kw), v: a(n * kw), qn: a(n * qw), kn: a(n * kw), invQ: a(n * c.Heads), invK: a(n * c.KVHeads),
			probs: a(shape.ProbsLen(n)), o: a(n * qw), router: a(n * c.Experts), moe: a(n * c.Dim),
			mix: m.b.NewMix(backend.MixtureShape{Experts: c.Experts, TopK: c.TopK, Model: c.Dim, Width: c.Width, Normalize: c.Normalize}, n, t != nil),
		})
	}
	return p
}

// Adopt makes a pass that was made for forward passes of another model work for m. It reports false, and changes nothing,
// if the two differ in configuration, backend or size.
func (m *Model) Adopt(p *Pass, sequences, seq int) bool {
	if p.t != nil || p.config != m.Config || p.back != m.b || p.seq != seq || p.most != sequences*seq {
		return false
	}
	p.m = m
	return true
}

// Release lets go of the model, not of the memory: the pass is good for Adopt only.
func (p *Pass) Release() { p.m, p.tokens = nil, nil }

func (p *Pass) shape() backend.AttentionShape {
	c := p.m.Config
	return backend.AttentionShape{Seq: p.seq, Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim}
}

// cut returns the first rows·width values of b.
func (p *Pass) cut(b backend.Buffer, width int) backend.Buffer { return b.Slice(0, p.rows*width) }

func (p *Pass) layer(l int) *acts { return &p.acts[min(l, len(p.acts)-1)] }

// trunk runs everything up to the final norm.
func (p *Pass) trunk(tokens []int32) {
	m, c, b := p.m, p.m.Config, p.m.b
	if len(tokens)%p.seq != 0 || len(tokens) > p.most || len(tokens) == 0 {
		panic(fmt.Sprintf("model: batch of %d tokens for sequences of %d, at most %d", len(tokens), p.seq, p.most))
	}
	p.rows, p.tokens = len(tokens), tokens
	eps, s := float32(c.NormEps), p.shape()
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	h := p.cut(p.h, c.Dim)
	b.Embed(h, m.embed, tokens)
	for l := range m.layers {
		y, a := &m.layers[l], p.layer(l)
		h1, h2 := p.cut(a.h1, c.Dim), p.cut(a.h2, c.Dim)
		b.Copy(h1, h)
		x1, q, k, v := p.cut(a.x1, c.Dim), p.cut(a.q, qw), p.cut(a.k, kw), p.cut(a.v, kw)
		b.RMSNorm(x1, p.cut(a.inv1, 1), h1, y.norm1, eps)
		b.Linear(q, x1, y.q)
		b.Linear(k, x1, y.k)
		b.Linear(v, x1, y.v)
		qn, kn, o := p.cut(a.qn, qw), p.cut(a.kn, kw), p.cut(a.o, qw)
		b.HeadNormRope(qn, p.cut(a.invQ, c.Heads), q, y.qNorm, m.rope, c.Heads, p.seq, eps)
		b.HeadNormRope(kn, p.cut(a.invK, c.KVHeads), k, y.kNorm, m.rope, c.KVHeads, p.seq, eps)
		b.Attention(o, a.probs.Slice(0, s.ProbsLen(p.rows)), qn, kn, v, s)
		b.Linear(h2, o, y.o)
		b.Add(h2, h1)
		x2, r, moe := p.cut(a.x2, c.Dim), p.cut(a.router, c.Experts), p.cut(a.moe, c.Dim)
		b.RMSNorm(x2, p.cut(a.inv2, 1), h2, y.norm2, eps)
		b.Linear(r, x2, y.router)
		b.Mixture(moe, x2, r, y.experts, a.mix)
		if p.probe != nil {
			p.probe(l, a)
		}
		b.Copy(h, h2)
		b.Add(h, moe)
	}
	b.RMSNorm(p.cut(p.final, c.Dim), p.cut(p.invF, 1), h, m.norm, eps)
	b.Linear(p.cut(p.logits, c.Vocab), p.cut(p.final, c.Dim), m.head)
}

// Loss writes the loss in nats of every target to losses. tokens and targets are whole sequences one after another.
func (p *Pass) Loss(losses []float64, tokens, targets []int32) {
	p.trunk(tokens)
	p.m.b.CrossEntropy(losses, p.cut(p.logits, p.m.Vocab), targets, 0)
}

// Logits runs forward and returns the logits [tokens, Vocab].
func (p *Pass) Logits(tokens []int32) []float32 {
	p.trunk(tokens)
	out := make([]float32, p.rows*p.m.Vocab)
	p.m.b.Read(out, p.cut(p.logits, p.m.Vocab))
	return out
}

// Probe runs forward and shows visit every layer's router input [tokens, Dim] and how many slots went to each expert.
func (p *Pass) Probe(tokens []int32, visit func(layer int, x []float32, load []int)) {
	x := make([]float32, len(tokens)*p.m.Dim)
	p.probe = func(l int, a *acts) {
		p.m.b.Read(x, p.cut(a.x2, p.m.Dim))
		visit(l, x, a.mix.Load())
	}
	defer func() { p.probe = nil }()
	p.trunk(tokens)
}
