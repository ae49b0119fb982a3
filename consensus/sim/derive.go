package sim

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"math/rand/v2"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// truth is what a miner's work is worth, in nano-nats.
func truth(miner int) int64 { return int64(miner+1) * 1_000_000 }

// noise is how far an honest measurement is from the truth, at most.
const noise = 10_000

// measured is a source of one node's own randomness; a new life measures anew.
func measured(n *Node) *rand.Rand {
	return rand.New(rand.NewPCG(n.net.cfg.Seed, uint64(1+n.Index)<<32|uint64(n.lives)))
}

func scores(n *Node, list protocol.Hash) protocol.ScoreVector {
	rng := measured(n)
	v := protocol.ScoreVector{List: list, Groups: []protocol.GroupRows{{Group: "go"}}}
	binary.BigEndian.PutUint64(v.Salt[:], rng.Uint64())
	v.Salt[31] = 1
	for m := range n.net.cfg.Miners {
		v.Groups[0].Rows = append(v.Groups[0].Rows, protocol.Row{
			Miner: miner(m), Gain: truth(m) + rng.Int64N(2*noise+1) - noise, StdErr: noise + rng.Uint64N(noise), N: 16,
			Screen: rng.Int64N(truth(m)), Status: protocol.StatusOK,
		})
	}
	return v
}

// entries is what a validator says that it holds: everything.
func entries(n *Node) protocol.List {
	l := protocol.List{Version: protocol.Version, Network: n.Setup.Network, Cycle: n.Setup.Cycle, Validator: n.Setup.Self}
	for m := range n.net.cfg.Miners {
		manifest := protocol.LinkTo(protocol.DagCBOR, binary.BigEndian.AppendUint32(nil, uint32(m)))
		l.Entries = append(l.Entries, protocol.ListEntry{
			Miner: miner(m), Group: "go", Manifest: manifest, Bucket: 2900 + uint32(m%90), State: protocol.ListHeld,
		})
	}
	return l
}

// miner is the id of a miner, which looks as ids do.
func miner(m int) (id protocol.ID) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32([]byte("miner"), uint32(m)))
	copy(id[:], sum[:])
	id[0], id[1] = byte((m+1)>>8), byte(m+1)
	return id
}

func search(n *Node) protocol.MergeVector {
	return protocol.MergeVector{
		Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}},
		Alpha:   1 + measured(n).Uint32N(2),
	}
}

// derived is what Derive returned.
type derived struct {
	value protocol.Value
	err   error
}

// derive computes everything once for all validators: it is a function of the set.
func (n *network) derive(snapshot protocol.Snapshot) func(consensus.Set) (protocol.Value, error) {
	compute := derive(snapshot, n.cfg.Miners)
	return func(s consensus.Set) (protocol.Value, error) {
		h := sha256.New()
		for _, v := range s.Scores {
			h.Write(v.Sig[:])
		}
		for _, v := range s.Merges {
			h.Write(v.Sig[:])
		}
		key := protocol.Hash(h.Sum(nil))
		d, ok := n.derived[key]
		if !ok {
			d.value, d.err = compute(s)
			n.derived[key] = d
		}
		return d.value, d.err
	}
}

// derive is the stand-in for the real functions: weights are proportional to the median gains, α is the median one.
func derive(snapshot protocol.Snapshot, miners int) func(consensus.Set) (protocol.Value, error) {
	return func(s consensus.Set) (protocol.Value, error) {
		if len(s.Merges) > 0 {
			v, ok := protocol.LowerMedian(s.Merges, func(v protocol.MergeVector) uint64 { return stake(snapshot, v.Validator) },
				func(a, b protocol.MergeVector) int { return cmp.Compare(a.Alpha, b.Alpha) })
			if !ok {
				return protocol.Value{}, errors.New("sim: no vectors")
			}
			return protocol.Value{Merge: &protocol.MergeValue{
				Alpha: v.Alpha, Next: protocol.LinkTo(protocol.DagPB, []byte{byte(v.Alpha)}),
			}}, nil
		}
		parts := make([]*big.Int, miners)
		for m := range parts {
			gain, ok := median(snapshot, miners, s.Scores, m)
			if !ok {
				return protocol.Value{}, errors.New("sim: a vector without rows")
			}
			parts[m] = big.NewInt(max(0, gain))
		}
		weights := protocol.Apportion(protocol.WeightTotal, parts, func(i, j int) bool { return i < j })
		value := protocol.WeightsValue{MergeSet: sha256.Sum256([]byte("all"))}
		for m, w := range weights {
			value.Weights = append(value.Weights, protocol.MinerWeight{
				Miner: miner(m), Group: "go", Status: protocol.StatusOK, Weight: w, Part: w,
			})
		}
		return protocol.Value{Weights: &value}, nil
	}
}

func stake(s protocol.Snapshot, id protocol.ID) uint64 {
	p, _ := s.Find(id)
	return p.Stake
}

// median returns the stake-weighted median gain of a miner.
func median(s protocol.Snapshot, miners int, vectors []protocol.ScoreVector, miner int) (int64, bool) {
	for _, v := range vectors {
		if len(v.Groups) != 1 || len(v.Groups[0].Rows) != miners {
			return 0, false
		}
	}
	v, ok := protocol.LowerMedian(vectors, func(v protocol.ScoreVector) uint64 { return stake(s, v.Validator) },
		func(a, b protocol.ScoreVector) int {
			return cmp.Compare(a.Groups[0].Rows[miner].Gain, b.Groups[0].Rows[miner].Gain)
		})
	if !ok {
		return 0, false
	}
	return v.Groups[0].Rows[miner].Gain, true
}
