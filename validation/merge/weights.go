package merge

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Mass is what the weights of a group's deltas sum to.
const Mass = 1 << 16

// ErrInput is wrapped by every error of this package: the caller gave what certified inputs cannot be.
var ErrInput = errors.New("merge: bad input")

// Score is one accepted delta's claim to the group's step.
type Score struct {
	Miner  protocol.ID
	Points uint64
}

// Weights divides [Mass] over the accepted deltas in proportion to their points, with none above num/(den·G) of it,
// where G counts the deltas with points; what the cap takes away goes to the others in proportion, as often as that
// lifts another one to the cap. Weights are in the order of scores, sum to Mass exactly (largest remainder, ties by
// miner) or are all zero if nobody has points. num/den must be at least 1; with 2/1 the cap binds from G = 3 on.
//
// In units: cap = ⌊Mass·num/(den·G)⌋, one more if G caps would not reach Mass.
func Weights(scores []Score, num, den uint32) ([]uint32, error) {
	if den == 0 || num < den {
		return nil, fmt.Errorf("%w: a cap of %d/%d of an equal part", ErrInput, num, den)
	}
	var order []int // deltas with points, most first
	for i, s := range scores {
		if s.Points > 0 {
			order = append(order, i)
		}
	}
	if len(order) > Mass {
		return nil, fmt.Errorf("%w: %d deltas for a mass of %d", ErrInput, len(order), Mass)
	}
	slices.SortFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(scores[j].Points, scores[i].Points), scores[i].Miner.Compare(scores[j].Miner))
	})
	if id, found := duplicate(scores); found {
		return nil, fmt.Errorf("%w: miner %s has two deltas", ErrInput, id)
	}
	weights := make([]uint32, len(scores))
	if len(order) == 0 {
		return weights, nil
	}

	g := uint64(len(order))
	limit := Mass * uint64(num) / (uint64(den) * g)
	if limit*g < Mass {
		limit++
	}
	points := new(big.Int) // of the deltas below the cap
	parts := make([]*big.Int, len(scores))
	for _, i := range order {
		parts[i] = new(big.Int).SetUint64(scores[i].Points)
		points.Add(points, parts[i])
	}
	left := uint64(Mass)
	for _, i := range order {
		// The largest of those left is above the cap iff left·points[i] > limit·Σpoints; if it is not, none is.
		quota := new(big.Int).Mul(new(big.Int).SetUint64(left), parts[i])
		if quota.Cmp(new(big.Int).Mul(new(big.Int).SetUint64(limit), points)) <= 0 {
			break
		}
		weights[i] = uint32(limit)
		left -= limit
		points.Sub(points, parts[i])
		parts[i] = nil
	}
	before := func(i, j int) bool { return scores[i].Miner.Compare(scores[j].Miner) < 0 }
	for i, share := range protocol.Apportion(left, parts, before) {
		weights[i] += uint32(share)
	}
	return weights, nil
}

// duplicate returns a miner that appears more than once.
func duplicate(scores []Score) (id protocol.ID, found bool) {
	seen := make(map[protocol.ID]bool, len(scores))
	for _, s := range scores {
		if seen[s.Miner] {
			return s.Miner, true
		}
		seen[s.Miner] = true
	}
	return id, false
}
