package local

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// TrainOptions say how a miner trains in a cycle. See docs/genesis.md and docs/adr/0007 for the measurements behind the
// defaults.
type TrainOptions struct {
	Group        string
	Seed         string  // the miner's own: what it draws from the train pools
	Cycle        uint64  // later cycles go on where earlier ones stopped in the text
	Tokens       int64   // per cycle, replay included
	Batch        int     // sequences per step
	Replay       int     // of them general text
	LearningRate float64 // peak
	Warmup       int     // steps
	Lead         float64 // how much of what could not be sent yet the training starts ahead of the checkpoint, 0 to 1
	Hardware     string  `json:",omitempty"` // what trains, unless it computes exactly: a saved run goes on only there
	Micro        int     `json:",omitempty"` // of training.Plan
	Recompute    bool    `json:"-"`          // of training.Plan: it changes no bit

	Schedule optim.Shape `json:",omitempty"` // what the learning rate does after the warm-up
	Half     bool        `json:",omitempty"` // moments in bfloat16; Memory.Moments must be so too

	Memory    Memory `json:"-"` // what the last cycle left; the zero value starts fresh
	StatePath string `json:"-"` // where an interrupted run is saved and found again
	// SaveDue is asked after every step whether to save; nil saves after every 200th.
	SaveDue func(training.Progress) bool `json:"-"`
}

// Memory is what a miner keeps from cycle to cycle. Either may be nil.
type Memory struct {
	Moments  *optim.State // of the optimizer
	Feedback *delta.Feedback
}

// DefaultTrain is what a miner of this network does unless told otherwise. Dense deltas want smaller steps: nothing holds
// them back.
func (n *Network) DefaultTrain(group, seed string, cycle uint64) TrainOptions {
	o := DefaultTrain(group, seed, cycle)
	if n.Genesis.Params.TopK == 0 {
		o.LearningRate = 2e-3
	}
	return o
}

// DefaultTokens is what a miner trains on per cycle, replay included, unless told otherwise.
const DefaultTokens = 16384

// DefaultTrain is what a miner of a network with sparse deltas does unless told otherwise.
func DefaultTrain(group, seed string, cycle uint64) TrainOptions {
	return TrainOptions{Group: group, Seed: seed, Cycle: cycle, Tokens: DefaultTokens, Batch: 2, Replay: 1, LearningRate: 4e-3, Warmup: 1,
		Lead: 0.5}
}

// Train trains one group from p and returns the update as a delta, with what to remember for the next cycle. Only the
// group's experts and router rows move. report may be nil.
func Train(ctx context.Context, n *Network, p *Phi, o TrainOptions, report func(training.Progress)) (*delta.Delta, Memory, error) {
	var after Memory
	d, err := labelled(ctx, Training, func(ctx context.Context) (d *delta.Delta, err error) {
		d, after, err = train(ctx, n, p, o, report)
		if err == nil {
			err = p.unchanged()
		}
		if err != nil {
			return nil, err
		}
		return d, nil
	})
	return d, after, err
}

// trainer is a group in training.
type trainer struct {
	n         *Network
	p         *Phi
	o         TrainOptions
	group     protocol.Group
	want      delta.Expect
	phi       [][]float32 // the checkpoint's values, per tensor of a delta
	model     *model.Model
	trainable *model.Trainable
	optimizer *optim.AdamW
}

