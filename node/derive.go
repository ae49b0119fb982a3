package node

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/validation/merge"
	"github.com/blockzero-net/bzd/validation/reward"
)

// timely is what lists say of a miner's commitments to a group: the manifest that more than a third of the stake held in
// time, or the status that tells why none is. Of two such manifests that of more stake counts, then the lower one: only a
// proof voids both.
func timely(s protocol.Snapshot, lists []protocol.List, miner protocol.ID, group string) (manifest protocol.Link, status protocol.Status) {
	var late, other uint64
	held := map[protocol.Link]uint64{}
	for _, l := range lists {
		p, ok := s.Find(l.Validator)
		if !ok {
			continue
		}
		for _, e := range l.Entries {
			switch {
			case e.Miner != miner || e.Group != group:
			case e.State == protocol.ListHeld:
				held[e.Manifest] += p.Stake
			case e.State == protocol.ListLate:
				late += p.Stake
			default:
				other += p.Stake
			}
		}
	}
	best, third := uint64(0), s.TotalStake()/3
	for link, stake := range held {
		other += stake
		if stake > third && (stake > best || stake == best && link.Compare(manifest) < 0) {
			manifest, best = link, stake
		}
	}
	switch {
	case best > 0:
		return manifest, protocol.StatusOK
	case late > 0 && late >= other:
		return manifest, protocol.StatusLate
	case late+other > 0:
		return manifest, protocol.StatusNoCustody
	}
	return manifest, protocol.StatusOffline
}

// refused are the miners whose work does not count, by what a set of W says: without a timely commitment, or with a proof
// of two.
func refused(s protocol.Snapshot, set consensus.Set) (map[protocol.ID]protocol.Status, error) {
	out := map[protocol.ID]protocol.Status{}
	for _, p := range s.Participants {
		if p.Roles.Has(protocol.RoleMiner) {
			if _, status := timely(s, set.Lists, p.ID, p.Group); status != protocol.StatusOK {
				out[p.ID] = status
			}
		}
	}
	for _, proof := range set.Proofs {
		offence, err := proof.Verify(s)
		if err != nil {
			return nil, err
		}
		if offence.Kind == protocol.EquivocationCommitment {
			out[offence.Offender] = protocol.StatusInvalid
		}
	}
	return out, nil
}

// deriveWeights is what W decides, a pure function of the score vectors, the snapshot and the genesis: every validator
// computes the same value from the same vectors. The rows of refused miners count for nothing but their status.
func deriveWeights(s protocol.Snapshot, g protocol.Genesis, vectors []protocol.ScoreVector, refused map[protocol.ID]protocol.Status) (protocol.Value, error) {
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
					reports = append(reports, reward.Report{Validator: v.Validator, Stake: p.Stake, Rows: withStatus(ofMiners(s, grp.Name, r.Rows), refused)})
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

// withStatus replaces the rows of refused miners, one each.
func withStatus(rows []protocol.Row, refused map[protocol.ID]protocol.Status) (out []protocol.Row) {
	for i, r := range rows {
		status, ok := refused[r.Miner]
		switch {
		case !ok:
			out = append(out, r)
		case i == 0 || rows[i-1].Miner != r.Miner:
			out = append(out, protocol.Row{Miner: r.Miner, Shard: r.Shard, Status: status})
		}
	}
	return out
}

// deriveMerge is what M decides, from the merge vectors and the groups that W gave parts to. The step is the joint one of
// the groups that vectors with most stake join at a scale above 0; a vector that joins others, or says what cannot be,
// counts as one for scale 0. The scale is the stake-weighted lower median, each vector's computed again from its measure:
// above 0 it has more than half of the stake behind the very same groups. write gives the checkpoint of a scale above 0
// and the groups that it joins; base is kept at 0.
func deriveMerge(s protocol.Snapshot, g protocol.Genesis, base protocol.Link, groups []string, vectors []protocol.MergeVector,
	write func(alpha int, joined []string) (protocol.Link, error)) (protocol.Value, error) {
	rules := merge.NewRules(g)
	type claim struct {
		alpha  int
		joined string
		stake  uint64
	}
	var claims []claim
	behind := map[string]uint64{}
	sets := map[string][]string{}
	for _, v := range vectors {
		p, ok := s.Find(v.Validator)
		if !ok {
			return protocol.Value{}, fmt.Errorf("merge vector of %s, who is not in the snapshot", v.Validator)
		}
		c := claim{stake: p.Stake}
		if alpha, _, err := rules.Best(v.Measure); err == nil && alpha > 0 && subset(v.Measure.Groups, groups) {
			c.alpha, c.joined = alpha, strings.Join(v.Measure.Groups, " ") // names have no spaces
			behind[c.joined] += p.Stake
			sets[c.joined] = v.Measure.Groups
		}
		claims = append(claims, c)
	}
	joined := ""
	for _, set := range slices.Sorted(maps.Keys(behind)) {
		if joined == "" || behind[set] > behind[joined] {
			joined = set
		}
	}
	var votes []merge.Vote
	for _, c := range claims {
		v := merge.Vote{Stake: c.stake}
		if c.joined == joined {
			v.Alpha = c.alpha
		}
		votes = append(votes, v)
	}
	m := &protocol.MergeValue{Alpha: uint32(merge.Median(votes)), Next: base}
	if m.Alpha > 0 {
		var err error
		if m.Next, err = write(int(m.Alpha), sets[joined]); err != nil {
			return protocol.Value{}, err
		}
		for _, name := range groups {
			if !slices.Contains(sets[joined], name) {
				m.Excluded = append(m.Excluded, name)
			}
		}
	}
	return protocol.Value{Merge: m}, nil
}

// subset reports whether every name of a is one of b.
func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(name string) bool { return !slices.Contains(b, name) })
}

// groupsOf are the groups of deltas with a claim to their group's step, sorted.
func groupsOf(set []local.Accepted) []string {
	var names []string
	for _, a := range set {
		if a.Points > 0 {
			names = append(names, a.Group)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// joining keeps the deltas of some groups.
func joining(set []local.Accepted, groups []string) []local.Accepted {
	return slices.DeleteFunc(slices.Clone(set), func(a local.Accepted) bool { return !slices.Contains(groups, a.Group) })
}

// searchMerge measures the joint step of all deltas; while no scale above 0 is acceptable it leaves the group out that does
// most harm and tries the rest. It returns the measure with the scale that it would take, or that of all groups with scale
// 0 if nothing is acceptable, or was not before measure ran out of time. The first measure's error is returned.
func searchMerge(g protocol.Genesis, set []local.Accepted, measure func([]local.Accepted) (protocol.MergeMeasure, error)) (v protocol.MergeVector, err error) {
	rules := merge.NewRules(g)
	for left := groupsOf(set); len(left) > 0; {
		m, err := measure(joining(set, left))
		if err != nil {
			if v.Measure.Version != 0 {
				err = nil
			}
			return v, err
		}
		if v.Measure.Version == 0 {
			v.Measure = m
		}
		alpha, _, err := rules.Best(m)
		if err != nil {
			return v, err
		}
		if alpha > 0 {
			v.Measure, v.Alpha = m, uint32(alpha)
			return v, nil
		}
		joined := slices.DeleteFunc(slices.Clone(g.Groups), func(x protocol.Group) bool { return !slices.Contains(left, x.Name) })
		worst, ok := merge.WorstGroup(joined, []merge.Vector{{Stake: 1, Measure: m}})
		if !ok {
			return v, nil
		}
		left = slices.DeleteFunc(left, func(name string) bool { return name == worst })
	}
	return v, nil
}
