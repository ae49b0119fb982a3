package local_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
)

// TestTrainScope: a delta holds the group's tensors and moves each of them, and the checkpoint that miners share stays
// as it was.
func TestTrainScope(t *testing.T) {
	w := shared(t)
	before := weights(w.p.Model)
	d := w.train(t, brief(ledger, "scope"))
	if !maps.Equal(before, weights(w.p.Model)) {
		t.Error("training has changed the shared checkpoint")
	}
	want, err := w.n.Expect(w.p, ledger)
	if err != nil {
		t.Fatal(err)
	}
	h := d.Header()
	if h.Base != w.p.Link || h.Group != ledger || len(h.Tensors) != len(want.Tensors) {
		t.Errorf("delta of %s for %s with %d tensors", h.Group, h.Base, len(h.Tensors))
	}
	for i, e := range h.Tensors {
		if !slices.ContainsFunc(d.Units(i), func(u int32) bool { return u != 0 }) {
			t.Errorf("%s has not moved", e.Name)
		}
	}
	raw, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := delta.Decode(raw, want)
	if err != nil {
		t.Fatal(err)
	}
	if !sameDelta(t, d, again) {
		t.Error("the delta changes on its way through a file")
	}
}

func TestTrainSeeds(t *testing.T) {
	w := tinyWorld(t)
	d := w.train(t, brief(ledger, "one"))
	if !sameDelta(t, d, w.train(t, brief(ledger, "one"))) {
		t.Error("one seed gives two deltas")
	}
	if sameDelta(t, d, w.train(t, brief(ledger, "two"))) {
		t.Error("two seeds give one delta")
	}
	o := brief(ledger, "one")
	o.Replay = 0
	if sameDelta(t, d, w.train(t, o)) {
		t.Error("replay changes nothing")
	}
	_, memory, err := local.Train(t.Context(), w.n, w.p, brief(ledger, "one"), nil)
	if err != nil {
		t.Fatal(err)
	}
	o = brief(ledger, "one")
	o.Memory = memory
	if memory.Moments.Steps == 0 || sameDelta(t, d, w.train(t, o)) {
		t.Errorf("the moments of %d steps change nothing", memory.Moments.Steps)
	}
}

// TestTrainCycle: cycle c of n steps goes on at the sequence where cycle c−1 stopped, in both sources. The loss of a run's
// first step is that of the untouched checkpoint, so it tells which sequences the run began with.
func TestTrainCycle(t *testing.T) {
	w := tinyWorld(t)
	first := func(cycle uint64, steps int64, batch, replay int) float64 {
		o := brief(ledger, "reader")
		o.Cycle, o.Batch, o.Replay, o.Tokens, o.Warmup = cycle, batch, replay, steps*int64(batch)*48, 0
		var loss float64
		if _, _, err := local.Train(t.Context(), w.n, w.p, o, func(p training.Progress) {
			if p.Step == 1 {
				loss = p.Loss
			}
		}); err != nil {
			t.Fatal(err)
		}
		return loss
	}
	own, replayed := map[float64]bool{}, map[int64]bool{}
	for cycle := range uint64(4) {
		alone, both := first(cycle, 3, 1, 0), first(cycle, 3, 2, 1)
		own[alone] = true
		replayed[int64(1e9*(2*both-alone))] = true // the second of two sequences
		if a, b := first(3*cycle, 1, 1, 0), first(3*cycle, 1, 2, 1); a != alone || b != both {
			t.Errorf("cycle %d of 3 steps begins with losses %v and %v, cycle %d of 1 step with %v and %v", cycle, alone, both, 3*cycle, a, b)
		}
	}
	if len(own) != 4 || len(replayed) != 4 {
		t.Errorf("4 cycles begin with %d different sequences of their own and %d of general text", len(own), len(replayed))
	}
}

// interrupt trains until step and then cancels. Nothing comes out but the state file.
func interrupt(t *testing.T, w *world, o local.TrainOptions, step int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d, _, err := local.Train(ctx, w.n, w.p, o, func(p training.Progress) {
		if p.Step == step {
			cancel()
		}
		if p.Step > step {
			t.Errorf("step %d after the run was cancelled at %d", p.Step, step)
		}
	})
	if !errors.Is(err, context.Canceled) || d != nil {
		t.Fatalf("cancelled run returned %v and error %v", d, err)
	}
}

