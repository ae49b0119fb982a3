package cuda_test

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/emu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// golden is a small model with a batch, of package model's test data.
type golden struct {
	Config          json.RawMessage
	Seq             int
	Tokens, Targets []int32
	Weights         map[string][]float32
}

func loadGolden(t *testing.T, name string) golden {
	t.Helper()
	f, err := os.Open("../model/testdata/golden_" + name + ".json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.NewDecoder(z).Decode(&g); err != nil {
		t.Fatal(err)
	}
	return g
}

// source gives the weights; rounded to bfloat16 if short.
func (g golden) source(short bool) model.Source {
	return func(s model.Spec, dst []float32) error {
		if len(g.Weights[s.Name]) != len(dst) {
			return fmt.Errorf("%d values of %s, the file has %d", len(dst), s.Name, len(g.Weights[s.Name]))
		}
		for i, x := range g.Weights[s.Name] {
			if short {
				x = math.Float32frombits(math.Float32bits(x) &^ 0xffff)
			}
			dst[i] = x
		}
		return nil
	}
}

// run trains for two steps at this rate, everything or a group of a frozen model, and returns what came of it.
func (g golden) run(t *testing.T, b backend.Backend, group []model.ExpertRef, rate float64) map[string][]float32 {
	t.Helper()
	c, err := model.ParseConfig(g.Config)
	if err != nil {
		t.Fatal(err)
	}
	var m *model.Model
	var part *model.Trainable
	if group == nil {
		if m, err = model.New(b, c, g.source(false)); err == nil {
			part = m.TrainAll()
		}
	} else if m, err = model.NewFrozen(b, c, g.source(true), group); err == nil {
		part, err = m.TrainGroup(group)
	}
	if err != nil {
		t.Fatal(err)
	}
	o, err := optim.New(b, optim.Defaults(), part.Params())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]float32{}
	p := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, part)
	losses := make([]float64, len(g.Targets))
	for step := range 2 {
		got[fmt.Sprintf("logits %d", step)] = p.Logits(g.Tokens)
		part.Zero()
		p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0.01)
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		for _, l := range losses {
			u := math.Float64bits(l)
			got["losses"] = append(got["losses"], math.Float32frombits(uint32(u>>32)), math.Float32frombits(uint32(u)))
		}
		for _, q := range part.Params() {
			v := make([]float32, q.Grad.Len())
			b.Read(v, q.Grad)
			got[fmt.Sprintf("gradient %d of %s", step, q.Name)] = v
		}
		got["norm"] = append(got["norm"], float32(o.Step(rate)))
		part.Refresh()
	}
	evaluation := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, nil)
	got["logits of an evaluation"] = evaluation.Logits(g.Tokens)
	return got
}

// TestExactModel trains whole models on both backends: everything, and a group of a frozen one whose other experts wait in
// host memory.
func TestExactModel(t *testing.T) {
	for _, name := range []string{"even", "odd"} {
		g := loadGolden(t, name)
		for what, group := range map[string][]model.ExpertRef{"all": nil, "group": {{Layer: 0, Index: 1}, {Layer: 1, Index: 0}}} {
			t.Run(name+"/"+what, func(t *testing.T) {
				host, err := cpu.New(cpu.Options{Threads: 2})
				if err != nil {
					t.Fatal(err)
				}
				device, err := cuda.New(emu.Test(t, emu.Config{}), cuda.Options{Mode: cuda.Exact, Resident: 1})
				if err != nil {
					t.Fatal(err)
				}
				want, got := g.run(t, host, group, 0.01), g.run(t, device, group, 0.01)
				for name := range want {
					compare(t, name, got[name], want[name])
				}
				if len(got) != len(want) {
					t.Errorf("%d results, want %d", len(got), len(want))
				}
			})
		}
	}
}
