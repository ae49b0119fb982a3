package model_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// group has two experts of one layer, one of another, and none in the lowest.
var group = []model.ExpertRef{{Layer: 2, Index: 3}, {Layer: 1, Index: 4}, {Layer: 1, Index: 0}}

// groupParams is what training it may change, in the order of Params.
var groupParams = []string{
	model.RouterName(1) + "#0", model.RouterName(1) + "#4",
	model.ExpertName(1, 0, "gate"), model.ExpertName(1, 0, "up"), model.ExpertName(1, 0, "down"),
	model.ExpertName(1, 4, "gate"), model.ExpertName(1, 4, "up"), model.ExpertName(1, 4, "down"),
	model.RouterName(2) + "#3",
	model.ExpertName(2, 3, "gate"), model.ExpertName(2, 3, "up"), model.ExpertName(2, 3, "down"),
}

// gradients runs one step and reads the gradients by name.
func gradients(m *model.Model, t *model.Trainable, seq int, tokens, targets []int32, balance float32) ([]float64, map[string][]float32) {
	losses := make([]float64, len(tokens))
	t.Zero()
	m.NewPass(len(tokens)/seq, seq, t).Step(losses, tokens, targets, 1/float32(len(tokens)), balance)
	grads := map[string][]float32{}
	for _, p := range t.Params() {
		v := make([]float32, p.Grad.Len())
		m.Backend().Read(v, p.Grad)
		grads[p.Name] = v
	}
	return losses, grads
}

