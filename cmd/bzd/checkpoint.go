package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/blockzero-net/bzd/node/local"
)

const checkpointUsage = `Usage: bzd checkpoint show|import|export [flags] ...

  show DIR          the CID, the model, the files and expert groups of a checkpoint
  import SRC DIR    turn a Hugging Face qwen3_moe model into a checkpoint: all experts in the hub, no groups yet
  export SRC DIR    copy a checkpoint, verified, into a directory that transformers loads as it stands`

func checkpoints(_ context.Context, env environment, args []string) error {
	if len(args) == 0 {
		return usageError("show, import or export?\n%s", checkpointUsage)
	}
	do, want := args[0], 2
	switch do {
	case "-h", "-help", "--help", "help":
		fmt.Fprintln(env.out, checkpointUsage)
		return nil
	case "show":
		want = 1
	case "import", "export":
	default:
		return usageError("no such command %q\n%s", do, checkpointUsage)
	}
	c := newFlags(env, "checkpoint "+do, checkpointUsage).compute()
	round := c.set.Bool("round", false, "import: round hub weights that bf16 cannot hold exactly, instead of refusing them")
	if err := c.parse(args[1:], true); err != nil {
		return err
	}
	if c.set.NArg() != want {
		return usageError("%d arguments, want %d\n%s", c.set.NArg(), want, checkpointUsage)
	}
	from, to := c.set.Arg(0), c.set.Arg(1)
	switch do {
	case "import":
		b, err := c.backend(c.workers())
		if err != nil {
			return err
		}
		link, err := local.Import(b, from, to, *round)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.out, "imported %s as %s in %s\n", from, link, to)
		return nil
	case "export":
		link, err := local.Export(from, to)
		if err != nil {
			return err
		}
		fmt.Fprintf(env.out, "exported %s to %s\n", link, to)
		return nil
	}
	b, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	p, err := local.LoadPhi(b, from)
	if err != nil {
		return err
	}
	return showCheckpoint(env.out, p, from)
}

func showCheckpoint(out io.Writer, p *local.Phi, dir string) error {
	c := p.Model.Config
	fmt.Fprintf(out, "checkpoint  %s\n", p.Link)
	previous := "none, this is a genesis"
	if p.State.Previous != nil {
		previous = p.State.Previous.String()
	}
	fmt.Fprintf(out, "previous    %s\n", previous)
	fmt.Fprintf(out, "model       qwen3_moe, %d parameters: %d layers of %d, %d heads (%d key-value), %d experts of %d, top %d, %d tokens\n",
		c.Params(), c.Layers, c.Dim, c.Heads, c.KVHeads, c.Experts, c.Width, c.TopK, c.Vocab)
	w := table(out)
	fmt.Fprintln(w, "\ngroup\tdomain\tshare\texperts per layer\tparameters\t")
	for _, g := range p.State.Groups {
		per := map[uint32]int{}
		for _, e := range g.Experts {
			per[e.Layer]++
		}
		most := 0
		for _, n := range per {
			most = max(most, n)
		}
		n := len(g.Experts) * (3*c.Width*c.Dim + c.Dim)
		fmt.Fprintf(w, "%s\t%s\t%.1f%%\t%d\t%d\t\n", g.Name, g.Domain, float64(g.Share)/1e4, most, n)
	}
	fmt.Fprintln(w, "\nfile\tbytes\t\t\t\t")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%d\t\t\t\t\n", e.Name(), info.Size())
	}
	return w.Flush()
}