func train(ctx context.Context, n *Network, p *Phi, o TrainOptions, report func(training.Progress)) (*delta.Delta, Memory, error) {
	fail := func(err error) (*delta.Delta, Memory, error) { return nil, Memory{}, err }
	t, err := newTrainer(n, p, o)
	if err != nil {
		return fail(err)
	}
	if t.want.TopK == 0 {
		return t.dense(ctx, report)
	}
	// From the checkpoint with a part of what it lacks, to where the group should be.
	x := o.Memory.Feedback.Settle(t.want, p.State.Previous, func(tensor int) []float32 { return t.phi[tensor] })
	ahead := t.phi
	if x != nil && o.Lead > 0 {
		ahead = make([][]float32, len(x))
		for i := range x {
			ahead[i] = make([]float32, len(x[i]))
			for j, v := range x[i] {
				ahead[i][j] = t.phi[i][j] + float32(float32(o.Lead)*v)
			}
		}
		t.write(ahead)
	}
	if err := t.run(ctx, report); err != nil {
		return fail(err)
	}
	moments := t.optimizer.State()
	trained := t.read()
	if x == nil {
		x = make([][]float32, len(trained))
		for i := range x {
			x[i] = make([]float32, len(trained[i]))
		}
	}
	units := make([][]int32, len(x))
	var v []float32 // second moments of a tensor
	at := 0
	for i := range x {
		for j := range x[i] {
			x[i][j] += trained[i][j] - ahead[i][j]
		}
		v = slices.Grow(v[:0], len(x[i]))[:len(x[i])]
		moments.Second(v, at)
		at += len(v)
		chosen, err := delta.Choose(x[i], v, t.want.TopK)
		if err == nil {
			units[i] = make([]int32, len(x[i]))
			err = delta.Send(units[i], x[i], chosen, t.want.TopK)
		}
		if err != nil {
			return fail(t.tooFar(i, err))
		}
	}
	d, err := delta.New(t.want, units)
	if err != nil {
		return fail(err)
	}
	feedback := delta.NewFeedback(d, o.Cycle, func(tensor int) []float32 { return t.phi[tensor] }, x)
	return d, Memory{Moments: &moments, Feedback: feedback}, nil
}

func newTrainer(n *Network, p *Phi, o TrainOptions) (*trainer, error) {
	g, err := group(p.State, o.Group)
	if err != nil {
		return nil, err
	}
	t := &trainer{n: n, p: p, o: o, group: g, want: n.expect(p, g), model: p.Model}
	start := map[string][]float32{}
	for _, x := range t.want.Tensors {
		start[x.CheckpointName()] = p.Model.Read(x.CheckpointName())
		t.phi = append(t.phi, slices.Clone(entry(start[x.CheckpointName()], x)))
	}
	if !p.spent { // tensors of our own, the rest is shared with p
		if t.model, err = p.Model.Overlay(start); err != nil {
			return nil, err
		}
	}
	if t.trainable, err = t.model.TrainGroup(experts(g)); err != nil {
		return nil, err
	}
	c := optim.Defaults()
	c.Half = o.Half
	if t.optimizer, err = optim.New(t.model.Backend(), c, t.trainable.Params()); err != nil {
		return nil, err
	}
	if o.Memory.Moments != nil {
		err = t.optimizer.Restore(*o.Memory.Moments)
	}
	return t, err
}

// dense trains and sends everything.
func (t *trainer) dense(ctx context.Context, report func(training.Progress)) (*delta.Delta, Memory, error) {
	fail := func(err error) (*delta.Delta, Memory, error) { return nil, Memory{}, err }
	if err := t.run(ctx, report); err != nil {
		return fail(err)
	}
	units := make([][]int32, len(t.phi))
	for i, after := range t.read() {
		for j := range after {
			after[j] -= t.phi[i][j]
		}
		units[i] = make([]int32, len(after))
		if err := delta.Quantize(units[i], after); err != nil {
			return fail(t.tooFar(i, err))
		}
	}
	d, err := delta.New(t.want, units)
	moments := t.optimizer.State()
	return d, Memory{Moments: &moments}, err
}

// run trains on the cycle's text.
func (t *trainer) run(ctx context.Context, report func(training.Progress)) error {
	job, err := newJob(t.n, t.model, t.p.Tokens, t.trainable, t.optimizer, t.group, t.o)
	if err != nil {
		return err
	}
	id, err := jobID(t.n, t.p, t.o)
	if err != nil {
		return err
	}
	return runSaved(ctx, job, id, t.o.StatePath, t.o.SaveDue, false, report)
}

// tooFar explains that tensor i has moved further than a delta can say.
func (t *trainer) tooFar(i int, err error) error {
	return fmt.Errorf("%s has moved too far for a delta: %w; lower the learning rate", t.want.Tensors[i].Name, err)
}

