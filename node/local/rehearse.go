package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/delta"
)

// RehearseOptions say what to rehearse.
type RehearseOptions struct {
	Cycles  int
	Miners  int                 // per group
	Seed    string              // of miners and beacons
	Dir     string              // checkpoints go to cycle-0001 and so on below it
	Workers int                 // jobs at a time
	Tokens  int64               // per miner and cycle; 0 means the default
	Tune    func(*TrainOptions) // changes how miners train; may be nil

	// Training is called while a miner trains, from several goroutines; Done after every cycle. Either may be nil.
	Training func(cycle int, miner string, p training.Progress)
	Done     func(CycleReport)
}

// CycleReport is what a cycle did. Losses are nats per byte on the fixed probe.
type CycleReport struct {
	Cycle        int                `json:"cycle"`
	Base         protocol.Link      `json:"base"`
	Next         protocol.Link      `json:"next"`
	Alpha        protocol.Rational  `json:"alpha"`
	CanaryBefore float64            `json:"canary_before"`
	CanaryAfter  float64            `json:"canary_after"`
	Groups       []GroupReport      `json:"groups"`
	Submissions  []SubmissionReport `json:"submissions"`
	Excluded     []string           `json:"excluded,omitempty"` // groups left out of the merge
	Verdicts     []string           `json:"verdicts"`           // why each scale of the last search was or was not acceptable
}

// GroupReport is one group's domain before and after.
type GroupReport struct {
	Group  string  `json:"group"`
	Before float64 `json:"loss_before"`
	After  float64 `json:"loss_after"`
}

// SubmissionReport is one miner's outcome. Gain and standard error are nats per byte on the scoring split.
type SubmissionReport struct {
	Miner  string          `json:"miner"`
	Group  string          `json:"group"`
	Status protocol.Status `json:"status"`
	Reason string          `json:"reason,omitempty"`
	Gain   float64         `json:"gain"`
	StdErr float64         `json:"stderr"`
	Bytes  int64           `json:"bytes"`
	Weight float64         `json:"weight"` // share of the cycle's pay
}

// rehearsal is the state between cycles.
type rehearsal struct {
	RehearseOptions
	n      *Network
	b      backend.Backend
	phi    *Phi
	miners []miner
	memory []Memory
	probe  map[string]float64
}

type miner struct {
	name, group string
	id          protocol.ID
}

// Rehearse runs whole cycles in order: every miner trains, every delta is scored on held-out text, the good ones are
// merged at the best scale, and the next cycle starts from there. It returns the last checkpoint's link and directory.
func Rehearse(ctx context.Context, b backend.Backend, n *Network, start string, o RehearseOptions) (protocol.Link, string, error) {
	phi, err := LoadPhi(b, start)
	if err != nil {
		return protocol.Link{}, "", err
	}
	if phi.Link != n.Genesis.Checkpoint {
		return protocol.Link{}, "", fmt.Errorf("checkpoint in %s is %s, the genesis starts from %s", start, phi.Link, n.Genesis.Checkpoint)
	}
	r := &rehearsal{RehearseOptions: o, n: n, b: b, phi: phi}
	for _, g := range n.Genesis.Groups {
		for i := range o.Miners {
			m := miner{name: fmt.Sprintf("%s-%d", g.Name, i+1), group: g.Name}
			m.id = seedOf("miner", o.Seed, m.name)
			r.miners = append(r.miners, m)
		}
	}
	r.memory = make([]Memory, len(r.miners))
	if r.probe, err = n.Probe(ctx, phi, o.Workers); err != nil {
		return protocol.Link{}, "", err
	}
	dir := start
	for t := range o.Cycles {
		next := filepath.Join(o.Dir, fmt.Sprintf("cycle-%04d", t+1))
		report, err := r.cycle(ctx, t, next)
		if err != nil {
			return protocol.Link{}, "", err
		}
		if report.Next != report.Base {
			dir = next
		}
		if o.Done != nil {
			o.Done(report)
		}
	}
	return r.phi.Link, dir, nil
}

