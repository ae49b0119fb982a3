package merge

import (
	"errors"
	"math"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// testRules: three scales above zero; domains asm, go and the canary web; tolerance 1000, canary 500; z = 2.
func testRules() Rules {
	g := protocol.Genesis{
		Domains: []protocol.Domain{{Name: "asm", ToleranceNano: 1000}, {Name: "go", ToleranceNano: 1000}, {Name: "web", ToleranceNano: 500}},
		Canary:  "web",
		Params: protocol.Params{
			AlphaGrid:           []protocol.Rational{{Num: 0, Den: 1}, {Num: 1, Den: 2}, {Num: 1, Den: 1}, {Num: 5, Den: 4}},
			ConfidenceMilli:     2000,
			CanaryToleranceNano: 500,
		},
	}
	return NewRules(g)
}

type cell struct {
	change int64
	err    uint64
}

// measure lays rows out: per scale from index 1 on, asm, go and web.
func measure(scales ...[3]cell) protocol.MergeMeasure {
	m := protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"asm", "go"}}
	for i, cells := range scales {
		for d, name := range []string{"asm", "go", "web"} {
			m.Rows = append(m.Rows, protocol.MergeRow{Alpha: uint32(i + 1), Domain: name, Change: cells[d].change, StdErr: cells[d].err, N: 8})
		}
	}
	return m
}

func TestBest(t *testing.T) {
	improves := [3]cell{{-10_000, 100}, {-10_000, 100}, {0, 100}}
	for _, c := range []struct {
		name    string
		scales  [][3]cell
		alpha   int
		reasons []Reason // of the scales above zero
	}{
		{"largest mean wins", [][3]cell{improves, {{-30_000, 100}, {0, 100}, {0, 100}}, improves}, 2, []Reason{Accepted, Accepted, Accepted}},
		{"smaller scale on a tie", [][3]cell{improves, improves, improves}, 1, []Reason{Accepted, Accepted, Accepted}},
		{"nothing measured", nil, 0, []Reason{Unmeasured, Unmeasured, Unmeasured}},
		{"out of time", [][3]cell{improves}, 1, []Reason{Accepted, Unmeasured, Unmeasured}},
		// Σc = −1000, z·√(300² + 400²) = 1000: exactly on the bound is not above it.
		{"on the bound", [][3]cell{{{-500, 300}, {-500, 400}, {}}, {{-500, 300}, {-501, 400}, {}}, {{500, 0}, {-500, 0}, {}}}, 2,
			[]Reason{NotImproving, Accepted, NotImproving}},
		// asm rises by 2000: with e = 999 the bound is above zero, with e = 1000 it is not.
		{"domain veto", [][3]cell{{{2000, 999}, {-90_000, 0}, {}}, {{2000, 1000}, {-90_000, 0}, {}}, {{1000, 0}, {-90_000, 0}, {}}}, 3,
			[]Reason{Vetoed, Accepted, Accepted}},
		{"canary veto", [][3]cell{{{-9_000, 0}, {-9_000, 0}, {501, 250}}, {{-8_000, 0}, {-8_000, 0}, {500, 0}}, {{-9_000, 0}, {-9_000, 0}, {501, 251}}}, 3,
			[]Reason{Vetoed, Accepted, Accepted}},
		{"the canary's gain does not pay", [][3]cell{{{0, 0}, {0, 0}, {-1_000_000, 0}}}, 0, []Reason{NotImproving, Unmeasured, Unmeasured}},
		{"overflow extremes", [][3]cell{
			{{math.MinInt64, 0}, {math.MinInt64, 0}, {math.MinInt64, math.MaxUint64}},
			{{math.MaxInt64, 0}, {math.MinInt64, 0}, {}},
			{{math.MinInt64, math.MaxUint64}, {math.MinInt64, math.MaxUint64}, {}}}, 1,
			[]Reason{Accepted, Vetoed, NotImproving}},
	} {
		alpha, verdicts, err := testRules().Best(measure(c.scales...))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if alpha != c.alpha {
			t.Errorf("%s: scale %d, want %d", c.name, alpha, c.alpha)
		}
		for i, want := range c.reasons {
			if got := verdicts[i+1]; got.Reason != want || got.Alpha != i+1 {
				t.Errorf("%s: scale %d is %s, want %s", c.name, i+1, got.Reason, want)
			}
		}
		if v := verdicts[0]; len(verdicts) != 4 || v.Reason != Accepted || v.Change.Sign() != 0 {
			t.Errorf("%s: scale 0 is %+v", c.name, v)
		}
	}

	// The verdict names the domain; a missing canary row is as bad as any other.
	m := measure([3]cell{{2000, 0}, {2000, 0}, {}}, improves)
	m.Rows = m.Rows[:len(m.Rows)-1]
	_, verdicts, err := testRules().Best(m)
	if err != nil || verdicts[1].Domain != "asm" || verdicts[2].Reason != Unmeasured || verdicts[2].Domain != "web" {
		t.Errorf("verdicts %+v: %v", verdicts, err)
	}
}

func TestBestRefuses(t *testing.T) {
	for name, change := range map[string]func(m *protocol.MergeMeasure){
		"invalid":        func(m *protocol.MergeMeasure) { m.Version = 0 },
		"other grid":     func(m *protocol.MergeMeasure) { m.Rows[2].Alpha = 4 },
		"unknown domain": func(m *protocol.MergeMeasure) { m.Rows[2].Domain = "zzz" },
	} {
		m := measure([3]cell{})
		change(&m)
		if _, _, err := testRules().Best(m); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		votes []Vote
		want  int
	}{
		{nil, 0},
		{[]Vote{{3, 0}}, 0},
		{[]Vote{{2, 1}, {4, 1}}, 2},
		{[]Vote{{4, 34}, {4, 33}, {0, 33}}, 4},
		{[]Vote{{5, 33}, {2, 34}, {0, 33}}, 2}, // a third of the stake at either end moves nothing
	} {
		if got := Median(c.votes); got != c.want {
			t.Errorf("%v: %d, want %d", c.votes, got, c.want)
		}
	}
}

func TestWorstGroup(t *testing.T) {
	groups := []protocol.Group{{Name: "asm-a", Domain: "asm"}, {Name: "asm-b", Domain: "asm"}, {Name: "go-a", Domain: "go"}}
	vector := func(stake uint64, asm, goChange int64) Vector {
		return Vector{stake, measure([3]cell{{asm, 9}, {goChange, 9}, {1 << 40, 9}}, [3]cell{{-1 << 30, 0}, {1 << 30, 0}, {}})}
	}
	for _, c := range []struct {
		name    string
		groups  []protocol.Group
		vectors []Vector
		want    string
	}{
		{"largest rise at the smallest scale", groups, []Vector{vector(1, 50, 40)}, "asm-a"},
		{"the least improvement", groups, []Vector{vector(1, -50, -40)}, "go-a"},
		{"median by stake", groups, []Vector{vector(1, 900, 0), vector(1, 1, 5), vector(1, 2, 6)}, "go-a"},
		{"tie by name", []protocol.Group{groups[2], groups[1]}, []Vector{vector(1, 7, 7)}, "asm-b"},
		{"none measured", groups, []Vector{{Stake: 1}}, ""},
		{"no stake", groups, []Vector{vector(0, 1, 1)}, ""},
		{"no groups", nil, []Vector{vector(1, 1, 1)}, ""},
	} {
		got, ok := WorstGroup(c.groups, c.vectors)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q %v, want %q", c.name, got, ok, c.want)
		}
	}
}
