package reward

import (
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Total is what the weights of a cycle sum to.
const Total = 1 << 32

// Group is one expert group's scores and its pay share from genesis.
type Group struct {
	Name   string
	Share  uint32 // any unit: shares count in proportion
	Scores []Score
}

// Rules are the genesis parameters of pay.
type Rules struct {
	ConfidenceMilli uint32 // z in thousandths
	Power           uint32 // p of gain^p
}

// RulesOf takes the rules from the parameters.
func RulesOf(p protocol.Params) Rules {
	return Rules{ConfidenceMilli: p.ConfidenceMilli, Power: p.RewardPower}
}

// Payment is one miner's outcome in a cycle.
type Payment struct {
	Group  string
	Miner  protocol.ID
	Status protocol.Status // ok iff it is paid by its gain; a weight may still round to zero
	Part   uint64          // of its group, of Total: what the merge weighs deltas by
	Weight uint64          // of the cycle, of Total: what goes on chain
}

// Pay returns a payment per score, sorted by group and miner. Weights sum to [Total], or are all zero if nobody is paid.
// First the groups that pay somebody divide Total by their shares, then each group's miners divide its budget by their
// points; both by largest remainder, ties by name and by id.
func Pay(groups []Group, rules Rules) ([]Payment, error) {
	if rules.Power == 0 || rules.Power > maxPower {
		return nil, fmt.Errorf("%w: power %d is not between 1 and %d", ErrInput, rules.Power, maxPower)
	}
	if err := distinct(groups); err != nil {
		return nil, err
	}
	groups = slices.Clone(groups)
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })

	fields := make([]field, len(groups))
	shares := make([]*big.Int, len(groups))
	for i, g := range groups {
		fields[i] = newField(g)
		for _, step := range steps {
			step(fields[i], rules)
		}
		if fields[i].paysAnybody() {
			shares[i] = new(big.Int).SetUint64(uint64(g.Share))
		}
	}
	var payments []Payment
	for i, budget := range protocol.Apportion(Total, shares, func(a, b int) bool { return a < b }) {
		parts, weights := fields[i].divide(Total), fields[i].divide(budget)
		for j, c := range fields[i] {
			payments = append(payments, Payment{groups[i].Name, c.Miner, c.Status, parts[j], weights[j]})
		}
	}
	return payments, nil
}

// maxPower bounds the size of points; genesis allows no more.
const maxPower = 8

// distinct refuses what a snapshot cannot hold: a group twice, or a miner twice.
func distinct(groups []Group) error {
	names, miners := make(map[string]bool), make(map[protocol.ID]bool)
	for _, g := range groups {
		if names[g.Name] {
			return fmt.Errorf("%w: group %q twice", ErrInput, g.Name)
		}
		names[g.Name] = true
		for _, s := range g.Scores {
			if miners[s.Miner] {
				return fmt.Errorf("%w: miner %s has two scores; a miner serves one group", ErrInput, s.Miner)
			}
			miners[s.Miner] = true
		}
	}
	return nil
}

// candidate is a miner on its way through the steps.
type candidate struct {
	Score
	points *big.Int // claim to the group's budget; only those with status ok have any
}

// field is the candidates of one group, sorted by miner.
type field []*candidate

// steps is R11 in its order. Each step may drop candidates, by a status other than ok, and change points.
var steps = []func(field, Rules){
	field.dropUnproven,
	field.raise,
}

func newField(g Group) field {
	f := make(field, len(g.Scores))
	for i, s := range g.Scores {
		f[i] = &candidate{Score: s, points: big.NewInt(s.Gain)}
	}
	slices.SortFunc(f, func(a, b *candidate) int { return a.Miner.Compare(b.Miner) })
	return f
}

// dropUnproven is step 2: the lower confidence bound of the gain must be above zero.
func (f field) dropUnproven(rules Rules) {
	for _, c := range f {
		if c.Status == protocol.StatusOK && !protocol.AboveZero(c.Gain, c.StdErr, rules.ConfidenceMilli) {
			c.Status = protocol.StatusNotImproving
		}
	}
}

// raise is step 5: points become gain^p.
func (f field) raise(rules Rules) {
	for _, c := range f {
		c.points.Exp(c.points, big.NewInt(int64(rules.Power)), nil)
	}
}

func (f field) paysAnybody() bool {
	return slices.ContainsFunc(f, func(c *candidate) bool { return c.Status == protocol.StatusOK })
}

// divide is step 6 within the group.
func (f field) divide(budget uint64) []uint64 {
	points := make([]*big.Int, len(f))
	for i, c := range f {
		if c.Status == protocol.StatusOK {
			points[i] = c.points
		}
	}
	return protocol.Apportion(budget, points, func(i, j int) bool { return i < j })
}
