package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
)

// fitHost plans training on the CPU of the group in the checkpoint in dir, and sets what follows from it. more says what else
// the run is; auto leaves the kind of the moments to the plan. done says that the plan was printed.
func (p *memoryPlan) fitHost(c *common, dir string, o *local.TrainOptions, seq int, more training.Host, auto bool) (done bool, err error) {
	h := more
	if h.Config, h.Trained, err = local.Outline(dir, o.Group); err != nil {
		return false, err
	}
	if h.Mapped, err = local.MatrixBytes(dir); err != nil {
		return false, err
	}
	h.Mapped -= 4 * int64(len(h.Trained)) * 3 * int64(h.Config.Dim) * int64(h.Config.Width) // they get values of their own
	h.Batch, h.Seq, h.Threads, h.Half = o.Batch, seq, c.workers(), o.Half
	own := int64(0)
	h.Process, own = processMemory()
	limit := int64(p.limit)
	if limit == 0 {
		limit = math.MaxInt64
	}
	f, err := training.FitHost(h, limit, auto)
	if err != nil {
		return false, err
	}
	var ways []string
	if f.Micro < o.Batch {
		ways = append(ways, fmt.Sprintf("%d of %d sequences at a time", f.Micro, o.Batch))
		o.Micro = f.Micro
	}
	if f.Recompute {
		ways = append(ways, "activations computed again on the way back")
	}
	if f.Room < h.Mapped {
		ways = append(ways, fmt.Sprintf("%d of %d MiB of frozen weights in memory at a time", f.Room>>20, h.Mapped>>20))
	}
	if f.Half {
		ways = append(ways, "moments in bfloat16")
	}
	text := "everything in memory"
	if len(ways) > 0 {
		text = strings.Join(ways, ", ")
	}
	if p.show {
		fmt.Fprintf(c.env.out, "group %s, %d experts; batches of %d×%d tokens\n", o.Group, len(h.Trained), o.Batch, seq)
		w := table(c.env.out)
		row := func(name string, bytes int64) { fmt.Fprintf(w, "  %s\t%10.1f MiB\n", name, float64(bytes)/(1<<20)) }
		for _, x := range f.Memory.Components() {
			if x.Bytes > 0 {
				row(x.Name, x.Bytes)
			}
		}
		row("at most", f.Memory.Total())
		if err := w.Flush(); err != nil {
			return true, err
		}
		_, err := fmt.Fprintln(c.env.out, text)
		return true, err
	}
	fmt.Fprintf(c.env.err, "bzd: at most %d MiB of memory: %s\n", f.Memory.Total()>>20, text)
	if f.Micro < o.Batch {
		fmt.Fprintln(c.env.err, "bzd: gradients are summed in pieces: the delta will be another; more --memory or a smaller --batch keeps it")
	}
	o.Recompute, o.Half, c.room = f.Recompute, f.Half, f.Room
	debug.SetMemoryLimit(f.Memory.Total() - f.Memory.Mapped - (h.Process - own)) // so that no garbage lies beyond the plan
	return false, nil
}

// processMemory is what this process holds now, in bytes, and how much of that is Go's: the program itself is not.
func processMemory() (all, own int64) {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	own = int64(m.Sys - m.HeapReleased)
	if raw, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(raw)); len(f) > 1 {
			if pages, err := strconv.ParseInt(f[1], 10, 40); err == nil {
				all = pages * int64(os.Getpagesize())
			}
		}
	}
	return max(all, own), own
}
