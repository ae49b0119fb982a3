package protocol

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Load is what a network asks of its parameters: who takes part, how large things are, and how fast lines and machines.
// Speeds are those of the slowest participant that is to keep up.
type Load struct {
	Validators uint32   `json:"validators"`
	Miners     uint32   `json:"miners"` // of all groups
	Groups     uint32   `json:"groups"`
	Stakes     []uint64 `json:"stakes"` // of the validators; none: all have the same

	PeriodMillis  uint32 `json:"period_ms"`  // of a beacon round
	BlockMillis   uint32 `json:"block_ms"`   // of the chain
	MessageMillis uint32 `json:"message_ms"` // within which nearly every message reaches everybody; a decision takes three
	ClockMillis   uint32 `json:"clock_ms"`   // by which honest clocks are apart at most

	DeltaBytes     uint64 `json:"delta_bytes"`     // a sealed delta
	ChangedBytes   uint64 `json:"changed_bytes"`   // the files of a checkpoint that a cycle changes
	MinerBytes     uint64 `json:"miner_bps"`       // bytes per second that a miner's line carries each way
	ValidatorBytes uint64 `json:"validator_bps"`   // bytes per second that a validator's line carries each way
	TrainTokens    uint64 `json:"train_tokens"`    // that a miner trains on per cycle
	TrainSpeed     uint64 `json:"train_tokens_ps"` // tokens per second of a miner
	EvalSpeed      uint64 `json:"eval_tokens_ps"`  // tokens per second of a validator, forward
	SwitchMillis   uint32 `json:"switch_ms"`       // to put one delta, or one scale of the merge, in place
	SubmitBlocks   uint32 `json:"submit_blocks"`   // until weights are on chain, a second attempt included
	FaultyPermille uint32 `json:"faulty_permille"` // of the stake, offline or dishonest; below 334
	MarginPermille uint32 `json:"margin_permille"` // that a phase has beyond what it needs
}

// ProductionLoad is a network of OLMoE's size: 8 groups of 200 million trained parameters together, at 150-fold compression,
// on lines of 200 Mbit/s and cards that evaluate as docs/performance.md says of exact mode.
func ProductionLoad() Load {
	return Load{
		Validators: 64, Miners: 192, Groups: 8,
		PeriodMillis: 3000, BlockMillis: 12_000, MessageMillis: 500, ClockMillis: 250,
		DeltaBytes: 4 << 20, ChangedBytes: 900 << 20, MinerBytes: 25_000_000, ValidatorBytes: 25_000_000,
		TrainTokens: 16_000_000, TrainSpeed: 10_000, EvalSpeed: 30_000, SwitchMillis: 500,
		SubmitBlocks: 4, FaultyPermille: 300, MarginPermille: 200,
	}
}

// DemoLoad is the network that `bzd devnet` runs in one process on two processors: a validator has half of one, which
// evaluates as docs/performance.md says.
func DemoLoad() Load {
	return Load{
		Validators: 4, Miners: 6, Groups: 3,
		PeriodMillis: 750, BlockMillis: 750, MessageMillis: 30, ClockMillis: 0,
		DeltaBytes: 64 << 10, ChangedBytes: 8 << 20, MinerBytes: 50_000_000, ValidatorBytes: 50_000_000,
		TrainTokens: 16_384, TrainSpeed: 7000, EvalSpeed: 22_000, SwitchMillis: 20,
		SubmitBlocks: 2, FaultyPermille: 0, MarginPermille: 200,
	}
}

// Bounds of what a load may say.
const (
	maxLoadBytes  = 1 << 46
	maxLoadMillis = 1 << 26
)

// Validate implements [Record]'s rule for what people write.
func (l Load) Validate() error { return validate("load", l) }

func (l Load) faults(f faults) {
	within := func(field string, v, least, most uint64) {
		if v < least || v > most {
			f.add(field, "%d is not between %d and %d", v, least, most)
		}
	}
	within("validators", uint64(l.Validators), 1, maxValidators)
	within("miners", uint64(l.Miners), 1, maxParticipants)
	within("groups", uint64(l.Groups), 1, maxGroups)
	within("period_ms", uint64(l.PeriodMillis), 1, maxLoadMillis)
	within("block_ms", uint64(l.BlockMillis), 1, maxLoadMillis)
	within("message_ms", uint64(l.MessageMillis), 1, maxLoadMillis)
	within("clock_ms", uint64(l.ClockMillis), 0, maxLoadMillis)
	within("switch_ms", uint64(l.SwitchMillis), 0, maxLoadMillis)
	for _, v := range []struct {
		field string
		value uint64
		least uint64
	}{
		{"delta_bytes", l.DeltaBytes, 1}, {"changed_bytes", l.ChangedBytes, 0}, {"miner_bps", l.MinerBytes, 1},
		{"validator_bps", l.ValidatorBytes, 1}, {"train_tokens", l.TrainTokens, 0}, {"train_tokens_ps", l.TrainSpeed, 1},
		{"eval_tokens_ps", l.EvalSpeed, 1},
	} {
		within(v.field, v.value, v.least, maxLoadBytes)
	}
	within("submit_blocks", uint64(l.SubmitBlocks), 1, maxSchedule)
	within("faulty_permille", uint64(l.FaultyPermille), 0, 333)
	within("margin_permille", uint64(l.MarginPermille), 0, 9000)
	if n := len(l.Stakes); n != 0 && n != int(l.Validators) {
		f.add("stakes", "%d stakes of %d validators", n, l.Validators)
	}
}

