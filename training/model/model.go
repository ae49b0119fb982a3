package model

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/exact"
)

// ErrWeights is wrapped by errors about tensors: missing, of another shape, not finite.
var ErrWeights = errors.New("model weights not usable")

// Source fills dst with the tensor of that name and shape, or says why not.
type Source func(s Spec, dst []float32) error

// Model is the weights on a backend.
type Model struct {
	Config
	b       backend.Backend
	tensors map[string]backend.Buffer
	weights map[string]backend.Weight // those among them that are matrices, and the frozen ones
	layers  []layer
	embed   backend.Weight
	norm    backend.Buffer
	head    backend.Weight
	rope    backend.Rope

	id   *identity
	over *identity // of the model that this one is an overlay of
	same int       // how many layers of that model are left as they are up to the mixture
}

// identity tells models apart without keeping them.
type identity struct{ _ byte }

type layer struct {
	norm1, norm2, qNorm, kNorm backend.Buffer // without QK norm the last two are nil
	qBias, kBias, vBias        backend.Buffer // nil without biases
	q, k, v, o, router         backend.Weight
	experts                    []backend.Expert
	shared                     backend.Expert // what every token goes through, if the model has that
	sharedGate                 backend.Weight // [1, Dim]: how much of it counts
}

// New loads the model. Every weight must be finite.
func New(b backend.Backend, c Config, src Source) (*Model, error) {
	return load(b, c, src, func(string) bool { return false })
}

// NewFrozen is New for a model of which only routers and the experts named will ever be trained: the other matrices take
// less memory, those of experts may leave the device when its memory is scarce, and Read does not know them.
func NewFrozen(b backend.Backend, c Config, src Source, trained []ExpertRef) (*Model, error) {
	free := map[string]bool{}
	for l := range c.Layers {
		free[RouterName(l)] = true
	}
	for _, e := range trained {
		for _, p := range []string{"gate", "up", "down"} {
			free[ExpertName(e.Layer, e.Index, p)] = true
		}
	}
	return load(b, c, src, func(name string) bool { return !free[name] })
}

func load(b backend.Backend, c Config, src Source, frozen func(name string) bool) (*Model, error) {
	return loadWith(b, c, src, func(Spec) (backend.Weight, error) { return nil, nil }, frozen)
}

// loadWith is load that first asks for a weight that need not be loaded.
func loadWith(b backend.Backend, c Config, src Source, there func(Spec) (backend.Weight, error), frozen func(name string) bool) (*Model, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	m := &Model{Config: c, b: b, id: new(identity), tensors: map[string]backend.Buffer{}, weights: map[string]backend.Weight{}}
	var host []float32
	for _, s := range c.Specs() {
		w, err := there(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrWeights, s.Name, err)
		}
		if w != nil {
			m.weights[s.Name] = w
			continue
		}
		if n := s.Len(); cap(host) < n {
			host = make([]float32, n)
		}
		v := host[:s.Len()]
		if err := src(s, v); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrWeights, s.Name, err)
		}
		if err := finite(v); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrWeights, s.Name, err)
		}
		if len(s.Shape) == 2 && frozen(s.Name) {
			m.weights[s.Name] = b.Freeze(v, s.Shape[0], s.Shape[1], strings.Contains(s.Name, ".experts."))
			continue
		}
		buf := b.Alloc(len(v))
		b.Write(buf, v)
		m.tensors[s.Name] = buf
		if len(s.Shape) == 2 {
			m.weights[s.Name] = b.Prepare(buf, s.Shape[0], s.Shape[1])
		}
	}
	m.rope = ropeTables(b, c)
	m.assemble()
	return m, b.Sync()
}

// assemble points the layers at the tensors.
func (m *Model) assemble() {
	c := m.Config
	m.embed, m.norm = m.weights["model.embed_tokens.weight"], m.tensors["model.norm.weight"]
	m.head = m.weights["lm_head.weight"]
	if c.Tied {
		m.head = m.weights["model.embed_tokens.weight"]
	}
	for l := range c.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		w := func(n string) backend.Weight { return m.weights[p+n+".weight"] }
		t := func(n string) backend.Buffer { return m.tensors[p+n+".weight"] }
		y := layer{
			norm1: t("input_layernorm"), norm2: t("post_attention_layernorm"), qNorm: t("self_attn.q_norm"), kNorm: t("self_attn.k_norm"),
			q: w("self_attn.q_proj"), k: w("self_attn.k_proj"), v: w("self_attn.v_proj"), o: w("self_attn.o_proj"), router: w("mlp.gate"),
		}
		if c.Bias {
			y.qBias, y.kBias, y.vBias = m.tensors[p+"self_attn.q_proj.bias"], m.tensors[p+"self_attn.k_proj.bias"], m.tensors[p+"self_attn.v_proj.bias"]
		}
		if c.Shared > 0 {
			y.shared = backend.Expert{Gate: w("mlp.shared_expert.gate_proj"), Up: w("mlp.shared_expert.up_proj"), Down: w("mlp.shared_expert.down_proj")}
			y.sharedGate = w("mlp.shared_expert_gate")
		}
		for e := range c.Experts {
			y.experts = append(y.experts, backend.Expert{
				Gate: m.weights[ExpertName(l, e, "gate")], Up: m.weights[ExpertName(l, e, "up")], Down: m.weights[ExpertName(l, e, "down")]})
		}
		m.layers = append(m.layers, y)
	}
}

