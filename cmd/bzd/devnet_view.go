package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/devnet"
)

// devnetView shows a running devnet. On a terminal the phase, the block height, a bar per busy node and the table of
// cycles stay at the bottom, and what goes wrong scrolls above; elsewhere everything is a line of a log. Its methods may
// be called concurrently.
type devnetView struct {
	env     environment
	verbose bool
	cycles  int // that will run
	start   time.Time

	mu      sync.Mutex
	screen  *screen // nil: no terminal
	genesis time.Time
	period  time.Duration // of blocks; zero before the chain runs
	cycleNo uint64        // of the last phase
	phase   string
	busy    map[string]*work // by node
	done    []devnet.Cycle
	tick    int
	stop    chan struct{}
	ticking sync.WaitGroup
}

// work is what one node is doing.
type work struct {
	what        string
	done, total int
	bytes       int64
	last        time.Time
}

// redraw is the time between two frames, fetchAge how long a fetch of which nothing is heard is shown.
const (
	redraw   = 100 * time.Millisecond
	fetchAge = 2 * time.Second
)

// newDevnetView starts to show; close ends it. size is nil where there is no terminal.
func newDevnetView(env environment, verbose bool, cycles int, size func() (int, int)) *devnetView {
	v := &devnetView{env: env, verbose: verbose, cycles: cycles, start: env.now(), busy: map[string]*work{}, stop: make(chan struct{})}
	if size == nil {
		return v
	}
	v.screen = &screen{out: env.err, size: size}
	v.ticking.Go(func() {
		t := time.NewTicker(redraw)
		defer t.Stop()
		for {
			select {
			case <-v.stop:
				return
			case <-t.C:
				v.frame()
			}
		}
	})
	return v
}

// close leaves the terminal with what was printed for good. Calling it again does nothing.
func (v *devnetView) close() {
	v.mu.Lock()
	select {
	case <-v.stop:
	default:
		close(v.stop)
	}
	v.mu.Unlock()
	v.ticking.Wait()
	v.above(func() {})
}

// above prints for good.
func (v *devnetView) above(print func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.screen != nil {
		v.screen.Clear()
	}
	print()
}

func (v *devnetView) log(format string, a ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, a...), "\n", "; ")
	v.above(func() {
		fmt.Fprintf(v.env.err, "%6.1fs  %s\n", v.env.now().Sub(v.start).Seconds(), line)
	})
}

// chain says when blocks are made.
func (v *devnetView) chain(genesis time.Time, period time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.genesis, v.period = genesis, period
}

func (v *devnetView) event(name string, e node.Event) {
	switch e.Kind {
	case node.Trouble:
		v.log("cycle %d  %s: %s", e.Cycle+1, name, e.Text)
	case node.Phase:
		if fresh := v.enter(name, e); v.verbose || fresh && v.screen == nil {
			v.log("cycle %d  %s  %s", e.Cycle+1, name, e.Text)
		}
	case node.Training:
		v.work(name, "train", e)
	case node.Evaluating:
		v.work(name, "evaluate", e)
	case node.Fetching:
		v.work(name, "fetch "+e.Text, e)
	case node.Fetched:
		v.work(name, "", e)
	case node.Agreed:
		if v.verbose {
			v.log("cycle %d  %s  %s", e.Cycle+1, name, e.Text)
		}
	default:
		if v.verbose {
			v.log("cycle %d  %s  %+v", e.Cycle+1, name, e)
		}
	}
}

// enter notes that a node began a phase, and reports whether it is the first to.
func (v *devnetView) enter(name string, e node.Event) (fresh bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.busy, name)
	if e.Cycle < v.cycleNo || e.Cycle == v.cycleNo && e.Text == v.phase {
		return false
	}
	v.cycleNo, v.phase = e.Cycle, e.Text
	return true
}

// work notes how far a node is; what is done is not shown any more.
func (v *devnetView) work(name, what string, e node.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if what == "" || e.Total > 0 && e.Done >= e.Total {
		delete(v.busy, name)
		return
	}
	v.busy[name] = &work{what: what, done: e.Done, total: e.Total, bytes: e.Bytes, last: v.env.now()}
}

// frame draws what stands at the bottom.
func (v *devnetView) frame() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tick++
	_, height := v.screen.size()
	v.screen.Draw(v.lines(height - 1))
}

// lines are at most so many: the table's last cycles, then where the network is, then a bar per busy node.
func (v *devnetView) lines(most int) []string {
	now := v.env.now()
	status := fmt.Sprintf("%3.0fs  starting", now.Sub(v.start).Seconds())
	if v.period > 0 {
		height := max(0, int64(now.Sub(v.genesis)/v.period))
		status = fmt.Sprintf("%3.0fs  block %d  cycle %d, %d of %d done  %s", now.Sub(v.start).Seconds(), height, v.cycleNo+1, len(v.done), v.cycles, v.phase)
	}
	bars := v.bars(now)
	var rows []string
	if len(v.done) > 0 {
		var b bytes.Buffer
		cycleTable(&b, v.done)
		rows = strings.Split(strings.Trim(b.String(), "\n"), "\n")
		const head = 2 // of the table: names, and the losses before
		if room := max(head+1, most-1-len(bars)-1); len(rows) > room {
			rows = append(rows[:head:head], rows[len(rows)-(room-head):]...)
		}
		rows = append(rows, "")
	}
	return append(append(rows, status), bars...)
}