// cycle runs one cycle and moves r to the next checkpoint.
func (r *rehearsal) cycle(ctx context.Context, t int, dir string) (CycleReport, error) {
	report := CycleReport{Cycle: t, Base: r.phi.Link, CanaryBefore: r.probe[r.n.Genesis.Canary]}
	subs, err := r.train(ctx, t)
	if err != nil {
		return report, err
	}
	beacons := Beacons(r.Seed, uint64(t))
	judged, err := r.n.Judge(ctx, r.phi, uint64(t), beacons, subs, r.Workers)
	if err != nil {
		return report, err
	}
	var accepted []Accepted
	for i, j := range judged {
		s := SubmissionReport{Miner: r.miners[i].name, Group: r.miners[i].group, Status: j.Status, Reason: subs[i].Reason,
			Gain: float64(j.Row.Gain) / 1e9, StdErr: float64(j.Row.StdErr) / 1e9, Bytes: subs[i].Bytes, Weight: float64(j.Weight) / (1 << 32)}
		report.Submissions = append(report.Submissions, s)
		if j.Part > 0 {
			accepted = append(accepted, Accepted{Miner: subs[i].Miner, Group: subs[i].Group, Delta: subs[i].Delta, Points: j.Part})
		}
	}
	merged, err := r.n.Merge(ctx, r.phi, uint64(t), beacons, accepted, dir, r.Workers)
	if err != nil {
		return report, err
	}
	report.Alpha, report.Next, report.Excluded = merged.Alpha, merged.Next, merged.Excluded
	for _, v := range merged.Verdicts {
		s := fmt.Sprintf("α = %s: %s", r.n.Genesis.Params.AlphaGrid[v.Alpha], v.Reason)
		if v.Domain != "" {
			s += " by " + v.Domain
		}
		report.Verdicts = append(report.Verdicts, s)
	}
	before := r.probe
	if merged.Next != r.phi.Link {
		if r.phi, err = LoadPhi(r.b, dir); err != nil {
			return report, err
		}
		if r.probe, err = r.n.Probe(ctx, r.phi, r.Workers); err != nil {
			return report, err
		}
	}
	report.CanaryAfter = r.probe[r.n.Genesis.Canary]
	for _, g := range r.n.Genesis.Groups {
		report.Groups = append(report.Groups, GroupReport{Group: g.Name, Before: before[g.Domain], After: r.probe[g.Domain]})
	}
	return report, nil
}

// train runs all miners, Workers at a time. A miner whose training diverges submits nothing.
func (r *rehearsal) train(ctx context.Context, t int) ([]Submission, error) {
	subs := make([]Submission, len(r.miners))
	errs := make([]error, len(r.miners))
	slots := make(chan struct{}, max(1, r.Workers))
	var wg sync.WaitGroup
	for i, m := range r.miners {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			o := r.n.DefaultTrain(m.group, r.Seed+"/"+m.name, uint64(t))
			if r.Tokens > 0 {
				o.Tokens = r.Tokens
			}
			if r.Tune != nil {
				r.Tune(&o)
			}
			o.Memory = r.memory[i]
			d, memory, err := Train(ctx, r.n, r.phi, o, func(p training.Progress) {
				if r.Training != nil {
					r.Training(t, m.name, p)
				}
			})
			subs[i] = Submission{Miner: m.id, Group: m.group, Delta: d, Status: protocol.StatusOK}
			switch {
			case errors.Is(err, training.ErrDiverged), errors.Is(err, delta.ErrRange):
				subs[i].Status, subs[i].Reason = protocol.StatusOffline, err.Error()
				r.memory[i].Feedback = nil // it may be the reason
			case err != nil:
				errs[i] = err
			default:
				r.memory[i] = memory
				subs[i].Bytes = int64(d.Header().Size)
			}
		})
	}
	wg.Wait()
	return subs, errors.Join(errs...)
}
