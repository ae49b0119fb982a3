package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/optim"
)

const benchHelp = `Usage: bzd bench step|engine|delta|frontier|content|agreement [flags]

  step       time whole training steps and evaluation of a model with random weights
  engine     time the processor's kernels and steps, next to OpenBLAS and PyTorch if wanted
  delta      size and speed of the codec of deltas
  frontier   size of deltas against what the network learns, from rehearsals
  content    time importing and fetching checkpoints, beside what the machine can do at best
  agreement  time the agreement in simulated and real networks`

// shapes are the models that bench knows by name. Layers can be chosen.
func shapes() map[string]model.Config {
	c := model.Config{RopeTheta: 10000, NormEps: 1e-5, Positions: 4096}
	with := func(vocab, dim, layers, heads, kv, head, experts, top, width int) model.Config {
		c := c
		c.Vocab, c.Dim, c.Layers, c.Heads, c.KVHeads, c.HeadDim, c.Experts, c.TopK, c.Width = vocab, dim, layers, heads, kv, head, experts, top, width
		return c
	}
	demo := with(256, 96, 4, 4, 2, 32, 14, 2, 192)
	demo.Normalize = true
	return map[string]model.Config{
		"olmoe": with(50304, 2048, 16, 16, 16, 128, 64, 8, 1024), // OLMoE-1B-7B
		"demo":  demo,                                            // the embedded genesis after admission
		"tiny":  with(320, 64, 2, 2, 1, 32, 8, 2, 96),            // for comparing backends bit by bit
	}
}

// stepBench are the flags of bench step.
type stepBench struct {
	profile bool
	untried bool
	*common
	mode    string
	config  model.Config
	shape   string
	batch   int
	seq     int
	trained int
	steps   int
	warmup  int
	lr      float64
	plan    training.Plan
	only    string
	memory  size
	show    bool
	asJSON  bool
}

// stepReport is what bench step measured.
type stepReport struct {
	Backend string       `json:"backend"`
	Mode    string       `json:"mode"`
	Device  string       `json:"device,omitempty"`
	Shape   string       `json:"shape"`
	Config  model.Config `json:"config"`
	Params  int64        `json:"params"`
	Trained int64        `json:"trained_params"`

	Batch     int  `json:"batch"`
	Seq       int  `json:"seq"`
	Micro     int  `json:"micro"`
	Recompute bool `json:"recompute"`
	// Resident is how many bytes of frozen experts may stay on the device, 0 if all do.
	Resident int64 `json:"resident,omitempty"`

	LoadSeconds    float64   `json:"load_seconds"`
	StepSeconds    float64   `json:"step_seconds,omitempty"` // median
	StepSpread     []float64 `json:"step_spread,omitempty"`  // fastest and slowest
	TrainTokens    float64   `json:"train_tokens_per_second,omitempty"`
	EvalSeconds    float64   `json:"eval_seconds,omitempty"`
	EvalTokens     float64   `json:"eval_tokens_per_second,omitempty"`
	TrainPeak      int64     `json:"train_peak_bytes,omitempty"`        // allocated by the backend
	TrainPeakOfAll int64     `json:"train_peak_driver_bytes,omitempty"` // gone from the device's free memory, the driver's own share too
	EvalPeak       int64     `json:"eval_peak_bytes,omitempty"`
	EvalPeakOfAll  int64     `json:"eval_peak_driver_bytes,omitempty"`
	Planned        int64     `json:"planned_bytes,omitempty"` // what the memory planner expected of training

	Losses   []float64 `json:"losses,omitempty"` // of the first steps
	EvalLoss float64   `json:"eval_loss,omitempty"`
	// Digest is of the bits of all losses, of training and evaluation, and of the trained weights at the end.
	Digest string `json:"digest"`
}

