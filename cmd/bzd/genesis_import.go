package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/model"
)

// importSample is the bytes of a sample in a network on a model with a tokenizer of its own, unless told otherwise: what
// the built-in domains have enough text for.
const importSample = 256

func genesisImport(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "genesis import", `Usage: bzd genesis import [flags] SRC

Founds a network on a Hugging Face model (qwen3_moe, olmoe, mixtral or qwen2_moe; experts apart or fused) in SRC: every
domain gets experts that the model has, by hand with --groups, or else those that its text is routed to more than other
text. Everything else is the hub and never changes. Writes genesis.cbor and the checkpoint in genesis/ to --dir.

With --groups the model may be larger than memory; measuring the routing needs it whole.`).network()
	o := local.DefaultGenesis()
	o.Params.SequenceLength = importSample
	groups := groupFlag{}
	per := 2
	c.set.StringVar(&o.Name, "name", o.Name, "name of the network")
	c.set.StringVar(&o.Canary, "canary", o.Canary, "domain that belongs to no group and must not be forgotten")
	c.set.Var(groups, "groups", "`NAME=LAYER:EXPERT,EXPERT;LAYER:EXPERT`: experts of a domain, repeatable; @FILE has one a line. "+
		"Other domains are left out")
	c.set.IntVar(&per, "experts", per, "without --groups: experts per layer for each domain")
	c.set.IntVar(&o.Plan.Windows, "windows", o.Plan.Windows, "without --groups: samples per domain whose routing is measured")
	round := c.set.Bool("round", false, "round hub weights that bf16 cannot hold exactly, instead of refusing them")
	sample := c.sample(&o)
	if err := c.dirs(args, "SRC"); err != nil {
		return err
	}
	if err := sample(); err != nil {
		return err
	}
	src := c.set.Arg(0)
	dir, err := c.networkDir()
	if err != nil {
		return err
	}
	var names []string
	if len(groups) > 0 {
		names = append(slices.Sorted(maps.Keys(groups)), o.Canary)
	}
	sets, err := c.foundingSets(dir, o, names)
	if err != nil {
		return err
	}
	chosen := local.Groups(groups)
	if len(groups) == 0 {
		b, err := c.backend(c.workers())
		if err != nil {
			return err
		}
		base, err := local.OpenModel(b, src)
		if err != nil {
			return err
		}
		choices, err := local.Choose(base, sets, o.Canary, per, o.Plan.Windows)
		if err != nil {
			return err
		}
		if err := showChoices(env.out, choices); err != nil {
			return err
		}
		chosen = local.GroupsOf(choices)
	}
	g, err := writeGenesis(dir, sets, func(checkpoint string) (protocol.Genesis, error) {
		return local.Adopt(src, sets, checkpoint, chosen, o, *round)
	})
	if errors.Is(err, checkpoint.ErrNotExact) {
		return fmt.Errorf("%w; --round rounds such weights", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(env.out, "network    %s\ncheckpoint %s\nin         %s\n", genesisCID(g), g.Checkpoint, filepath.Clean(dir))
	return nil
}

// sample adds the flag for the length of a sample; the function returned checks it once flags are parsed.
func (c *common) sample(o *local.GenesisOptions) func() error {
	n := c.set.Int("sample", int(o.Params.SequenceLength),
		"bytes of text in a sample; a model with a tokenizer of its own sees at most a quarter as many tokens")
	return func() error {
		if *n < 2 || *n >= 16<<10 {
			return usageError("--sample %d: 2 to %d bytes", *n, 16<<10-1)
		}
		o.Params.SequenceLength = uint32(*n)
		return nil
	}
}

func showChoices(out io.Writer, choices []local.Choice) error {
	w := table(out)
	fmt.Fprintln(w, "domain\tlayer\texperts\tused by the domain\tby other text\t")
	percent := func(v []float64) string {
		var s []string
		for _, x := range v {
			s = append(s, fmt.Sprintf("%.0f%%", 100*x))
		}
		return strings.Join(s, " ")
	}
	for _, c := range choices {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t\n", c.Domain, c.Layer, ints(c.Experts), percent(c.Used), percent(c.Others))
	}
	return w.Flush()
}

// groupFlag collects repeated groups of experts.
type groupFlag local.Groups

func (g groupFlag) String() string { return "" }

// Set reads NAME=LAYER:EXPERT,EXPERT;LAYER:EXPERT, or a file of such lines. Blank lines and those that begin with # count
// for nothing.
func (g groupFlag) Set(text string) error {
	file, ok := strings.CutPrefix(text, "@")
	if !ok {
		return g.add(text)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for i, line := range strings.Split(string(raw), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := g.add(line); err != nil {
			return fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
	}
	return nil
}

func (g groupFlag) add(text string) error {
	name, spec, ok := strings.Cut(text, "=")
	if !ok || name == "" || spec == "" {
		return fmt.Errorf("%q: want NAME=LAYER:EXPERT,EXPERT;LAYER:EXPERT", text)
	}
	if len(g[name]) > 0 {
		return fmt.Errorf("group %q is given twice", name)
	}
	for part := range strings.SplitSeq(spec, ";") {
		layer, experts, ok := strings.Cut(strings.TrimSpace(part), ":")
		l, err := strconv.Atoi(layer)
		if !ok || err != nil {
			return fmt.Errorf("group %q: %q: want LAYER:EXPERT,EXPERT", name, part)
		}
		for x := range strings.SplitSeq(experts, ",") {
			e, err := strconv.Atoi(x)
			if err != nil {
				return fmt.Errorf("group %q: %q: expert %q is not a number", name, part, x)
			}
			g[name] = append(g[name], model.ExpertRef{Layer: l, Index: e})
		}
	}
	return nil
}
