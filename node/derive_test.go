package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
)

// mergeGenesis has the groups a, b and c, each with a domain of its name, the canary z, and the scales 0, ½ and 1.
func mergeGenesis() protocol.Genesis {
	g := protocol.Genesis{Canary: "z", Params: protocol.DemoParams()}
	for _, name := range []string{"a", "b", "c"} {
		g.Groups = append(g.Groups, protocol.Group{Name: name, Domain: name})
		g.Domains = append(g.Domains, protocol.Domain{Name: name})
	}
	g.Domains = append(g.Domains, protocol.Domain{Name: "z"})
	return g
}

// measured is a joint step of groups, each of which changes the loss of its domain, and of "z", by so much at scale 1.
func measured(groups []string, change map[string]int64) protocol.MergeMeasure {
	m := protocol.MergeMeasure{Version: protocol.Version, Groups: groups}
	for alpha := int64(1); alpha <= 2; alpha++ {
		for _, d := range []string{"a", "b", "c", "z"} {
			c := change[d] * alpha / 2
			if d != "z" && !slices.Contains(groups, d) {
				c = 0
			}
			m.Rows = append(m.Rows, protocol.MergeRow{Alpha: uint32(alpha), Domain: d, Change: c, StdErr: 1000, N: 16})
		}
	}
	return m
}

const big = int64(100_000_000) // nano-nats: past every tolerance

func TestSearchMerge(t *testing.T) {
	g := mergeGenesis()
	set := []local.Accepted{{Group: "b", Points: 1}, {Group: "a", Points: 1}, {Group: "c", Points: 1}, {Group: "a", Points: 2}, {Group: "d"}}
	var tried []string
	search := func(change map[string]int64, fail int) (protocol.MergeVector, error) {
		tried = nil
		return searchMerge(g, set, func(s []local.Accepted) (protocol.MergeMeasure, error) {
			groups := groupsOf(s)
			tried = append(tried, strings.Join(groups, ""))
			if len(tried) == fail {
				return protocol.MergeMeasure{}, context.DeadlineExceeded
			}
			return measured(groups, change), nil
		})
	}
	for name, c := range map[string]struct {
		change map[string]int64
		fail   int
		tried  string
		groups string
		alpha  uint32
		err    error
	}{
		"all help":              {map[string]int64{"a": -big, "b": -big, "c": -big}, 0, "abc", "abc", 2, nil},
		"one harms":             {map[string]int64{"a": -big, "b": 2 * big, "c": -big}, 0, "abc ac", "ac", 2, nil},
		"two harm":              {map[string]int64{"a": 3 * big, "b": 2 * big, "c": -big}, 0, "abc bc c", "c", 2, nil},
		"all harm":              {map[string]int64{"a": big, "b": 2 * big, "c": big}, 0, "abc ac c", "abc", 0, nil},
		"the canary forgets":    {map[string]int64{"a": -big, "b": -big, "c": -big, "z": big}, 0, "abc bc c", "abc", 0, nil},
		"no time for a retry":   {map[string]int64{"a": -big, "b": 2 * big, "c": -big}, 2, "abc ac", "abc", 0, nil},
		"no time for the first": {nil, 1, "abc", "", 0, context.DeadlineExceeded},
	} {
		v, err := search(c.change, c.fail)
		got := strings.Join(tried, " ")
		if !errors.Is(err, c.err) || v.Alpha != c.alpha || strings.Join(v.Measure.Groups, "") != c.groups {
			t.Errorf("%s: scale %d of %v, %v", name, v.Alpha, v.Measure.Groups, err)
		}
		if got != c.tried {
			t.Errorf("%s: tried %s, want %s", name, got, c.tried)
		}
	}
}

func TestDeriveMerge(t *testing.T) {
	g := mergeGenesis()
	s := newNotary(protocol.LinkTo(protocol.DagCBOR, nil), 4).snapshot
	base := protocol.LinkTo(protocol.DagPB, []byte("base"))
	abc := []string{"a", "b", "c"}
	help := map[string]int64{"a": -big, "b": -big, "c": -big}
	good := func(groups ...string) protocol.MergeMeasure { return measured(groups, help) }
	none := measured(abc, map[string]int64{"a": big, "b": big, "c": big})
	foreign := good("a", "c")
	foreign.Rows[0].Domain = "a domain that nobody knows"
	outside := good("a", "d")
	for name, c := range map[string]struct {
		measures []protocol.MergeMeasure
		alpha    uint32
		joined   string
	}{
		"all agree":                  {[]protocol.MergeMeasure{good(abc...), good(abc...), good(abc...), good(abc...)}, 2, "a b c"},
		"all left one out":           {[]protocol.MergeMeasure{good("a", "c"), good("a", "c"), good("a", "c"), good("a", "c")}, 2, "a c"},
		"one lies about the groups":  {[]protocol.MergeMeasure{good("b"), good("a", "c"), good("a", "c"), good("a", "c")}, 2, "a c"},
		"one ran out of time":        {[]protocol.MergeMeasure{none, good("a", "c"), good("a", "c"), good("a", "c")}, 2, "a c"},
		"half ran out of time":       {[]protocol.MergeMeasure{none, none, good("a", "c"), good("a", "c")}, 0, ""},
		"half and half":              {[]protocol.MergeMeasure{good(abc...), good(abc...), good("a", "c"), good("a", "c")}, 0, ""},
		"one names a foreign domain": {[]protocol.MergeMeasure{foreign, good("a", "c"), good("a", "c"), good("a", "c")}, 2, "a c"},
		"one joins an unpaid group":  {[]protocol.MergeMeasure{outside, outside, outside, good(abc...)}, 0, ""},
		"nothing helps":              {[]protocol.MergeMeasure{none, none, none, none}, 0, ""},
		"nothing was measured":       {[]protocol.MergeMeasure{{}, {}, {}}, 0, ""},
	} {
		var vectors []protocol.MergeVector
		for i, m := range c.measures {
			vectors = append(vectors, protocol.MergeVector{Validator: s.Participants[i].ID, Measure: m, Alpha: 2})
		}
		wrote := ""
		v, err := deriveMerge(s, g, base, abc, vectors, func(alpha int, joined []string) (protocol.Link, error) {
			wrote = strings.Join(joined, " ")
			return protocol.LinkTo(protocol.DagPB, []byte(wrote)), nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m := v.Merge
		want := base
		if c.alpha > 0 {
			want = protocol.LinkTo(protocol.DagPB, []byte(c.joined))
		}
		if m.Alpha != c.alpha || wrote != c.joined || m.Next != want {
			t.Errorf("%s: scale %d of %q", name, m.Alpha, wrote)
		}
		if c.alpha > 0 && len(m.Excluded)+len(strings.Fields(c.joined)) != len(abc) || c.alpha == 0 && len(m.Excluded) > 0 || !slices.IsSorted(m.Excluded) {
			t.Errorf("%s: %v left out", name, m.Excluded)
		}
	}
	if _, err := deriveMerge(s, g, base, abc, []protocol.MergeVector{{Validator: protocol.ID{99}}}, nil); err == nil {
		t.Error("a vector of a stranger counts")
	}
}
