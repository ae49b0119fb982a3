package protocol

import "fmt"

// Rational is a non-negative fraction in lowest terms.
type Rational struct {
	Num uint32 `cbor:"num"`
	Den uint32 `cbor:"den"`
}

// maxTerm bounds both terms of a Rational, so that the merge's int64 arithmetic cannot overflow.
const maxTerm = 1<<16 - 1

// maxAlphas bounds a grid of scales.
const maxAlphas = 64

// Less reports whether r < other. Both must be valid.
func (r Rational) Less(other Rational) bool {
	return uint64(r.Num)*uint64(other.Den) < uint64(other.Num)*uint64(r.Den)
}

// IsZero reports whether r is 0.
func (r Rational) IsZero() bool { return r.Num == 0 }

func (r Rational) String() string {
	if r.Den == 1 {
		return fmt.Sprint(r.Num)
	}
	return fmt.Sprintf("%d/%d", r.Num, r.Den)
}

// Validate implements [Record].
func (r Rational) Validate() error { return validate("rational", r) }

func (r Rational) faults(f faults) {
	switch {
	case r.Den == 0 || r.Num > maxTerm || r.Den > maxTerm:
		f.add("", "%d/%d: terms are at most %d and the denominator is not zero", r.Num, r.Den, maxTerm)
	case gcd(r.Num, r.Den) != 1:
		f.add("", "%d/%d is not in lowest terms", r.Num, r.Den)
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Params are the protocol's numbers, fixed by genesis. Everybody computes with the same ones or disagrees.
type Params struct {
	// SequenceLength is the window of tokens of one sample, in training and in measuring.
	SequenceLength uint32 `cbor:"sequence"`
	// CanaryPermille is ρ: the share of canary samples in each group's score, so that forgetting costs pay.
	CanaryPermille uint32 `cbor:"canary"`
	// ScoreSamples is the size n of split A, which scores a group's miners, canary samples included.
	ScoreSamples uint32 `cbor:"score"`
	// MergeSamples is the size of split B per domain, which decides the merge.
	MergeSamples uint32 `cbor:"merge"`
	// ProbeSamples is the size of the small draw that a node uses to watch itself; nothing certified rests on it.
	ProbeSamples uint32 `cbor:"probe"`
	// ExcludeCycles is K: the draws of this many past cycles are not drawn again.
	ExcludeCycles uint32 `cbor:"exclude"`
	// AlphaGrid is what the line search tries: ascending, from 0.
	AlphaGrid []Rational `cbor:"alphas"`
	// ConfidenceMilli is z in thousandths: a bound is mean ± z standard errors.
	ConfidenceMilli uint32 `cbor:"z"`
	// GroupMassNum and GroupMassDen cap one delta's share of a group's merge at Num/(Den·G) with G deltas accepted.
	GroupMassNum uint32 `cbor:"massnum"`
	GroupMassDen uint32 `cbor:"massden"`
	// CanaryToleranceNano is by how many nano-nats a merge may raise the canary's mean loss.
	CanaryToleranceNano int64 `cbor:"forget"`
	// RewardPower is p: pay within a group is proportional to gain^p.
	RewardPower uint32 `cbor:"power"`
	// TopK is the density of deltas: how many of 4096 consecutive values are sent. 0 means all, by the codec dense-bf16.
	TopK uint32 `cbor:"topk"`
	// Schedule says when the phases of a cycle end.
	Schedule Schedule `cbor:"schedule"`
}

// Densities of deltas in values of 4096: 1.0% and the cautious 1.56%.
const (
	DefaultTopK  = 41
	CautiousTopK = 64
	maxTopK      = 4096
)

// ProductionParams are the defaults of a real network.
func ProductionParams() Params {
	return Params{
		SequenceLength:      128,
		CanaryPermille:      250,
		ScoreSamples:        128,
		MergeSamples:        128,
		ProbeSamples:        64,
		ExcludeCycles:       8,
		AlphaGrid:           []Rational{{0, 1}, {1, 4}, {1, 2}, {3, 4}, {1, 1}, {5, 4}},
		ConfidenceMilli:     2330,
		GroupMassNum:        2,
		GroupMassDen:        1,
		CanaryToleranceNano: 2_000_000,
		RewardPower:         1,
		TopK:                DefaultTopK,
		// With 3 s rounds and 12 s blocks a cycle is 72 minutes, one epoch of a Bittensor subnet: 50 for training, 1 for
		// the last commitments to arrive, 13 for evaluation, 3 for the line search; it ends 2 before the next one begins.
		Schedule: Schedule{
			Commit: 1000, Custody: 1020, Open: 1025, Evaluate: 1285, Search: 60, End: 1400,
			DeltaMillis: 1000, Rounds: 4, CycleBlocks: 360,
		},
	}
}

// DemoParams are ProductionParams made cheap enough for a laptop: fewer samples, a short grid, a weak bound.
func DemoParams() Params {
	p := ProductionParams()
	p.ScoreSamples, p.MergeSamples, p.ExcludeCycles = 32, 32, 2
	p.AlphaGrid = []Rational{{0, 1}, {1, 2}, {1, 1}}
	p.ConfidenceMilli = 1000
	p.CanaryToleranceNano = 10_000_000 // a weak bound on few samples would veto noise
	p.Schedule = Schedule{             // ends in time with rounds of 0.7 s and longer; a dev chain makes a block per round
		Commit: 7, Custody: 8, Open: 9, Evaluate: 15, Search: 6, End: 23,
		DeltaMillis: 100, Rounds: 2, CycleBlocks: 24,
	}
	return p
}

// Validate implements [Record].
func (p Params) Validate() error { return validate("params", p) }

func (p Params) faults(f faults) {
	count := func(field string, v, least, most uint32, breaks string) {
		if v < least || v > most {
			f.add(field, "%d is not between %d and %d: %s", v, least, most, breaks)
		}
	}
	count("sequence", p.SequenceLength, 2, 1<<20, "a sample needs a token to predict and must fit in memory")
	count("canary", p.CanaryPermille, 0, 900, "above, a miner's own domain would hardly be measured")
	count("score", p.ScoreSamples, 2, 1<<20, "below two samples there is no standard error, and no miner is paid")
	count("merge", p.MergeSamples, 2, 1<<20, "below two samples there is no standard error, and no merge is accepted")
	count("probe", p.ProbeSamples, 1, 1<<20, "a probe of nothing shows nothing")
	count("exclude", p.ExcludeCycles, 0, 1<<16, "the excluded draws are recomputed every cycle")
	count("z", p.ConfidenceMilli, 1, 10_000, "z of zero pays and merges noise, above ten nothing is ever proven")
	count("massnum", p.GroupMassNum, 1, maxTerm, "the cap on one delta's mass must be a positive fraction")
	count("massden", p.GroupMassDen, 1, maxTerm, "the cap on one delta's mass must be a positive fraction")
	count("topk", p.TopK, 0, maxTopK, "no chunk of a delta has more values")
	count("power", p.RewardPower, 1, 8, "power zero pays everybody the same, a large one pays only the best")
	if p.GroupMassNum < p.GroupMassDen {
		f.add("massnum", "a cap of %d/%d of an equal part is below one; the masses could not sum to the whole", p.GroupMassNum, p.GroupMassDen)
	}
	f.tolerance("forget", p.CanaryToleranceNano)
	f.under("schedule", p.Schedule)
	if n := len(p.AlphaGrid); n < 2 || n > maxAlphas {
		f.add("alphas", "%d scales, want 2 to %d: 0 and at least one to try", n, maxAlphas)
	}
	for i, a := range p.AlphaGrid {
		if f.full() {
			return
		}
		f.under(index("alphas", i), a)
		switch {
		case i == 0 && (a != Rational{0, 1}):
			f.add(index("alphas", i), "%s is not 0; a cycle must be able to keep the model as it is", a)
		case i > 0 && !p.AlphaGrid[i-1].Less(a):
			f.add(index("alphas", i), "%s is not above %s before it; the median is taken in grid order", a, p.AlphaGrid[i-1])
		}
	}
}
