package training

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// Source gives training sequences by number. Sequence i is seq+1 tokens, always the same; the slice is not modified. It
// is safe for concurrent use.
type Source interface {
	Sequence(i int64) []int32
}

// Plan says what a job does. A batch holds Batch sequences, the last Replay of them from the replay source.
type Plan struct {
	Steps    int            // optimizer steps
	Batch    int            // sequences per step
	Replay   int            // sequences per step of general text, so that it is not forgotten
	Seq      int            // tokens per sequence
	First    int64          // number of the first sequence taken from the domain's source
	FirstRep int64          // likewise from the replay source
	Schedule optim.Schedule // learning rate over the steps
	Balance  float64        // coefficient of the load-balance loss
	// Micro is how many sequences go through the model at a time, 0 for the whole batch. Recompute keeps the activations of
	// one layer instead of all. Both save memory; Recompute changes no bit.
	Micro     int
	Recompute bool
}

// Tokens is how many tokens the whole plan trains on.
func (p Plan) Tokens() int64 { return int64(p.Steps) * int64(p.Batch) * int64(p.Seq) }

// Validate reports every fault at once.
func (p Plan) Validate() error {
	var faults []error
	check := func(ok bool, format string, a ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("training plan: "+format, a...))
		}
	}
	check(p.Steps > 0, "%d steps: nothing would be trained", p.Steps)
	check(p.Batch > 0 && p.Batch <= 4096, "batch of %d sequences, must be 1 to 4096", p.Batch)
	check(p.Replay >= 0 && p.Replay < max(p.Batch, 1), "%d replay sequences of %d: none is left for the domain", p.Replay, p.Batch)
	check(p.Micro >= 0, "micro-batch of %d sequences", p.Micro)
	check(p.Seq > 0, "sequences of %d tokens", p.Seq)
	check(p.Schedule.Peak > 0 && p.Schedule.Peak < 1, "learning rate %v, must be above 0 and below 1", p.Schedule.Peak)
	check(p.Schedule.Warmup >= 0 && p.Schedule.Warmup < max(p.Steps, 1), "warm-up of %d steps in %d", p.Schedule.Warmup, p.Steps)
	check(p.Schedule.Shape == optim.Linear || p.Schedule.Shape == optim.Constant || p.Schedule.Shape == optim.Cosine,
		"schedule %q, must be linear, constant or cosine", p.Schedule.Shape)
	check(p.Balance >= 0 && p.Balance < 1, "load-balance coefficient %v", p.Balance)
	return errors.Join(faults...)
}

// ErrDiverged is returned when a loss or gradient is not finite. The weights are those before the step.
var ErrDiverged = errors.New("training diverged: the loss or its gradient is not finite; lower the learning rate")

// Job is a training run in progress. It is for one goroutine.
type Job struct {
	plan      Plan
	model     *model.Model
	trainable *model.Trainable
	optimizer *optim.AdamW
	own, rep  Source
	pass      *model.Pass

	micro           int // sequences of a micro-batch
	step            int
	loss            float64
	tokens, targets []int32
	losses          []float64
}

// NewJob prepares a run from its beginning. rep may be nil when the plan has no replay.
func NewJob(m *model.Model, t *model.Trainable, o *optim.AdamW, p Plan, own, rep Source) (*Job, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if p.Seq > m.Positions {
		return nil, fmt.Errorf("training plan: sequences of %d tokens, the model has %d positions", p.Seq, m.Positions)
	}
	if p.Replay > 0 && rep == nil {
		return nil, fmt.Errorf("training plan: %d replay sequences of a batch, and no source of them", p.Replay)
	}
	n := p.Batch * p.Seq
	j := &Job{
		plan: p, model: m, trainable: t, optimizer: o, own: own, rep: rep, micro: p.Batch,
		tokens: make([]int32, n), targets: make([]int32, n), losses: make([]float64, n),
	}
	if p.Micro > 0 {
		j.micro = min(p.Micro, p.Batch)
	}
	return j, j.allocate()
}

// allocate makes the pass, with smaller micro-batches if memory is short.
func (j *Job) allocate() error {
	for {
		j.pass = nil // its memory is wanted
		j.pass = j.model.NewPassOf(model.Layout{Sequences: j.micro, Seq: j.plan.Seq, Recompute: j.plan.Recompute}, j.trainable)
		err := j.model.Backend().Sync()
		if err == nil || !j.shrink(err) {
			return err
		}
	}
}

// shrink halves the micro-batch if that may help against err.
func (j *Job) shrink(err error) bool {
	if !errors.Is(err, backend.ErrOutOfMemory) || j.micro == 1 {
		return false
	}
	j.micro = (j.micro + 1) / 2
	return true
}