func benchStep(ctx context.Context, env environment, args []string) error {
	s := &stepBench{common: newFlags(env, "bench step", `Usage: bzd bench step [flags]

Builds a model of the shape with random weights, the same on every machine, trains experts of it on random tokens with
everything else frozen, and evaluates. Times are medians of whole steps: forward, backward, clipping, AdamW. The digest is
of all losses and trained weights: two exact backends agree in it.`)}
	s.flags()
	if err := s.parse(args, false); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if s.show {
		f, err := s.fit()
		if err != nil {
			return err
		}
		printMemory(env.out, f.Memory)
		fmt.Fprintln(env.out, chosen(f, s.batch))
		return nil
	}
	r, err := s.run(ctx)
	if err != nil {
		return err
	}
	if s.asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.print(env)
	return nil
}

func (s *stepBench) flags() {
	f := s.set
	f.IntVar(&s.threads, "threads", 0, "goroutines to compute with on the processor; 0 means all")
	f.StringVar(&s.isa, "isa", "", "instruction set of the processor; empty means the fastest")
	f.StringVar(&s.on, "backend", "cpu", "cpu or cuda")
	f.IntVar(&s.card, "device", 0, "number of the card")
	f.StringVar(&s.mode, "mode", "exact", "exact, or on a card fast: in bfloat16")
	f.BoolVar(&s.untried, "untried", false, "on a card, use kernels too that no card has run yet")
	f.BoolVar(&s.profile, "profile", false, "on a card, print how long each kernel took in all")
	f.StringVar(&s.shape, "shape", "demo", "model: olmoe, demo or tiny; the flags below change it")
	for _, d := range s.dimensions() {
		f.IntVar(d.to, d.name, 0, d.what+"; 0 means that of the shape")
	}
	f.IntVar(&s.batch, "batch", 8, "sequences per step")
	f.IntVar(&s.seq, "seq", 128, "tokens per sequence")
	f.IntVar(&s.trained, "trained", 2, "experts per layer that are trained")
	f.IntVar(&s.steps, "steps", 10, "steps and evaluations to time")
	f.IntVar(&s.warmup, "warmup", 2, "steps and evaluations before")
	f.Float64Var(&s.lr, "lr", 1e-4, "peak learning rate")
	f.IntVar(&s.plan.Micro, "micro", 0, "sequences at a time; 0 means all")
	f.BoolVar(&s.plan.Recompute, "recompute", false, "compute activations again on the way back")
	f.StringVar(&s.only, "only", "", "train or eval; empty means both")
	f.Var(&s.memory, "memory", "`AMOUNT` of device memory to keep below, as 8GiB, by what the planner finds unless --micro or --recompute are given; 0 means what is free")
	f.BoolVar(&s.show, "plan", false, "say what training takes of a card's memory, and stop")
	f.BoolVar(&s.asJSON, "json", false, "print one JSON object")
}

type dimension struct {
	name, what string
	to         *int
}

func (s *stepBench) dimensions() []dimension {
	c := &s.config
	return []dimension{
		{"layers", "layers", &c.Layers}, {"dim", "width of the residual stream", &c.Dim}, {"heads", "heads of queries", &c.Heads},
		{"kv-heads", "heads of keys and values", &c.KVHeads}, {"head-dim", "values per head", &c.HeadDim}, {"experts", "experts per layer", &c.Experts},
		{"topk", "experts per token", &c.TopK}, {"width", "inner width of an expert", &c.Width}, {"vocab", "tokens of the vocabulary", &c.Vocab},
	}
}

