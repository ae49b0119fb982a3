package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/delta"
)

func rehearse(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "rehearse", `Usage: bzd rehearse [flags]

Does the network's whole job for some cycles on this machine, without the network: miners train deltas on real text, each
is scored by Proof-of-Loss on held-out samples, weights are the ReLU of the gain, the merge is line-searched, and the next
cycle starts from it. Losses are nats per byte on a fixed probe that no decision uses.`).text().compute()
	o := local.RehearseOptions{}
	c.set.IntVar(&o.Cycles, "cycles", 3, "cycles")
	c.set.IntVar(&o.Miners, "miners", 2, "miners per expert group")
	c.set.StringVar(&o.Seed, "seed", "1", "seed of miners and held-out draws")
	c.set.Int64Var(&o.Tokens, "tokens", 0, "tokens per miner and cycle; 0 means the default")
	c.set.IntVar(&c.topK, "topk", c.topK, "density: values of 4096 that a delta sends, 0 for all as dense bfloat16, -1 for the network's")
	train := local.DefaultTrain("", "", 0)
	c.set.Float64Var(&train.LearningRate, "lr", 0, rateHelp)
	c.set.Float64Var(&train.Lead, "lead", train.Lead, "how much of what could not be sent yet miners start ahead of the checkpoint, 0 to 1")
	c.set.StringVar(&c.dir, "dir", "", "directory for genesis and checkpoints, kept; empty means a temporary one, removed at the end")
	asJSON := c.set.Bool("json", false, "print one JSON object instead of tables")
	plot := c.set.String("plot", "", "SVG `FILE` to draw the curves of the probe losses to")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if o.Cycles < 1 || o.Miners < 1 {
		return usageError("--cycles %d --miners %d: at least one each", o.Cycles, o.Miners)
	}
	switch {
	case c.topK < -1 || c.topK > delta.TopKChunk:
		return usageError("--topk %d: -1 to %d", c.topK, delta.TopKChunk)
	case !(train.LearningRate >= 0 && train.LearningRate < 1):
		return usageError("--lr %v: 0 to below 1", train.LearningRate)
	case !(train.Lead >= 0 && train.Lead <= 1):
		return usageError("--lead %v: 0 to 1", train.Lead)
	}
	o.Tune = func(x *local.TrainOptions) {
		x.LearningRate, x.Lead = train.LearningRate, train.Lead
	}
	if *plot != "" {
		if err := newFile(*plot); err != nil {
			return err
		}
	}
	keep := c.dir != ""
	if !keep {
		dir, err := os.MkdirTemp("", "bzd-rehearse-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		c.dir = dir
	}
	start := env.now()
	b, err := c.backend(1)
	if err != nil {
		return err
	}
	n, genesis, err := c.openNetwork(b, nil)
	if err != nil {
		return err
	}
	if o.Tokens != 0 {
		t := local.DefaultTrain("", "", 0)
		t.Tokens = o.Tokens
		seq, err := n.Sequence(genesis)
		if err != nil {
			return err
		}
		if err := enoughTokens(seq, t); err != nil {
			return err
		}
	}
	topK := int(n.Genesis.Params.TopK)
	if c.topK >= 0 && c.topK != topK {
		return usageError("--topk %d: the network in %s sends %d of 4096; choose another --dir", c.topK, c.dir, topK)
	}
	if train.LearningRate == 0 {
		train.LearningRate = n.DefaultTrain("", "", 0).LearningRate
	}
	o.Dir, o.Workers = c.dir, c.workers()
	var reports []local.CycleReport
	view := &rehearsalView{env: env, n: n, steps: map[string]training.Progress{}}
	o.Training = view.training
	o.Done = func(r local.CycleReport) {
		reports = append(reports, r)
		if !*asJSON {
			view.cycle(env.out, r)
		}
	}
	if !*asJSON {
		fmt.Fprintf(env.out, "network %s, %d groups × %d miners, %s × %d\n", genesisCID(n.Genesis), len(n.Genesis.Groups), o.Miners, b.Name(), o.Workers)
	}
	last, dir, err := local.Rehearse(ctx, b, n, genesis, o)
	if err != nil {
		return err
	}
	if *plot != "" {
		if err := writeFile(*plot, svg(reports)); err != nil {
			return err
		}
	}
	seconds := env.now().Sub(start).Seconds()
	if *asJSON {
		values, err := groupValues(b, n, genesis)
		if err != nil {
			return err
		}
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(rehearsed{Seed: o.Seed, Miners: o.Miners, Values: values, TopK: topK, LearningRate: train.LearningRate,
			Lead: train.Lead, Cycles: reports, Checkpoint: last, Seconds: seconds})
	}
	summary(env.out, reports)
	fmt.Fprintf(env.out, "checkpoint %s after %.0f s\n", last, seconds)
	if keep {
		fmt.Fprintf(env.out, "try: bzd sample --checkpoint %s --prompt 'func main'\n", filepath.Clean(dir))
	}
	return nil
}

