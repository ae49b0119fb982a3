package reward

import (
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// ErrInput is wrapped by every error of this package: the caller gave what certified rows cannot be.
var ErrInput = errors.New("reward: bad input")

// Report is what one validator measured in one group. Its rows are those it was assigned: callers leave out shards that
// the beacon gave to others.
type Report struct {
	Validator protocol.ID
	Stake     uint64
	Rows      []protocol.Row
}

// Score is what the validators together say of one miner.
type Score struct {
	Miner  protocol.ID
	Status protocol.Status // ok if there is a gain to judge
	Gain   int64           // nano-nats; positive is better
	StdErr uint64          // of Gain, nano-nats
	Shards uint32          // measured
}

// Aggregate reduces the reports on one group to a score per miner, sorted by miner. Shards are numbered from 0 and rows
// at or past shards are refused, or invented shards would outvote the real ones.
//
// Rows that are notscored, and reports without stake, say nothing. Of the others, the miner is ok if rows that are hold
// more than half of the stake, each row counted with its validator's; otherwise its status is the one with the most
// stake, the smaller number on a tie; notscored if there is none.
//
// The gain of an ok miner is a median of medians: in each shard the stake-weighted lower median of the validators' gains,
// then over the shards the lower median weighted by the stake that measured each. With less than half of a shard's stake
// dishonest, its value lies within what honest validators reported; so does the result if that holds of shards with
// more than half of the weight. The standard error is the median over the same tree, times √(π/2 / K) if that is below
// 1, rounded up: a median of K equal shards is that much surer than one. K = (Σw)² / Σw² is the effective number of
// shards, so that one which little stake measured adds little. (π/2 is exact for large K and too much for small K, which
// errs towards paying nothing.)
func Aggregate(reports []Report, shards uint32) ([]Score, error) {
	byMiner, err := collect(reports, shards)
	if err != nil {
		return nil, err
	}
	scores := make([]Score, 0, len(byMiner))
	for miner, votes := range byMiner {
		scores = append(scores, score(miner, votes))
	}
	slices.SortFunc(scores, func(a, b Score) int { return a.Miner.Compare(b.Miner) })
	return scores, nil
}

// vote is a row with the stake behind it.
type vote struct {
	stake uint64
	row   protocol.Row
}

// collect sorts the rows by miner and refuses those that no honest vector holds.
func collect(reports []Report, shards uint32) (map[protocol.ID][]vote, error) {
	type cell struct {
		miner protocol.ID
		shard uint32
	}
	byMiner := make(map[protocol.ID][]vote)
	validators := make(map[protocol.ID]bool, len(reports))
	for _, r := range reports {
		if validators[r.Validator] {
			return nil, fmt.Errorf("%w: two reports of validator %s", ErrInput, r.Validator)
		}
		validators[r.Validator] = true
		seen := make(map[cell]bool, len(r.Rows))
		for _, row := range r.Rows {
			if err := row.Validate(); err != nil {
				return nil, fmt.Errorf("%w: validator %s: %w", ErrInput, r.Validator, err)
			}
			if row.Shard >= shards {
				return nil, fmt.Errorf("%w: validator %s reports shard %d of %d", ErrInput, r.Validator, row.Shard, shards)
			}
			c := cell{row.Miner, row.Shard}
			if seen[c] {
				return nil, fmt.Errorf("%w: validator %s reports miner %s on shard %d twice", ErrInput, r.Validator, row.Miner, row.Shard)
			}
			seen[c] = true
			byMiner[row.Miner] = append(byMiner[row.Miner], vote{r.Stake, row})
		}
	}
	return byMiner, nil
}

func score(miner protocol.ID, votes []vote) Score {
	s := Score{Miner: miner, Status: majority(votes)}
	if s.Status != protocol.StatusOK {
		return s
	}
	byShard := make(map[uint32][]vote)
	for _, v := range votes {
		if v.row.Status == protocol.StatusOK && v.stake > 0 {
			byShard[v.row.Shard] = append(byShard[v.row.Shard], v)
		}
	}
	var values []vote // one per shard, with the stake that measured it
	for _, in := range byShard {
		values = append(values, vote{totalStake(in), median(in)})
	}
	m := median(values)
	s.Gain, s.Shards = m.Gain, uint32(len(values))
	s.StdErr = errorOfMedian(m.StdErr, values)
	return s
}

// majority returns the status that the stake gives a miner.
func majority(votes []vote) protocol.Status {
	stakes := make(map[protocol.Status]*big.Int)
	total := new(big.Int)
	for _, v := range votes {
		if v.row.Status == protocol.StatusNotScored || v.stake == 0 {
			continue
		}
		if stakes[v.row.Status] == nil {
			stakes[v.row.Status] = new(big.Int)
		}
		stake := new(big.Int).SetUint64(v.stake)
		stakes[v.row.Status].Add(stakes[v.row.Status], stake)
		total.Add(total, stake)
	}
	if ok := stakes[protocol.StatusOK]; ok != nil && new(big.Int).Lsh(ok, 1).Cmp(total) > 0 {
		return protocol.StatusOK
	}
	delete(stakes, protocol.StatusOK)
	worst, most := protocol.StatusNotScored, new(big.Int)
	for status, stake := range stakes {
		if c := stake.Cmp(most); c > 0 || c == 0 && status < worst {
			worst, most = status, stake
		}
	}
	return worst
}

// median takes the lower median of gains and of standard errors, each on its own.
func median(votes []vote) (row protocol.Row) {
	weight := func(v vote) uint64 { return v.stake }
	gain, _ := protocol.LowerMedian(votes, weight, func(a, b vote) int { return cmp.Compare(a.row.Gain, b.row.Gain) })
	stderr, _ := protocol.LowerMedian(votes, weight, func(a, b vote) int { return cmp.Compare(a.row.StdErr, b.row.StdErr) })
	row.Gain, row.StdErr = gain.row.Gain, stderr.row.StdErr
	return row
}

// totalStake saturates: it only weighs shards against each other.
func totalStake(votes []vote) uint64 {
	var sum uint64
	for _, v := range votes {
		if sum+v.stake < sum {
			return ^uint64(0)
		}
		sum += v.stake
	}
	return sum
}

// errorOfMedian returns ⌈stderr·√(min(1, π/2 · Σw² / (Σw)²))⌉ over the shards' weights w, with π/2 as 15708/10000.
func errorOfMedian(stderr uint64, shards []vote) uint64 {
	num, den := new(big.Int), new(big.Int) // 15708·Σw², 10000·(Σw)²
	for _, s := range shards {
		w := new(big.Int).SetUint64(s.stake)
		den.Add(den, w)
		num.Add(num, w.Mul(w, w))
	}
	num.Mul(num, big.NewInt(15708))
	den.Mul(den, den).Mul(den, big.NewInt(10000))
	if num.Cmp(den) >= 0 {
		return stderr
	}
	square := new(big.Int).SetUint64(stderr)
	square.Mul(square, square).Mul(square, num)
	square.Add(square, den).Sub(square, big.NewInt(1)).Div(square, den) // ⌈x⌉ and x have the same rounded-up root
	return protocol.CeilSqrt(square).Uint64()
}