// read returns the trained values, per tensor of a delta: the optimizer has them in the same order.
func (t *trainer) read() [][]float32 {
	return t.split(training.Values(t.trainable.Params(), t.model.Backend()))
}

// write sets the trained values.
func (t *trainer) write(values [][]float32) {
	all := slices.Concat(values...)
	for _, p := range t.trainable.Params() {
		t.model.Backend().Write(p.Value, all[:p.Value.Len()])
		all = all[p.Value.Len():]
	}
	t.trainable.Refresh()
}

// split cuts values in the order of the optimizer into tensors of a delta.
func (t *trainer) split(all []float32) [][]float32 {
	out := make([][]float32, len(t.phi))
	for i, phi := range t.phi {
		out[i], all = all[:len(phi):len(phi)], all[len(phi):]
	}
	return out
}

// farthest bounds the number of a sequence of text.
const farthest = 1 << 62

func newJob(n *Network, m *model.Model, tokens Tokenizer, t *model.Trainable, opt *optim.AdamW, g protocol.Group, o TrainOptions) (*training.Job, error) {
	seq := n.seq(tokens)
	own, err := n.dataset(g.Domain)
	if err != nil {
		return nil, err
	}
	src, err := newSource(own, seedOf("order", o.Seed, g.Name), n.window(), seq, tokens)
	if err != nil {
		return nil, err
	}
	plan := training.Plan{Batch: o.Batch, Replay: o.Replay, Seq: seq, Schedule: optim.Schedule{Peak: o.LearningRate, Warmup: o.Warmup, Shape: o.Schedule},
		Micro: o.Micro, Recompute: o.Recompute}
	if o.Batch > 0 {
		plan.Steps = int(o.Tokens / int64(o.Batch*seq))
	}
	if plan.Steps > 0 && o.Cycle > farthest/uint64(plan.Steps*o.Batch) {
		return nil, fmt.Errorf("cycle %d is too far: its sequences of text have no number", o.Cycle)
	}
	plan.First = int64(o.Cycle) * int64(plan.Steps) * int64(o.Batch-o.Replay)
	plan.FirstRep = int64(o.Cycle) * int64(plan.Steps) * int64(o.Replay)
	if o.Batch > 0 && plan.Steps < 1 {
		return nil, fmt.Errorf("%d tokens are less than one step of %d sequences of %d", o.Tokens, o.Batch, seq)
	}
	var rep training.Source
	if o.Replay > 0 {
		general, err := n.dataset(n.Genesis.Canary)
		if err != nil {
			return nil, err
		}
		if rep, err = newSource(general, seedOf("replay", o.Seed, g.Name), n.window(), seq, tokens); err != nil {
			return nil, err
		}
	}
	return training.NewJob(m, t, opt, plan, src, rep)
}

// jobID names a run by everything that its result depends on.
func jobID(n *Network, p *Phi, o TrainOptions) ([32]byte, error) {
	genesis, err := protocol.Encode(n.Genesis)
	if err != nil {
		return [32]byte{}, err
	}
	if o.Hardware != "" {
		o.Micro = 0 // the result depends on more than that already
	}
	options, err := json.Marshal(o)
	if err != nil {
		return [32]byte{}, err
	}
	h := sha256.New()
	h.Write(genesis)
	h.Write(p.Link.Cid().Bytes())
	h.Write(options)
	var values []any
	if m := o.Memory.Moments; m != nil {
		values = append(values, int64(m.Steps), m.M, m.V, m.HalfM, m.HalfV)
	}
	if f := o.Memory.Feedback; f != nil {
		h.Write(f.Base.Cid().Bytes())
		for i, s := range f.Sent {
			values = append(values, f.Rest[i], s.At, s.Units, s.Before)
		}
	}
	for _, v := range values {
		if err := binary.Write(h, binary.LittleEndian, v); err != nil {
			return [32]byte{}, err
		}
	}
	return [32]byte(h.Sum(nil)), nil
}
