package merge

import (
	"cmp"
	"fmt"
	"math/big"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Rules are what a line search is judged by; a genesis fixes them.
type Rules struct {
	alphas     []protocol.Rational
	zMilli     uint32
	canary     string
	tolerances map[string]int64 // of every domain, the canary included
}

// NewRules takes the rules from a genesis that has been validated.
func NewRules(g protocol.Genesis) Rules {
	r := Rules{
		alphas:     slices.Clone(g.Params.AlphaGrid),
		zMilli:     g.Params.ConfidenceMilli,
		canary:     g.Canary,
		tolerances: make(map[string]int64, len(g.Domains)),
	}
	for _, d := range g.Domains {
		r.tolerances[d.Name] = d.ToleranceNano
	}
	r.tolerances[g.Canary] = g.Params.CanaryToleranceNano
	return r
}

// Reason says why a scale was or was not acceptable.
type Reason string

// The reasons.
const (
	Accepted     Reason = "accepted"
	Unmeasured   Reason = "unmeasured"    // a domain or the canary has no row at this scale
	NotImproving Reason = "not-improving" // the mean over all domains is not below zero with confidence
	Vetoed       Reason = "vetoed"        // a domain or the canary rises by more than its tolerance, with confidence
)

// Verdict is the judgement of one scale.
type Verdict struct {
	Alpha  int // index into the grid
	Reason Reason
	Domain string   // whose row is missing or whose rise vetoes: the first by name; empty otherwise
	Change *big.Int // sum over the domains, without the canary, of the mean change in nano-nats; nil if unmeasured
}

// Best returns the index of the acceptable scale with the largest mean improvement over all domains, the smaller scale
// on a tie, and a verdict per scale. Scale 0, index 0, is always acceptable, so a measure in which nothing helps gives 0.
//
// With c_d the mean change and e_d its standard error of domain d, and z the genesis confidence, a scale is acceptable
// iff every domain and the canary have a row and
//
//	−Σ c_d > z·√(Σ e_d²)                         the mean over the domains falls with confidence (both sides times D)
//	not (c_x > tolerance_x and c_x > z·e_x)      for every domain and for the canary
//
// The canary is in the veto, not in the mean. Domains share no sample, so their errors are independent.
func (r Rules) Best(m protocol.MergeMeasure) (alpha int, verdicts []Verdict, err error) {
	if err := m.Validate(); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	rows := make([]map[string]protocol.MergeRow, len(r.alphas))
	for _, row := range m.Rows {
		if int(row.Alpha) >= len(rows) {
			return 0, nil, fmt.Errorf("%w: scale %d of a grid of %d", ErrInput, row.Alpha, len(rows))
		}
		if _, known := r.tolerances[row.Domain]; !known {
			return 0, nil, fmt.Errorf("%w: no domain is called %q", ErrInput, row.Domain)
		}
		if rows[row.Alpha] == nil {
			rows[row.Alpha] = make(map[string]protocol.MergeRow)
		}
		rows[row.Alpha][row.Domain] = row
	}
	verdicts = []Verdict{{Reason: Accepted, Change: new(big.Int)}}
	best := verdicts[0]
	for i := 1; i < len(r.alphas); i++ {
		v := r.judge(i, rows[i])
		verdicts = append(verdicts, v)
		if v.Reason == Accepted && v.Change.Cmp(best.Change) < 0 {
			best = v
		}
	}
	return best.Alpha, verdicts, nil
}

// judge applies the rules to the rows of one scale.
func (r Rules) judge(alpha int, rows map[string]protocol.MergeRow) Verdict {
	v := Verdict{Alpha: alpha, Reason: Accepted}
	change, variance := new(big.Int), new(big.Int)
	for _, name := range r.domains() {
		row, ok := rows[name]
		if !ok {
			return Verdict{Alpha: alpha, Reason: Unmeasured, Domain: name}
		}
		if v.Reason == Accepted && row.Change > r.tolerances[name] && protocol.AboveZero(row.Change, row.StdErr, r.zMilli) {
			v.Reason, v.Domain = Vetoed, name
		}
		if name == r.canary {
			continue
		}
		change.Add(change, big.NewInt(row.Change))
		e := new(big.Int).SetUint64(row.StdErr)
		variance.Add(variance, e.Mul(e, e))
	}
	v.Change = change
	if v.Reason == Accepted && !provenBelowZero(change, variance, r.zMilli) {
		v.Reason = NotImproving
	}
	return v
}

// provenBelowZero reports whether −sum > z·√variance: sum < 0 and (1000·sum)² > z²·variance.
func provenBelowZero(sum, variance *big.Int, zMilli uint32) bool {
	if sum.Sign() >= 0 {
		return false
	}
	left := new(big.Int).Mul(sum, big.NewInt(1000))
	left.Mul(left, left)
	z := big.NewInt(int64(zMilli))
	right := new(big.Int).Mul(z, z)
	return left.Cmp(right.Mul(right, variance)) > 0
}

// domains returns every domain's name, sorted.
func (r Rules) domains() []string {
	names := make([]string, 0, len(r.tolerances))
	for name := range r.tolerances {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Vote is one validator's best acceptable scale.
type Vote struct {
	Alpha int // index into the grid
	Stake uint64
}

// Median returns the stake-weighted lower median of the votes: the certified scale. Without stake it is 0.
func Median(votes []Vote) int {
	v, _ := protocol.LowerMedian(votes, func(v Vote) uint64 { return v.Stake }, func(a, b Vote) int { return cmp.Compare(a.Alpha, b.Alpha) })
	return v.Alpha
}

// Vector is one validator's line search with its stake.
type Vector struct {
	Stake   uint64
	Measure protocol.MergeMeasure
}

// WorstGroup names the group to leave out when no scale above 0 was certified. Harm is read at the smallest scale of the
// grid, where groups interfere least: the stake-weighted lower median, over the vectors that measured it, of the mean
// change of the group's own domain. The largest is the worst, the first by name on a tie. Domains measured by nobody
// do not count; ok is false if that leaves no group. Callers pass the groups that are still joined.
//
// A joint measure cannot tell whose experts moved a domain, so the group that serves the domain answers for it. Groups
// of one domain are left out one after the other.
func WorstGroup(groups []protocol.Group, vectors []Vector) (name string, ok bool) {
	type reading struct {
		stake  uint64
		change int64
	}
	readings := make(map[string][]reading)
	for _, v := range vectors {
		for _, row := range v.Measure.Rows {
			if row.Alpha == 1 {
				readings[row.Domain] = append(readings[row.Domain], reading{v.Stake, row.Change})
			}
		}
	}
	var worst int64
	for _, g := range groups {
		median, measured := protocol.LowerMedian(readings[g.Domain],
			func(r reading) uint64 { return r.stake },
			func(a, b reading) int { return cmp.Compare(a.change, b.change) })
		if !measured {
			continue
		}
		if !ok || median.change > worst || median.change == worst && g.Name < name {
			name, worst, ok = g.Name, median.change, true
		}
	}
	return name, ok
}