// check completes the flags.
func (s *stepBench) check() error {
	shape, ok := shapes()[s.shape]
	if !ok {
		return usageError("--shape %q: olmoe, demo or tiny", s.shape)
	}
	given := s.config
	s.config = shape
	for i, d := range s.dimensions() {
		if v := *(&stepBench{config: given}).dimensions()[i].to; v != 0 {
			*d.to = v
		}
	}
	s.config.Positions = max(s.config.Positions, s.seq)
	if err := s.config.Validate(); err != nil {
		return usageError("%v", err)
	}
	switch {
	case s.batch < 1 || s.batch > maxBatch:
		return usageError("--batch %d: 1 to %d", s.batch, maxBatch)
	case s.seq < 1:
		return usageError("--seq %d: at least 1", s.seq)
	case s.trained < 1 || s.trained > s.config.Experts:
		return usageError("--trained %d: 1 to %d, the experts of a layer", s.trained, s.config.Experts)
	case s.steps < 1 || s.warmup < 0:
		return usageError("--steps %d --warmup %d: at least 1 and 0", s.steps, s.warmup)
	case !slices.Contains([]string{"", "train", "eval"}, s.only):
		return usageError("--only %q: train or eval", s.only)
	}
	s.plan.Steps, s.plan.Batch, s.plan.Seq = s.warmup+s.steps, s.batch, s.seq
	s.plan.Schedule = optim.Schedule{Peak: s.lr, Warmup: min(2, s.plan.Steps-1)}
	if err := s.plan.Validate(); err != nil {
		return usageError("%v", err)
	}
	switch {
	case s.on != "cpu" && s.on != "cuda":
		return usageError("--backend %q: cpu or cuda", s.on)
	case s.mode != "exact" && s.mode != "fast":
		return usageError("--mode %q: exact or fast", s.mode)
	case s.on == "cpu" && s.mode != "exact" && !s.show:
		return usageError("--mode fast: the processor computes exactly only; --backend cuda has it")
	}
	return nil
}

// kinds are what the backend keeps: everything frozen is bfloat16 values here.
func (s *stepBench) kinds() training.Kinds {
	if s.mode == "fast" {
		return training.FastKinds()
	}
	k := training.ExactKinds()
	k.Experts = k.Hub
	return k
}

// meteredCard is a card whose memory can be watched.
type meteredCard struct {
	what  string
	used  func() int64 // bytes that the backend has allocated
	taken func() int64 // bytes that were free when the card was opened
	close func() error
}

// look raises the peaks; without a card there is nothing to see.
func (m *meteredCard) look(used, taken *int64) {
	if m != nil {
		*used, *taken = max(*used, m.used()), max(*taken, m.taken())
	}
}

// open gives what computes, and the card if it is one.
func (s *stepBench) open(l limits) (backend.Backend, *meteredCard, error) {
	if s.on == "cuda" {
		return benchCard(s.card, s.mode == "fast", l)
	}
	b, err := s.backend(s.workers())
	return b, nil, err
}

// group are the experts that are trained: the last ones of every layer, as groups that were admitted are.
func (s *stepBench) group() (refs []model.ExpertRef) {
	for l := range s.config.Layers {
		for e := s.config.Experts - s.trained; e < s.config.Experts; e++ {
			refs = append(refs, model.ExpertRef{Layer: l, Index: e})
		}
	}
	return refs
}

func (s *stepBench) run(ctx context.Context) (r *stepReport, err error) {
	group := s.group()
	r = &stepReport{Shape: s.shape, Config: s.config, Params: s.config.Params(), Batch: s.batch, Seq: s.seq, Mode: s.mode}
	planned, err := s.fit()
	if err != nil {
		return nil, err
	}
	s.plan.Micro, s.plan.Recompute = planned.Micro, planned.Recompute
	resident := int64(0)
	if planned.Memory.Host > 0 {
		resident = max(1, planned.Resident)
	}
	b, card, err := s.open(limits{int64(s.memory), resident, s.profile, s.untried})
	if err != nil {
		return nil, err
	}
	r.Backend, r.Resident = b.Name(), resident
	if card != nil {
		defer func() { err = errors.Join(err, card.close()) }()
		r.Device, r.Planned = card.what, planned.Memory.Total()
	}
	start := time.Now()
	m, err := model.NewFrozen(b, s.config, noise(group), group)
	if err != nil {
		return nil, err
	}
	r.LoadSeconds = time.Since(start).Seconds()
	h := sha256.New()
	note := func(v ...float64) {
		for _, x := range v {
			_ = binary.Write(h, binary.LittleEndian, math.Float64bits(x)) // a hash does not fail
		}
	}
	if s.only != "eval" {
		if err := s.train(ctx, b, card, m, group, r, note); err != nil {
			return nil, fmt.Errorf("training: %w", err)
		}
	}
	if s.only != "train" {
		if err := s.evaluate(ctx, b, card, m, r, note); err != nil {
			return nil, fmt.Errorf("evaluation: %w", err)
		}
	}
	r.Digest = hex.EncodeToString(h.Sum(nil))
	return r, nil
}

