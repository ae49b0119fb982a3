package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/devnet"
)

// faults collects repeated KIND=N flags.
type faults struct{ o *devnet.Options }

func (f faults) String() string { return "" }

func (f faults) Set(s string) error {
	kind, count, ok := strings.Cut(s, "=")
	if kind == "byzantine" && ok {
		f.o.Byzantine = append(f.o.Byzantine, count)
		return nil
	}
	n, err := strconv.Atoi(count)
	if !ok || err != nil || n < 0 {
		return fmt.Errorf("want KIND=N, such as offline=1")
	}
	if kind == "partition" {
		f.o.Partition = n
		return nil
	}
	f.o.Faults[devnet.Fault(kind)] += n
	return nil
}

// devnetLoad is what a network of these options asks of the demo's parameters.
func devnetLoad(o devnet.Options) protocol.Load {
	l := protocol.DemoLoad()
	l.Validators, l.Miners = uint32(o.Validators), uint32(o.Miners)
	return l
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
	c.set.StringVar(&o.Genesis, "genesis", "", "directory of the network to run, as bzd genesis plan and import write it; empty means one on the embedded base")
	c.set.StringVar(&o.Gateway, "gateway", "", "address of the HTTP gateway; empty means a free port of 127.0.0.1")
	c.set.BoolVar(&o.DHT, "dht", false, "let nodes find checkpoints over a DHT too, as in a network where not everybody is everybody's peer")
	c.set.Float64Var(&o.Headroom, "headroom", 0, "how many times what the work takes here the phases of a cycle get; 0 means 2.5. More for a busy machine")
	c.set.StringVar(&o.ISA, "isa", "", "instruction set: avx512, avx2, neon or scalar; empty means the fastest")
	c.set.Var(faults{&o}, "fault", fmt.Sprintf("`KIND=N`: let something happen to N participants: %v; byzantine=HOW: a validator cheats in the "+
		"agreement: %v; partition=N: for N cycles after the first half of the validators do not hear the other half; repeatable", kinds, node.Byzantines))
	asJSON := c.set.Bool("json", false, "print one JSON object at the end")
	keep := c.set.Bool("keep", false, "keep the temporary directory")
	serve := c.set.Bool("serve", false, "keep the gateway open at the end, until Ctrl-C")
	c.set.StringVar(&o.Profile, "profile", "", "`FILE` for a CPU profile of the run, for go tool pprof")
	verbose := c.set.Bool("v", false, "log what every node does")
	if err := c.parse(args, false); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return usageError("%v", err)
	}
	if fit, err := protocol.Feasible(protocol.DemoParams(), devnetLoad(o)); err == nil {
		for _, warning := range fit.Warnings {
			fmt.Fprintf(env.err, "bzd: %s\n", warning)
		}
	}
	temporary := c.dir == ""
	if temporary {
		dir, err := os.MkdirTemp("", "bzd-devnet-")
		if err != nil {
			return err
		}
		if !*keep {
			defer os.RemoveAll(dir)
		}
		c.dir = dir
	}
	// Eleven nodes share this process. Rather than early, garbage is collected where the process would outgrow its share.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(devnetMemory)
	o.Dir, o.Workers = c.dir, c.workers()
	var err error
	var domains []string // all
	if o.Genesis != "" {
		g, err := readGenesis(filepath.Join(o.Genesis, genesisFile))
		if err != nil {
			return fmt.Errorf("--genesis %s: %w (bzd genesis import makes one)", o.Genesis, err)
		}
		for _, d := range g.Domains {
			domains = append(domains, d.Name)
		}
	}
	if o.Sets, err = c.datasets(domains); err != nil {
		return err
	}
	var size func() (int, int)
	if env.terminal {
		size = terminalSize
	}
	v := newDevnetView(env, *verbose, o.Cycles, size)
	defer v.close() // on every way out: an error, Ctrl-C
	o.Event, o.Log, o.Chain = v.event, v.log, v.chain
	o.Done = func(x devnet.Cycle) { v.cycle(x, *asJSON) }
	failed := error(nil)
	o.Serve = func(r devnet.Result) {
		checkpoint := ""
		if !temporary || *keep {
			checkpoint = filepath.Join(c.dir, "validator-1", "checkpoints", r.Checkpoint.String())
		}
		if failed = v.result(r, *asJSON, *serve, checkpoint); failed == nil && *serve {
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

// devnetMemory is what the process tries to stay below, in bytes.
const devnetMemory = 1056 << 20

// terminalSize is the size of the terminal that the error stream is, or what is usual where it cannot be told.
func terminalSize() (width, height int) {
	if w, h, err := term.GetSize(int(os.Stderr.Fd())); err == nil && w > 0 && h > 0 {
		return w, h
	}
	return 80, 24
}
