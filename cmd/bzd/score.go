package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/delta"
)

// scoring are the flags of eval and merge.
type scoring struct {
	*common
	from   string
	deltas list
	cycle  uint64
	beacon string
	out    *string // of merge

	fallback string // of eval
	host     *cpu.Backend
	start    string
	side     int // passes side by side
	done     func() error

	n *local.Network
	p *local.Phi
}

func newScoring(env environment, name, text string) *scoring {
	s := &scoring{common: newFlags(env, name, text).network(), done: func() error { return nil }}
	s.set.StringVar(&s.from, "checkpoint", "", "checkpoint directory; empty means the network's genesis")
	s.set.Var(&s.deltas, "delta", "delta `FILE`; repeatable, more may follow the flags")
	s.set.Uint64Var(&s.cycle, "cycle", 0, "cycle: earlier cycles' samples are not drawn again")
	s.set.StringVar(&s.beacon, "beacon", "bzd", "public randomness that the held-out draws come from")
	return s
}

// open parses the flags and loads the network, the checkpoint and the deltas.
func (s *scoring) open(args []string) ([]local.Submission, error) {
	if err := s.parse(args, true); err != nil {
		return nil, err
	}
	s.deltas = append(s.deltas, s.set.Args()...)
	if len(s.deltas) == 0 {
		return nil, usageError("no delta given: --delta FILE")
	}
	if s.cycle > maxCycle {
		return nil, usageError("--cycle %d: at most %d", s.cycle, maxCycle)
	}
	if s.out != nil {
		if err := s.require("out"); err != nil {
			return nil, err
		}
		if err := newDir(*s.out); err != nil {
			return nil, err
		}
	}
	if s.fallback != "" && s.fallback != "cpu" {
		return nil, usageError("--fallback %q: only cpu", s.fallback)
	}
	var err error
	if s.host, err = s.backend(1); err != nil { // many forward passes side by side, each on one thread
		return nil, err
	}
	var b backend.Backend
	b, s.done, err = s.hardware(1, false)
	if s.fallsBack(err) {
		b, err = s.host, nil
	}
	if err != nil {
		return nil, err
	}
	if s.n, s.start, err = s.openNetwork(s.host, nil); err != nil {
		return nil, err
	}
	load := local.LoadPhi
	if s.room > 0 {
		load = local.LoadMapped
	}
	s.p, err = s.phiBy(load, b, s.n, s.from, s.start)
	if s.fallsBack(err) {
		b = s.host
		s.p, err = s.phiBy(load, b, s.n, s.from, s.start)
	}
	if err != nil {
		return nil, err
	}
	finish := s.done
	s.done = func() error { return errors.Join(s.p.Close(), finish()) }
	s.side = s.workers()
	if _, ok := b.(*cpu.Backend); !ok {
		s.side = 1 // a card does one thing after another
	}
	var subs []local.Submission
	for i, path := range s.deltas {
		sub, err := s.read(i, path)
		if err != nil {
			return nil, err
		}
		subs = append(subs, sub)
	}
	return subs, nil
}

// fallsBack reports whether err is a card's and the CPU shall do its work, and says so. The result is the same.
func (s *scoring) fallsBack(err error) bool {
	if err == nil || s.fallback == "" || !cardFailed(err) {
		return false
	}
	fmt.Fprintf(s.env.err, "bzd: going on with the CPU: %s\n", oneLine(err))
	return true
}

// read decodes the i-th delta file. Bytes that are no valid delta for this checkpoint are an invalid submission with its
// reason, as they would be in the network; a file that cannot be read is an error.
func (s *scoring) read(i int, path string) (local.Submission, error) {
	sub := local.Submission{Miner: sha256.Sum256(fmt.Appendf(nil, "%d %s", i, path)), Status: protocol.StatusInvalid}
	h, err := delta.PeekFile(path)
	if err == nil {
		sub.Group, sub.Bytes = h.Group, int64(h.Size)
		var want delta.Expect
		if want, err = s.n.Expect(s.p, sub.Group); err == nil {
			if sub.Delta, err = delta.ReadFile(path, want); err == nil {
				sub.Status = protocol.StatusOK
				return sub, nil
			}
		}
	}
	var system *fs.PathError
	if errors.As(err, &system) {
		return local.Submission{}, err
	}
	sub.Reason = oneLine(err)
	return sub, nil
}

