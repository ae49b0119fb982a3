package protocol

import (
	"cmp"
)

// WeightTotal is what the weights of a cycle sum to, and the parts of a group, unless nobody is paid.
const WeightTotal = 1 << 32

// Instance names one of a cycle's two agreements.
type Instance uint8

// The instances.
const (
	InstanceW Instance = 1 // on scores and weights
	InstanceM Instance = 2 // on the merge
)

// String returns W or M, as the design calls them.
func (i Instance) String() string {
	switch i {
	case InstanceW:
		return "W"
	case InstanceM:
		return "M"
	}
	return "unknown"
}

func (f faults) instance(i Instance) {
	if i != InstanceW && i != InstanceM {
		f.add("instance", "%d is not W (1) or M (2)", uint8(i))
	}
}

// MinerWeight is one miner's outcome of a cycle.
type MinerWeight struct {
	Miner  ID     `cbor:"miner"`
	Group  string `cbor:"group"`
	Status Status `cbor:"status"`
	Weight uint64 `cbor:"weight"` // of WeightTotal: what goes on chain
	Part   uint64 `cbor:"part"`   // of its group's WeightTotal: what the merge weighs its delta by
}

// Compare orders by group, then miner.
func (w MinerWeight) Compare(other MinerWeight) int {
	return cmp.Or(cmp.Compare(w.Group, other.Group), w.Miner.Compare(other.Miner))
}

func (w MinerWeight) faults(f faults) {
	f.name("group", w.Group)
	if !w.Status.Known() {
		f.add("status", "%d is not a status", uint8(w.Status))
	}
	if w.Status != StatusOK && (w.Weight != 0 || w.Part != 0) {
		f.add("weight", "weight %d and part %d, but the status is %s", w.Weight, w.Part, w.Status)
	}
	if w.Weight > WeightTotal || w.Part > WeightTotal {
		f.add("weight", "weight %d or part %d is past the total of 2³²", w.Weight, w.Part)
	}
}

// WeightsValue is what W decides.
type WeightsValue struct {
	Weights  []MinerWeight `cbor:"weights"`  // sorted by (group, miner), each miner once
	MergeSet Hash          `cbor:"mergeset"` // the digest of the deltas that M merges
}

func (v WeightsValue) faults(f faults) {
	if n := len(v.Weights); n > maxParticipants {
		f.add("weights", "%d weights, at most %d", n, maxParticipants)
		return
	}
	var total, part uint64 // at most 4096 terms of at most 2³²
	seen := make(map[ID]bool, len(v.Weights))
	for i, w := range v.Weights {
		if f.full() {
			return
		}
		before := len(*f.errs)
		f.under(index("weights", i), w)
		if len(*f.errs) > before {
			return // the sums below would be of nothing
		}
		if i > 0 && v.Weights[i-1].Compare(w) >= 0 {
			f.add(index("weights", i), "not above the weight before it; sort them by group and miner, each once")
		}
		if seen[w.Miner] {
			f.add(index("weights", i)+".miner", "%s has two weights; a miner serves one group at a time", w.Miner)
		}
		seen[w.Miner] = true
		total += w.Weight
		part += w.Part
		if i+1 == len(v.Weights) || v.Weights[i+1].Group != w.Group {
			if part != 0 && part != WeightTotal {
				f.add("weights", "the parts of group %q sum to %d, not to 2³² or 0", w.Group, part)
			}
			part = 0
		}
	}
	if total != 0 && total != WeightTotal {
		f.add("weights", "they sum to %d, not to 2³² or 0", total)
	}
}

// MergeValue is what M decides.
type MergeValue struct {
	Alpha    uint32   `cbor:"alpha"`    // index into Params.AlphaGrid; 0 keeps Φ
	Excluded []string `cbor:"excluded"` // groups left out of the merge, sorted, no duplicates
	Next     Link     `cbor:"next"`     // dag-pb: Φ(t+1); Φ(t) itself if Alpha is 0
}

func (v MergeValue) faults(f faults) {
	f.gridIndex("alpha", v.Alpha)
	if n := len(v.Excluded); n > maxGroups {
		f.add("excluded", "%d groups, at most %d", n, maxGroups)
	}
	for i, g := range v.Excluded {
		if f.full() {
			return
		}
		f.name(index("excluded", i), g)
		if i > 0 && v.Excluded[i-1] >= g {
			f.add(index("excluded", i), "%.40q is not above %.40q before it; sort them, each once", g, v.Excluded[i-1])
		}
	}
	f.link("next", v.Next, DagPB)
}

// Value is what an instance decides: exactly one of the two, by the instance.
type Value struct {
	Weights *WeightsValue `cbor:"weights"` // of W; nil (CBOR null) in M
	Merge   *MergeValue   `cbor:"merge"`   // of M; nil (CBOR null) in W
}

// Digest returns the SHA-256 of the canonical encoding. Votes are over [Proposal.Decision], which covers the evidence
// too.
func (v Value) Digest() Hash { return digest(v) }

// of adds the faults of v as the value of an instance.
func (v Value) of(i Instance, f faults) {
	if (v.Weights != nil) != (i == InstanceW) {
		f.add("weights", "W decides weights, and nothing else does")
	}
	if (v.Merge != nil) != (i == InstanceM) {
		f.add("merge", "M decides a merge, and nothing else does")
	}
	if v.Weights != nil {
		f.under("weights", v.Weights)
	}
	if v.Merge != nil {
		f.under("merge", v.Merge)
	}
}
