package node

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/validation/merge"
	"github.com/blockzero-net/bzd/validation/reward"
)

// deriveWeights is what W decides, a pure function of the score vectors, the snapshot and the genesis: every validator
// computes the same value from the same vectors.
func deriveWeights(s protocol.Snapshot, g protocol.Genesis, vectors []protocol.ScoreVector) (protocol.Value, error) {
	var groups []reward.Group
	for _, grp := range g.Groups {
		var reports []reward.Report
		for _, v := range vectors {
			p, ok := s.Find(v.Validator)
			if !ok {
				return protocol.Value{}, fmt.Errorf("score vector of %s, who is not in the snapshot", v.Validator)
			}
			for _, r := range v.Groups {
				if r.Group == grp.Name {
					reports = append(reports, reward.Report{Validator: v.Validator, Stake: p.Stake, Rows: ofMiners(s, grp.Name, r.Rows)})
				}
			}
		}
		scores, err := reward.Aggregate(reports, 1)
		if err != nil {
			return protocol.Value{}, err
		}
		groups = append(groups, reward.Group{Name: grp.Name, Share: grp.Share, Scores: scores})
	}
	paid, err := reward.Pay(groups, reward.RulesOf(g.Params))
	if err != nil {
		return protocol.Value{}, err
	}
	w := &protocol.WeightsValue{}
	h := sha256.New()
	for _, p := range paid { // sorted by group and miner, as the value must be
		w.Weights = append(w.Weights, protocol.MinerWeight{Miner: p.Miner, Group: p.Group, Status: p.Status, Weight: p.Weight, Part: p.Part})
		if p.Part > 0 {
			h.Write(p.Miner[:])
		}
	}
	w.MergeSet = protocol.Hash(h.Sum(nil))
	return protocol.Value{Weights: w}, nil
}

// ofMiners keeps the rows of miners that serve the group: a validator cannot invent others.
func ofMiners(s protocol.Snapshot, group string, rows []protocol.Row) []protocol.Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r protocol.Row) bool {
		p, ok := s.Find(r.Miner)
		return !ok || !p.Roles.Has(protocol.RoleMiner) || p.Group != group
	})
}

// deriveMerge is what M decides: the stake-weighted lower median of the best acceptable scale of each merge vector, and
// the checkpoint that follows. Each vector's scale is computed again from its measure. write gives the checkpoint of a
// scale above 0; base is kept at 0.
func deriveMerge(s protocol.Snapshot, g protocol.Genesis, base protocol.Link, vectors []protocol.MergeVector, write func(alpha int) (protocol.Link, error)) (protocol.Value, error) {
	rules := merge.NewRules(g)
	var votes []merge.Vote
	for _, v := range vectors {
		p, ok := s.Find(v.Validator)
		if !ok {
			return protocol.Value{}, fmt.Errorf("merge vector of %s, who is not in the snapshot", v.Validator)
		}
		alpha := 0
		if len(v.Measure.Rows) > 0 {
			var err error
			if alpha, _, err = rules.Best(v.Measure); err != nil {
				return protocol.Value{}, err
			}
		}
		votes = append(votes, merge.Vote{Alpha: alpha, Stake: p.Stake})
	}
	m := &protocol.MergeValue{Alpha: uint32(merge.Median(votes)), Next: base}
	if m.Alpha > 0 {
		var err error
		if m.Next, err = write(int(m.Alpha)); err != nil {
			return protocol.Value{}, err
		}
	}
	return protocol.Value{Merge: m}, nil
}
