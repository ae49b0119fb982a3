package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

// peerScript is what runs the peers, from the root of the repository.
const peerScript = "bench/engine/peer.py"

// engineBench are the flags of bench engine.
type engineBench struct {
	*common
	venv    string
	only    string
	rounds  int
	seconds float64
	asJSON  bool

	peer *rival
}

// engineReport is what bench engine measured. Times are those of the fastest run of all rounds.
type engineReport struct {
	Processor string       `json:"processor"` // backend with which bzd computed
	Threads   int          `json:"threads"`
	Numpy     string       `json:"numpy,omitempty"`
	Torch     string       `json:"torch,omitempty"`
	Rows      []*engineRow `json:"rows"`
}

// engineRow is one comparison. A rate is in units per second: GFLOP or tokens.
type engineRow struct {
	What    string  `json:"what"`
	Unit    string  `json:"unit"`
	Threads int     `json:"threads"`
	Bzd     float64 `json:"bzd"`
	Median  float64 `json:"bzd_median"`
	Peer    float64 `json:"peer,omitempty"`
	// PeerMedian goes with Median. Ratio is Bzd/Peer, or the ratio to the same on one thread.
	PeerMedian float64 `json:"peer_median,omitempty"`
	Ratio      float64 `json:"ratio,omitempty"`
}

func benchEngine(ctx context.Context, env environment, args []string) (err error) {
	s := &engineBench{common: newFlags(env, "bench engine", `Usage: bzd bench engine [flags]

Times products of matrices, and whole training steps and evaluations, on the processor. With --venv the same is timed in
OpenBLAS (numpy) and eager PyTorch, in a child process, in turn; run it from the root of the repository then. One thread
is timed in processor time, several by the clock. Every figure is that of the fastest run of all rounds.`)}
	f := s.set
	f.IntVar(&s.threads, "threads", 1, "goroutines for steps and evaluations; 0 means all processors. Products are also timed on one")
	f.StringVar(&s.isa, "isa", "", "instruction set; empty means the fastest")
	f.StringVar(&s.venv, "venv", "", "`DIR` of a Python environment with numpy and torch; empty means no peers")
	f.StringVar(&s.only, "only", "", "products, step or demo; empty means all")
	f.IntVar(&s.rounds, "rounds", 3, "turns of bzd and the peer")
	f.Float64Var(&s.seconds, "seconds", 1, "of a turn, at least; whole runs are finished")
	f.BoolVar(&s.asJSON, "json", false, "print one JSON object")
	if err := s.parse(args, false); err != nil {
		return err
	}
	switch {
	case s.rounds < 1 || s.rounds > 100:
		return usageError("--rounds %d: 1 to 100", s.rounds)
	case !(s.seconds >= 0 && s.seconds <= 600):
		return usageError("--seconds %v: 0 to 600", s.seconds)
	case !slices.Contains([]string{"", "products", "step", "demo"}, s.only):
		return usageError("--only %q: products, step or demo", s.only)
	}
	b, err := s.backend(s.workers())
	if err != nil {
		return err
	}
	r := &engineReport{Processor: b.Name(), Threads: s.workers()}
	if s.venv != "" {
		if s.peer, err = startPeer(ctx, s.venv); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.peer.close()) }()
		r.Numpy, r.Torch = s.peer.Numpy, s.peer.Torch
	}
	for _, part := range []struct {
		name string
		run  func(ctx context.Context, r *engineReport) error
	}{{"products", s.products}, {"step", s.step}, {"demo", s.demo}} {
		if s.only == "" || s.only == part.name {
			if err := part.run(ctx, r); err != nil {
				return err
			}
		}
	}
	if s.asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.print(env)
	return nil
}

