package local

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// TrainOptions say how a miner trains in a cycle. See docs/genesis.md for the measurements behind the defaults.
type TrainOptions struct {
	Group        string
	Seed         string  // the miner's own: what it draws from the train pools
	Cycle        uint64  // later cycles go on where earlier ones stopped in the text
	Tokens       int64   // per cycle, replay included
	Batch        int     // sequences per step
	Replay       int     // of them general text
	LearningRate float64 // peak; falls to zero within the cycle
	Warmup       int     // steps
	Hardware     string  `json:",omitempty"` // what trains, unless it computes exactly: a saved run goes on only there
	Micro        int     `json:",omitempty"` // of training.Plan
	Recompute    bool    `json:"-"`          // of training.Plan: it changes no bit

	Moments   *optim.State `json:"-"` // of the optimizer after the last cycle; nil starts fresh
	StatePath string       `json:"-"` // where an interrupted run is saved and found again
}

// DefaultTrain is what a miner does unless told otherwise.
func DefaultTrain(group, seed string, cycle uint64) TrainOptions {
	return TrainOptions{Group: group, Seed: seed, Cycle: cycle, Tokens: 4096, Batch: 2, Replay: 1, LearningRate: 2e-3, Warmup: 1}
}

// Train trains one group from p and returns the update as a delta, with the optimizer's moments for the next cycle. Only
// the group's experts and router rows move. report may be nil.
func Train(ctx context.Context, n *Network, p *Phi, o TrainOptions, report func(training.Progress)) (*delta.Delta, optim.State, error) {
	var after optim.State
	d, err := labelled(ctx, Training, func(ctx context.Context) (d *delta.Delta, err error) {
		d, after, err = train(ctx, n, p, o, report)
		return d, err
	})
	return d, after, err
}

func train(ctx context.Context, n *Network, p *Phi, o TrainOptions, report func(training.Progress)) (*delta.Delta, optim.State, error) {
	fail := func(err error) (*delta.Delta, optim.State, error) { return nil, optim.State{}, err }
	g, err := group(p.State, o.Group)
	if err != nil {
		return fail(err)
	}
	layout := p.layout(g)
	start := map[string][]float32{}
	for _, t := range layout {
		start[t.CheckpointName()] = p.Model.Read(t.CheckpointName())
	}
	m := p.Model
	if !p.spent { // tensors of our own, the rest is shared with p
		if m, err = p.Model.Overlay(start); err != nil {
			return fail(err)
		}
	}
	trainable, err := m.TrainGroup(experts(g))
	if err != nil {
		return fail(err)
	}
	opt, err := optim.New(m.Backend(), optim.Defaults(), trainable.Params())
	if err != nil {
		return fail(err)
	}
	if o.Moments != nil {
		if err := opt.Restore(*o.Moments); err != nil {
			return fail(err)
		}
	}
	job, err := newJob(n, m, p.Tokens, trainable, opt, g, o)
	if err != nil {
		return fail(err)
	}
	id, err := jobID(n, p, o)
	if err != nil {
		return fail(err)
	}
	if err := runSaved(ctx, job, id, o.StatePath, report); err != nil {
		return fail(err)
	}
	units := make([][]int32, len(layout))
	for i, t := range layout {
		before, after := entry(start[t.CheckpointName()], t), read(m, t)
		for j := range after {
			after[j] -= before[j]
		}
		units[i] = make([]int32, len(after))
		if err := delta.Quantize(units[i], after); err != nil {
			return fail(fmt.Errorf("%s has moved too far for a delta: %w; lower the learning rate", t.Name, err))
		}
	}
	d, err := delta.New(delta.Expect{Base: p.Link, Group: g.Name, Tensors: layout}, units)
	return d, opt.State(), err
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
	plan := training.Plan{Batch: o.Batch, Replay: o.Replay, Seq: seq, Schedule: optim.Schedule{Peak: o.LearningRate, Warmup: o.Warmup}, Micro: o.Micro, Recompute: o.Recompute}
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
	if o.Moments != nil {
		for _, v := range []any{int64(o.Moments.Steps), o.Moments.M, o.Moments.V} {
			if err := binary.Write(h, binary.LittleEndian, v); err != nil {
				return [32]byte{}, err
			}
		}
	}
	return [32]byte(h.Sum(nil)), nil
}