func finite(v []float32) error {
	for i, x := range v {
		if x != x || x > math.MaxFloat32 || x < -math.MaxFloat32 {
			return fmt.Errorf("value %d is %v", i, x)
		}
	}
	return nil
}

// ropeTables computes cos and sin of position·theta^(−2i/headDim): frequency and angle rounded to float32, the functions
// in float64 (docs/spec/exact.md).
func ropeTables(b backend.Backend, c Config) backend.Rope {
	half := c.HeadDim / 2
	cos, sin, neg := make([]float32, c.Positions*half), make([]float32, c.Positions*half), make([]float32, c.Positions*half)
	lnTheta := exact.Log(c.RopeTheta)
	for i := range half {
		freq := float32(exact.Exp(-float64(lnTheta * (float64(2*i) / float64(c.HeadDim)))))
		for p := range c.Positions {
			angle := float64(float32(p) * freq)
			cos[p*half+i], sin[p*half+i] = float32(exact.Cos(angle)), float32(exact.Sin(angle))
			neg[p*half+i] = -sin[p*half+i]
		}
	}
	up := func(v []float32) backend.Buffer {
		d := b.Alloc(len(v))
		b.Write(d, v)
		return d
	}
	return backend.Rope{Cos: up(cos), Sin: up(sin), NegSin: up(neg)}
}

// Overlay returns a model with some tensors replaced. The others, and their packed forms, are shared with m, so the two
// can be compared at the cost of what differs. Values must be finite.
func (m *Model) Overlay(changed map[string][]float32) (*Model, error) {
	o := &Model{
		Config: m.Config, b: m.b, rope: m.rope, tensors: maps.Clone(m.tensors), weights: maps.Clone(m.weights),
		id: new(identity), over: m.id, same: m.Layers,
	}
	for name, v := range changed {
		o.same = min(o.same, untouched(name, m.Layers))
		if m.size(name) != len(v) {
			return nil, fmt.Errorf("%w: %s: no such tensor of %d values", ErrWeights, name, len(v))
		}
		if err := finite(v); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrWeights, name, err)
		}
		buf := m.b.Alloc(len(v))
		m.b.Write(buf, v)
		o.tensors[name] = buf
		if w := m.weights[name]; w != nil {
			out, in := w.Shape()
			o.weights[name] = m.b.Prepare(buf, out, in)
		}
	}
	o.assemble()
	return o, m.b.Sync()
}

// SharedWith returns how many of the lowest layers compute the same in m and in base up to their mixture: all if they are one
// model, those below what was changed if m is an overlay of base, none otherwise.
func (m *Model) SharedWith(base *Model) int {
	switch base.id {
	case m.id:
		return m.Layers
	case m.over:
		return m.same
	}
	return 0
}

// untouched returns how many layers compute the same up to their mixture, whatever the tensor of that name holds.
func untouched(name string, layers int) int {
	var l int
	if _, err := fmt.Sscanf(name, "model.layers.%d.", &l); err != nil {
		if strings.HasPrefix(name, "model.embed") {
			return 0
		}
		return layers // of the head
	}
	if strings.Contains(name, ".mlp.") || strings.Contains(name, ".post_attention_layernorm.") {
		return l + 1
	}
	return l
}

// size is how many values the tensor of that name has; 0 if there is none.
func (m *Model) size(name string) int {
	if t, ok := m.tensors[name]; ok {
		return t.Len()
	}
	if w, ok := m.weights[name]; ok {
		out, in := w.Shape()
		return out * in
	}
	return 0
}

// Backend is what the model computes on.
func (m *Model) Backend() backend.Backend { return m.b }

// Read copies the tensor of that name to a new slice; it panics on a name the configuration does not have, and on a
// frozen one unless the backend is a backend.Mapper.
func (m *Model) Read(name string) []float32 {
	v := make([]float32, m.size(name))
	t, ok := m.tensors[name]
	mapper, can := m.b.(backend.Mapper)
	switch {
	case ok:
		m.b.Read(v, t)
	case can && m.weights[name] != nil:
		mapper.Values(v, m.weights[name])
	default:
		panic("model: no tensor " + name + " that can be read")
	}
	return v
}

// Write replaces the tensor of that name. Nobody may be computing with the model meanwhile.
func (m *Model) Write(name string, v []float32) {
	m.b.Write(m.tensors[name], v)
	if w := m.weights[name]; w != nil {
		w.Refresh()
	}
}
