package main

import (
	"bytes"
	"fmt"
	"math"

	"github.com/blockzero-net/bzd/node/local"
)

// curve is one line of the plot: change in percent after each cycle, 0 first.
type curve struct {
	name   string
	values []float64
}

// curves are the groups' domains, their mean and the canary.
func curves(reports []local.CycleReport) []curve {
	var out []curve
	percent := func(now, start float64) float64 { return 100 * (now/start - 1) }
	mean, canary := curve{"mean", []float64{0}}, curve{"canary", []float64{0}}
	for i, g := range reports[0].Groups {
		c := curve{g.Group, []float64{0}}
		for _, r := range reports {
			c.values = append(c.values, percent(r.Groups[i].After, g.Before))
		}
		out = append(out, c)
	}
	for _, r := range reports {
		now, start := 0.0, 0.0
		for i, g := range r.Groups {
			now, start = now+g.After, start+reports[0].Groups[i].Before
		}
		mean.values = append(mean.values, percent(now, start))
		canary.values = append(canary.values, percent(r.CanaryAfter, reports[0].CanaryBefore))
	}
	return append(out, mean, canary)
}

// svg draws the curves of the probe losses.
func svg(reports []local.CycleReport) []byte {
	const width, height, left, top, right, bottom = 760, 420, 56, 36, 96, 44
	lines := curves(reports)
	lo, hi := 0.0, 0.0
	for _, c := range lines {
		for _, v := range c.values {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	lo, hi = math.Floor(lo/5)*5, math.Ceil((hi+0.01)/5)*5
	x := func(i int) float64 { return left + float64(i)*(width-left-right)/float64(len(reports)) }
	y := func(v float64) float64 { return top + (hi-v)*(height-top-bottom)/(hi-lo) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="20" font-size="14">Loss on the fixed probe, change since genesis (%%)</text>`+"\n", width, height, left)
	for v := lo; v <= hi; v += 5 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, width-right, y(v), y(v), left-6, y(v)+4, v)
	}
	for i := 0; i <= len(reports); i += max(1, len(reports)/10) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(i), height-bottom+18, i)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">cycle</text>`+"\n", (left+width-right)/2, height-6)
	colours := []string{"#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2"}
	for i, c := range lines {
		colour, thick := colours[i%len(colours)], 1.5
		switch c.name {
		case "mean":
			colour, thick = "#000", 2.5
		case "canary":
			colour, thick = "#d62728", 2.5
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="%g" points="`, colour, thick)
		for k, v := range c.values {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(k), y(v))
		}
		last := c.values[len(c.values)-1]
		fmt.Fprintf(&b, `"/><text x="%d" y="%.1f" fill="%s">%s %+.1f</text>`+"\n", width-right+6, y(last)+4, colour, c.name, last)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
