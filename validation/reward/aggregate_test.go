package reward

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

func id(n int) protocol.ID { return protocol.ID{byte(n >> 8), byte(n)} }

// ok is a measured row of miner 1 on shard 0.
func ok(gain int64, stderr uint64) protocol.Row {
	return protocol.Row{Miner: id(1), Gain: gain, StdErr: stderr, N: 8, Status: protocol.StatusOK}
}

func said(s protocol.Status) protocol.Row { return protocol.Row{Miner: id(1), Status: s} }

func at(shard uint32, r protocol.Row) protocol.Row {
	r.Shard = shard
	return r
}

// reports gives every argument to a validator of its own, with stakes in the same order.
func reports(stakes []uint64, rows ...[]protocol.Row) []Report {
	var out []Report
	for i, r := range rows {
		out = append(out, Report{Validator: id(100 + i), Stake: stakes[i], Rows: r})
	}
	return out
}

type rows = []protocol.Row

func TestAggregate(t *testing.T) {
	const (
		good    = protocol.StatusOK
		invalid = protocol.StatusInvalid
		late    = protocol.StatusLate
		not     = protocol.StatusNotScored
	)
	equal := []uint64{1, 1, 1, 1}
	for _, c := range []struct {
		name string
		in   []Report
		want Score
	}{
		{"one validator", reports(equal, rows{ok(5, 2)}), Score{id(1), good, 5, 2, 1}},
		{"lower of two", reports(equal, rows{ok(9, 2)}, rows{ok(5, 3)}), Score{id(1), good, 5, 2, 1}},
		{"median of three", reports(equal, rows{ok(9, 9)}, rows{ok(5, 3)}, rows{ok(-800, 0)}), Score{id(1), good, 5, 3, 1}},
		{"by stake", reports([]uint64{5, 2, 2}, rows{ok(9, 9)}, rows{ok(5, 3)}, rows{ok(6, 3)}), Score{id(1), good, 9, 9, 1}},
		{"notscored is outside", reports(equal, rows{ok(7, 1)}, rows{said(not)}, rows{said(not)}), Score{id(1), good, 7, 1, 1}},
		{"no stake, no say", reports([]uint64{1, 0}, rows{ok(7, 1)}, rows{ok(1, 1)}), Score{id(1), good, 7, 1, 1}},
		{"only notscored", reports(equal, rows{said(not)}), Score{id(1), not, 0, 0, 0}},
		{"half is not a majority", reports(equal, rows{ok(7, 1)}, rows{said(invalid)}), Score{id(1), invalid, 0, 0, 0}},
		{"a liar calls it invalid", reports(equal, rows{ok(7, 1)}, rows{ok(7, 1)}, rows{said(invalid)}), Score{id(1), good, 7, 1, 1}},
		{"most stake", reports([]uint64{1, 2, 2}, rows{ok(1, 1)}, rows{said(invalid)}, rows{said(late)}), Score{id(1), late, 0, 0, 0}},
		// Shards 10, 20, 90 of equal weight: 20. The error shrinks by √(1.5708/3), 100 → 72.36….
		{"shards", reports(equal, rows{ok(10, 100), at(1, ok(90, 100)), at(2, ok(20, 100))}), Score{id(1), good, 20, 73, 3}},
		// Shard 1 is measured by one of three and weighs a third of the others.
		{"shards by stake", reports(equal,
			rows{ok(10, 100), at(1, ok(90, 100)), at(2, ok(20, 100))},
			rows{ok(10, 100), at(2, ok(20, 100))},
			rows{ok(10, 100), at(2, ok(20, 100))}), Score{id(1), good, 20, 79, 3}},
		// Two shards of weights 9 and 1: √(1.5708·82/100) is above 1.
		{"one shard decides", reports([]uint64{9, 1}, rows{ok(10, 100)}, rows{at(1, ok(90, 100))}), Score{id(1), good, 10, 100, 2}},
		{"overflow extremes", reports([]uint64{math.MaxUint64, math.MaxUint64, math.MaxUint64},
			rows{ok(math.MaxInt64, math.MaxUint64), at(1, ok(math.MaxInt64, math.MaxUint64))},
			rows{ok(math.MaxInt64, math.MaxUint64), at(1, ok(math.MinInt64, math.MaxUint64))},
			rows{ok(math.MinInt64, 0), at(1, ok(math.MaxInt64, math.MaxUint64))},
		), Score{id(1), good, math.MaxInt64, 16348020399415492202, 2}},
	} {
		got, err := Aggregate(c.in, 3)
		if err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%s: %+v %v, want %+v", c.name, got, err, c.want)
		}
	}
	if got, err := Aggregate(nil, 3); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v %v", got, err)
	}
}

func TestAggregateRefuses(t *testing.T) {
	twice := reports([]uint64{1, 1}, rows{ok(1, 1)}, rows{ok(1, 1)})
	twice[1].Validator = twice[0].Validator
	for name, in := range map[string][]Report{
		"validator twice": twice,
		"row twice":       reports([]uint64{1}, rows{ok(1, 1), ok(1, 1)}),
		"invented shard":  reports([]uint64{1}, rows{at(3, ok(1, 1))}),
		"invalid row":     reports([]uint64{1}, rows{said(0)}),
	} {
		if _, err := Aggregate(in, 3); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAggregateHonestRange: with a third of the stake lying as it likes in every shard, gain and error stay within what
// honest validators reported, and the order of reports and rows does not matter.
func TestAggregateHonestRange(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for range 300 {
		const shards, miners = 5, 4
		var in []Report
		type span struct {
			low, high int64
			most      uint64
		}
		var honest [miners]span
		for m := range honest {
			honest[m] = span{math.MaxInt64, math.MinInt64, 0}
		}
		for v := range 9 {
			r := Report{Validator: id(100 + v), Stake: 10}
			for m := range miners {
				for shard := range uint32(shards) {
					row := protocol.Row{Miner: id(m), Shard: shard, N: 8, Status: protocol.StatusOK, Gain: rng.Int64N(1000) - 500, StdErr: rng.Uint64N(100)}
					if v < 3 {
						row.Gain, row.StdErr = int64(rng.Uint64()), rng.Uint64()
						if rng.IntN(3) == 0 {
							row = protocol.Row{Miner: id(m), Shard: shard, Status: protocol.Status(1 + rng.IntN(8)), N: 8}
						}
					} else {
						honest[m].low, honest[m].high = min(honest[m].low, row.Gain), max(honest[m].high, row.Gain)
						honest[m].most = max(honest[m].most, row.StdErr)
					}
					r.Rows = append(r.Rows, row)
				}
			}
			in = append(in, r)
		}
		got, err := Aggregate(in, shards)
		if err != nil {
			t.Fatal(err)
		}
		for m, s := range got {
			h := honest[m]
			if s.Miner != id(m) || s.Status != protocol.StatusOK || s.Gain < h.low || s.Gain > h.high || s.StdErr > h.most {
				t.Fatalf("%+v, honest within %+v", s, h)
			}
		}
		rng.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		for _, r := range in {
			rng.Shuffle(len(r.Rows), func(i, j int) { r.Rows[i], r.Rows[j] = r.Rows[j], r.Rows[i] })
		}
		again, err := Aggregate(in, shards)
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("another order gives %+v (%v), not %+v", again, err, got)
		}
		if !slices.IsSortedFunc(got, func(a, b Score) int { return a.Miner.Compare(b.Miner) }) {
			t.Fatal("not sorted")
		}
	}
}