// rehearsed is what rehearse --json prints.
type rehearsed struct {
	Seed         string              `json:"seed"`
	Miners       int                 `json:"miners"`
	Values       uint64              `json:"values"` // that a delta is about, on average
	TopK         int                 `json:"topk"`
	LearningRate float64             `json:"lr"`
	Lead         float64             `json:"lead"`
	Cycles       []local.CycleReport `json:"cycles"`
	Checkpoint   protocol.Link       `json:"checkpoint"`
	Seconds      float64             `json:"seconds"`
}

// groupValues is the mean number of values that the delta of a group is about.
func groupValues(b backend.Backend, n *local.Network, dir string) (uint64, error) {
	p, err := local.LoadPhi(b, dir)
	if err != nil {
		return 0, err
	}
	total := uint64(0)
	for _, g := range n.Genesis.Groups {
		want, err := n.Expect(p, g.Name)
		if err != nil {
			return 0, err
		}
		for _, t := range want.Tensors {
			elements, _ := protocol.Elements(t.Shape)
			total += elements
		}
	}
	return total / uint64(len(n.Genesis.Groups)), nil
}

// rehearsalView shows training on the error stream and cycles as tables.
type rehearsalView struct {
	env   environment
	n     *local.Network
	mu    sync.Mutex
	steps map[string]training.Progress
	last  time.Time
}

// training shows the sum of all miners' steps on a terminal; elsewhere a line per miner when it is done.
func (v *rehearsalView) training(cycle int, miner string, p training.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.env.terminal {
		if p.Step == p.Steps {
			fmt.Fprintf(v.env.err, "cycle %d  %s trained on %d tokens, loss of its last batch %.4f\n", cycle+1, miner, p.Tokens, p.Loss)
		}
		return
	}
	v.steps[miner] = p
	now := v.env.now()
	if p.Step < p.Steps && now.Sub(v.last) < 100*time.Millisecond {
		return
	}
	v.last = now
	fmt.Fprintf(v.env.err, "\r\x1b[Kcycle %d  %s  step %d/%d  loss %.4f", cycle+1, miner, p.Step, p.Steps, p.Loss)
}

func change(before, after float64) string {
	return fmt.Sprintf("%.4f → %.4f (%+.2f%%)", before, after, 100*(after/before-1))
}

func (v *rehearsalView) cycle(out io.Writer, r local.CycleReport) {
	if v.env.terminal {
		fmt.Fprint(v.env.err, "\r\x1b[K")
	}
	fmt.Fprintf(out, "\ncycle %d  %s → %s  α = %s\n", r.Cycle+1, short(r.Base), short(r.Next), r.Alpha)
	if r.Alpha.IsZero() || len(r.Excluded) > 0 {
		fmt.Fprintf(out, "  left out of the merge: %v; %s\n", r.Excluded, strings.Join(r.Verdicts, "; "))
	}
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	z := float64(v.n.Genesis.Params.ConfidenceMilli) / 1000
	fmt.Fprintf(w, "  miner\tgain, nats/byte\t[±%.4g σ]\tweight\tstatus\t\n", z)
	for _, s := range r.Submissions {
		fmt.Fprintf(w, "  %s\t%+.4f\t[%+.4f, %+.4f]\t%.3f\t%s %s\t\n", s.Miner, s.Gain, s.Gain-z*s.StdErr, s.Gain+z*s.StdErr, s.Weight, s.Status, s.Reason)
	}
	w.Flush()
	for _, g := range r.Groups {
		fmt.Fprintf(w, "  %s\t%s\t\n", g.Group, change(g.Before, g.After))
	}
	fmt.Fprintf(w, "  canary\t%s\t\n", change(r.CanaryBefore, r.CanaryAfter))
	w.Flush()
}

// summary is the table of probe losses over all cycles.
func summary(out io.Writer, reports []local.CycleReport) {
	if len(reports) == 0 {
		return
	}
	w := table(out)
	first := reports[0]
	fmt.Fprint(w, "\nafter cycle\tα\t")
	for _, g := range first.Groups {
		fmt.Fprintf(w, "%s\t", g.Group)
	}
	fmt.Fprint(w, "mean\tcanary\t\n")
	row := func(label, alpha string, loss func(i int) float64, canary float64) {
		fmt.Fprintf(w, "%s\t%s\t", label, alpha)
		mean, mean0 := 0.0, 0.0
		for i, g := range first.Groups {
			mean, mean0 = mean+loss(i), mean0+g.Before
			fmt.Fprintf(w, "%.4f\t", loss(i))
		}
		k := float64(len(first.Groups))
		fmt.Fprintf(w, "%.4f (%+.2f%%)\t%.4f (%+.2f%%)\t\n", mean/k, 100*(mean/mean0-1), canary, 100*(canary/first.CanaryBefore-1))
	}
	row("genesis", "", func(i int) float64 { return first.Groups[i].Before }, first.CanaryBefore)
	for _, r := range reports {
		row(fmt.Sprint(r.Cycle+1), r.Alpha.String(), func(i int) float64 { return r.Groups[i].After }, r.CanaryAfter)
	}
	w.Flush()
}

// short is the end of a CID, enough to tell two apart.
func short(l protocol.Link) string {
	s := l.String()
	return "…" + s[max(0, len(s)-8):]
}
