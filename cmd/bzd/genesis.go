package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/delta"
)

const genesisHelp = `Usage: bzd genesis train|plan|import|verify|show [flags]

  train    train the base model from nothing on general text and write its files
  plan     admit the domains to a base, with experts of their own, and found a network in --dir
  import   found a network in --dir on a Hugging Face model, with experts that it has
  verify   train the base again and compare it with the embedded one, bit for bit
  show     how the embedded base was made`

// trainBase trains by r on this machine's general text.
func trainBase(ctx context.Context, c *common, r local.Recipe, state string) ([]byte, *data.Dataset, error) {
	b, err := c.backend(c.workers())
	if err != nil {
		return nil, nil, err
	}
	sets, err := c.datasets([]string{r.Domain})
	if err != nil {
		return nil, nil, err
	}
	if len(sets) == 0 {
		return nil, nil, fmt.Errorf("no general text: give some with --data %s=DIR, or set GOROOT", r.Domain)
	}
	fmt.Fprintf(c.env.err, "%s: %d steps of %d×%d tokens from %s %s\n", b.Name(), r.Steps, r.Batch, r.Seq, r.Domain, sets[0].CID())
	m := newMeter(c.env, "genesis")
	weights, err := local.TrainBase(ctx, b, r, sets[0], state, m.report)
	return weights, sets[0], err
}

func genesisTrain(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "genesis train", `Usage: bzd genesis train [flags]

Trains the base model on general text only, from a fixed seed, and writes base.safetensors (bf16) and recipe.json. The
files are embedded in the binary at its next build. Ctrl-C saves; the same command goes on.`).text().compute()
	r := local.DefaultRecipe()
	out := c.set.String("out", "node/local/base", "directory to write to")
	c.set.IntVar(&r.Steps, "steps", r.Steps, "optimizer steps")
	c.set.StringVar(&r.Seed, "seed", r.Seed, "seed of initial weights and order of text")
	if err := c.parse(args, false); err != nil {
		return err
	}
	c.set.Visit(func(f *flag.Flag) {
		if f.Name == "steps" || f.Name == "seed" {
			r.Command += fmt.Sprintf(" --%s '%s'", f.Name, f.Value)
		}
	})
	if r.Steps <= r.Warmup {
		return usageError("--steps %d: more than the warm-up, %d", r.Steps, r.Warmup)
	}
	_, err := os.Stat(*out)
	made := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	state := filepath.Join(*out, "train.state")
	weights, text, err := trainBase(ctx, c, r, state)
	if err != nil {
		if made {
			os.Remove(*out) // if it is empty
		}
		return resumable{err, "saved in " + state + "; the same command goes on from here"}
	}
	var w, j bytes.Buffer
	if err := local.WriteBase(&w, &j, r, text, runtime.Version(), weights); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(*out, "base.safetensors"), w.Bytes()); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(*out, "recipe.json"), j.Bytes()); err != nil {
		return err
	}
	if err := local.RemoveState(state); err != nil {
		return err
	}
	fmt.Fprintf(env.out, "wrote %s and recipe.json\n", filepath.Join(*out, "base.safetensors"))
	return nil
}

func genesisVerify(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "genesis verify", `Usage: bzd genesis verify [flags]

Trains the base model again by the embedded recipe and compares the result with the embedded weights, bit for bit.`).text().compute()
	state := c.set.String("state", "", "`FILE` to save an interrupted run in; empty means none is saved")
	if err := c.parse(args, false); err != nil {
		return err
	}
	r, err := local.EmbeddedRecipe()
	if err != nil {
		return err
	}
	sets, err := c.datasets([]string{r.Domain})
	if err != nil {
		return err
	}
	if len(sets) == 0 {
		return fmt.Errorf("no general text: the base was trained on %s of %s", r.Domain, r.Go)
	}
	if got := sets[0].CID().String(); got != r.Dataset {
		return fmt.Errorf("cannot reproduce here: the text %s is %s, the base was trained on %s, that of %s", r.Domain, got, r.Dataset, r.Go)
	}
	weights, _, err := trainBase(ctx, c, r, *state)
	if err != nil {
		hint := "with --state FILE an interrupted run can go on"
		if *state != "" {
			hint = "saved in " + *state + "; the same command goes on from here"
		}
		return resumable{err, hint}
	}
	if *state != "" {
		if err := local.RemoveState(*state); err != nil {
			return err
		}
	}
	same, err := local.SameBase(weights)
	if err != nil {
		return err
	}
	if !same {
		return errors.New("the trained base differs from the embedded one")
	}
	fmt.Fprintf(env.out, "the embedded base is what `%s` gives: sha256 %s\n", r.Command, r.Digest)
	return nil
}

