package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
)

// twoCycles are reports of a network with two groups: a merge that helps, then one that is refused.
func twoCycles() []local.CycleReport {
	return []local.CycleReport{
		{
			Cycle: 0, Alpha: protocol.Rational{Num: 1, Den: 2}, CanaryBefore: 2, CanaryAfter: 2.01,
			Groups: []local.GroupReport{{Group: "asm", Before: 4, After: 3}, {Group: "go", Before: 2, After: 2}},
		}, {
			Cycle: 1, Alpha: protocol.Rational{Den: 1}, CanaryBefore: 2.01, CanaryAfter: 2.01,
			Groups: []local.GroupReport{{Group: "asm", Before: 3, After: 3}, {Group: "go", Before: 2, After: 2}},
		},
	}
}

// TestSummary: changes are against the genesis, the mean is over the groups.
func TestSummary(t *testing.T) {
	var b bytes.Buffer
	summary(&b, twoCycles())
	const want = `
after cycle  α    asm     go      mean              canary
genesis           4.0000  2.0000  3.0000 (+0.00%)   2.0000 (+0.00%)
1            1/2  3.0000  2.0000  2.5000 (-16.67%)  2.0100 (+0.50%)
2            0    3.0000  2.0000  2.5000 (-16.67%)  2.0100 (+0.50%)
`
	var got strings.Builder
	for line := range strings.Lines(b.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	b.Reset()
	if summary(&b, nil); b.Len() != 0 {
		t.Errorf("no cycle: %q", b.String())
	}
}

// TestPlot: the plot is well-formed and has a line per group, one for the mean and one for the canary.
func TestPlot(t *testing.T) {
	d, lines := xml.NewDecoder(bytes.NewReader(svg(twoCycles()))), 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := token.(xml.StartElement); ok && s.Name.Local == "polyline" {
			lines++
		}
	}
	if lines != 4 {
		t.Errorf("%d lines, want 4", lines)
	}
	for _, c := range curves(twoCycles()) {
		if c.name == "asm" && (len(c.values) != 3 || c.values[0] != 0 || c.values[2] != -25) {
			t.Errorf("asm: %v, want 0 to −25 %%", c.values)
		}
	}
}
