package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
)

func train(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "train", `Usage: bzd train --group NAME --out DELTA [flags]

Trains one expert group from a checkpoint and writes the update: a delta file, the plaintext that a network would seal.
Only the group's experts and router rows move. Ctrl-C saves beside the output; the same command goes on and gives the
same delta as if it had never stopped.`).network()
	o := local.DefaultTrain("", "miner", 0)
	out := c.set.String("out", "", "delta `FILE` to write")
	from := c.set.String("checkpoint", "", "checkpoint directory; empty means the network's genesis")
	moments := c.set.String("moments", "", "`FILE` with the optimizer's moments: read if it exists, written at the end, for the next cycle")
	c.set.StringVar(&o.Group, "group", "", "expert group to train")
	c.set.Int64Var(&o.Tokens, "tokens", o.Tokens, "tokens to train on, replay of general text included")
	c.set.StringVar(&o.Seed, "seed", o.Seed, "the miner's own seed: the order in which it reads the text")
	c.set.Uint64Var(&o.Cycle, "cycle", 0, "cycle: later ones read on in the text")
	c.set.IntVar(&o.Batch, "batch", o.Batch, "sequences per step")
	c.set.IntVar(&o.Replay, "replay", o.Replay, "of them general text, so that it is not forgotten")
	c.set.Float64Var(&o.LearningRate, "lr", o.LearningRate, "peak learning rate; falls to zero within the cycle")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if err := c.require("group", "out"); err != nil {
		return err
	}
	b, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	n, start, err := c.openNetwork(b, func(g protocol.Genesis) []string { return trainDomains(g, o.Group) })
	if err != nil {
		return err
	}
	p, err := local.LoadPhi(b, orElse(*from, start))
	if err != nil {
		return err
	}
	if *moments != "" {
		s, err := training.ReadState(*moments)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		default:
			o.Moments = &s.Moments
		}
	}
	o.StatePath = *out + ".state"
	fmt.Fprintf(env.err, "%s: group %s of %s, %d tokens\n", b.Name(), o.Group, p.Link, o.Tokens)
	d, after, err := local.Train(ctx, n, p, o, newMeter(env, o.Group).report)
	if err != nil {
		return resumable{err, "saved in " + o.StatePath + "; the same command goes on from here"}
	}
	if err := d.WriteFile(*out); err != nil {
		return err
	}
	if *moments != "" {
		if err := training.WriteState(*moments, training.State{Values: make([]float32, len(after.M)), Moments: after}); err != nil {
			return err
		}
	}
	if err := local.RemoveState(o.StatePath); err != nil {
		return err
	}
	raw, err := d.Payload()
	if err != nil {
		return err
	}
	fmt.Fprintf(env.out, "wrote %s: group %s, base %s, %d bytes of payload\n", *out, o.Group, p.Link, len(raw))
	return nil
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

func orElse(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}
