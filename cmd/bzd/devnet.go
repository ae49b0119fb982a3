package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/devnet"
)

// faults collects repeated KIND=N flags.
type faults map[devnet.Fault]int

func (f faults) String() string { return "" }

func (f faults) Set(s string) error {
	kind, count, ok := strings.Cut(s, "=")
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 0 {
		return fmt.Errorf("want KIND=N, such as offline=1")
	}
	f[devnet.Fault(kind)] += n
	return nil
}

func devnetCommand(ctx context.Context, env environment, args []string) error {
	kinds := append(append([]devnet.Fault{}, devnet.MinerFaults...), devnet.ValidatorFaults...)
	c := newFlags(env, "devnet", `Usage: bzd devnet [flags]

Runs a whole network on this machine, over real sockets: a development chain, a bootstrap node with gateway, miners and
validators, each with its own keys, peers and store. They train, commit sealed updates, keep custody, open, score, agree,
merge and pay, for some cycles.`).text()
	o := devnet.Options{Faults: map[devnet.Fault]int{}, Now: env.now}
	c.set.IntVar(&o.Miners, "miners", 6, "miners, in turn over the expert groups")
	c.set.IntVar(&o.Validators, "validators", 4, "validators of equal stake")
	c.set.IntVar(&o.Cycles, "cycles", 5, "cycles")
	c.set.StringVar(&o.Seed, "seed", "1", "seed of keys, beacon and miners")
	c.set.StringVar(&c.dir, "dir", "", "directory of the network; empty means a temporary one")
	c.set.Float64Var(&o.Headroom, "headroom", 0, "how many times what the work takes here the phases of a cycle get; 0 means 2.5. More for a busy machine")
	c.set.StringVar(&o.ISA, "isa", "", "instruction set: avx512, avx2 or scalar; empty means the fastest")
	c.set.Var(faults(o.Faults), "fault", fmt.Sprintf("`KIND=N`: let something happen to N participants: %v; repeatable", kinds))
	asJSON := c.set.Bool("json", false, "print one JSON object at the end")
	keep := c.set.Bool("keep", false, "keep the temporary directory")
	serve := c.set.Bool("serve", false, "keep the gateway open at the end, until Ctrl-C")
	verbose := c.set.Bool("v", false, "log what every node does")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return usageError("%v", err)
	}
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "bzd-devnet-")
		if err != nil {
			return err
		}
		if !*keep {
			defer os.RemoveAll(dir)
		}
		c.dir = dir
	}
	// Eleven nodes share this process: collect garbage early rather than grow.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(devnetMemory)
	o.Dir, o.Workers = c.dir, c.workers()
	var err error
	if o.Sets, err = c.datasets(nil); err != nil {
		return err
	}
	v := &devnetView{env: env, verbose: *verbose, start: env.now()}
	o.Event, o.Log = v.event, v.log
	o.Done = func(x devnet.Cycle) {
		if !*asJSON {
			v.cycle(env.out, x)
		}
	}
	failed := error(nil)
	o.Serve = func(r devnet.Result) {
		if failed = v.result(r, *asJSON, c.dir); failed == nil && *serve {
			v.log("serving at %s until Ctrl-C", r.Gateway)
			<-ctx.Done()
		}
	}
	if _, err = devnet.Run(ctx, o); err != nil {
		return err
	}
	if *keep {
		v.log("kept in %s", c.dir)
	}
	return failed
}

// result prints what came of the run.
func (v *devnetView) result(r devnet.Result, asJSON bool, dir string) error {
	if asJSON {
		e := json.NewEncoder(v.env.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	v.summary(v.env.out, r)
	_, err := fmt.Fprintf(v.env.out, `
checkpoint %s after %.0f s
with --serve:   curl %s/ipfs/%s/config.json
with --dir DIR: bzd sample --checkpoint DIR/validator-1/checkpoints/%s --prompt 'func main'
`, r.Checkpoint, r.Seconds, r.Gateway, r.Checkpoint, r.Checkpoint)
	return err
}

// summary is the table of all cycles.
func (v *devnetView) summary(out io.Writer, r devnet.Result) {
	if len(r.Cycles) == 0 {
		return
	}
	first := r.Cycles[0]
	w := table(out)
	fmt.Fprint(w, "\ncycle\tcertified\tdecided in\tα\tbytes\t")
	for _, g := range first.Groups {
		fmt.Fprintf(w, "%s\t", g.Group)
	}
	fmt.Fprint(w, "mean\tcanary\t\n")
	row := func(head string, loss func(i int) float64, canary float64) {
		fmt.Fprintf(w, "%s\t", head)
		mean, start := 0.0, 0.0
		for i, g := range first.Groups {
			mean, start = mean+loss(i), start+g.Before
			fmt.Fprintf(w, "%.4f\t", loss(i))
		}
		k := float64(len(first.Groups))
		fmt.Fprintf(w, "%.4f (%+.2f%%)\t%.4f (%+.2f%%)\t\n", mean/k, 100*(mean/start-1), canary, 100*(canary/first.CanaryBefore-1))
	}
	row("before\t\t\t\t", func(i int) float64 { return first.Groups[i].Before }, first.CanaryBefore)
	for _, c := range r.Cycles {
		var bytes int64
		for _, s := range c.Submissions {
			bytes += s.Bytes
		}
		row(fmt.Sprintf("%d\t%v\t%d ms\t%g\t%d", c.Cycle+1, c.Certified, c.DecisionMs, c.Alpha, bytes), func(i int) float64 { return c.Groups[i].After }, c.CanaryAfter)
	}
	w.Flush()
}

// devnetMemory is what the process tries to stay below, in bytes.
const devnetMemory = 900 << 20

// devnetView shows a running devnet.
type devnetView struct {
	env     environment
	verbose bool
	start   time.Time
	mu      sync.Mutex
	phase   string
}

func (v *devnetView) log(format string, a ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fmt.Fprintf(v.env.err, "%6.1fs  %s\n", v.env.now().Sub(v.start).Seconds(), fmt.Sprintf(format, a...))
}

func (v *devnetView) event(name string, e node.Event) {
	switch {
	case e.Kind == node.Trouble:
		v.log("cycle %d  %s: %s", e.Cycle+1, name, e.Text)
	case e.Kind == node.Phase:
		phase := fmt.Sprintf("cycle %d  %s", e.Cycle+1, e.Text)
		v.mu.Lock()
		fresh := phase != v.phase
		v.phase = phase
		v.mu.Unlock()
		if fresh || v.verbose {
			v.log("cycle %d  %s  %s", e.Cycle+1, name, e.Text)
		}
	case v.verbose && e.Kind != node.Training:
		v.log("cycle %d  %s  %+v", e.Cycle+1, name, e)
	}
}

func (v *devnetView) cycle(out io.Writer, c devnet.Cycle) {
	fmt.Fprintf(out, "\ncycle %d  %s → %s  certified %v in %d ms  α = %g\n", c.Cycle+1, short(c.Base), short(c.Next), c.Certified, c.DecisionMs, c.Alpha)
	w := table(out)
	for _, s := range c.Submissions {
		fmt.Fprintf(w, "  %s\t%+.4f\t%d bytes\t%.3f\t%s\t%s\t\n", s.Miner, s.Gain, s.Bytes, c.Weights[s.Miner], s.Status, s.Reason)
	}
	w.Flush()
	for _, g := range c.Groups {
		fmt.Fprintf(w, "  %s\t%s\t\n", g.Group, change(g.Before, g.After))
	}
	fmt.Fprintf(w, "  canary\t%s\t\n", change(c.CanaryBefore, c.CanaryAfter))
	w.Flush()
}