// fit plans the memory of training: as the flags say, or as they leave open and --memory allows.
func (s *stepBench) fit() (training.Fitted, error) {
	if s.memory > 0 && s.plan.Micro == 0 && !s.plan.Recompute {
		return training.Fit(s.config, s.group(), s.batch, s.seq, s.kinds(), int64(s.memory))
	}
	micro := min(s.batch, cmp.Or(s.plan.Micro, s.batch))
	m := training.Estimate(s.config, s.group(), model.Layout{Sequences: micro, Seq: s.seq, Recompute: s.plan.Recompute}, s.kinds())
	return training.Fitted{Micro: micro, Recompute: s.plan.Recompute, Resident: m.Experts, Memory: m}, nil
}

func (s *stepBench) train(ctx context.Context, b backend.Backend, card *meteredCard, m *model.Model, group []model.ExpertRef, r *stepReport, note func(...float64)) error {
	t, err := m.TrainGroup(group)
	if err != nil {
		return err
	}
	for _, p := range t.Params() {
		r.Trained += int64(p.Value.Len())
	}
	o, err := optim.New(b, optim.Defaults(), t.Params())
	if err != nil {
		return err
	}
	j, err := training.NewJob(m, t, o, s.plan, tokens{s.config.Vocab, s.seq}, nil)
	if err != nil {
		return err
	}
	var seconds []float64
	last := time.Now()
	err = j.Run(ctx, func(p training.Progress) {
		now := time.Now()
		if p.Step > s.warmup {
			seconds = append(seconds, now.Sub(last).Seconds())
		}
		last = now
		note(p.Loss, p.Norm)
		if len(r.Losses) < 16 {
			r.Losses = append(r.Losses, p.Loss)
		}
		card.look(&r.TrainPeak, &r.TrainPeakOfAll)
		last = time.Now()
	})
	if err != nil {
		return err
	}
	r.Micro, r.Recompute = j.Micro(), s.plan.Recompute
	r.StepSeconds, r.StepSpread = spread(seconds)
	r.TrainTokens = float64(s.batch*s.seq) / r.StepSeconds
	for _, v := range training.Values(t.Params(), b) {
		note(float64(v))
	}
	return nil
}

func (s *stepBench) evaluate(ctx context.Context, b backend.Backend, card *meteredCard, m *model.Model, r *stepReport, note func(...float64)) error {
	n := s.plan.Micro
	p := m.NewPass(n, s.seq, nil)
	tok := tokens{s.config.Vocab, s.seq}
	in, out := make([]int32, 0, s.batch*s.seq), make([]int32, 0, s.batch*s.seq)
	for i := range s.batch {
		v := tok.Sequence(int64(i) - 1<<32) // not those of training
		in, out = append(in, v[:s.seq]...), append(out, v[1:]...)
	}
	losses := make([]float64, len(in))
	var seconds []float64
	for i := range s.warmup + s.steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		start := time.Now()
		for lo := 0; lo < len(in); lo += n * s.seq {
			hi := min(lo+n*s.seq, len(in))
			p.Loss(losses[lo:hi], in[lo:hi], out[lo:hi])
		}
		if err := b.Sync(); err != nil {
			return err
		}
		if i >= s.warmup {
			seconds = append(seconds, time.Since(start).Seconds())
		}
		card.look(&r.EvalPeak, &r.EvalPeakOfAll)
	}
	sum := 0.0
	for _, l := range losses {
		sum += l
	}
	note(losses...)
	r.EvalLoss = sum / float64(len(losses))
	r.EvalSeconds, _ = spread(seconds)
	r.EvalTokens = float64(len(in)) / r.EvalSeconds
	return nil
}