// products are C [m, n] = A [m, k]·B, groups times with matrices of their own. B is [k, n], or [n, k] if turned.
func (s *engineBench) products(ctx context.Context, r *engineReport) error {
	for _, p := range []struct {
		name            string
		groups, m, n, k int
		turned, half    bool
	}{
		{"2048×4096×1024 NN", 1, 2048, 4096, 1024, false, false},
		{"2048×4096×1024 NT", 1, 2048, 4096, 1024, true, false},
		{"8×(64×2816×1024) NN", 8, 64, 2816, 1024, false, false},
		{"8×(64×2816×1024) NT", 8, 64, 2816, 1024, true, false},
		{"8×(64×2816×1024) NT, bfloat16 weights", 8, 64, 2816, 1024, true, true},
	} {
		var alone *engineRow
		for _, threads := range slices.Compact([]int{1, s.workers()}) {
			b, err := s.backend(threads)
			if err != nil {
				return err
			}
			x, y := b.Alloc(p.m*p.k), b.Alloc(p.m*p.n)
			fill(b, x, 1)
			var weights []backend.Weight
			for i := range p.groups {
				w := b.Alloc(p.n * p.k)
				v := fill(b, w, uint64(i+2))
				out, in := p.k, p.n
				if p.turned {
					out, in = in, out
				}
				if p.half {
					for j := range v {
						v[j] = math.Float32frombits(math.Float32bits(v[j]) &^ 0xffff)
					}
					weights = append(weights, b.Freeze(v, out, in, false))
				} else {
					weights = append(weights, b.Prepare(w, out, in))
				}
			}
			row := &engineRow{What: p.name, Unit: "GFLOP/s", Threads: threads}
			var q any
			if threads == 1 {
				q = map[string]any{"op": "product", "groups": p.groups, "m": p.m, "n": p.n, "k": p.k, "turned": p.turned, "threads": 1, "seconds": s.seconds}
			}
			err = s.turns(ctx, row, 2e-9*float64(p.groups*p.m*p.n*p.k), q, func() {
				for _, w := range weights {
					if p.turned {
						b.Linear(y, x, w)
					} else {
						b.LinearGradInput(y, x, w, false)
					}
				}
			})
			if err != nil {
				return err
			}
			if threads == 1 {
				alone = row
			} else {
				row.Ratio = row.Bzd / alone.Bzd
			}
			r.Rows = append(r.Rows, row)
		}
	}
	return nil
}

// fill sets a buffer to values between −1 and 1, which it returns.
func fill(b backend.Backend, x backend.Buffer, seed uint64) []float32 {
	v := make([]float32, x.Len())
	for i := range v {
		v[i] = float32(int32(splitmix(seed<<40+uint64(i))>>32)) * (1.0 / (1 << 31))
	}
	b.Write(x, v)
	return v
}

// step is a model of a hundred million parameters.
func (s *engineBench) step(ctx context.Context, r *engineReport) error {
	c := model.Config{Vocab: 8192, Dim: 512, Layers: 8, Heads: 8, KVHeads: 4, HeadDim: 64, Experts: 8, TopK: 2, Width: 1024,
		Positions: 256, RopeTheta: 10000, NormEps: 1e-6}
	for _, p := range []struct {
		name    string
		trained int
	}{{"training, all experts", 8}, {"training, a quarter of the experts", 2}, {"evaluation", 0}} {
		if err := s.model(ctx, r, p.name, c, 4, 256, p.trained); err != nil {
			return err
		}
	}
	return nil
}

func (s *engineBench) demo(ctx context.Context, r *engineReport) error {
	c := shapes()["demo"]
	if err := s.model(ctx, r, "demo model, training", c, 8, 128, 2); err != nil {
		return err
	}
	return s.model(ctx, r, "demo model, evaluation", c, 8, 128, 0)
}

// model times batches of batch×seq tokens: evaluation, or training steps of that many experts per layer.
func (s *engineBench) model(ctx context.Context, r *engineReport, name string, c model.Config, batch, seq, trained int) error {
	b, err := s.backend(s.workers())
	if err != nil {
		return err
	}
	group := (&stepBench{config: c, trained: trained}).group()
	m, err := model.NewFrozen(b, c, noise(group), group)
	if err != nil {
		return err
	}
	var in, out []int32
	for i := range batch {
		v := tokens{c.Vocab, seq}.Sequence(int64(i))
		in, out = append(in, v[:seq]...), append(out, v[1:]...)
	}
	losses := make([]float64, len(in))
	var run func()
	if trained == 0 {
		p := m.NewPass(batch, seq, nil)
		run = func() { p.Loss(losses, in, out) }
	} else {
		t, err := m.TrainGroup(group)
		if err != nil {
			return err
		}
		o, err := optim.New(b, optim.Defaults(), t.Params())
		if err != nil {
			return err
		}
		p := m.NewPass(batch, seq, t)
		run = func() {
			t.Zero()
			p.Step(losses, in, out, 1/float32(len(in)), 0)
			o.Step(1e-6)
			t.Refresh()
		}
	}
	row := &engineRow{What: fmt.Sprintf("%s, %d×%d", name, batch, seq), Unit: "tokens/s", Threads: s.workers()}
	q := map[string]any{
		"op": "model", "batch": batch, "trained": trained, "train": trained > 0, "threads": s.workers(), "seconds": s.seconds,
		"config": map[string]any{
			"vocab": c.Vocab, "dim": c.Dim, "layers": c.Layers, "heads": c.Heads, "kv_heads": c.KVHeads, "head_dim": c.HeadDim, "experts": c.Experts,
			"topk": c.TopK, "width": c.Width, "normalize": c.Normalize, "theta": c.RopeTheta, "eps": c.NormEps, "seq": seq,
		},
	}
	r.Rows = append(r.Rows, row)
	return s.turns(ctx, row, float64(len(in)), q, run)
}

