package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/delta"
)

func train(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "train", `Usage: bzd train --group NAME --out DELTA [flags]

Trains one expert group from a checkpoint and writes the update: a delta file, the plaintext that a network would seal.
Only the group's experts and router rows move. Ctrl-C saves beside the output, and so does --save-every; after that, or
after the process was killed at any moment, the same command goes on and gives the same delta as if it had never stopped.

--memory keeps the whole process below an amount. Frozen weights then stay in the checkpoint's files and come into memory
when they are used, so that the model may be larger than memory; the group's experts, their gradients and moments are held
in memory. To fit, it gives up in this order: keeping activations, having all frozen weights in memory at once, the batch in
one piece and, with --state auto, moments in float32. The last two change the delta, and it says so. The checkpoint's files
must not be written to meanwhile.

On a card it multiplies in bfloat16, so that the delta is another than the CPU's.`).network().device()
	o := local.DefaultTrain("", "miner", 0)
	out := c.set.String("out", "", "delta `FILE` to write")
	from := c.set.String("checkpoint", "", "checkpoint directory; empty means the network's genesis")
	moments := c.set.String("moments", "", "`FILE` with the optimizer's moments: read if it exists, written at the end, for the next cycle")
	feedback := c.set.String("feedback", "", "`FILE` with what earlier deltas could not say: read if it exists, written at the end, for the next cycle")
	c.set.StringVar(&o.Group, "group", "", "expert group to train")
	c.set.Int64Var(&o.Tokens, "tokens", o.Tokens, "tokens to train on, replay of general text included")
	c.set.StringVar(&o.Seed, "seed", o.Seed, "the miner's own seed: the order in which it reads the text")
	c.set.Uint64Var(&o.Cycle, "cycle", 0, "cycle: later ones read on in the text")
	c.set.IntVar(&o.Batch, "batch", o.Batch, "sequences per step")
	c.set.IntVar(&o.Replay, "replay", o.Replay, "of them general text, so that it is not forgotten")
	c.set.Float64Var(&o.Lead, "lead", o.Lead, "how much of what could not be sent yet training starts ahead of the checkpoint, 0 to 1")
	c.set.Float64Var(&o.LearningRate, "lr", 0, rateHelp)
	c.set.IntVar(&o.Warmup, "warmup", o.Warmup, "steps in which the learning rate rises to its peak")
	c.set.Var(&o.Schedule, "schedule", "`SHAPE` of the learning rate after that: linear or cosine, to zero at the cycle's end, or constant")
	state := c.set.String("state", "fp32", "moments of the optimizer: fp32, bf16 (half the memory, another delta), or auto: bf16 only where --memory asks for it")
	every := c.set.Duration("save-every", time.Minute, "how much of its work a run that is killed loses at most; 0 saves after every step")
	plan := c.memoryPlan()
	exact := c.set.Bool("exact", false, "on a card, compute as the CPU does, to the bit: the same delta, slower")
	if err := c.parse(args, false); err != nil {
		return err
	}
	must := []string{"group", "out"}
	if plan.show {
		must = must[:1]
	}
	if err := c.require(must...); err != nil {
		return err
	}
	switch {
	case o.Batch < 1 || o.Batch > maxBatch:
		return usageError("--batch %d: 1 to %d", o.Batch, maxBatch)
	case o.Replay < 0 || o.Replay >= o.Batch:
		return usageError("--replay %d: less than --batch, %d, so that something is left for the group", o.Replay, o.Batch)
	case !(o.LearningRate >= 0 && o.LearningRate < 1):
		return usageError("--lr %v: 0 to below 1", o.LearningRate)
	case !(o.Lead >= 0 && o.Lead <= 1):
		return usageError("--lead %v: 0 to 1", o.Lead)
	case o.Warmup < 0:
		return usageError("--warmup %d: at least 0", o.Warmup)
	case *state != "fp32" && *state != "bf16" && *state != "auto":
		return usageError("--state %q: fp32, bf16 or auto", *state)
	case *state == "bf16" && c.on == "cuda":
		return usageError("--state bf16 is for --backend cpu")
	case o.Cycle > maxCycle:
		return usageError("--cycle %d: at most %d", o.Cycle, maxCycle)
	}
	for _, path := range []string{*out, *moments, *feedback} {
		if path == "" {
			continue
		}
		if err := newFile(path); err != nil {
			return err
		}
	}
	host, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	n, start, err := c.openNetwork(host, func(g protocol.Genesis) []string { return trainDomains(g, o.Group) })
	if err != nil {
		return err
	}
	seq, err := n.Sequence(cmp.Or(*from, start))
	if err != nil {
		return err
	}
	if o.LearningRate == 0 {
		o.LearningRate = n.DefaultTrain("", "", 0).LearningRate
	}
	if err := enoughTokens(seq, o); err != nil {
		return err
	}
	kind := momentsOf(n, o.Group)
	o.Half = *state == "bf16"
	var earlier *doneFile
	if *out != "" && !plan.show {
		if earlier, err = finish(*out); err != nil {
			return err
		}
	}
	if *moments != "" {
		s, err := training.ReadState(*moments)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case s.Job != kind:
			return fmt.Errorf("%s: not the moments of group %s in this network; give another file", *moments, o.Group)
		case *state != "auto" && s.Moments.Half() != o.Half:
			return fmt.Errorf("%s: moments of another kind than --state %s; give that of before, or another file", *moments, *state)
		default:
			o.Memory.Moments, o.Half = &s.Moments, s.Moments.Half()
		}
	}
	if plan.host(c) {
		more := training.Host{Feedback: exists(*feedback), Sparse: n.Genesis.Params.TopK > 0}
		if stop, err := plan.fitHost(c, cmp.Or(*from, start), &o, seq, more, *state == "auto" && o.Memory.Moments == nil); stop || err != nil {
			return err
		}
	} else if stop, err := plan.fit(c, cmp.Or(*from, start), &o, seq, *exact); stop || err != nil {
		return err
	}
	b, done, err := c.hardware(c.workers(), !*exact)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	load := local.LoadPhi
	if b.Name() != host.Name() { // a card: its memory is for what is trained
		load = func(b backend.Backend, dir string) (*local.Phi, error) { return local.LoadToTrain(b, dir, o.Group) }
		if !*exact {
			o.Hardware = b.Name()
		}
	} else if plan.host(c) {
		load = local.LoadMapped
	} else {
		o.Micro, o.Recompute = 0, false
	}
	p, err := c.phiBy(load, b, n, *from, start)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	run := c.runOf(p.Link)
	if earlier != nil {
		if earlier.Run == run {
			fmt.Fprint(env.out, earlier.Says)
		}
		if err := errors.Join(local.RemoveState(*out+".state"), os.Remove(donePath(*out))); err != nil || earlier.Run == run {
			return err
		}
	}
	want, err := n.Expect(p, o.Group)
	if err != nil {
		return err
	}
	if *feedback != "" {
		o.Memory.Feedback, err = delta.ReadFeedback(*feedback, want.Group, want.Tensors)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	o.StatePath, o.SaveDue = *out+".state", saveEvery(env.now, *every)
	fmt.Fprintf(env.err, "%s: group %s of %s, %d tokens\n", b.Name(), o.Group, p.Link, o.Tokens)
	d, after, err := local.Train(ctx, n, p, o, newMeter(env, o.Group).report)
	if err != nil {
		return resumable{err, "saved in " + o.StatePath + "; the same command goes on from here"}
	}
	over := doneFile{Run: run, Files: []string{*out}, Says: fmt.Sprintf("wrote %s: group %s, base %s, %d bytes of payload\n", *out, o.Group, p.Link, d.Header().Size)}
	if err := d.WriteFile(next(*out)); err != nil {
		return err
	}
	if *moments != "" {
		over.Files = append(over.Files, *moments)
		if err := training.WriteState(next(*moments), training.State{Job: kind, Values: make([]float32, after.Moments.Len()), Moments: *after.Moments}); err != nil {
			return err
		}
	}
	if *feedback != "" && after.Feedback != nil {
		over.Files = append(over.Files, *feedback)
		if err := after.Feedback.WriteFile(next(*feedback)); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(over)
	if err != nil {
		return err
	}
	if err := writeFile(donePath(*out), raw); err != nil {
		return err
	}
	if _, err := finish(*out); err != nil {
		return err
	}
	fmt.Fprint(env.out, over.Says)
	return errors.Join(local.RemoveState(o.StatePath), os.Remove(donePath(*out)))
}

// saveEvery says when a run is to be saved.
func saveEvery(now func() time.Time, every time.Duration) func(training.Progress) bool {
	last := now()
	return func(training.Progress) bool {
		if now().Sub(last) < every {
			return false
		}
		last = now()
		return true
	}
}

// exists says whether there is a file at path, which may be empty for none.
func exists(path string) bool {
	_, err := os.Stat(path)
	return path != "" && err == nil
}

const rateHelp = "peak learning rate; 0 means 4e-3, or 2e-3 where deltas are dense"

const (
	maxBatch  = 4096    // sequences per step
	maxCycle  = 1 << 20 // of one network
	maxTokens = 1 << 40 // of one cycle
)

// enoughTokens checks that a cycle's tokens are more steps than the warm-up.
func enoughTokens(seq int, o local.TrainOptions) error {
	if least := int64(o.Warmup+1) * int64(o.Batch*seq); o.Tokens < least || o.Tokens > maxTokens {
		return usageError("--tokens %d: from %d, %d steps of %d sequences of %d, to %d", o.Tokens, least, o.Warmup+1, o.Batch, seq, int64(maxTokens))
	}
	return nil
}

// momentsOf marks the files that hold the moments of a group.
func momentsOf(n *local.Network, group string) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "bzd/moments\x00%s\x00%s", genesisCID(n.Genesis), group))
}

// trainDomains are the domains that training a group reads: its own and the canary for replay.
func trainDomains(g protocol.Genesis, name string) []string {
	names := []string{g.Canary}
	for _, x := range g.Groups {
		if x.Name == name {
			names = append(names, x.Domain)
		}
	}
	return names
}
