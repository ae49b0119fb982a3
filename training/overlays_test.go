package training_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// counter counts what forward passes ask of a backend.
type counter struct {
	backend.Backend
	embeds, attentions, mixtures atomic.Int64
}

func (c *counter) Embed(y backend.Buffer, table backend.Weight, ids []int32) {
	c.embeds.Add(1)
	c.Backend.Embed(y, table, ids)
}

func (c *counter) Attention(out, q, k, v backend.Buffer, a backend.Attn) {
	c.attentions.Add(1)
	c.Backend.Attention(out, q, k, v, a)
}

func (c *counter) Mixture(y, x, logits backend.Buffer, experts []backend.Expert, m backend.Mix) {
	c.mixtures.Add(1)
	c.Backend.Mixture(y, x, logits, experts, m)
}

// counted returns what was asked since the last call: embeddings, attentions, mixtures.
func (c *counter) counted() [3]int64 {
	return [3]int64{c.embeds.Swap(0), c.attentions.Swap(0), c.mixtures.Swap(0)}
}

// overlays are a model on a counting backend and some that change an expert of its second layer.
func overlays(t *testing.T, n int) (*counter, *model.Model, []*model.Model) {
	t.Helper()
	plain, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	from := newModel(t, cpu.Options{Threads: 1}, nil)
	c := &counter{Backend: plain}
	base, err := model.New(c, small, func(s model.Spec, dst []float32) error { copy(dst, from.Read(s.Name)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	var list []*model.Model
	for i := range n {
		name := model.ExpertName(1, i%small.Experts, "down")
		v := base.Read(name)
		for j := range v {
			v[j] += float32(i+1) / 64
		}
		o, err := base.Overlay(map[string][]float32{name: v})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o)
	}
	return c, base, list
}

// TestEach: models measured together have the losses of each by itself, and what they share is computed once a batch.
func TestEach(t *testing.T) {
	c, base, list := overlays(t, 4)
	sequences := sequences(19) // three batches
	stranger := newOn(t, c, 3)
	e := training.Evaluator{Seq: seq, Workers: 2, Spare: &training.Spare{}}
	for name, models := range map[string][]*model.Model{
		"overlays": list, "base too": append([]*model.Model{base}, list...), "base last": append(slices.Clone(list), base),
		"a stranger": {list[0], stranger, list[1]}, "one": list[:1], "stranger alone": {stranger}, "none": nil,
	} {
		c.counted()
		got, err := e.Each(t.Context(), base, models, sequences)
		if err != nil {
			t.Fatal(err)
		}
		asked := c.counted()
		alone, sharing := int64(0), int64(0)
		for i, m := range models {
			want, err := e.Losses(t.Context(), m, sequences)
			if err != nil || got[i].Err != nil || !slices.Equal(got[i].Losses, want) {
				t.Errorf("%s, model %d: %v, want %v, %v", name, i, got[i], want, err)
			}
			if m == stranger {
				alone++
			} else {
				sharing++
			}
		}
		// Sharing models have in common the embedding, the attention of both layers and the mixture of the first.
		const batches = 3
		once := min(1, sharing)
		if want := [3]int64{batches * (once + alone), batches * 2 * (once + alone), batches * (once + sharing + 2*alone)}; asked != want {
			t.Errorf("%s: %v embeddings, attentions, mixtures, want %v", name, asked, want)
		}
	}
}

// newOn is a model of other values on a backend.
func newOn(t *testing.T, b backend.Backend, scale float32) *model.Model {
	t.Helper()
	from := newModel(t, cpu.Options{Threads: 1}, nil)
	m, err := model.New(b, small, func(s model.Spec, dst []float32) error {
		copy(dst, from.Read(s.Name))
		dst[0] *= scale
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEachFails: a model without a finite loss fails alone; what is wrong with the call fails it all.
func TestEachFails(t *testing.T) {
	_, base, list := overlays(t, 2)
	name := model.ExpertName(1, 0, "down")
	v := base.Read(name)
	for i := range v {
		v[i] = math.MaxFloat32
	}
	bad, err := base.Overlay(map[string][]float32{name: v})
	if err != nil {
		t.Fatal(err)
	}
	e := training.Evaluator{Seq: seq, Workers: 2}
	got, err := e.Each(t.Context(), base, []*model.Model{list[0], bad, list[1]}, sequences(19))
	if err != nil || got[0].Err != nil || got[2].Err != nil || !errors.Is(got[1].Err, training.ErrNotFinite) || got[1].Losses != nil {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Each(ctx, base, list, sequences(3)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := e.Each(t.Context(), base, []*model.Model{newModel(t, cpu.Options{Threads: 1}, nil)}, sequences(3)); err == nil {
		t.Error("a model on another backend")
	}
	if _, err := e.Each(t.Context(), base, list, [][]int32{{0, 1 << 20}}); err == nil {
		t.Error("a token that is not in the vocabulary")
	}
}

// TestBelowSkips: what is kept of the base is not computed again, and what there was no room for is.
func TestBelowSkips(t *testing.T) {
	c, base, list := overlays(t, 3)
	sequences := sequences(16)                         // two batches of 8 sequences
	room := int64(4 * 8 * seq * (small.Dim + 1))       // for one of them
	full, rest := [3]int64{2, 4, 4}, [3]int64{0, 0, 2} // of both batches: everything, and the last mixture alone
	for _, x := range []struct {
		limit        int64
		first, later [3]int64
	}{{0, full, full}, {room - 1, full, full}, {room, full, [3]int64{1, 2, 3}}, {2*room - 1, full, [3]int64{1, 2, 3}}, {2 * room, full, rest}} {
		e := training.Evaluator{Seq: seq, Workers: 1, Below: training.NewBelow(base, 1, x.limit)}
		c.counted()
		for i, m := range append([]*model.Model{base}, list...) {
			if _, err := e.Losses(t.Context(), m, sequences); err != nil {
				t.Fatal(err)
			}
			want := x.later
			if i == 0 {
				want = x.first
			}
			if got := c.counted(); got != want {
				t.Errorf("%d bytes, model %d: %v embeddings, attentions, mixtures, want %v", x.limit, i, got, want)
			}
		}
	}
	// The same batch at the same time, and one whose pass fails, take no room for good.
	same := slices.Concat(sequences[:8], sequences[:8], sequences[:8], sequences[8:])
	e := training.Evaluator{Seq: seq, Workers: 4, Below: training.NewBelow(base, 1, 4*room)}
	for range 2 {
		if _, err := e.Losses(t.Context(), list[0], same); err != nil {
			t.Fatal(err)
		}
	}
	c.counted()
	if _, err := e.Losses(t.Context(), list[1], same); err != nil {
		t.Fatal(err)
	}
	if got, want := c.counted(), [3]int64{0, 0, 4}; got != want {
		t.Errorf("batches that are alike: %v, want %v", got, want)
	}
}

// BenchmarkEach measures overlays of a model of four layers one by one, with what the base has in common with them kept,
// and in one pass.
func BenchmarkEach(b *testing.B) {
	c := model.Config{Vocab: 256, Dim: 96, Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 32, Experts: 14, TopK: 2, Width: 192, Positions: 128,
		Normalize: true, RopeTheta: 10000, NormEps: 1e-6}
	on, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	state := uint32(1)
	noise := func(s model.Spec, dst []float32) error {
		for i := range dst {
			state = state*1664525 + 1013904223
			dst[i] = (float32(state>>8)/(1<<24) - 0.5) / 4
		}
		return nil
	}
	base, err := model.New(on, c, noise)
	if err != nil {
		b.Fatal(err)
	}
	var list []*model.Model
	for range 6 {
		changed := map[string][]float32{}
		for l := range c.Layers {
			for _, name := range []string{model.RouterName(l), model.ExpertName(l, 8, "down"), model.ExpertName(l, 9, "down")} {
				changed[name] = base.Read(name)
			}
		}
		o, err := base.Overlay(changed)
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, o)
	}
	var texts [][]int32
	for range 16 {
		s := make([]int32, 129)
		for i := range s {
			state = state*1664525 + 1013904223
			s[i] = int32(state >> 24)
		}
		texts = append(texts, s)
	}
	e := training.Evaluator{Seq: 128, Workers: 1, Spare: &training.Spare{}}
	for name, measure := range map[string]func() error{
		"alone": func() error {
			for _, m := range list {
				if _, err := e.Losses(b.Context(), m, texts); err != nil {
					return err
				}
			}
			return nil
		},
		"kept": func() error {
			e := e
			e.Below = training.NewBelow(base, 0, 1<<30)
			for _, m := range list {
				if _, err := e.Losses(b.Context(), m, texts); err != nil {
					return err
				}
			}
			return nil
		},
		"together": func() error { _, err := e.Each(b.Context(), base, list, texts); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := measure(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