func (v *devnetView) bars(now time.Time) []string {
	wide := 0
	for name, w := range v.busy {
		if w.total == 0 && now.Sub(w.last) > fetchAge {
			delete(v.busy, name) // it ended, or waits for a peer
			continue
		}
		wide = max(wide, len(name))
	}
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(v.busy), func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }) {
		w := v.busy[name]
		progress := fmt.Sprintf("%d/%d", w.done, w.total)
		if w.total == 0 {
			progress = fmt.Sprintf("%.1f MB", float64(w.bytes)/1e6)
		}
		out = append(out, fmt.Sprintf("      %-*s  %s  %s %s", wide, name, bar(w.done, w.total, 24, v.tick), w.what, progress))
	}
	return out
}

// cycle shows a cycle that is over.
func (v *devnetView) cycle(c devnet.Cycle, asJSON bool) {
	v.mu.Lock()
	v.done = append(v.done, c)
	v.mu.Unlock()
	if v.screen == nil && !asJSON {
		v.above(func() { cycleReport(v.env.out, c) })
	}
}

// result prints what came of the run.
func (v *devnetView) result(r devnet.Result, asJSON, serve bool, dir string) (err error) {
	v.close()
	v.above(func() {
		if asJSON {
			e := json.NewEncoder(v.env.out)
			e.SetIndent("", "  ")
			err = e.Encode(r)
			return
		}
		err = resultTables(v.env.out, r, serve, dir)
	})
	return err
}

// resultTables prints the tables of a whole run and how to go on with its checkpoint.
func resultTables(out io.Writer, r devnet.Result, serve bool, dir string) error {
	if len(r.Cycles) > 0 {
		cycleTable(out, r.Cycles)
		minerTable(out, r.Cycles)
	}
	fetch := "run again with --serve, then: "
	if serve {
		fetch = ""
	}
	sample := fmt.Sprintf("bzd sample --checkpoint %s --prompt 'func main'", dir)
	if dir == "" {
		sample = "run again with --dir DIR or --keep, then: bzd sample --checkpoint DIR/validator-1/checkpoints/" + r.Checkpoint.String() + " --prompt 'func main'"
	}
	if c := r.Cost; c != nil {
		fmt.Fprintf(out, "\nprocessor time %.0f s: training %.0f s, evaluation %.0f s, everything else %.0f s (%.0f%%); at most %d MiB of memory\n",
			c.Seconds, c.Train, c.Evaluate, c.Protocol, 100*c.Share, c.PeakMemory>>20)
	}
	_, err := fmt.Fprintf(out, "\ncheckpoint %s after %.0f s\nfetch:  %scurl -O %s/ipfs/%s/config.json\nsample: %s\n", r.Checkpoint, r.Seconds, fetch, r.Gateway, r.Checkpoint, sample)
	return err
}

// cycleTable is a row per cycle: what was decided, and the probe's losses after it.
func cycleTable(out io.Writer, cycles []devnet.Cycle) {
	first := cycles[0]
	w := table(out)
	fmt.Fprint(w, "\ncycle\tbase → next\tcertified\tdecided in\trounds\tα\tbytes\t")
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
	row("before\t\t\t\t\t\t", func(i int) float64 { return first.Groups[i].Before }, first.CanaryBefore)
	for _, c := range cycles {
		var bytes int64
		for _, s := range c.Submissions {
			bytes += s.Bytes
		}
		row(fmt.Sprintf("%d\t%s → %s\t%s\t%d ms\t%d\t%g\t%d", c.Cycle+1, short(c.Base), short(c.Next), yes(c.Certified), c.DecisionMs, c.Rounds, c.Alpha, bytes),
			func(i int) float64 { return c.Groups[i].After }, c.CanaryAfter)
	}
	w.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// perTable is how many cycles stand beside each other in the table of miners.
const perTable = 5

// minerTable is a row per miner: the weight and status of every cycle.
func minerTable(out io.Writer, cycles []devnet.Cycle) {
	for part := range slices.Chunk(cycles, perTable) {
		w := table(out)
		fmt.Fprint(w, "\nweight of\tgroup\t")
		for _, c := range part {
			fmt.Fprintf(w, "cycle %d\t", c.Cycle+1)
		}
		fmt.Fprintln(w)
		for i, s := range part[0].Submissions {
			fmt.Fprintf(w, "%s\t%s\t", s.Miner, s.Group)
			for _, c := range part {
				fmt.Fprintf(w, "%.3f %s\t", c.Weights[s.Miner], c.Submissions[i].Status)
			}
			fmt.Fprintln(w)
		}
		w.Flush()
	}
}

// cycleReport is one cycle in full.
func cycleReport(out io.Writer, c devnet.Cycle) {
	fmt.Fprintf(out, "\ncycle %d  %s → %s  certified %s in %d ms, round %d  α = %g\n", c.Cycle+1, short(c.Base), short(c.Next), yes(c.Certified), c.DecisionMs, c.Rounds, c.Alpha)
	if len(c.Excluded) > 0 {
		fmt.Fprintf(out, "  left out of the merge: %s\n", strings.Join(c.Excluded, ", "))
	}
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
