package cuda_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

var planned = model.Config{Vocab: 2048, Dim: 128, Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 64, Experts: 16, TopK: 4, Width: 192,
	Positions: 512, Normalize: true, RopeTheta: 10000, NormEps: 1e-5}

// group names the first n experts of every layer.
func group(c model.Config, n int) (refs []model.ExpertRef) {
	for l := range c.Layers {
		for e := range n {
			refs = append(refs, model.ExpertRef{Layer: l, Index: e})
		}
	}
	return refs
}

// constant weights: a fake device computes nothing.
func constant(_ model.Spec, dst []float32) error {
	for i := range dst {
		dst[i] = 1
	}
	return nil
}

// finite stands in for the kernels whose results the host reads: losses and the norm of the gradient.
func finite(kernel string, args []any, memory func(cuda.Ptr) []byte) {
	if strings.Contains(kernel, "cross_entropy") || strings.Contains(kernel, "square") {
		clear(memory(args[0].(cuda.Ptr)))
	}
}

type zeros int

func (n zeros) Sequence(int64) []int32 { return make([]int32, n+1) }

// use trains two steps, or evaluates, and returns what the backend has allocated then.
func use(t *testing.T, o cuda.Options, c model.Config, refs []model.ExpertRef, p training.Plan, train bool) (used int64, micro int) {
	t.Helper()
	info := cuda.Info{Name: "fake", Major: 8, SMs: 4, SharedPerSM: 164 << 10, SharedPerCTA: 163 << 10, Memory: 1 << 30, DriverVersion: 12080}
	d := cudatest.New(cudatest.Options{Info: info, OnLaunch: finite})
	b, err := cuda.New(d, o)
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.NewFrozen(b, c, constant, refs)
	if err != nil {
		t.Fatal(err)
	}
	if !train {
		e := m.NewPass(p.Batch, p.Seq, nil)
		losses, tokens := make([]float64, p.Batch*p.Seq), make([]int32, p.Batch*p.Seq)
		for range 2 {
			e.Loss(losses, tokens, tokens)
			if err := b.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		return b.Used(), p.Batch
	}
	g, err := m.TrainGroup(refs)
	if err != nil {
		t.Fatal(err)
	}
	a, err := optim.New(b, optim.Defaults(), g.Params())
	if err != nil {
		t.Fatal(err)
	}
	j, err := training.NewJob(m, g, a, p, zeros(p.Seq), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Run(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return b.Used(), j.Micro()
}

// kindsOf are what the mode keeps of weights that are all bfloat16 values.
func kindsOf(m cuda.Mode) training.Kinds {
	if m == cuda.Fast {
		return training.FastKinds()
	}
	k := training.ExactKinds()
	k.Experts = 2
	return k
}

// The estimate is what the backend allocates, within a twentieth.
func TestEstimateAgreesWithBackend(t *testing.T) {
	tied, seq := planned, planned
	tied.Tied, tied.KVHeads, tied.TopK = true, 4, 2
	seq.Experts, seq.Width, seq.HeadDim = 8, 512, 128
	for _, mode := range []cuda.Mode{cuda.Fast, cuda.Exact} {
		for i, c := range []model.Config{planned, tied, seq} {
			for _, l := range []model.Layout{{Sequences: 4, Seq: 96}, {Sequences: 1, Seq: 300}, {Sequences: 4, Seq: 128, Recompute: true}} {
				for _, train := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/%d/%dx%d/recompute=%v/train=%v", mode, i, l.Sequences, l.Seq, l.Recompute, train), func(t *testing.T) {
						refs := group(c, 3)
						p := training.Plan{Steps: 2, Batch: l.Sequences, Seq: l.Seq, Recompute: l.Recompute, Schedule: optim.Schedule{Peak: 1e-3}}
						used, _ := use(t, cuda.Options{Mode: mode}, c, refs, p, train)
						trained := refs
						if !train {
							trained = nil
						}
						m := training.Estimate(c, trained, l, kindsOf(mode))
						if !train {
							// NewFrozen of the test leaves the group's experts trainable.
							w := training.Estimate(c, refs, l, kindsOf(mode))
							m.Experts, m.Trained, m.Copies = w.Experts, w.Trained, w.Copies
						}
						if ratio := float64(used) / float64(m.Total()); math.Abs(ratio-1) > 0.05 {
							t.Errorf("%d KiB used, %d KiB estimated: %.3f\n%+v", used>>10, m.Total()>>10, ratio, m)
						}
					})
				}
			}
		}
	}
}

// What Fit finds runs in the memory it was given, in the micro-batches it chose.
func TestFitFits(t *testing.T) {
	refs := group(planned, 3)
	const batch, seq = 8, 128
	for _, mode := range []cuda.Mode{cuda.Fast, cuda.Exact} {
		k := kindsOf(mode)
		whole := training.Estimate(planned, refs, model.Layout{Sequences: batch, Seq: seq}, k).Total()
		seen := map[string]bool{}
		for limit := whole * 11 / 10; ; limit = limit * 9 / 10 {
			f, err := training.Fit(planned, refs, batch, seq, k, limit)
			if err != nil {
				break
			}
			way := fmt.Sprintf("%d %v %v", f.Micro, f.Recompute, f.Memory.Host > 0)
			if seen[way] {
				continue
			}
			seen[way] = true
			t.Run(fmt.Sprintf("%s/%dKiB", mode, limit>>10), func(t *testing.T) {
				o := cuda.Options{Mode: mode, Memory: limit}
				if f.Memory.Host > 0 {
					o.Resident = max(1, f.Resident)
				}
				p := training.Plan{Steps: 2, Batch: batch, Seq: seq, Micro: f.Micro, Recompute: f.Recompute, Schedule: optim.Schedule{Peak: 1e-3}}
				used, micro := use(t, o, planned, refs, p, true)
				if used > limit || micro != f.Micro {
					t.Errorf("%s: %d KiB used of %d, micro-batches of %d", way, used>>10, limit>>10, micro)
				}
				if ratio := float64(used) / float64(f.Memory.Total()); math.Abs(ratio-1) > 0.05 {
					t.Errorf("%s: %d KiB used, %d KiB planned: %.3f\n%+v", way, used>>10, f.Memory.Total()>>10, ratio, f.Memory)
				}
			})
		}
		if len(seen) < 4 {
			t.Errorf("%s: only %d ways were tried: %v", mode, len(seen), seen)
		}
	}
}