// Micro is how many sequences go through the model at a time: as planned, or fewer if memory was short.
func (j *Job) Micro() int { return j.micro }

// Progress is what a job has done so far.
type Progress struct {
	Step, Steps int
	Loss        float64 // mean of the last batch, nats per token
	Norm        float64 // of its gradient
	Tokens      int64   // trained on since the beginning of the plan
}

// Run steps to the end of the plan, calling report after every step. When ctx is done it returns its error between two
// steps; the job can go on later.
func (j *Job) Run(ctx context.Context, report func(Progress)) error {
	for j.step < j.plan.Steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		j.fill()
		n := len(j.tokens)
		if err := j.gradient(); err != nil {
			return err
		}
		sum := 0.0
		for _, l := range j.losses {
			sum += l
		}
		j.loss = sum / float64(n)
		if math.IsNaN(j.loss) || math.IsInf(j.loss, 0) {
			return ErrDiverged
		}
		norm := j.optimizer.Step(j.plan.Schedule.LR(j.step, j.plan.Steps))
		if math.IsNaN(norm) || math.IsInf(norm, 0) {
			return ErrDiverged
		}
		j.trainable.Refresh()
		j.step++
		if report != nil {
			report(Progress{Step: j.step, Steps: j.plan.Steps, Loss: j.loss, Norm: norm, Tokens: int64(j.step) * int64(n)})
		}
	}
	return j.model.Backend().Sync()
}

// gradient computes losses and gradients of the batch. Memory that runs short on the way costs the batch a second try.
func (j *Job) gradient() error {
	for {
		j.trainable.Zero()
		rows := j.micro * j.plan.Seq
		for lo := 0; lo < len(j.tokens); lo += rows {
			hi := min(lo+rows, len(j.tokens))
			share := float32(hi-lo) / float32(len(j.tokens))
			j.pass.Step(j.losses[lo:hi], j.tokens[lo:hi], j.targets[lo:hi], 1/float32(len(j.tokens)), share*float32(j.plan.Balance))
		}
		err := j.model.Backend().Sync()
		if err == nil || !j.shrink(err) {
			return err
		}
		if err := j.allocate(); err != nil {
			return err
		}
	}
}

// fill gathers the batch of the current step.
func (j *Job) fill() {
	own := j.plan.Batch - j.plan.Replay
	for i := range j.plan.Batch {
		var s []int32
		if i < own {
			s = j.own.Sequence(j.plan.First + int64(j.step)*int64(own) + int64(i))
		} else {
			s = j.rep.Sequence(j.plan.FirstRep + int64(j.step)*int64(j.plan.Replay) + int64(i-own))
		}
		copy(j.tokens[i*j.plan.Seq:], s[:j.plan.Seq])
		copy(j.targets[i*j.plan.Seq:(i+1)*j.plan.Seq], s[1:])
	}
}

// State is a job between two steps: its identity, the trained values and the optimizer's moments.
type State struct {
	Job     [32]byte // what the run is, given by the caller; a state is only restored into the same run
	Step    int
	Values  []float32 // trained values in the order of Trainable.Params
	Moments optim.State
}

// State reads the state out.
func (j *Job) State(id [32]byte) State {
	return State{Job: id, Step: j.step, Values: Values(j.trainable.Params(), j.model.Backend()), Moments: j.optimizer.State()}
}

// ErrState is wrapped when a saved state belongs to another run or is damaged.
var ErrState = errors.New("saved training state not usable")

// Restore puts a state back: the job continues as if it had never stopped.
func (j *Job) Restore(id [32]byte, s State) error {
	switch {
	case s.Job != id:
		return fmt.Errorf("%w: it belongs to another run (other base, group, data, plan or seed)", ErrState)
	case s.Step < 0 || s.Step > j.plan.Steps:
		return fmt.Errorf("%w: step %d of a plan of %d", ErrState, s.Step, j.plan.Steps)
	}
	params := j.trainable.Params()
	n := 0
	for _, p := range params {
		n += p.Value.Len()
	}
	if len(s.Values) != n {
		return fmt.Errorf("%w: %d values, the group has %d", ErrState, len(s.Values), n)
	}
	if err := j.optimizer.Restore(s.Moments); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	v := s.Values
	for _, p := range params {
		j.model.Backend().Write(p.Value, v[:p.Value.Len()])
		v = v[p.Value.Len():]
	}
	j.trainable.Refresh()
	j.step = s.Step
	return nil
}
