package training_test

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

var small = model.Config{Vocab: 37, Dim: 16, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8, Experts: 4, TopK: 2, Width: 12, Positions: 12,
	Normalize: true, RopeTheta: 10000, NormEps: 1e-6}

var group = []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 0}, {Layer: 1, Index: 2}}

// newModel fills a small model with reproducible noise; spoil may change a tensor before it is loaded.
func newModel(t testing.TB, o cpu.Options, spoil func(name string, v []float32)) *model.Model {
	t.Helper()
	b, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	state := uint32(1)
	m, err := model.New(b, small, func(s model.Spec, dst []float32) error {
		for i := range dst {
			state = state*1664525 + 1013904223
			dst[i] = (float32(state>>8)/(1<<24) - 0.5) * float32(2/math.Sqrt(float64(s.Shape[len(s.Shape)-1])))
			if len(s.Shape) == 1 {
				dst[i] = 1
			}
		}
		if spoil != nil {
			spoil(s.Name, dst)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// source gives noise with a pattern in it, and records which sequences were asked for.
type source struct {
	seed  uint32
	asked []int64
}

const seq = 9

func (s *source) Sequence(i int64) []int32 {
	s.asked = append(s.asked, i)
	return sequence(s.seed, i)
}

func sequence(seed uint32, i int64) []int32 {
	v, state := make([]int32, seq+1), seed*7919+uint32(i)*104729+1
	for k := range v {
		state = state*1664525 + 1013904223
		v[k] = int32(state>>8) % int32(small.Vocab)
		if k%3 == 2 {
			v[k] = (v[k-1] + v[k-2]) % int32(small.Vocab)
		}
	}
	return v
}

var plan = training.Plan{Steps: 12, Batch: 5, Replay: 2, Seq: seq, First: 1000, FirstRep: 7, Schedule: optim.Schedule{Peak: 1e-2, Warmup: 2}, Balance: 0.01}

// run is a job and all that it works on.
type run struct {
	*training.Job
	m        *model.Model
	t        *model.Trainable
	own, rep *source
}

func newRun(t testing.TB, m *model.Model, p training.Plan) run {
	t.Helper()
	g, err := m.TrainGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	c := optim.Defaults()
	c.Decay = 0.01
	o, err := optim.New(m.Backend(), c, g.Params())
	if err != nil {
		t.Fatal(err)
	}
	own, rep := &source{seed: 1}, &source{seed: 2}
	j, err := training.NewJob(m, g, o, p, own, rep)
	if err != nil {
		t.Fatal(err)
	}
	return run{j, m, g, own, rep}
}

// mustRun steps until the plan's end, or until stop steps are done if stop is not 0.
func (r run) mustRun(t testing.TB, stop int) []training.Progress {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var list []training.Progress
	err := r.Run(ctx, func(p training.Progress) {
		list = append(list, p)
		if p.Step == stop {
			cancel()
		}
	})
	if stop == 0 && err != nil || stop != 0 && !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped after %d steps with %v", len(list), err)
	}
	return list
}

func sameBits(t testing.TB, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: value %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func sameState(t testing.TB, what string, got, want training.State) {
	t.Helper()
	if got.Job != want.Job || got.Step != want.Step || got.Moments.Steps != want.Moments.Steps {
		t.Fatalf("%s: job %x at step %d, optimizer at %d, want %x, %d, %d", what, got.Job[:4], got.Step, got.Moments.Steps, want.Job[:4], want.Step, want.Moments.Steps)
	}
	sameBits(t, what+": values", got.Values, want.Values)
	sameBits(t, what+": first moments", got.Moments.M, want.Moments.M)
	sameBits(t, what+": second moments", got.Moments.V, want.Moments.V)
}

var id = [32]byte{1, 2, 3}

// TestJobIsReproducible: the same plan gives the same bits, however many threads compute it with whatever instructions.
func TestJobIsReproducible(t *testing.T) {
	var want training.State
	var reports []training.Progress
	for _, isa := range cpu.Available() {
		for _, threads := range []int{1, 3} {
			r := newRun(t, newModel(t, cpu.Options{ISA: isa, Threads: threads}, nil), plan)
			got := r.mustRun(t, 0)
			if reports == nil {
				reports, want = got, r.State(id)
				continue
			}
			sameState(t, string(isa), r.State(id), want)
			if !slices.Equal(got, reports) {
				t.Errorf("%s, %d threads: reports %v, want %v", isa, threads, got, reports)
			}
		}
	}
	first, last := reports[0], reports[len(reports)-1]
	if len(reports) != plan.Steps || first.Step != 1 || last.Step != plan.Steps || last.Steps != plan.Steps || last.Tokens != plan.Tokens() ||
		first.Tokens != plan.Tokens()/int64(plan.Steps) {
		t.Errorf("first report %+v, last %+v of %d", first, last, len(reports))
	}
	other := plan
	other.First++
	r := newRun(t, newModel(t, cpu.Options{}, nil), other)
	r.mustRun(t, 0)
	if slices.Equal(r.State(id).Values, want.Values) {
		t.Error("other data gave the same weights")
	}
	// It learns: the sequences it saw have become more probable.
	at := func(m *model.Model) int64 {
		l, err := training.Evaluator{Seq: seq}.Losses(t.Context(), m, [][]int32{sequence(1, other.First), sequence(1, other.First+1), sequence(2, other.FirstRep)})
		if err != nil {
			t.Fatal(err)
		}
		return l[0] + l[1] + l[2]
	}
	if before, after := at(newModel(t, cpu.Options{}, nil)), at(r.m); after >= before {
		t.Errorf("losses sum to %d nano-nats after training, %d before", after, before)
	}
}

// TestBatches: the numbers of the sequences of a step follow from the plan and the step alone, also after a restart, and
// the losses are those of these sequences.
func TestBatches(t *testing.T) {
	m := newModel(t, cpu.Options{Threads: 1}, nil)
	var batch [][]int32
	for i := range 3 {
		batch = append(batch, sequence(1, 1000+int64(i)))
	}
	batch = append(batch, sequence(2, 7), sequence(2, 8))
	losses, err := training.Evaluator{Seq: seq}.Losses(t.Context(), m, batch)
	if err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, l := range losses {
		want += l
	}
	r := newRun(t, m, plan)
	first := r.mustRun(t, 4)[0]
	if math.Abs(first.Loss*1e9-float64(want)/5) > 1 {
		t.Errorf("loss %v of the first step, its sequences have %v nano-nats", first.Loss, float64(want)/5)
	}
	state := r.State(id)
	again := newRun(t, newModel(t, cpu.Options{Threads: 1}, nil), plan)
	if err := again.Restore(id, state); err != nil {
		t.Fatal(err)
	}
	again.mustRun(t, 0)
	own, rep := slices.Concat(r.own.asked, again.own.asked), slices.Concat(r.rep.asked, again.rep.asked)
	if len(own) != 12*3 || len(rep) != 12*2 {
		t.Fatalf("%d and %d sequences asked for, want 36 and 24", len(own), len(rep))
	}
	for i := range own {
		if own[i] != 1000+int64(i) {
			t.Fatalf("domain's sequence %d is number %d", i, own[i])
		}
	}
	for i := range rep {
		if rep[i] != 7+int64(i) {
			t.Fatalf("replay sequence %d is number %d", i, rep[i])
		}
	}
}

// TestStopAndContinue: stopped after k steps, written, read and restored into a fresh model on another machine, a job
// ends with the bits of an uninterrupted one.
func TestStopAndContinue(t *testing.T) {
	whole := newRun(t, newModel(t, cpu.Options{Threads: 1}, nil), plan)
	reports := whole.mustRun(t, 0)
	want := whole.State(id)
	for _, k := range []int{0, 1, 5, 11, 12} {
		r := newRun(t, newModel(t, cpu.Options{Threads: 1}, nil), plan)
		if k > 0 && k < plan.Steps {
			r.mustRun(t, k)
		} else if k > 0 {
			r.mustRun(t, 0)
		}
		path := filepath.Join(t.TempDir(), "state")
		if err := training.WriteState(path, r.State(id)); err != nil {
			t.Fatal(err)
		}
		state, err := training.ReadState(path)
		if err != nil {
			t.Fatal(err)
		}
		sameState(t, "read", state, r.State(id))
		available := cpu.Available()
		fresh := newRun(t, newModel(t, cpu.Options{Threads: 2, ISA: available[len(available)-1]}, nil), plan)
		fresh.mustRun(t, 3) // whatever it has done before counts for nothing
		if err := fresh.Restore(id, state); err != nil {
			t.Fatal(err)
		}
		sameState(t, "restored", fresh.State(id), state)
		if got := fresh.mustRun(t, 0); !slices.Equal(got, reports[k:]) {
			t.Errorf("stopped after %d: reports %v, want %v", k, got, reports[k:])
		}
		sameState(t, "continued", fresh.State(id), want)
		// The job that was stopped can go on too.
		r.mustRun(t, 0)
		sameState(t, "went on", r.State(id), want)
	}
}

func TestRunOfCancelledContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newRun(t, newModel(t, cpu.Options{}, nil), plan)
	before := r.State(id)
	if err := r.Run(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	sameState(t, "cancelled before it began", r.State(id), before)
	if len(r.own.asked) != 0 {
		t.Error("it asked for data")
	}
}

func TestRestoreRefuses(t *testing.T) {
	donor := newRun(t, newModel(t, cpu.Options{}, nil), plan)
	donor.mustRun(t, 3)
	for name, spoil := range map[string]func(*training.State){
		"another job":        func(s *training.State) { s.Job[31]++ },
		"negative step":      func(s *training.State) { s.Step = -1 },
		"step past the plan": func(s *training.State) { s.Step = plan.Steps + 1 },
		"a value short":      func(s *training.State) { s.Values = s.Values[1:] },
		"no values":          func(s *training.State) { s.Values = nil },
		"a moment more":      func(s *training.State) { s.Moments.M = append(s.Moments.M, 0) },
		"no second moments":  func(s *training.State) { s.Moments.V = nil },
		"negative optimizer": func(s *training.State) { s.Moments.Steps = -1 },
		"all of a smaller group": func(s *training.State) {
			s.Values, s.Moments.M, s.Moments.V = s.Values[9:], s.Moments.M[9:], s.Moments.V[9:]
		},
	} {
		s := donor.State(id)
		spoil(&s)
		r := newRun(t, newModel(t, cpu.Options{}, nil), plan)
		r.mustRun(t, 1)
		before := r.State(id)
		if err := r.Restore(id, s); !errors.Is(err, training.ErrState) {
			t.Errorf("%s: %v", name, err)
		}
		sameState(t, name, r.State(id), before)
	}
}

// TestDiverged: a job whose loss or gradient is not finite stops with the weights, the moments and the step of before.
func TestDiverged(t *testing.T) {
	const tensor = "model.layers.1.mlp.experts.2."
	for name, c := range map[string]struct {
		spoil func(name string, v []float32)
		gone  func(m *model.Model) // undoes it
	}{
		// Finite weights, infinite logits.
		"loss": {func(name string, v []float32) {
			if name == "model.norm.weight" {
				for i := range v {
					v[i] = math.MaxFloat32
				}
			}
		}, nil},
		// The output is finite, the gradient of the down projection is not: its square passes float32.
		"gradient": {func(name string, v []float32) {
			for i := range v {
				switch name {
				case tensor + "gate_proj.weight", tensor + "up_proj.weight":
					v[i] *= 1e12
				case tensor + "down_proj.weight":
					v[i] *= 1e-25
				}
			}
		}, nil},
	} {
		r := newRun(t, newModel(t, cpu.Options{Threads: 1}, c.spoil), plan)
		before := r.State(id)
		losses, err := training.Evaluator{Seq: seq}.Losses(t.Context(), r.m, [][]int32{sequence(1, 1000)})
		if finite := err == nil; finite != (name == "gradient") {
			t.Errorf("%s: losses before training are %v, %v", name, losses, err)
		}
		reported := 0
		if err := r.Run(t.Context(), func(training.Progress) { reported++ }); !errors.Is(err, training.ErrDiverged) {
			t.Errorf("%s: %v", name, err)
		}
		if reported != 0 {
			t.Errorf("%s: %d steps reported", name, reported)
		}
		sameState(t, name, r.State(id), before)
	}
}

// TestDivergedOnTheWay: the step after weights were spoilt fails, and the job goes on from a state of before.
func TestDivergedOnTheWay(t *testing.T) {
	whole := newRun(t, newModel(t, cpu.Options{}, nil), plan)
	whole.mustRun(t, 0)
	r := newRun(t, newModel(t, cpu.Options{}, nil), plan)
	r.mustRun(t, 4)
	good := r.State(id)
	bad := r.State(id)
	bad.Values[len(bad.Values)-1] = float32(math.NaN())
	if err := r.Restore(id, bad); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), nil); !errors.Is(err, training.ErrDiverged) {
		t.Errorf("a NaN among the weights: %v", err)
	}
	sameState(t, "after the failed step", r.State(id), bad)
	if err := r.Restore(id, good); err != nil {
		t.Fatal(err)
	}
	r.mustRun(t, 0)
	sameState(t, "from the state of before", r.State(id), whole.State(id))
}

func TestPlanValidate(t *testing.T) {
	if err := plan.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := plan.Tokens(); got != 12*5*seq {
		t.Errorf("%d tokens", got)
	}
	nan := math.NaN()
	bad := training.Plan{Steps: 0, Batch: 0, Replay: -1, Seq: 0, Schedule: optim.Schedule{Peak: nan, Warmup: -1}, Balance: nan}
	err := bad.Validate()
	for _, want := range []string{"0 steps", "batch of 0", "-1 replay", "sequences of 0", "learning rate NaN", "warm-up of -1", "coefficient NaN"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	for name, change := range map[string]func(*training.Plan){
		"huge learning rate": func(p *training.Plan) { p.Schedule.Peak = 1 }, "infinite learning rate": func(p *training.Plan) { p.Schedule.Peak = math.Inf(1) },
		"no learning rate": func(p *training.Plan) { p.Schedule.Peak = 0 }, "warm-up to the end": func(p *training.Plan) { p.Schedule.Warmup = p.Steps },
		"nothing but replay": func(p *training.Plan) { p.Replay = p.Batch }, "huge batch": func(p *training.Plan) { p.Batch = 4097 },
		"huge balance": func(p *training.Plan) { p.Balance = 1 }, "past the positions": func(p *training.Plan) { p.Seq = small.Positions + 1 },
	} {
		m := newModel(t, cpu.Options{}, nil)
		g, err := m.TrainGroup(group)
		if err != nil {
			t.Fatal(err)
		}
		p := plan
		change(&p)
		if j, err := training.NewJob(m, g, nil, p, &source{}, &source{}); err == nil || j != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestReplaySource: a plan without replay needs no replay source, any other does.
func TestReplaySource(t *testing.T) {
	m := newModel(t, cpu.Options{}, nil)
	g, err := m.TrainGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	o, err := optim.New(m.Backend(), optim.Defaults(), g.Params())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := training.NewJob(m, g, o, plan, &source{}, nil); err == nil {
		t.Error("a plan with replay was accepted without a source of it")
	}
	p := plan
	p.Replay, p.Steps, p.Schedule.Warmup = 0, 2, 0
	own := &source{}
	j, err := training.NewJob(m, g, o, p, own, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Run(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if want := []int64{1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009}; !slices.Equal(own.asked, want) {
		t.Errorf("asked for %v, want %v", own.asked, want)
	}
}

// TestMicro: in pieces, a batch has the losses of one piece to the bit, for a sequence's loss depends on itself alone. Its
// gradient is another sum: that of a product is cut into blocks of 256 rows, counted from the start of a piece and, for an
// expert, of the slots that a piece sends there (docs/spec/exact.md, section 2). So it is near, not equal. Recomputation
// changes nothing.
func TestMicro(t *testing.T) {
	gradients := func(p training.Plan) (losses float64, values []float32) {
		r := newRun(t, newModel(t, cpu.Options{Threads: 2}, nil), p)
		first := r.mustRun(t, 1)[0]
		for _, x := range r.t.Params() {
			g := make([]float32, x.Grad.Len())
			r.m.Backend().Read(g, x.Grad)
			values = append(values, g...)
		}
		return first.Loss, values
	}
	p := plan
	p.Balance = 0 // it depends on the load of the whole batch
	loss, whole := gradients(p)
	p.Recompute = true
	if l, again := gradients(p); l != loss {
		t.Errorf("loss %v with recomputation, want %v", l, loss)
	} else {
		sameBits(t, "gradient with recomputation", again, whole)
	}
	largest := 0.0
	for _, x := range whole {
		largest = max(largest, math.Abs(float64(x)))
	}
	for micro := 1; micro < p.Batch; micro++ {
		p.Micro, p.Recompute = micro, micro%2 == 0
		l, pieces := gradients(p)
		if l != loss {
			t.Errorf("%d at a time: loss %v, want %v", micro, l, loss)
		}
		same := true
		for i := range whole {
			same = same && pieces[i] == whole[i]
			if d := math.Abs(float64(pieces[i] - whole[i])); !(d <= 1e-5*largest) {
				t.Fatalf("%d at a time: gradient %d is %v, want about %v", micro, i, pieces[i], whole[i])
			}
		}
		if same {
			t.Errorf("%d at a time: the gradient is equal to the bit; then docs and planner should say so", micro)
		}
	}
}
