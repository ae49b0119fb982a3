package training_test

import (
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// TestBelow: sharing what models have in common changes no loss, whatever the overlays change and however much may be
// kept; and it shares with nobody who computes otherwise.
func TestBelow(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	list := sequences(19)
	overlay := func(names ...string) *model.Model {
		t.Helper()
		changed := map[string][]float32{}
		for _, name := range names {
			v := m.Read(name)
			for i := range v {
				v[i] += float32(i%7) / 512
			}
			changed[name] = v
		}
		o, err := m.Overlay(changed)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	last := m.Layers - 1
	models := map[string]struct {
		m      *model.Model
		shared int
	}{
		"base":      {m, m.Layers},
		"expert 0":  {overlay(model.ExpertName(0, 1, "down")), 1},
		"router":    {overlay(model.RouterName(last)), last + 1},
		"both":      {overlay(model.RouterName(last), model.ExpertName(0, 1, "up")), 1},
		"norm":      {overlay("model.layers.1.post_attention_layernorm.weight"), 2},
		"attention": {overlay("model.layers.1.self_attn.q_proj.weight", model.RouterName(last)), 1},
		"embedding": {overlay("model.embed_tokens.weight"), 0},
		"head":      {overlay("model.norm.weight"), m.Layers},
		"stranger":  {newModel(t, cpu.Options{Threads: 1}, nil), 0},
	}
	want := map[string][]int64{}
	for name, x := range models {
		if got := x.m.SharedWith(m); got != x.shared {
			t.Errorf("%s: %d layers are shared, want %d", name, got, x.shared)
		}
		l, err := training.Evaluator{Seq: seq, Workers: 1}.Losses(t.Context(), x.m, list)
		if err != nil {
			t.Fatal(err)
		}
		want[name] = l
	}
	for layer := range m.Layers {
		for _, limit := range []int64{0, 10 * seq * int64(m.Dim) * 4, 1 << 30} {
			e := training.Evaluator{Seq: seq, Workers: 2, Below: training.NewBelow(m, layer, limit), Spare: &training.Spare{}}
			for range 2 {
				for name, x := range models {
					got, err := e.Losses(t.Context(), x.m, list)
					if err != nil || !slices.Equal(got, want[name]) {
						t.Fatalf("%s from layer %d, %d bytes kept: %v, %v, want %v", name, layer, limit, got, err, want[name])
					}
				}
			}
		}
	}
}
