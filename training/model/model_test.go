package model_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// small is a model whose lengths are no multiples of a vector, with more experts than a token takes.
var small = model.Config{Vocab: 41, Dim: 24, Layers: 3, Heads: 2, KVHeads: 1, HeadDim: 10, Experts: 5, TopK: 2, Width: 19, Positions: 16,
	Normalize: true, RopeTheta: 10000, NormEps: 1e-6}

func tied(c model.Config) model.Config {
	c.Tied = true
	return c
}

var oneThread = cpu.Options{Threads: 1}

// batch is n sequences of seq tokens and their targets.
func batch(n, seq, vocab int, seed uint32) (tokens, targets []int32) {
	for range n {
		ids := make([]int32, seq+1)
		for i := range ids {
			seed = seed*1664525 + 1013904223
			ids[i] = int32(seed>>8) % int32(vocab)
		}
		tokens, targets = append(tokens, ids[:seq]...), append(targets, ids[1:]...)
	}
	return tokens, targets
}

func lossesOf(m *model.Model, seq int, tokens, targets []int32) []float64 {
	losses := make([]float64, len(tokens))
	m.NewPass(len(tokens)/seq, seq, nil).Loss(losses, tokens, targets)
	return losses
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

func sameLosses(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d losses, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Float64bits(got[i]) != math.Float64bits(want[i]) {
			t.Fatalf("%s: loss %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// differ returns the index of the first value with other bits, −1 if there is none.
func differ(a, b []float32) int {
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			return i
		}
	}
	return -1
}

// snapshot reads every tensor.
func snapshot(m *model.Model) map[string][]float32 {
	all := map[string][]float32{}
	for _, s := range m.Specs() {
		all[s.Name] = m.Read(s.Name)
	}
	return all
}

// built makes a model of the tensors of another.
func built(t *testing.T, b backend.Backend, c model.Config, tensors map[string][]float32) *model.Model {
	t.Helper()
	m, err := model.New(b, c, func(s model.Spec, dst []float32) error { copy(dst, tensors[s.Name]); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// counting is a backend that counts what is asked of it.
type counting struct {
	backend.Backend
	values, weights, attentionGrads, embedGrads int
}

func (c *counting) Alloc(n int) backend.Buffer { c.values += n; return c.Backend.Alloc(n) }

func (c *counting) Prepare(w backend.Buffer, out, in int) backend.Weight {
	c.weights++
	return c.Backend.Prepare(w, out, in)
}

func (c *counting) AttentionGrad(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
	c.attentionGrads++
	c.Backend.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
}

func (c *counting) EmbedGrad(dtable, dy backend.Buffer, ids []int32) {
	c.embedGrads++
	c.Backend.EmbedGrad(dtable, dy, ids)
}

func TestNewRefuses(t *testing.T) {
	b := random(t, small, oneThread).Backend()
	good := func(_ model.Spec, dst []float32) error {
		for i := range dst {
			dst[i] = 0.5
		}
		return nil
	}
	missing := errors.New("no such tensor")
	for _, s := range small.Specs() {
		if strings.Contains(s.Name, "experts.3") || strings.Contains(s.Name, "layers.1") {
			continue // the others have one of every kind
		}
		for name, spoil := range map[string]func(dst []float32) error{
			"missing":      func([]float32) error { return missing },
			"NaN at first": func(dst []float32) error { dst[0] = float32(math.NaN()); return nil },
			"+Inf at last": func(dst []float32) error { dst[len(dst)-1] = float32(math.Inf(1)); return nil },
			"-Inf at last": func(dst []float32) error { dst[len(dst)-1] = float32(math.Inf(-1)); return nil },
		} {
			_, err := model.New(b, small, func(x model.Spec, dst []float32) error {
				if err := good(x, dst); err != nil || x.Name != s.Name {
					return err
				}
				return spoil(dst)
			})
			if !errors.Is(err, model.ErrWeights) || !strings.Contains(err.Error(), s.Name) || errors.Is(err, missing) != (name == "missing") {
				t.Fatalf("%s, %s: %v", s.Name, name, err)
			}
		}
	}
	bad := small
	bad.TopK = 0
	if _, err := model.New(b, bad, good); !errors.Is(err, model.ErrConfig) {
		t.Errorf("configuration that cannot be: %v", err)
	}
	if m, err := model.New(b, small, good); err != nil {
		t.Error(err)
	} else if l := mean(lossesOf(m, 4, make([]int32, 4), make([]int32, 4))); math.Abs(l-math.Log(float64(small.Vocab))) > 1e-5 {
		t.Errorf("a model of equal weights has loss %v, want that of guessing, ln %d", l, small.Vocab)
	}
}

// TestSequenceAlone: whatever stands beside a sequence in its batch, its losses have the same bits; nor do later tokens
// change earlier losses.
func TestSequenceAlone(t *testing.T) {
	const n, seq = 5, 13
	for _, o := range []cpu.Options{oneThread, {Threads: 3}} {
		m := random(t, small, o)
		tokens, targets := batch(n, seq, small.Vocab, 3)
		all := lossesOf(m, seq, tokens, targets)
		p := m.NewPass(n, seq, nil)
		for i := range n {
			lo, hi := i*seq, (i+1)*seq
			sameLosses(t, "alone", lossesOf(m, seq, tokens[lo:hi], targets[lo:hi]), all[lo:hi])
			// Last of a batch of others, in a pass that has seen more before.
			k := (i + 2) % n
			beside := slices.Concat(tokens[k*seq:(k+1)*seq], tokens[lo:hi])
			want := slices.Concat(targets[k*seq:(k+1)*seq], targets[lo:hi])
			got := make([]float64, 2*seq)
			p.Loss(got, beside, want)
			sameLosses(t, "beside another", got[seq:], all[lo:hi])
		}
		later := slices.Clone(tokens)
		later[7] = (later[7] + 1) % int32(small.Vocab)
		got := lossesOf(m, seq, later, targets)
		sameLosses(t, "before a changed token", got[:7], all[:7])
		sameLosses(t, "in other sequences", got[seq:], all[seq:])
		if slices.Equal(got[7:seq], all[7:seq]) {
			t.Error("a changed token changed no loss after it")
		}
	}
}

// TestProbe routes again in float64 from what Probe shows.
func TestProbe(t *testing.T) {
	const n, seq = 4, 16
	m := random(t, small, oneThread)
	tokens, targets := batch(n, seq, small.Vocab, 5)
	loads := map[int][]int{}
	m.NewPass(n, seq, nil).Probe(tokens, func(l int, x []float32, load []int) {
		if _, twice := loads[l]; twice || l != len(loads) {
			t.Errorf("layer %d after %d layers", l, len(loads))
		}
		loads[l] = slices.Clone(load)
		sum := 0
		for _, k := range load {
			sum += k
		}
		if sum != n*seq*small.TopK || len(load) != small.Experts {
			t.Errorf("layer %d: load %v sums to %d, want %d slots", l, load, sum, n*seq*small.TopK)
		}
		want := make([]int, small.Experts)
		router := m.Read(model.RouterName(l))
		for row := range n * seq {
			order, score := make([]int, small.Experts), make([]float64, small.Experts)
			for e := range order {
				order[e] = e
				for i := range small.Dim {
					score[e] += float64(x[row*small.Dim+i]) * float64(router[e*small.Dim+i])
				}
			}
			slices.SortStableFunc(order, func(a, b int) int {
				if score[a] > score[b] {
					return -1
				}
				return 1
			})
			for _, e := range order[:small.TopK] {
				want[e]++
			}
		}
		if !slices.Equal(load, want) {
			t.Errorf("layer %d: load %v, routing in float64 gives %v", l, load, want)
		}
	})
	if len(loads) != small.Layers {
		t.Fatalf("%d layers probed of %d", len(loads), small.Layers)
	}
	p := m.NewPass(n, seq, m.TrainAll())
	p.Step(make([]float64, n*seq), tokens, targets, 1, 0)
	for l, want := range loads {
		if got := p.Load(l); !slices.Equal(got, want) {
			t.Errorf("layer %d: load %v after a step, the probe saw %v", l, got, want)
		}
	}
}

func TestPassRefuses(t *testing.T) {
	m := random(t, small, oneThread)
	p := m.NewPass(2, 4, nil)
	losses := make([]float64, 16)
	for name, f := range map[string]func(){
		"longer than the positions": func() { m.NewPass(1, small.Positions+1, nil) },
		"part of a sequence":        func() { p.Loss(losses[:6], make([]int32, 6), make([]int32, 6)) },
		"more than it was made for": func() { p.Loss(losses[:12], make([]int32, 12), make([]int32, 12)) },
		"nothing":                   func() { p.Loss(nil, nil, nil) },
		"backward without buffers":  func() { p.Step(losses[:4], make([]int32, 4), make([]int32, 4), 1, 0) },
		"unknown tensor":            func() { m.Read("model.layers.9.mlp.gate.weight") },
	} {
		func() {
			defer func() {
				if r := recover(); !strings.HasPrefix(fmt.Sprint(r), "model: ") {
					t.Errorf("%s: panic %v, want one of this package", name, r)
				}
			}()
			f()
		}()
	}
}

// TestOverlay: an overlay computes as a model made of the changed tensors would, leaves its base alone and shares with
// it everything else.
func TestOverlay(t *testing.T) {
	const n, seq = 3, 11
	tokens, targets := batch(n, seq, small.Vocab, 7)
	for _, c := range []model.Config{small, tied(small)} {
		plain := random(t, c, oneThread)
		count := &counting{Backend: plain.Backend()}
		base := built(t, count, c, snapshot(plain))
		before := lossesOf(base, seq, tokens, targets)
		values := snapshot(base)
		names := []string{model.ExpertName(0, 1, "up"), model.RouterName(2), "model.norm.weight", "model.embed_tokens.weight",
			"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_norm.weight"}
		if !c.Tied {
			names = append(names, "lm_head.weight")
		}
		for _, name := range append(names, "all of them") {
			changed := map[string][]float32{}
			allocated, matrices := 0, 0
			for _, k := range names {
				if name == k || name == "all of them" {
					v := slices.Clone(values[k])
					for i := range v {
						v[i] *= 1 + 0.3*float32(i%3)
					}
					changed[k] = v
					allocated += len(v)
					if !strings.Contains(k, "norm") {
						matrices++
					}
				}
			}
			count.values, count.weights = 0, 0
			over, err := base.Overlay(changed)
			if err != nil {
				t.Fatal(err)
			}
			if count.values != allocated || count.weights != matrices {
				t.Errorf("tied %v, %s: %d values and %d matrices made, changed are %d and %d", c.Tied, name, count.values, count.weights, allocated, matrices)
			}
			want := snapshot(base)
			for k, v := range changed {
				want[k] = v
			}
			got := lossesOf(over, seq, tokens, targets)
			sameLosses(t, name, got, lossesOf(built(t, plain.Backend(), c, want), seq, tokens, targets))
			if slices.Equal(got, before) {
				t.Errorf("%s: changed nothing", name)
			}
			sameLosses(t, "base under "+name, lossesOf(base, seq, tokens, targets), before)
			for k, v := range snapshot(over) {
				if i := differ(v, want[k]); i >= 0 {
					t.Errorf("%s: value %d of %s is not what it should be", name, i, k)
				}
			}
		}
	}
}

// TestOverlaySharesWithItsBase: what an overlay does not change it reads from its base, also after a Write.
func TestOverlaySharesWithItsBase(t *testing.T) {
	const n, seq = 2, 8
	tokens, targets := batch(n, seq, small.Vocab, 8)
	for _, c := range []model.Config{small, tied(small)} {
		base := random(t, c, oneThread)
		name := model.ExpertName(1, 2, "down")
		v := base.Read(name)
		for i := range v {
			v[i] = -v[i]
		}
		over, err := base.Overlay(map[string][]float32{name: v})
		if err != nil {
			t.Fatal(err)
		}
		lossesOf(over, seq, tokens, targets) // packs
		lossesOf(base, seq, tokens, targets)
		for _, k := range []string{"model.embed_tokens.weight", model.RouterName(0)} {
			w := base.Read(k)
			for i := range w {
				w[i] *= 1 + float32(i%5)/8
			}
			base.Write(k, w)
			again, err := base.Overlay(map[string][]float32{name: v})
			if err != nil {
				t.Fatal(err)
			}
			fresh := built(t, base.Backend(), c, snapshot(again))
			want := lossesOf(fresh, seq, tokens, targets)
			sameLosses(t, "written to "+k, lossesOf(over, seq, tokens, targets), want)
		}
	}
}

func TestOverlayRefuses(t *testing.T) {
	m := random(t, small, oneThread)
	name := model.RouterName(0)
	n := small.Experts * small.Dim
	nan, inf := make([]float32, n), make([]float32, n)
	nan[n-1], inf[0] = float32(math.NaN()), float32(math.Inf(-1))
	for what, changed := range map[string]map[string][]float32{
		"unknown": {"lm_tail.weight": {1}}, "short": {name: make([]float32, n-1)}, "empty": {name: nil}, "NaN": {name: nan}, "-Inf": {name: inf},
	} {
		for k := range changed {
			if o, err := m.Overlay(changed); o != nil || !errors.Is(err, model.ErrWeights) || !strings.Contains(err.Error(), k) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// TestOverlayTwice: an overlay of an overlay keeps both changes.
func TestOverlayTwice(t *testing.T) {
	const seq = 9
	tokens, targets := batch(2, seq, small.Vocab, 11)
	m := random(t, tied(small), oneThread)
	a, b := "model.embed_tokens.weight", model.ExpertName(2, 0, "gate")
	va, vb := m.Read(a), m.Read(b)
	for i := range va {
		va[i] *= 0.75
	}
	clear(vb)
	one, err := m.Overlay(map[string][]float32{a: va})
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.Overlay(map[string][]float32{b: vb})
	if err != nil {
		t.Fatal(err)
	}
	both, err := m.Overlay(map[string][]float32{a: va, b: vb})
	if err != nil {
		t.Fatal(err)
	}
	sameLosses(t, "one after the other", lossesOf(two, seq, tokens, targets), lossesOf(both, seq, tokens, targets))
}