// result is one delta's outcome, as --json prints it.
type result struct {
	File   string          `json:"file"`
	Group  string          `json:"group"`
	Row    protocol.Row    `json:"row"`
	Status protocol.Status `json:"status"`
	Reason string          `json:"reason,omitempty"`
	Part   uint64          `json:"part"`   // of its group, of 2³²
	Weight uint64          `json:"weight"` // of the cycle, of 2³²
}

// judge scores all submissions and pays them.
func (s *scoring) judge(ctx context.Context, subs []local.Submission) ([]result, error) {
	scored, err := s.n.Judge(ctx, s.p, s.cycle, local.Beacons(s.beacon, s.cycle), subs, s.side)
	if s.fallsBack(err) {
		if s.p, err = s.phi(s.host, s.n, s.from, s.start); err != nil {
			return nil, err
		}
		s.side = s.workers()
		scored, err = s.n.Judge(ctx, s.p, s.cycle, local.Beacons(s.beacon, s.cycle), subs, s.side)
	}
	if err != nil {
		return nil, err
	}
	out := make([]result, len(subs))
	for i, x := range scored {
		out[i] = result{File: s.deltas[i], Group: subs[i].Group, Row: x.Row, Status: x.Status, Reason: subs[i].Reason, Part: x.Part, Weight: x.Weight}
	}
	return out, nil
}

func (s *scoring) print(results []result) {
	w := table(s.env.out)
	fmt.Fprintln(w, "delta\tgroup\tgain\t± standard error\tsamples\tstatus\tweight\treason")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%+.5f\t%.5f\t%d\t%s\t%.4f\t%s\n", r.File, r.Group, float64(r.Row.Gain)/1e9, float64(r.Row.StdErr)/1e9, r.Row.N, r.Status, float64(r.Weight)/(1<<32), r.Reason)
	}
	w.Flush()
	fmt.Fprintf(s.env.out, "gain in nats per %s on held-out text of the group's domain and the canary; paid if gain − %.2f·error > 0\n",
		s.p.Tokens.Unit(), float64(s.n.Genesis.Params.ConfidenceMilli)/1000)
}

func eval(ctx context.Context, env environment, args []string) (err error) {
	s := newScoring(env, "eval", `Usage: bzd eval --delta FILE... [flags]

Scores deltas by Proof-of-Loss: the paired change of the loss on held-out samples of the group's domain and of the
canary, with its standard error, in integers. A card computes the same to the bit.`)
	s.device()
	s.set.StringVar(&s.fallback, "fallback", "", "cpu: go on with the CPU if the card fails; empty means stop")
	s.set.Var((*size)(&s.room), "mapped", "leave frozen weights in the checkpoint's files and hold at most that `AMOUNT` of them in memory at a time, as 2GiB; 0 loads the model. Never changes a result")
	asJSON := s.set.Bool("json", false, "print the rows as JSON, in nano-nats")
	defer func() { err = errors.Join(err, s.done()) }()
	subs, err := s.open(args)
	if err != nil {
		return err
	}
	results, err := s.judge(ctx, subs)
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	s.print(results)
	return nil
}

func mergeDeltas(ctx context.Context, env environment, args []string) error {
	s := newScoring(env, "merge", `Usage: bzd merge --delta FILE... --out DIR [flags]

Scores deltas, weighs those that improve the loss by their gain, searches the scale of the joint step on other held-out
samples, and writes the next checkpoint. If no scale improves the loss nothing is written and the checkpoint stays.`)
	s.out = s.set.String("out", "", "directory of the next checkpoint")
	subs, err := s.open(args)
	if err != nil {
		return err
	}
	results, err := s.judge(ctx, subs)
	if err != nil {
		return err
	}
	s.print(results)
	var accepted []local.Accepted
	for i, r := range results {
		if r.Part > 0 {
			accepted = append(accepted, local.Accepted{Miner: subs[i].Miner, Group: r.Group, Delta: subs[i].Delta, Points: r.Part})
		}
	}
	m, err := s.n.Merge(ctx, s.p, s.cycle, local.Beacons(s.beacon, s.cycle), accepted, *s.out, s.workers())
	if err != nil {
		return err
	}
	for _, v := range m.Verdicts {
		scale := s.n.Genesis.Params.AlphaGrid[v.Alpha]
		fmt.Fprintf(env.out, "scale %s: %s %s\n", scale, v.Reason, v.Domain)
	}
	if m.Alpha.IsZero() {
		fmt.Fprintf(env.out, "no merge: the checkpoint stays %s\n", s.p.Link)
		return errors.New("nothing was merged")
	}
	fmt.Fprintf(env.out, "α = %s\n%s → %s in %s\n", m.Alpha, s.p.Link, m.Next, *s.out)
	return nil
}
