package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/model"
)

// size is a flag for an amount of memory in bytes.
type size int64

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

// Set reads a number with a unit: 512MiB, 8GiB, 7.5GiB; without one it is bytes.
func (s *size) Set(text string) error {
	number, unit := text, int64(1)
	for suffix, bytes := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if n, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = strings.TrimSpace(n), bytes
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if v *= float64(unit); err != nil || !(v >= 1 && v < math.MaxInt64/2) {
		return errors.New("want an amount of memory as 8GiB or 512MiB")
	}
	*s = size(v)
	return nil
}

// limits bound what a card may be used for; see cuda.Options.
type limits struct {
	memory, resident int64
	profile          bool // time every kernel
	untried          bool // use kernels that no card has run yet
}

// memoryPlan are the flags about memory: a card's, or with the CPU this machine's.
type memoryPlan struct {
	show  bool
	limit size
}

func (c *common) memoryPlan() *memoryPlan {
	p := &memoryPlan{}
	c.set.BoolVar(&p.show, "plan", false, "say what training takes of a card's memory, or with --backend cpu of this machine's, and what would be done to fit it, then stop")
	c.set.Var(&p.limit, "memory", "`AMOUNT` of memory to keep below, as 8GiB: the card's, 0 for what is free, or with the CPU this process's, 0 for no bound. With --plan there need not be a card")
	return p
}

// host says whether the plan is one for this machine's own memory.
func (p *memoryPlan) host(c *common) bool {
	given := false
	c.set.Visit(func(f *flag.Flag) { given = given || f.Name == "backend" })
	return c.on == "cpu" && (p.limit > 0 && !p.show || given && p.show)
}

// wanted says whether training will be on a card, or on one that the caller asks about.
func (p *memoryPlan) wanted(c *common) bool { return p.show || c.on == "cuda" || c.on == "auto" }

// fit plans training of the group in the checkpoint in dir, and sets what follows from it. Without a card to plan for it
// does nothing, unless the plan itself was asked for: done says that it was printed.
func (p *memoryPlan) fit(c *common, dir string, o *local.TrainOptions, seq int, exact bool) (done bool, err error) {
	if !p.wanted(c) {
		return false, nil
	}
	limit, where := int64(p.limit), "that were given"
	if free, name, err := cardFree(c.card); err == nil {
		if most := free - free/16; limit == 0 || !p.show && limit > most {
			limit, where = most, "of "+name
		}
	} else if limit == 0 || !p.show {
		if p.show {
			return false, fmt.Errorf("no card to plan for: %w; --memory 8GiB plans for one that is not here", err)
		}
		return false, nil // opening the card says why, or does without
	}
	config, group, err := local.Outline(dir, o.Group)
	if err != nil {
		return false, err
	}
	kinds := training.FastKinds()
	if exact {
		kinds = training.ExactKinds()
	}
	f, err := training.Fit(config, group, o.Batch, seq, kinds, limit)
	if p.show {
		if err != nil {
			whole := training.Estimate(config, group, model.Layout{Sequences: o.Batch, Seq: seq}, kinds)
			printMemory(c.env.out, whole)
			return true, err
		}
		fmt.Fprintf(c.env.out, "group %s, %d experts; batches of %d×%d tokens; %d MiB %s\n", o.Group, len(group), o.Batch, seq, limit>>20, where)
		printMemory(c.env.out, f.Memory)
		fmt.Fprintln(c.env.out, chosen(f, o.Batch))
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if f.Micro < o.Batch || f.Recompute || f.Memory.Host > 0 {
		fmt.Fprintf(c.env.err, "bzd: %s\n", chosen(f, o.Batch))
	}
	if f.Micro < o.Batch {
		o.Micro = f.Micro
		if exact {
			fmt.Fprintln(c.env.err, "bzd: gradients are summed in pieces: the delta will not be the CPU's; more --memory or a smaller --batch keeps it")
		}
	}
	o.Recompute = f.Recompute
	c.limits = limits{memory: int64(p.limit)}
	if f.Memory.Host > 0 {
		c.limits.resident = max(1, f.Resident) // 0 would mean all
	}
	return false, nil
}

// printMemory prints a plan, a component a line.
func printMemory(out io.Writer, m training.Memory) {
	w := table(out)
	row := func(name string, bytes int64) { fmt.Fprintf(w, "  %s\t%10.1f MiB\n", name, float64(bytes)/(1<<20)) }
	for _, c := range m.Components() {
		if c.Bytes > 0 {
			row(c.Name, c.Bytes)
		}
	}
	row("on the card", m.Total())
	if m.Host > 0 {
		row("page-locked on the host", m.Host)
	}
	w.Flush()
}

// chosen says what a plan does.
func chosen(f training.Fitted, batch int) string {
	parts := []string{fmt.Sprintf("%d of %d sequences at a time", f.Micro, batch)}
	if f.Micro == batch {
		parts[0] = "the whole batch at a time"
	}
	if f.Recompute {
		parts = append(parts, "activations computed again on the way back")
	} else {
		parts = append(parts, "activations kept")
	}
	if f.Memory.Host > 0 {
		parts = append(parts, fmt.Sprintf("%d MiB of frozen experts streamed from page-locked memory of the host", f.Memory.Host>>20))
	} else {
		parts = append(parts, "all experts on the card")
	}
	return strings.Join(parts, ", ")
}
