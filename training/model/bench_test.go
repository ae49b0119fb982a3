package model_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// demo is the shape of the demo model after its domains were admitted.
var demo = model.Config{Vocab: 256, Dim: 96, Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 32, Experts: 14, TopK: 2, Width: 192,
	Positions: 128, Normalize: true, RopeTheta: 10000, NormEps: 1e-6}

// random fills a model with reproducible noise.
func random(b testing.TB, c model.Config, o cpu.Options) *model.Model {
	b.Helper()
	back, err := cpu.New(o)
	if err != nil {
		b.Fatal(err)
	}
	state := uint32(1)
	m, err := model.New(back, c, func(s model.Spec, dst []float32) error {
		for i := range dst {
			state = state*1664525 + 1013904223
			dst[i] = (float32(state>>8)/(1<<24) - 0.5) * float32(2/math.Sqrt(float64(s.Shape[len(s.Shape)-1])))
			if len(s.Shape) == 1 {
				dst[i] = 1
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return m
}

func tokens(n int) (in, out []int32) {
	state := uint32(9)
	ids := make([]int32, n+1)
	for i := range ids {
		state = state*1664525 + 1013904223
		ids[i] = int32(state >> 24)
	}
	return ids[:n], ids[1:]
}

// step times whole training steps: forward, backward, clipping, AdamW.
func step(b *testing.B, m *model.Model, t *model.Trainable, p *model.Pass, losses []float64, in, out []int32) {
	o, err := optim.New(m.Backend(), optim.Defaults(), t.Params())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		t.Zero()
		p.Step(losses, in, out, 1/float32(len(in)), 0)
		o.Step(1e-6)
		t.Refresh()
	}
}

func BenchmarkDemoModel(b *testing.B) {
	for _, isa := range cpu.Available()[:len(cpu.Available())-1] {
		for _, n := range []int{4, 8} {
			m := random(b, demo, cpu.Options{Threads: 1, ISA: isa})
			in, out := tokens(n * 128)
			losses := make([]float64, len(in))
			rate := func(b *testing.B) {
				b.ReportMetric(float64(len(in))*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
			}
			b.Run(fmt.Sprintf("%s/eval/%dx128", isa, n), func(b *testing.B) {
				p := m.NewPass(n, 128, nil)
				for b.Loop() {
					p.Loss(losses, in, out)
				}
				rate(b)
			})
			b.Run(fmt.Sprintf("%s/train-group/%dx128", isa, n), func(b *testing.B) {
				var group []model.ExpertRef
				for l := range 4 {
					group = append(group, model.ExpertRef{Layer: l, Index: 12}, model.ExpertRef{Layer: l, Index: 13})
				}
				t, err := m.TrainGroup(group)
				if err != nil {
					b.Fatal(err)
				}
				step(b, m, t, m.NewPass(n, 128, t), losses, in, out)
				rate(b)
			})
			b.Run(fmt.Sprintf("%s/train-all/%dx128", isa, n), func(b *testing.B) {
				t := m.TrainAll()
				step(b, m, t, m.NewPass(n, 128, t), losses, in, out)
				rate(b)
			})
		}
	}
}