func TestTrainResumes(t *testing.T) {
	w := tinyWorld(t)
	want, wantMemory, err := local.Train(t.Context(), w.n, w.p, brief(maths, "x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	o := brief(maths, "x")
	o.StatePath = filepath.Join(t.TempDir(), "state")
	for _, step := range []int{1, 7, briefSteps - 1} { // one run after the other, each a little further
		interrupt(t, w, o, step)
	}
	var steps []int
	got, memory, err := local.Train(t.Context(), w.n, w.p, o, func(p training.Progress) { steps = append(steps, p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(steps, []int{briefSteps}) {
		t.Errorf("the last run made steps %v, want %d alone", steps, briefSteps)
	}
	if !sameDelta(t, got, want) || !reflect.DeepEqual(memory, wantMemory) {
		t.Error("an interrupted run gives another delta or other moments")
	}
	if err := local.RemoveState(o.StatePath); err != nil {
		t.Fatal(err)
	}
	if err := local.RemoveState(o.StatePath); err != nil {
		t.Errorf("removing a state that is not there: %v", err)
	}
}

// TestTrainCrash: a run that was killed goes on from the state it saved on the way.
func TestTrainCrash(t *testing.T) {
	w := tinyWorld(t)
	o := brief(ledger, "x")
	o.Tokens = 203 * int64(o.Batch) * 48
	want := w.train(t, o)
	dir, crashed := t.TempDir(), filepath.Join(t.TempDir(), "crashed")
	o.StatePath = filepath.Join(dir, "state")
	if _, _, err := local.Train(t.Context(), w.n, w.p, o, func(p training.Progress) {
		if p.Step == 202 { // what the disk holds if the power fails here
			if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	o.StatePath = filepath.Join(crashed, "state")
	var first int
	got, _, err := local.Train(t.Context(), w.n, w.p, o, func(p training.Progress) {
		if first == 0 {
			first = p.Step
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if first != 201 || !sameDelta(t, got, want) {
		t.Errorf("the run went on with step %d; same delta: %v", first, sameDelta(t, got, want))
	}
}

// TestTrainIdentity: a state goes on only in the run that saved it.
func TestTrainIdentity(t *testing.T) {
	w := tinyWorld(t)
	o := brief(ledger, "x")
	_, memory, err := local.Train(t.Context(), w.n, w.p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.StatePath = filepath.Join(t.TempDir(), "state")
	interrupt(t, w, o, 5)
	for name, change := range map[string]func(o *local.TrainOptions){
		"group":   func(o *local.TrainOptions) { o.Group = maths },
		"seed":    func(o *local.TrainOptions) { o.Seed = "y" },
		"cycle":   func(o *local.TrainOptions) { o.Cycle++ },
		"tokens":  func(o *local.TrainOptions) { o.Tokens *= 2 },
		"batch":   func(o *local.TrainOptions) { o.Batch++ },
		"replay":  func(o *local.TrainOptions) { o.Replay = 0 },
		"rate":    func(o *local.TrainOptions) { o.LearningRate *= 2 },
		"warmup":  func(o *local.TrainOptions) { o.Warmup++ },
		"moments": func(o *local.TrainOptions) { o.Memory = memory },
	} {
		other := o
		change(&other)
		_, _, err := local.Train(t.Context(), w.n, w.p, other, nil)
		if !errors.Is(err, training.ErrState) || !strings.Contains(err.Error(), o.StatePath) || !strings.Contains(err.Error(), "delete the file") {
			t.Errorf("another %s: error %v", name, err)
		}
	}
	params := *w.n
	params.Genesis.Params.CanaryPermille++
	if _, _, err := local.Train(t.Context(), &params, w.p, o, nil); !errors.Is(err, training.ErrState) {
		t.Errorf("another network: error %v", err)
	}
	raw, err := os.ReadFile(o.StatePath)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(o.StatePath, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := local.Train(t.Context(), w.n, w.p, o, nil); !errors.Is(err, training.ErrState) || !strings.Contains(err.Error(), "delete the file") {
		t.Errorf("damaged state: error %v", err)
	}
}

// TestTrainCannotSave: that the state could not be saved is said, whether the run ends because of it or was cancelled.
func TestTrainCannotSave(t *testing.T) {
	w := tinyWorld(t)
	o := brief(ledger, "x")
	o.StatePath = filepath.Join(t.TempDir(), "missing", "state")
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := local.Train(ctx, w.n, w.p, o, func(training.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cancelled: error %v", err)
	}
	o.Tokens = 300 * int64(o.Batch) * 48
	last := 0
	_, _, err = local.Train(t.Context(), w.n, w.p, o, func(p training.Progress) { last = p.Step })
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.Canceled) || last != 200 {
		t.Errorf("error %v after step %d", err, last)
	}
}

func TestTrainRefuses(t *testing.T) {
	w := tinyWorld(t)
	for name, c := range map[string]struct {
		change func(o *local.TrainOptions)
		says   string
	}{
		"group":    {func(o *local.TrainOptions) { o.Group = "poetry" }, "[ledger math]"},
		"tokens":   {func(o *local.TrainOptions) { o.Tokens = 95 }, "95 tokens"},
		"negative": {func(o *local.TrainOptions) { o.Tokens = -9600 }, "-9600 tokens"},
		"batch":    {func(o *local.TrainOptions) { o.Batch = 0 }, "batch"},
		"replay":   {func(o *local.TrainOptions) { o.Replay = 2 }, "replay"},
		"rate":     {func(o *local.TrainOptions) { o.LearningRate = 0 }, "learning rate"},
		"cycle":    {func(o *local.TrainOptions) { o.Cycle = 1<<64 - 1 }, "cycle"},
		"far":      {func(o *local.TrainOptions) { o.Cycle = 1 << 62 }, "cycle"},
	} {
		o := brief(ledger, "x")
		c.change(&o)
		if _, _, err := local.Train(t.Context(), w.n, w.p, o, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one about %q", name, err, c.says)
		}
	}
	own, err := local.NewNetwork(w.n.Genesis, w.sets[1:])
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := local.Train(t.Context(), own, w.p, brief(ledger, "x"), nil); !errors.Is(err, local.ErrNoData) || !strings.Contains(err.Error(), "--data prose=DIR") {
		t.Errorf("without text to replay: error %v", err)
	}
	o := brief(ledger, "x")
	o.Replay = 0
	if _, _, err := local.Train(t.Context(), own, w.p, o, nil); err != nil {
		t.Errorf("without replay no general text is needed: %v", err)
	}
}

// TestTrainTooFar: an update that no delta can hold is the miner's own error, with what to do.
func TestTrainTooFar(t *testing.T) {
	w := tinyWorld(t)
	o := brief(ledger, "x")
	o.LearningRate = 0.999
	o.Tokens *= 4
	d, _, err := local.Train(t.Context(), w.n, w.p, o, nil)
	if d != nil || !errors.Is(err, delta.ErrRange) || !strings.Contains(err.Error(), "lower the learning rate") {
		t.Errorf("error %v", err)
	}
}
