package training_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

func sequences(n int) [][]int32 {
	var list [][]int32
	for i := range n {
		list = append(list, sequence(3, int64(i)))
	}
	return list
}

// TestLosses: a sequence's loss depends on the model and the sequence alone: not on how many work, on the order, nor on
// how many others there are.
func TestLosses(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	list := sequences(53) // no multiple of a batch
	want, err := training.Evaluator{Seq: seq, Workers: 1}.Losses(t.Context(), m, list)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range list {
		losses := make([]float64, seq)
		m.NewPass(1, seq, nil).Loss(losses, s[:seq], s[1:])
		sum := 0.0
		for _, l := range losses {
			sum += l
		}
		if got := math.RoundToEven(sum / seq * 1e9); got != float64(want[i]) {
			t.Fatalf("sequence %d: %d nano-nats, its pass gives %v", i, want[i], got)
		}
		if want[i] < 1e9 || want[i] > 1e10 {
			t.Errorf("sequence %d: %d nano-nats are no plausible loss of %d tokens to choose from", i, want[i], small.Vocab)
		}
	}
	for workers := range 5 { // 0 counts as 1
		for _, o := range []cpu.Options{{Threads: 1}, {Threads: 2}} {
			e := training.Evaluator{Seq: seq, Workers: workers}
			got, err := e.Losses(t.Context(), newModel(t, o, nil), list)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%d workers: %v, %v, want %v", workers, got, err, want)
			}
			reversed := slices.Clone(list)
			slices.Reverse(reversed)
			got, err = e.Losses(t.Context(), m, reversed)
			slices.Reverse(got)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%d workers, reversed: %v, %v, want %v", workers, got, err, want)
			}
			got, err = e.Losses(t.Context(), m, list[7:8])
			if err != nil || !slices.Equal(got, want[7:8]) {
				t.Fatalf("%d workers, alone: %v, %v, want %v", workers, got, err, want[7])
			}
		}
	}
	if got, err := (training.Evaluator{Seq: seq, Workers: 2}).Losses(t.Context(), m, nil); err != nil || len(got) != 0 {
		t.Errorf("no sequences: %v, %v", got, err)
	}
}

// cancelAfter is a context that is done from the n-th time somebody asks.
type cancelAfter struct {
	context.Context
	left atomic.Int64
}

func (c *cancelAfter) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

func TestLossesCancelled(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	list := sequences(60) // four batches
	for workers := 1; workers <= 3; workers++ {
		for n := range int64(4) {
			ctx := &cancelAfter{Context: t.Context()}
			ctx.left.Store(n)
			got, err := training.Evaluator{Seq: seq, Workers: workers}.Losses(ctx, m, list)
			if !errors.Is(err, context.Canceled) || got != nil {
				t.Errorf("%d workers, cancelled after %d batches: %d losses, %v", workers, n, len(got), err)
			}
			if asked := n - ctx.left.Load(); asked > n+int64(workers) {
				t.Errorf("%d workers, cancelled after %d batches: asked %d times", workers, n, asked)
			}
		}
	}
}

func TestLossesNotFinite(t *testing.T) {
	spoilt := func(tensor string, value float32) *model.Model {
		return newModel(t, cpu.Options{Threads: 1}, func(name string, v []float32) {
			if name == tensor {
				for i := range v {
					v[i] = value
				}
			}
		})
	}
	list := sequences(40)
	for name, m := range map[string]*model.Model{
		"infinite logits": spoilt("model.norm.weight", math.MaxFloat32),
		"past int64":      spoilt("model.norm.weight", 1e25),
		"infinite expert": spoilt("model.layers.0.mlp.experts.1.down_proj.weight", math.MaxFloat32),
	} {
		for workers := 1; workers <= 3; workers++ {
			if got, err := (training.Evaluator{Seq: seq, Workers: workers}).Losses(t.Context(), m, list); !errors.Is(err, training.ErrNotFinite) || got != nil {
				t.Errorf("%s, %d workers: %v, %v", name, workers, got, err)
			}
		}
	}
	// One bad sequence among good ones spoils the call: one with a token that goes to the infinite expert.
	m := spoilt("model.layers.0.mlp.experts.1.down_proj.weight", math.MaxFloat32)
	e := training.Evaluator{Seq: 2, Workers: 2}
	var good, bad [][]int32
	for _, s := range list {
		switch _, err := e.Losses(t.Context(), m, [][]int32{s[:3]}); {
		case err == nil:
			good = append(good, s[:3])
		case errors.Is(err, training.ErrNotFinite):
			bad = append(bad, s[:3])
		default:
			t.Fatal(err)
		}
	}
	for len(good) > 0 && len(good) < 40 {
		good = append(good, good[0])
	}
	if len(bad) == 0 || len(good) == 0 {
		t.Fatalf("%d bad sequences, %d good ones", len(bad), len(good))
	}
	if _, err := e.Losses(t.Context(), m, good); err != nil {
		t.Errorf("good sequences: %v", err)
	}
	for _, at := range []int{0, 17, 39} {
		if got, err := e.Losses(t.Context(), m, slices.Insert(slices.Clone(good), at, bad[0])); !errors.Is(err, training.ErrNotFinite) || got != nil {
			t.Errorf("a bad sequence at %d: %v, %v", at, got, err)
		}
	}
}

// TestLossesShort: a sequence with fewer tokens has the loss, to the bit, that it has where all are as long.
func TestLossesShort(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	full := sequences(3)
	for n := 2; n <= seq+1; n++ {
		var list [][]int32
		for _, s := range full {
			list = append(list, s[:n])
		}
		want, err := training.Evaluator{Seq: n - 1, Workers: 1}.Losses(t.Context(), m, list)
		if err != nil {
			t.Fatal(err)
		}
		mixed := append(slices.Clone(list), full[0])
		got, err := training.Evaluator{Seq: seq, Workers: 1}.Losses(t.Context(), m, mixed)
		if err != nil || !slices.Equal(got[:3], want) {
			t.Errorf("%d tokens: %v, %v, want %v", n, got, err, want)
		}
		if !slices.Equal(mixed[0], full[0][:n]) || len(mixed[3]) != seq+1 {
			t.Fatal("the sequences given were changed")
		}
	}
	got, err := training.Evaluator{Seq: seq, Workers: 1}.Losses(t.Context(), m, [][]int32{nil, {3}})
	if err != nil || !slices.Equal(got, []int64{0, 0}) {
		t.Errorf("nothing to predict: %v, %v", got, err)
	}
}

// TestLossesRefuses: what does not fit the model is an error of the call, never a panic in a worker.
func TestLossesRefuses(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	long := make([]int32, small.Positions+2)
	for name, c := range map[string]struct {
		seq  int
		list [][]int32
	}{
		"long":               {seq, append(sequences(3), long[:seq+2])},
		"unknown token":      {1, [][]int32{{0, 1}, {int32(small.Vocab), 0}}},
		"unknown target":     {1, [][]int32{{0, 1}, {0, int32(small.Vocab)}}},
		"negative token":     {1, [][]int32{{-1, 0}}},
		"past the positions": {small.Positions + 1, [][]int32{long}},
		"of no length":       {0, [][]int32{{1}}},
		"of negative length": {-1, [][]int32{{}}},
	} {
		for workers := 1; workers <= 2; workers++ {
			got, err := training.Evaluator{Seq: c.seq, Workers: workers}.Losses(t.Context(), m, c.list)
			if err == nil || errors.Is(err, training.ErrNotFinite) || got != nil {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		}
	}
}
