package reward

import (
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

var plain = Rules{ConfidenceMilli: 2330, Power: 1}

func sure(miner int, gain int64) Score {
	return Score{Miner: id(miner), Status: protocol.StatusOK, Gain: gain, Shards: 1}
}

// paid runs Pay and returns the weight and status of each miner.
func paid(t *testing.T, groups []Group, rules Rules) (map[protocol.ID]uint64, map[protocol.ID]protocol.Status) {
	t.Helper()
	payments, err := Pay(groups, rules)
	if err != nil {
		t.Fatal(err)
	}
	weights, statuses := make(map[protocol.ID]uint64), make(map[protocol.ID]protocol.Status)
	for _, p := range payments {
		weights[p.Miner], statuses[p.Miner] = p.Weight, p.Status
	}
	return weights, statuses
}

func TestPay(t *testing.T) {
	two := func(a, b []Score) []Group { return []Group{{"asm", 250_000, a}, {"go", 750_000, b}} }
	for _, c := range []struct {
		name   string
		groups []Group
		rules  Rules
		want   map[int]uint64
	}{
		{"by gain and share", two([]Score{sure(1, 5)}, []Score{sure(2, 1), sure(3, 2)}), plain,
			map[int]uint64{1: Total / 4, 2: Total / 4, 3: Total / 2}},
		{"empty group", two(nil, []Score{sure(2, 1), sure(3, 3)}), plain,
			map[int]uint64{2: Total / 4, 3: Total / 4 * 3}},
		{"group that paid nobody", two([]Score{sure(1, -5)}, []Score{sure(2, 7)}), plain,
			map[int]uint64{1: 0, 2: Total}},
		{"nobody", two([]Score{sure(1, 0)}, []Score{sure(2, math.MinInt64)}), plain,
			map[int]uint64{1: 0, 2: 0}},
		{"no groups", nil, plain, map[int]uint64{}},
		{"squares", two(nil, []Score{sure(2, 1), sure(3, 3)}), Rules{2330, 2},
			map[int]uint64{2: 429496730, 3: 3865470566}}, // 0.1 and 0.9 of Total
		{"ties by id", two(nil, []Score{sure(4, 1), sure(3, 1), sure(2, 1)}), plain,
			map[int]uint64{2: 1431655766, 3: 1431655765, 4: 1431655765}},
		{"overflow extremes", two([]Score{sure(1, 1)}, []Score{sure(2, math.MaxInt64), sure(3, math.MaxInt64)}), Rules{2330, 8},
			map[int]uint64{1: Total / 4, 2: Total / 8 * 3, 3: Total / 8 * 3}},
	} {
		weights, _ := paid(t, c.groups, c.rules)
		want := make(map[protocol.ID]uint64)
		for n, w := range c.want {
			want[id(n)] = w
		}
		if !reflect.DeepEqual(weights, want) {
			t.Errorf("%s: %v, want %v", c.name, weights, want)
		}
	}
}

func TestPayStatus(t *testing.T) {
	scores := []Score{
		{id(1), protocol.StatusOK, 234, 100, 1},
		{id(2), protocol.StatusOK, 233, 100, 1}, // exactly on the bound
		{id(3), protocol.StatusInvalid, 0, 0, 0},
		{id(4), protocol.StatusNotScored, 0, 0, 0},
		{id(5), protocol.StatusOK, math.MaxInt64, math.MaxUint64, 1},
		{id(6), protocol.StatusDuplicate, math.MaxInt64, 0, 1},
	}
	weights, statuses := paid(t, []Group{{"go", 1, scores}}, plain)
	want := []protocol.Status{protocol.StatusOK, protocol.StatusNotImproving, protocol.StatusInvalid,
		protocol.StatusNotScored, protocol.StatusNotImproving, protocol.StatusDuplicate}
	for i, s := range want {
		miner := id(i + 1)
		if statuses[miner] != s || (weights[miner] == Total) != (i == 0) {
			t.Errorf("miner %d: %s, weight %d", i+1, statuses[miner], weights[miner])
		}
	}
}

func TestPayRefuses(t *testing.T) {
	for name, groups := range map[string][]Group{
		"group twice":         {{"go", 1, nil}, {"go", 1, nil}},
		"miner twice":         {{"go", 1, []Score{sure(1, 1), sure(1, 2)}}},
		"miner in two groups": {{"asm", 1, []Score{sure(1, 1)}}, {"go", 1, []Score{sure(1, 2)}}},
	} {
		if _, err := Pay(groups, plain); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, power := range []uint32{0, 9, math.MaxUint32} {
		if _, err := Pay(nil, Rules{1, power}); !errors.Is(err, ErrInput) {
			t.Errorf("power %d: %v", power, err)
		}
	}
}

func TestPayProperties(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	for range 2000 {
		rules := Rules{ConfidenceMilli: rng.Uint32N(4000), Power: 1 + rng.Uint32N(3)}
		groups := make([]Group, rng.IntN(6))
		gains := make(map[protocol.ID]Score)
		miner := 0
		for i := range groups {
			groups[i] = Group{Name: string(rune('a' + i)), Share: 1 + rng.Uint32N(1_000_000)}
			for range rng.IntN(10) {
				s := Score{Miner: id(miner), Status: protocol.StatusOK, Gain: int64(rng.Uint64() >> rng.IntN(64)), StdErr: rng.Uint64() >> rng.IntN(64)}
				if rng.IntN(4) == 0 {
					s = Score{Miner: id(miner), Status: protocol.Status(2 + rng.IntN(7))}
				}
				miner++
				gains[s.Miner] = s
				groups[i].Scores = append(groups[i].Scores, s)
			}
		}
		payments, err := Pay(groups, rules)
		if err != nil {
			t.Fatal(err)
		}
		var sum, active uint64
		budgets, parts := make(map[string]uint64), make(map[string]uint64)
		paying := make(map[string]bool)
		for _, p := range payments {
			s := gains[p.Miner]
			proven := s.Status == protocol.StatusOK && protocol.AboveZero(s.Gain, s.StdErr, rules.ConfidenceMilli)
			if proven != (p.Status == protocol.StatusOK) {
				t.Fatalf("%+v of %+v", p, s)
			}
			if !proven && (p.Weight != 0 || p.Part != 0) {
				t.Fatalf("%+v is paid for %+v", p, s)
			}
			sum += p.Weight
			budgets[p.Group] += p.Weight
			parts[p.Group] += p.Part
			paying[p.Group] = paying[p.Group] || proven
		}
		for _, g := range groups {
			if paying[g.Name] {
				active += uint64(g.Share)
			}
		}
		if active > 0 && sum != Total || active == 0 && sum != 0 {
			t.Fatalf("weights sum to %d", sum)
		}
		for _, g := range groups {
			if !paying[g.Name] {
				continue
			}
			// A group gets its share of those that pay, to within one unit.
			if low := Total * uint64(g.Share) / active; budgets[g.Name] != low && budgets[g.Name] != low+1 {
				t.Fatalf("group %s gets %d, its share is %d", g.Name, budgets[g.Name], low)
			}
			if parts[g.Name] != Total {
				t.Fatalf("parts sum to %d", parts[g.Name])
			}
		}
		rng.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
		for _, g := range groups {
			rng.Shuffle(len(g.Scores), func(i, j int) { g.Scores[i], g.Scores[j] = g.Scores[j], g.Scores[i] })
		}
		again, err := Pay(groups, rules)
		if err != nil || !reflect.DeepEqual(again, payments) {
			t.Fatal("pay depends on the order")
		}
	}
}
