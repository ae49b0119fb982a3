package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/node/local"
)

const checkpointHelp = `Usage: bzd checkpoint show|ls|get|diff|import|export [flags] ...

  show DIR          the CID, the model, the files and expert groups of a checkpoint
  ls                the checkpoints that a node has, with their cycles and certificates
  get CID           fetch a checkpoint from the peers of a network or from a gateway
  diff A B          what a peer that has A must fetch for B, by file and expert group
  import SRC DIR    turn a Hugging Face model of any family that bzd computes into a checkpoint: all experts in the hub
  import --car FILE [DIR]   bring a checkpoint from a CAR file into the block store, and write it to a directory
  export SRC DIR    copy a checkpoint, verified, into a directory that transformers loads as it stands
  export --car FILE SRC     write a checkpoint, a directory or the CID of one in the block store, to a CAR file`

// dirs reads the flags and the directories that follow them.
func (c *common) dirs(args []string, names ...string) error {
	if err := c.parse(args, true); err != nil {
		return err
	}
	if c.set.NArg() != len(names) {
		return usageError("%d arguments, want %d: %s", c.set.NArg(), len(names), strings.Join(names, " "))
	}
	return nil
}

func checkpointShow(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "checkpoint show", `Usage: bzd checkpoint show [flags] DIR

Shows the CID, the model, the files and expert groups of a checkpoint, after reading every byte of it.`).compute()
	if err := c.dirs(args, "DIR"); err != nil {
		return err
	}
	b, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	p, err := local.LoadPhi(b, c.set.Arg(0))
	if err != nil {
		return err
	}
	return showCheckpoint(env.out, p, c.set.Arg(0))
}

func checkpointImport(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "checkpoint import", `Usage: bzd checkpoint import [flags] SRC DIR
       bzd checkpoint import --car FILE [flags] [DIR]

Turns a Hugging Face model (qwen3_moe, olmoe, mixtral or qwen2_moe) into a checkpoint: all experts in the hub, no groups
yet. With groups it is bzd genesis import. With --car it brings a checkpoint from a CAR file into the block store of the
node's directory, every block verified, and writes it to DIR.`).compute().nodeDir()
	car := c.set.String("car", "", "CAR `FILE` to read")
	limit := size(64 << 30)
	c.set.Var(&limit, "limit", "with --car, the most that the checkpoint may have, such as 8GiB")
	asJSON := c.set.Bool("json", false, "with --car, print one JSON object")
	round := c.set.Bool("round", false, "round hub weights that bf16 cannot hold exactly, instead of refusing them")
	if err := c.parse(args, true); err != nil {
		return err
	}
	if *car != "" {
		if c.set.NArg() > 1 {
			return usageError("%d arguments beside --car, want at most a directory", c.set.NArg())
		}
		return c.importCAR(ctx, *car, c.set.Arg(0), uint64(limit), *asJSON)
	}
	if err := c.dirs(args, "SRC", "DIR"); err != nil {
		return err
	}
	from, to := c.set.Arg(0), c.set.Arg(1)
	if err := newDir(to); err != nil {
		return err
	}
	link, err := local.Import(from, to, *round)
	if errors.Is(err, checkpoint.ErrNotExact) {
		return fmt.Errorf("%w; --round rounds such weights", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(env.out, "imported %s as %s in %s\n", from, link, to)
	return nil
}

func checkpointExport(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "checkpoint export", `Usage: bzd checkpoint export SRC DIR
       bzd checkpoint export --car FILE [flags] SRC

Copies a checkpoint, verified, into a directory that transformers loads as it stands. With --car it writes a CAR file,
which every IPFS node reads; SRC may then also be the CID of a checkpoint that the block store of the node's directory has.`).nodeDir()
	car := c.set.String("car", "", "CAR `FILE` to write")
	asJSON := c.set.Bool("json", false, "with --car, print one JSON object")
	fused := c.set.Bool("fused", false, "write the model alone, the experts of each layer in two tensors, as transformers 5 keeps them")
	if err := c.parse(args, true); err != nil {
		return err
	}
	if *car != "" {
		if err := c.dirs(args, "SRC"); err != nil {
			return err
		}
		return c.exportCAR(ctx, c.set.Arg(0), *car, *asJSON)
	}
	if err := c.dirs(args, "SRC", "DIR"); err != nil {
		return err
	}
	from, to := c.set.Arg(0), c.set.Arg(1)
	if err := newDir(to); err != nil {
		return err
	}
	if *fused {
		if err := local.ExportFused(from, to); err != nil {
			return err
		}
		fmt.Fprintf(env.out, "exported %s with fused experts to %s\n", from, to)
		return nil
	}
	link, err := local.Export(from, to)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.out, "exported %s to %s\n", link, to)
	return nil
}

func showCheckpoint(out io.Writer, p *local.Phi, dir string) error {
	c := p.Model.Config
	fmt.Fprintf(out, "checkpoint  %s\n", p.Link)
	previous := "none, this is a genesis"
	if p.State.Previous != nil {
		previous = p.State.Previous.String()
	}
	fmt.Fprintf(out, "previous    %s\n", previous)
	fmt.Fprintf(out, "model       %s, %d parameters: %d layers of %d, %d heads (%d key-value), %d experts of %d, top %d, %d tokens\n",
		c.Family, c.Params(), c.Layers, c.Dim, c.Heads, c.KVHeads, c.Experts, c.Width, c.TopK, c.Vocab)
	if len(p.State.Groups) == 0 {
		fmt.Fprintln(out, "no groups   nobody can train it in a network yet")
	}
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
