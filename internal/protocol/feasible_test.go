package protocol

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

func feasible(t *testing.T, p Params, l Load) Feasibility {
	t.Helper()
	r, err := Feasible(p, l)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFeasibleDefaults: what is shipped fits.
func TestFeasibleDefaults(t *testing.T) {
	for name, c := range map[string]struct {
		p Params
		l Load
	}{"production": {ProductionParams(), ProductionLoad()}, "demo": {DemoParams(), DemoLoad()}} {
		r := feasible(t, c.p, c.l)
		if !r.Fits || len(r.Phases) != 9 || r.Schedule != c.p.Schedule || len(r.Warnings) != 0 {
			t.Errorf("%s: %+v", name, r)
		}
		for _, f := range r.Phases {
			if f.Need == 0 || f.From != f.To {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}

// TestFeasibleNames: each phase that does not fit names its own parameter, and what is proposed fits, barely.
func TestFeasibleNames(t *testing.T) {
	for want, change := range map[string]func(*Params, *Load){
		"schedule.commit":   func(_ *Params, l *Load) { l.TrainSpeed /= 10 },
		"schedule.custody":  func(_ *Params, l *Load) { l.DeltaBytes *= 10 },
		"schedule.open":     func(p *Params, l *Load) { p.Schedule.Open = p.Schedule.Custody + 1; l.ClockMillis = 2000 },
		"schedule.evaluate": func(_ *Params, l *Load) { l.EvalSpeed /= 20 },
		"schedule.delta":    func(p *Params, _ *Load) { p.Schedule.DeltaMillis = 500 },
		"schedule.search":   func(p *Params, _ *Load) { p.Schedule.Search = 5 },
		"schedule.end":      func(_ *Params, l *Load) { l.SubmitBlocks = 40 },
		"schedule.blocks":   func(p *Params, _ *Load) { p.Schedule.CycleBlocks = 340 },
	} {
		p, l := ProductionParams(), ProductionLoad()
		change(&p, &l)
		r := feasible(t, p, l)
		var bad []Fit
		for _, f := range r.Phases {
			if !f.Fits {
				bad = append(bad, f)
			}
		}
		if r.Fits || len(bad) == 0 || bad[0].Parameter != want || bad[0].To <= bad[0].From {
			t.Errorf("%s: %+v", want, bad)
			continue
		}
		p.Schedule = r.Schedule
		if again := feasible(t, p, l); !again.Fits || again.Schedule != r.Schedule {
			t.Errorf("%s: what is proposed does not fit: %+v", want, again)
		}
		if _, err := p.Schedule.Deadlines(l.PeriodMillis); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestFeasibleProposals: whatever the load, the proposed schedule fits, is no shorter, and one round less in any place does
// not fit or is as it was.
func TestFeasibleProposals(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		p, l := ProductionParams(), ProductionLoad()
		l.Miners, l.Groups, l.Validators = 1+rng.Uint32N(1024), 1+rng.Uint32N(16), 1+rng.Uint32N(256)
		l.PeriodMillis, l.BlockMillis = 500+rng.Uint32N(5000), 500+rng.Uint32N(12000)
		l.DeltaBytes, l.ChangedBytes = 1+rng.Uint64N(100<<20), rng.Uint64N(10<<30)
		l.MinerBytes, l.ValidatorBytes = 1e6+rng.Uint64N(1e8), 1e6+rng.Uint64N(1e8)
		l.TrainTokens, l.EvalSpeed, l.SubmitBlocks = rng.Uint64N(50e6), 1000+rng.Uint64N(1e6), 1+rng.Uint32N(20)
		r := feasible(t, p, l)
		if err := r.Schedule.Validate(); err != nil {
			continue // past what a schedule may be: nothing helps but another load
		}
		p.Schedule = r.Schedule
		again := feasible(t, p, l)
		if !again.Fits || again.Schedule != r.Schedule {
			t.Fatalf("%+v\nproposes %+v,\nwhich gives %+v", l, r.Schedule, again)
		}
		for _, f := range r.Phases {
			if f.To < f.From || !f.Fits && f.To == f.From && f.Parameter != "schedule.end" && f.Parameter != "schedule.blocks" {
				t.Fatalf("%+v", f)
			}
		}
	}
}

func TestFeasibleWarns(t *testing.T) {
	l := ProductionLoad()
	l.Validators, l.Stakes = 4, []uint64{30, 30, 30, 10}
	third := "validator 0 holds a third"
	if r := feasible(t, ProductionParams(), l); len(r.Warnings) != 0 {
		t.Errorf("a largest stake of 30 in 100: %q", r.Warnings)
	}
	l.Stakes = []uint64{30, 30, 25, 5}
	if r := feasible(t, ProductionParams(), l); len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], third) {
		t.Errorf("30 in 90: %q", r.Warnings)
	}
	l.Stakes = []uint64{1 << 63, 1 << 63, 1 << 63, 1 << 63}
	if r := feasible(t, ProductionParams(), l); len(r.Warnings) != 0 {
		t.Errorf("a quarter each of 2⁶⁵: %q", r.Warnings)
	}
	l.Validators, l.Stakes = 3, nil
	if r := feasible(t, ProductionParams(), l); len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], third) {
		t.Errorf("three equal ones: %q", r.Warnings)
	}
	p := ProductionParams()
	p.Schedule.Rounds = 1
	if r := feasible(t, p, ProductionLoad()); len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "schedule.rounds") || r.NoCertificate != 300_000 {
		t.Errorf("one round: %+v", r)
	}
	if r := feasible(t, ProductionParams(), ProductionLoad()); r.NoCertificate != 8100 {
		t.Errorf("0.3⁴ is %d millionths", r.NoCertificate)
	}
}

// TestFeasibleRefuses: every fault is named, and nothing overflows.
func TestFeasibleRefuses(t *testing.T) {
	p, l := ProductionParams(), ProductionLoad()
	p.Schedule.Rounds, l.EvalSpeed = 0, 0
	if _, err := Feasible(p, l); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "params.schedule.rounds") ||
		!strings.Contains(err.Error(), "load.eval_tokens_ps") {
		t.Errorf("%v", err)
	}
	p = ProductionParams()
	p.SequenceLength, p.ScoreSamples, p.MergeSamples = 1<<20, 1<<20, 1<<20
	l = Load{
		Validators: maxValidators, Miners: maxParticipants, Groups: maxGroups, PeriodMillis: maxLoadMillis, BlockMillis: maxLoadMillis,
		MessageMillis: maxLoadMillis, ClockMillis: maxLoadMillis, DeltaBytes: maxLoadBytes, ChangedBytes: maxLoadBytes, MinerBytes: 1,
		ValidatorBytes: 1, TrainTokens: maxLoadBytes, TrainSpeed: 1, EvalSpeed: 1, SwitchMillis: maxLoadMillis, SubmitBlocks: maxSchedule,
		FaultyPermille: 333, MarginPermille: 9000,
	}
	r := feasible(t, p, l)
	for _, f := range r.Phases {
		if f.Fits && f.Phase != "merge" && f.Phase != "cycle" {
			t.Errorf("%+v", f)
		}
	}
}