// spread is the median, and the least and the greatest.
func spread(v []float64) (median float64, ends []float64) {
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2, []float64{v[0], v[n-1]}
}

func (r *stepReport) print(env environment) {
	fmt.Fprintf(env.out, "%s; %s of %d layers, %.1f million parameters, %.1f million of them trained; batch %d×%d\n",
		r.Backend, r.Shape, r.Config.Layers, float64(r.Params)/1e6, float64(r.Trained)/1e6, r.Batch, r.Seq)
	w := table(env.out)
	head := "\ttokens/s\tseconds"
	if r.Device != "" {
		head += "\tpeak MiB\twith the driver's"
	}
	fmt.Fprintln(w, head)
	row := func(what string, rate, seconds float64, peak, all int64) {
		if seconds == 0 {
			return
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.4f", what, rate, seconds)
		if r.Device != "" {
			fmt.Fprintf(w, "\t%d\t%d", peak>>20, all>>20)
		}
		fmt.Fprintln(w)
	}
	row("training step", r.TrainTokens, r.StepSeconds, r.TrainPeak, r.TrainPeakOfAll)
	row("evaluation", r.EvalTokens, r.EvalSeconds, r.EvalPeak, r.EvalPeakOfAll)
	w.Flush()
	if r.Planned > 0 {
		fmt.Fprintf(env.out, "planned for training %d MiB\n", r.Planned>>20)
	}
	if len(r.Losses) > 0 {
		fmt.Fprintf(env.out, "micro-batches of %d; losses %s\n", r.Micro, strings.Trim(fmt.Sprintf("%.5f", r.Losses), "[]"))
	}
	if r.EvalSeconds > 0 {
		fmt.Fprintf(env.out, "loss of the evaluation %.9f\n", r.EvalLoss)
	}
	fmt.Fprintf(env.out, "digest %s\n", r.Digest)
}

// tokens is a source of random sequences.
type tokens struct{ vocab, seq int }

func (t tokens) Sequence(i int64) []int32 {
	v := make([]int32, t.seq+1)
	for k := range v {
		v[k] = int32(splitmix(uint64(i)<<24+uint64(k)) % uint64(t.vocab))
	}
	return v
}

// splitmix is the output function of the generator of that name.
func splitmix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// noise is a source of weights: uniform ones that keep the size of what they multiply, bfloat16 values but for what is
// trained, and ones for norms.
func noise(trained []model.ExpertRef) model.Source {
	moves := map[string]bool{}
	for _, e := range trained {
		for _, p := range []string{"gate", "up", "down"} {
			moves[model.ExpertName(e.Layer, e.Index, p)] = true
		}
	}
	return func(s model.Spec, dst []float32) error {
		if len(s.Shape) == 1 {
			for i := range dst {
				dst[i] = 1
			}
			return nil
		}
		f := fnv.New64a()
		f.Write([]byte(s.Name))
		seed, mask := f.Sum64(), uint32(0xffff0000)
		if moves[s.Name] {
			mask = 0xffffffff
		}
		scale := float32(math.Sqrt(3 / float64(s.Shape[1])))
		if strings.Contains(s.Name, "embed_tokens") {
			scale = 1
		}
		var wg sync.WaitGroup
		part := (len(dst) + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0)
		for lo := 0; lo < len(dst); lo += part {
			hi := min(lo+part, len(dst))
			wg.Go(func() {
				for i := lo; i < hi; i++ {
					x := float32(int32(splitmix(seed+uint64(i))>>32)) * (1.0 / (1 << 31))
					dst[i] = math.Float32frombits(math.Float32bits(float32(x*scale)) & mask)
				}
			})
		}
		wg.Wait()
		return nil
	}
}