func genesisShow(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "genesis show", "Usage: bzd genesis show")
	if err := c.parse(args, false); err != nil {
		return err
	}
	r, err := local.EmbeddedRecipe()
	if err != nil {
		return err
	}
	j, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintln(env.out, string(j))
	return nil
}

func genesisPlan(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "genesis plan", `Usage: bzd genesis plan [flags]

Measures how the base routes each domain, gives every domain experts of its own with router rows fitted to its text, and
writes the network to --dir: genesis.cbor and the checkpoint in genesis/.`).network()
	o := local.DefaultGenesis()
	from := c.set.String("base", "", "directory of a Hugging Face model of any family to start from; empty means the embedded base")
	sample := c.sample(&o)
	c.set.StringVar(&o.Name, "name", o.Name, "name of the network")
	c.set.StringVar(&o.Canary, "canary", o.Canary, "domain that belongs to no group and must not be forgotten")
	c.set.IntVar(&o.Plan.Copies, "experts", o.Plan.Copies, "experts per layer for each domain")
	c.set.Float64Var(&o.Plan.Shift, "shift", o.Plan.Shift, "what a new router row adds to its base row's logit on its domain's text; 0 copies the base row")
	c.set.Float64Var(&o.Plan.Away, "away", o.Plan.Away, "times --shift: what it takes away on other text")
	c.set.Float64Var(&o.Plan.General, "general", o.Plan.General, "weight of general text against the domain's own in the fit of the rows")
	topK := c.set.Uint("topk", uint(o.Params.TopK), fmt.Sprintf("density: values of 4096 that a delta sends; %d with caution, 0 for all as dense bfloat16", protocol.CautiousTopK))
	if err := c.parse(args, false); err != nil {
		return err
	}
	if err := sample(); err != nil {
		return err
	}
	if *topK > delta.TopKChunk {
		return usageError("--topk %d: 0 to %d", *topK, delta.TopKChunk)
	}
	o.Params.TopK = uint32(*topK)
	b, err := c.backend(c.workers())
	if err != nil {
		return err
	}
	dir, err := c.networkDir()
	if err != nil {
		return err
	}
	var base *local.Phi
	if *from != "" {
		if base, err = local.OpenModel(b, *from); err != nil {
			return err
		}
	}
	g, admitted, err := c.found(b, base, dir, o)
	if err != nil {
		return err
	}
	w := table(env.out)
	fmt.Fprintln(w, "domain\tlayer\tcopied from\tused by the domain\tas experts\t")
	for _, a := range admitted {
		var used []string
		for _, u := range a.Used {
			used = append(used, fmt.Sprintf("%.0f%%", 100*u))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t\n", a.Domain, a.Layer, ints(a.From), strings.Join(used, " "), ints(a.To))
	}
	w.Flush()
	if err := admissionCost(ctx, c, b, base); err != nil {
		return err
	}
	fmt.Fprintf(env.out, "\nnetwork    %s\ncheckpoint %s\n", genesisCID(g), g.Checkpoint)
	return nil
}

// admissionCost shows what the new experts do to the losses before anybody has trained them.
func admissionCost(ctx context.Context, c *common, b *cpu.Backend, base *local.Phi) error {
	n, start, err := c.openNetwork(b, nil)
	if err != nil {
		return err
	}
	if base == nil {
		base = &local.Phi{}
		if base.Model, err = local.EmbeddedBase(b); err != nil {
			return err
		}
	}
	p, err := local.LoadPhi(b, start)
	if err != nil {
		return err
	}
	before, err := n.Probe(ctx, base, c.workers())
	if err != nil {
		return err
	}
	after, err := n.Probe(ctx, p, c.workers())
	if err != nil {
		return err
	}
	w := table(c.env.out)
	fmt.Fprintf(w, "\ndomain\tloss of the base → with experts of its own, nats per %s\t\n", base.Tokens.Unit())
	for _, d := range n.Genesis.Domains {
		fmt.Fprintf(w, "%s\t%s\t\n", d.Name, change(before[d.Name], after[d.Name]))
	}
	return w.Flush()
}