// Fit is one phase of a cycle: what it has and what it needs, in milliseconds.
type Fit struct {
	Phase string `json:"phase"`
	Needs string `json:"needs"` // what the time is for
	Have  uint64 `json:"have_ms"`
	Need  uint64 `json:"need_ms"` // without the margin
	Fits  bool   `json:"fits"`    // with the margin
	// Parameter is what to change if it does not fit, From what it is and To what it must be at least, given that the
	// phases before were changed as they say.
	Parameter string `json:"parameter"`
	From      uint32 `json:"from"`
	To        uint32 `json:"to"`
}

// Feasibility is whether every phase of a cycle fits.
type Feasibility struct {
	Fits     bool     `json:"fits"`
	Phases   []Fit    `json:"phases"`
	Warnings []string `json:"warnings,omitempty"`
	// NoCertificate bounds, in millionths, the probability that an instance ends without a certificate although messages
	// arrive within δ: every one of R proposers, drawn by stake, is faulty.
	NoCertificate uint64 `json:"no_certificate_ppm"`
	// Schedule is the one given with every To.
	Schedule Schedule `json:"-"`
}

// Bytes of a score vector and a list for each miner, by their encodings, and of one validator's records besides.
const (
	rowBytes    = 115
	entryBytes  = 125
	recordBytes = 1024
)

// Feasible computes whether the phases of a cycle fit, with the load's margin. The error is about p or l themselves, and
// names every fault.
//
// The rules are deliberately plain: every miner commits at the last moment, a miner's delta leaves its line twice, every
// validator fetches and scores every delta on the whole of split A, and searches every scale on every domain.
func Feasible(p Params, l Load) (Feasibility, error) {
	var errs []error
	p.faults(faults{"params", &errs})
	l.faults(faults{"load", &errs})
	if len(errs) > 0 {
		return Feasibility{}, errors.Join(errs...)
	}
	s, period, message := p.Schedule, uint64(l.PeriodMillis), uint64(l.MessageMillis)
	miners, validators, groups := uint64(l.Miners), uint64(l.Validators), uint64(l.Groups)
	r := Feasibility{Fits: true, Schedule: s}
	n := &r.Schedule
	// fit adds a phase; to says what its parameter must be at least if the phase is to have so many milliseconds.
	fit := func(f Fit, from uint32, margin uint32, value *uint32, to func(want uint64) uint64) {
		want := ceilDiv(sat(f.Need, 1000+uint64(margin)), 1000)
		f.Fits = f.Have >= want
		r.Fits = r.Fits && f.Fits
		f.From = from
		f.To = max(*value, uint32(min(to(want), math.MaxUint32)))
		*value = f.To
		r.Phases = append(r.Phases, f)
	}
	// window is for a phase between two beacon rounds: it starts where the one before now ends, and gets no shorter.
	window := func(f Fit, from, until uint32, before, value *uint32) {
		f.Have = uint64(until-from) * period
		fit(f, *value, l.MarginPermille, value, func(want uint64) uint64 {
			return uint64(*before) + max(uint64(until-from), ceilDiv(want, period))
		})
	}
	var anchor uint32
	window(Fit{
		Phase: "sync, train, commit", Needs: "fetch what changed, train, tell", Parameter: "schedule.commit",
		Need: add(per(l.ChangedBytes, l.MinerBytes), per(l.TrainTokens, l.TrainSpeed), message),
	}, 0, s.Commit, &anchor, &n.Commit)
	window(Fit{
		Phase: "custody", Needs: "a miner serves its delta twice, a validator fetches all", Parameter: "schedule.custody",
		Need: add(max(per(2*l.DeltaBytes, l.MinerBytes), per(sat(miners, l.DeltaBytes), l.ValidatorBytes)), message),
	}, s.Commit, s.Custody, &n.Commit, &n.Custody)
	window(Fit{
		Phase: "open", Needs: "all lists arrive before any clock lets read", Parameter: "schedule.open",
		Need: add(2*uint64(l.ClockMillis), message, per(sat(validators, miners*entryBytes+recordBytes), l.ValidatorBytes)),
	}, s.Custody, s.Open, &n.Custody, &n.Open)
	window(Fit{
		Phase: "evaluate", Needs: "the round that draws, every delta on split A", Parameter: "schedule.evaluate",
		Need: add(period, per(sat(miners+2*groups, uint64(p.ScoreSamples)*uint64(p.SequenceLength)), l.EvalSpeed), miners*uint64(l.SwitchMillis)),
	}, s.Open, s.Evaluate, &n.Open, &n.Evaluate)
	fit(Fit{
		Phase: "message (δ)", Needs: "all score vectors reach all", Parameter: "schedule.delta", Have: uint64(s.DeltaMillis),
		Need: add(message, uint64(l.ClockMillis), per(sat(validators, miners*rowBytes+recordBytes), l.ValidatorBytes)),
	}, s.DeltaMillis, l.MarginPermille, &n.DeltaMillis, func(want uint64) uint64 { return want })
	scales := uint64(len(p.AlphaGrid))
	window(Fit{
		Phase: "line search", Needs: "every scale on every domain and the canary", Parameter: "schedule.search",
		Need: add(per(sat(scales*(groups+1), uint64(p.MergeSamples)*uint64(p.SequenceLength)), l.EvalSpeed), scales*uint64(l.SwitchMillis)),
	}, 0, s.Search, &anchor, &n.Search)
	// Weights are known at D_W; the merge is decided at D_M, before the cycle ends.
	weighed := func(s Schedule) uint64 { return uint64(s.Evaluate)*period + s.AgreeMillis() }
	merged := func(s Schedule) uint64 { return weighed(s) + uint64(s.Search)*period + s.AgreeMillis() }
	end := uint64(s.End) * period
	fit(Fit{
		Phase: "submit", Needs: "weights on chain, one attempt more", Parameter: "schedule.end", Have: max(end, weighed(s)) - weighed(s),
		Need: uint64(l.SubmitBlocks) * uint64(l.BlockMillis),
	}, s.End, l.MarginPermille, &n.End, func(want uint64) uint64 { return ceilDiv(add(weighed(*n), want), period) })
	fit(Fit{
		Phase: "merge", Needs: "everything up to its deadline D_M", Parameter: "schedule.end", Have: end, Need: merged(s),
	}, s.End, 0, &n.End, func(uint64) uint64 { return ceilDiv(merged(*n), period) })
	fit(Fit{
		Phase: "cycle", Needs: "its rounds and the one its anchor waits for", Parameter: "schedule.blocks",
		Have: uint64(s.CycleBlocks) * uint64(l.BlockMillis), Need: end + period,
	}, s.CycleBlocks, 0, &n.CycleBlocks, func(uint64) uint64 { return ceilDiv(uint64(n.End)*period+period, uint64(l.BlockMillis)) })
	r.certain(p, l)
	return r, nil
}