// turns times run and, if q is not nil, what q asks of the peer, in turn. amount is what one run does, in the row's units.
func (s *engineBench) turns(ctx context.Context, row *engineRow, amount float64, q any, run func()) error {
	clock := processTime
	if row.Threads > 1 {
		start := time.Now()
		clock = func() time.Duration { return time.Since(start) }
	}
	run()
	var own, other []float64
	for range s.rounds {
		for begin, n := time.Now(), 0; n == 0 || time.Since(begin).Seconds() < s.seconds; n++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			start := clock()
			run()
			own = append(own, (clock() - start).Seconds())
		}
		if s.peer == nil || q == nil {
			continue
		}
		v, err := s.peer.ask(q)
		if err != nil {
			return err
		}
		other = append(other, v...)
	}
	rates := func(seconds []float64) (best, median float64) {
		median, ends := spread(seconds)
		return amount / ends[0], amount / median
	}
	row.Bzd, row.Median = rates(own)
	if len(other) > 0 {
		row.Peer, row.PeerMedian = rates(other)
		row.Ratio = row.Bzd / row.Peer
	}
	return nil
}

func (r *engineReport) print(env environment) {
	fmt.Fprintf(env.out, "%s", r.Processor)
	if r.Torch != "" {
		fmt.Fprintf(env.out, "; products against OpenBLAS of numpy %s, models against PyTorch %s", r.Numpy, r.Torch)
	}
	fmt.Fprintln(env.out)
	w := table(env.out)
	fmt.Fprintln(w, "\tthreads\tbzd\tpeer\tratio")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%d\t%s\t", x.What, x.Threads, rate(x.Bzd, x.Unit))
		switch {
		case x.Peer > 0:
			fmt.Fprintf(w, "%s\t%.2f\n", rate(x.Peer, x.Unit), x.Ratio)
		case x.Ratio > 0:
			fmt.Fprintf(w, "itself on 1\t%.2f\n", x.Ratio)
		default:
			fmt.Fprintln(w, "\t")
		}
	}
	w.Flush()
}

func rate(v float64, unit string) string {
	if v < 1000 && unit == "GFLOP/s" {
		return fmt.Sprintf("%.1f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// rival is the child process that runs what bzd is compared with.
type rival struct {
	Numpy, Torch string

	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err *strings.Builder
}

func startPeer(ctx context.Context, venv string) (*rival, error) {
	if _, err := os.Stat(peerScript); err != nil {
		return nil, fmt.Errorf("no %s here: run this from the root of the repository, or without --venv", peerScript)
	}
	python := filepath.Join(venv, "bin", "python")
	if runtime.GOOS == "windows" {
		python = filepath.Join(venv, "Scripts", "python.exe")
	}
	p := &rival{cmd: exec.CommandContext(ctx, python, peerScript), err: &strings.Builder{}}
	p.cmd.Stderr = p.err
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the peers: %w (--venv wants a Python environment with numpy and torch)", err)
	}
	if err := p.read(p); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// ask gives the seconds of the runs that q asks for.
func (p *rival) ask(q any) (seconds []float64, err error) {
	if err := json.NewEncoder(p.in).Encode(q); err != nil {
		return nil, p.fault(err)
	}
	if err := p.read(&seconds); err != nil {
		return nil, err
	}
	if len(seconds) == 0 {
		return nil, errors.New("the peer timed nothing")
	}
	return seconds, nil
}

func (p *rival) read(v any) error {
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, v)
	}
	return p.fault(err)
}

func (p *rival) fault(err error) error {
	if err == nil {
		return nil
	}
	_, _ = p.in.Close(), p.cmd.Wait() // its last words
	return fmt.Errorf("the peer stopped: %w: %s", err, strings.TrimSpace(p.err.String()))
}

func (p *rival) close() error {
	p.in.Close()
	if p.cmd.ProcessState != nil {
		return nil
	}
	return p.cmd.Wait()
}