func mustGroup(t *testing.T, m *model.Model, experts []model.ExpertRef) *model.Trainable {
	t.Helper()
	g, err := m.TrainGroup(experts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestTrainGroupRefuses(t *testing.T) {
	m := random(t, small, oneThread)
	for name, bad := range map[string][]model.ExpertRef{
		"none": nil, "twice": {{0, 1}, {1, 1}, {0, 1}}, "layer": {{3, 0}}, "negative layer": {{0, 0}, {-1, 0}}, "expert": {{0, 5}}, "negative expert": {{1, -1}},
	} {
		if g, err := m.TrainGroup(bad); err == nil || g != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestTrainGroupBuffers: what a group does not name has no gradient buffer, and no backward pass goes below what it
// needs.
func TestTrainGroupBuffers(t *testing.T) {
	plain := random(t, small, oneThread)
	count := &counting{Backend: plain.Backend()}
	m := built(t, count, small, snapshot(plain))
	count.values = 0
	g := mustGroup(t, m, group)
	expert := 3*small.Width*small.Dim + small.Dim // and its router row
	if count.values != len(group)*expert {
		t.Errorf("%d values of gradients for a group of %d", count.values, len(group)*expert)
	}
	var names []string
	for _, p := range g.Params() {
		names = append(names, p.Name)
		if p.Value.Len() != p.Grad.Len() {
			t.Errorf("%s: %d values, %d of gradient", p.Name, p.Value.Len(), p.Grad.Len())
		}
	}
	if !slices.Equal(names, groupParams) {
		t.Errorf("parameters %v, want %v", names, groupParams)
	}
	if all := m.TrainAll().Params(); len(all) != len(small.Specs()) {
		t.Errorf("%d parameters of everything, %d tensors", len(all), len(small.Specs()))
	}
	tokens, targets := batch(2, 6, small.Vocab, 1)
	for _, c := range []struct {
		t           *model.Trainable
		attentions  int
		embed       int
		description string
	}{
		{mustGroup(t, m, []model.ExpertRef{{Layer: 2, Index: 0}}), 0, 0, "group of the top layer"},
		{g, 1, 0, "group from the middle"},
		{mustGroup(t, m, []model.ExpertRef{{Layer: 0, Index: 1}}), 2, 0, "group of the lowest layer"},
		{m.TrainAll(), 3, 1, "everything"},
	} {
		count.attentionGrads, count.embedGrads = 0, 0
		gradients(m, c.t, 6, tokens, targets, 0)
		if count.attentionGrads != c.attentions || count.embedGrads != c.embed {
			t.Errorf("%s: went back through %d attentions and %d embeddings, want %d and %d", c.description, count.attentionGrads, count.embedGrads, c.attentions, c.embed)
		}
	}
}

// TestTrainGroupChangesOnlyItself steps an optimizer and compares every tensor with what it was.
func TestTrainGroupChangesOnlyItself(t *testing.T) {
	const n, seq = 4, 12
	for _, c := range []model.Config{small, tied(small)} {
		m := random(t, c, oneThread)
		before := snapshot(m)
		g := mustGroup(t, m, group)
		decay := optim.Defaults()
		decay.Decay = 0.1
		o, err := optim.New(m.Backend(), decay, g.Params())
		if err != nil {
			t.Fatal(err)
		}
		tokens, targets := batch(n, seq, c.Vocab, 2)
		p := m.NewPass(n, seq, g)
		losses := make([]float64, n*seq)
		for range 3 {
			g.Zero()
			p.Step(losses, tokens, targets, 1/float32(n*seq), 0.01)
			o.Step(1e-2)
			g.Refresh()
		}
		after := snapshot(m)
		for name, was := range before {
			width := len(was)
			if strings.Contains(name, "mlp.gate") {
				width = c.Dim
			}
			for r := range len(was) / width {
				key := name
				if width < len(was) {
					key = fmt.Sprintf("%s#%d", name, r)
				}
				changed := differ(after[name][r*width:(r+1)*width], was[r*width:(r+1)*width]) >= 0
				if changed != slices.Contains(groupParams, key) {
					t.Errorf("%s changed: %v", key, changed)
				}
			}
		}
		// The packed forms follow: the trained model is the model of its tensors.
		sameLosses(t, "trained", lossesOf(m, seq, tokens, targets), lossesOf(built(t, m.Backend(), c, after), seq, tokens, targets))
		if got := mean(lossesOf(m, seq, tokens, targets)); got >= mean(losses) {
			t.Errorf("loss %v after another step, %v before it", got, mean(losses))
		}
	}
}

// TestGroupGradient: the gradient of a group is that part of the gradient of everything, bit for bit. Stopping above the
// lowest layer leaves out only operations whose results nobody reads, and a row of a weight gradient is computed in the
// same order whatever stands beside it.
func TestGroupGradient(t *testing.T) {
	const n, seq = 4, 16
	tokens, targets := batch(n, seq, small.Vocab, 4)
	for _, c := range []model.Config{small, tied(small)} {
		for _, isa := range cpu.Available() {
			m := random(t, c, cpu.Options{Threads: 2, ISA: isa})
			for _, balance := range []float32{0, 0.1} {
				allLosses, all := gradients(m, m.TrainAll(), seq, tokens, targets, balance)
				for _, experts := range [][]model.ExpertRef{group, {{2, 1}}, {{0, 2}, {2, 4}}, {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 4}}} {
					losses, part := gradients(m, mustGroup(t, m, experts), seq, tokens, targets, balance)
					sameLosses(t, "group", losses, allLosses)
					for name, got := range part {
						tensor, row, isRow := strings.Cut(name, "#")
						want := all[tensor]
						if isRow {
							r := int(row[0] - '0')
							want = want[r*c.Dim : (r+1)*c.Dim]
						}
						if i := differ(got, want); i >= 0 {
							t.Errorf("%s, group %v, %s: gradient %d is %v, of everything %v", isa, experts, name, i, got[i], want[i])
						}
						if !slices.ContainsFunc(got, func(x float32) bool { return x != 0 }) {
							t.Errorf("group %v, %s: no gradient", experts, name)
						}
					}
				}
			}
		}
	}
}

// TestSameBits compares losses and gradients over instruction sets and numbers of threads.
func TestSameBits(t *testing.T) {
	for _, name := range []string{"even", "odd"} {
		g := loadGolden(t, name)
		var wantLosses []float64
		var want, wantPart map[string][]float32
		for _, isa := range cpu.Available() {
			for threads := 1; threads <= 3; threads++ {
				m := g.model(t, cpu.Options{ISA: isa, Threads: threads})
				losses, all := gradients(m, m.TrainAll(), g.Seq, g.Tokens, g.Targets, 0.01)
				_, part := gradients(m, mustGroup(t, m, []model.ExpertRef{{0, 1}, {1, 0}, {1, 3}}), g.Seq, g.Tokens, g.Targets, 0.01)
				sameLosses(t, "forward only", lossesOf(m, g.Seq, g.Tokens, g.Targets), losses)
				if want == nil {
					wantLosses, want, wantPart = losses, all, part
					continue
				}
				what := fmt.Sprintf("%s, %s, %d threads", name, isa, threads)
				sameLosses(t, what, losses, wantLosses)
				for k, v := range want {
					if i := differ(all[k], v); i >= 0 {
						t.Errorf("%s: gradient %d of %s is %v, want %v", what, i, k, all[k][i], v[i])
					}
				}
				for k, v := range wantPart {
					if i := differ(part[k], v); i >= 0 {
						t.Errorf("%s: group's gradient %d of %s is %v, want %v", what, i, k, part[k][i], v[i])
					}
				}
			}
		}
	}
}

// objective is what a step descends: the mean loss and the load-balance loss of every layer, that in float64 from the
// router's inputs. It also returns which experts every token chose.
func objective(m *model.Model, seq int, tokens, targets []int32, balance float64) (sum float64, chosen []bool) {
	sum = mean(lossesOf(m, seq, tokens, targets))
	c := m.Config
	m.NewPass(len(tokens)/seq, seq, nil).Probe(tokens, func(l int, x []float32, load []int) {
		router := m.Read(model.RouterName(l))
		rows := len(x) / c.Dim
		for r := range rows {
			p, total := make([]float64, c.Experts), 0.0
			for e := range p {
				for i := range c.Dim {
					p[e] += float64(x[r*c.Dim+i]) * float64(router[e*c.Dim+i])
				}
				p[e] = math.Exp(p[e])
				total += p[e]
			}
			least := slices.Sorted(slices.Values(p))[c.Experts-c.TopK]
			for e := range p {
				chosen = append(chosen, p[e] >= least)
				sum += balance * float64(c.Experts) * float64(load[e]) / float64(rows) * p[e] / total / float64(rows)
			}
		}
	})
	return sum, chosen
}

// TestGradient compares the gradient of every tensor with central differences of the objective along two directions: that
// gradient itself, and one that is half noise. The objective jumps where a token changes its experts; of the steps tried,
// the largest is taken that changes no token's. It is large enough for a float32 forward pass to show it: the rounding,
// about 3e-7 over the step, stays below the tolerance. All of it is exact arithmetic, so it is so on every machine.
func TestGradient(t *testing.T) {
	const n, seq, balance = 2, 7, 0.05
	dense := small // every expert for every token, and weights that are not normalised
	dense.TopK, dense.Normalize = small.Experts, false
	loose := small
	loose.Normalize = false
	for name, c := range map[string]model.Config{"untied": small, "tied": tied(small), "dense": dense, "not normalised": loose} {
		t.Run(name, func(t *testing.T) {
			m := random(t, c, oneThread)
			tokens, targets := batch(n, seq, c.Vocab, 6)
			_, grads := gradients(m, m.TrainAll(), seq, tokens, targets, balance)
			_, routing := objective(m, seq, tokens, targets, balance)
			seed, compared := uint32(77), 0
			for _, s := range c.Specs() {
				g, w := grads[s.Name], m.Read(s.Name)
				size := norm(g)
				if size == 0 && !strings.Contains(s.Name, "experts") {
					t.Errorf("%s: no gradient", s.Name)
				}
				if size == 0 {
					continue // an expert that no token chose
				}
				noise := make([]float32, len(g))
				for i := range noise {
					seed = seed*1664525 + 1013904223
					noise[i] = float32(seed>>8)/(1<<23) - 1
				}
				along, mixed := make([]float32, len(g)), make([]float32, len(g))
				for i := range mixed {
					along[i] = g[i] / float32(size)
					mixed[i] = along[i] + noise[i]/float32(norm(noise))
				}
				for what, d := range map[string][]float32{"its gradient": along, "a random direction": mixed} {
					at := func(h float64) (float64, bool) {
						v := slices.Clone(w)
						for i := range v {
							v[i] += float32(h * float64(d[i]))
						}
						m.Write(s.Name, v)
						y, chosen := objective(m, seq, tokens, targets, balance)
						return y, slices.Equal(chosen, routing)
					}
					var want float64
					for i := range g {
						want += float64(g[i]) * float64(d[i])
					}
					for h := 2e-3; ; h /= 2 {
						up, same := at(h)
						down, sameDown := at(-h)
						if h < 2e-4 {
							t.Errorf("%s along %s: every step changes a choice of experts", s.Name, what)
							break
						}
						if !same || !sameDown {
							continue
						}
						got := (up - down) / (2 * h)
						if math.Abs(got-want) > 0.003*math.Abs(want)+3e-7/h {
							t.Errorf("%s along %s, step %g: %v by differences, %v by the backward pass", s.Name, what, h, got, want)
						}
						if math.Abs(want) > 100*3e-7/h {
							compared++
						}
						break
					}
				}
				m.Write(s.Name, w)
			}
			if least := 3 * len(c.Specs()) / 2; compared < least {
				t.Errorf("%d derivatives were large enough to be compared within a few percent, want %d", compared, least)
			}
		})
	}
}

func norm(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// TestStepAdds: gradients add up over steps until they are cleared, so that a batch may be split.
func TestStepAdds(t *testing.T) {
	const n, seq = 4, 10
	m := random(t, small, oneThread)
	tokens, targets := batch(n, seq, small.Vocab, 9)
	_, want := gradients(m, m.TrainAll(), seq, tokens, targets, 0)
	all := m.TrainAll()
	p := m.NewPass(n, seq, all)
	losses := make([]float64, n*seq)
	for _, cut := range [][2]int{{0, 1}, {1, 4}} {
		lo, hi := cut[0]*seq, cut[1]*seq
		p.Step(losses[lo:hi], tokens[lo:hi], targets[lo:hi], 1.0/(n*seq), 0)
	}
	for _, q := range all.Params() {
		v := make([]float32, q.Grad.Len())
		m.Backend().Read(v, q.Grad)
		if d := relative(v, want[q.Name]); d > 2e-6 {
			t.Errorf("%s: the parts' gradient differs by %g", q.Name, d)
		}
	}
	sameLosses(t, "parts", losses, lossesOf(m, seq, tokens, targets))
	all.Zero()
	for _, q := range all.Params() {
		v := make([]float32, q.Grad.Len())
		m.Backend().Read(v, q.Grad)
		if slices.ContainsFunc(v, func(x float32) bool { return x != 0 }) {
			t.Errorf("%s: not cleared", q.Name)
		}
	}
}

// TestLayouts: keeping less and computing it again, and heads taken in parts, change no bit.
func TestLayouts(t *testing.T) {
	const n, seq = 40, 15
	for _, c := range []model.Config{small, tied(small)} {
		m := random(t, c, oneThread)
		tokens, targets := batch(n, seq, c.Vocab, 11)
		for _, whole := range []bool{true, false} {
			run := func(l model.Layout) ([]float64, map[string][]float32) {
				g := m.TrainAll()
				if !whole {
					g = mustGroup(t, m, group)
				}
				l.Sequences, l.Seq = n, seq
				losses := make([]float64, n*seq)
				m.NewPassOf(l, g).Step(losses, tokens, targets, 1.0/(n*seq), 0.01)
				grads := map[string][]float32{}
				for _, p := range g.Params() {
					v := make([]float32, p.Grad.Len())
					m.Backend().Read(v, p.Grad)
					grads[p.Name] = v
				}
				return losses, grads
			}
			want, wants := run(model.Layout{})
			for _, l := range []model.Layout{{Recompute: true}, {HeadRows: 256}, {Recompute: true, HeadRows: 512}} {
				got, grads := run(l)
				sameLosses(t, fmt.Sprintf("%+v", l), got, want)
				for name, v := range grads {
					if i := differ(v, wants[name]); i >= 0 {
						t.Errorf("tied %v, whole %v, %+v: gradient of %s differs at %d", c.Tied, whole, l, name, i)
					}
				}
			}
		}
	}
}

// TestFrozen: a model that keeps only what is trained computes the same, and says what it cannot do.
func TestFrozen(t *testing.T) {
	const n, seq = 4, 12
	for _, c := range []model.Config{small, tied(small)} {
		m := random(t, c, oneThread)
		values := snapshot(m)
		f, err := model.NewFrozen(m.Backend(), c, func(s model.Spec, dst []float32) error { copy(dst, values[s.Name]); return nil }, group)
		if err != nil {
			t.Fatal(err)
		}
		tokens, targets := batch(n, seq, c.Vocab, 2)
		want, wants := gradients(m, mustGroup(t, m, group), seq, tokens, targets, 0.01)
		got, grads := gradients(f, mustGroup(t, f, group), seq, tokens, targets, 0.01)
		sameLosses(t, "frozen", got, want)
		for name, v := range grads {
			if i := differ(v, wants[name]); i >= 0 {
				t.Errorf("gradient of %s differs at %d", name, i)
			}
		}
		if _, err := f.TrainGroup([]model.ExpertRef{{Layer: 0, Index: 0}}); err == nil {
			t.Error("a frozen expert was made trainable")
		}
		changed := map[string][]float32{model.ExpertName(0, 1, "up"): values[model.ExpertName(0, 2, "up")]}
		over, err := f.Overlay(changed)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := m.Overlay(changed)
		if err != nil {
			t.Fatal(err)
		}
		sameLosses(t, "overlay of frozen", lossesOf(over, seq, tokens, targets), lossesOf(plain, seq, tokens, targets))
	}
}