// certain adds what may go wrong however long the phases are.
func (r *Feasibility) certain(p Params, l Load) {
	r.NoCertificate = 1_000_000
	for range p.Schedule.Rounds {
		r.NoCertificate = ceilDiv(r.NoCertificate*uint64(l.FaultyPermille), 1000)
	}
	if r.NoCertificate > 20_000 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("with %d‰ of the stake faulty an instance ends without a certificate"+
			" in up to %d of 1000 cycles, and the model is carried; raise schedule.rounds",
			l.FaultyPermille, r.NoCertificate/1000))
	}
	stakes := l.Stakes
	if len(stakes) == 0 {
		stakes = slices.Repeat([]uint64{1}, int(l.Validators))
	}
	largest, at := uint64(0), 0
	var high, total uint64
	for i, s := range stakes {
		var carry uint64
		total, carry = bits.Add64(total, s, 0)
		high += carry
		if s > largest {
			largest, at = s, i
		}
	}
	// 3·largest ≥ total, in 128 bits.
	times, low := bits.Mul64(largest, 3)
	if times > high || times == high && low >= total {
		r.Warnings = append(r.Warnings, fmt.Sprintf("validator %d holds a third of the stake or more; by itself it can keep every"+
			" certificate from being made, and with a lie have two: spread the stake over at least four",
			at))
	}
}

// per is how many milliseconds an amount takes at so much a second, rounded up.
func per(amount, perSecond uint64) uint64 {
	high, low := bits.Mul64(amount, 1000)
	if high >= perSecond {
		return math.MaxInt64
	}
	q, rest := bits.Div64(high, low, perSecond)
	if rest > 0 {
		q++
	}
	return min(q, math.MaxInt64)
}

// sat is a·b, at most 2⁶³ − 1.
func sat(a, b uint64) uint64 {
	if high, low := bits.Mul64(a, b); high == 0 {
		return min(low, math.MaxInt64)
	}
	return math.MaxInt64
}

// add is the sum, at most 2⁶³ − 1, of terms that are.
func add(terms ...uint64) (sum uint64) {
	for _, t := range terms {
		sum = min(sum+t, math.MaxInt64)
	}
	return sum
}

func ceilDiv(a, b uint64) uint64 {
	if a%b > 0 {
		return a/b + 1
	}
	return a / b
}
