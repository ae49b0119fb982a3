package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
)

// frontierPoint is what rehearsals of one density came to, on average over their seeds.
type frontierPoint struct {
	TopK    int     `json:"topk"` // 0 is dense-bf16
	Density float64 `json:"density"`
	Rate    float64 `json:"lr"`
	Runs    int     `json:"runs"`
	Cycles  int     `json:"cycles"`
	Bytes   float64 `json:"bytes"` // of a delta
	Ratio   float64 `json:"ratio"` // times smaller than dense-bf16
	Mean    float64 `json:"mean"`  // loss of the domains
	Canary  float64 `json:"canary"`
	Excess  float64 `json:"excess"` // of mean over that of dense-bf16, relative
}

func benchFrontier(_ context.Context, env environment, args []string) error {
	c := newFlags(env, "bench frontier", `Usage: bzd bench frontier [flags] FILE...

Reads what bzd rehearse --json printed for some densities (--topk), dense bfloat16 (--topk 0) among them, all with the same
cycles and miners, and prints size against loss. bench/frontier.sh makes such files.`)
	cycles := c.set.Int("cycles", 0, "look at the first so many cycles; 0 means all. A cycle does not depend on how many follow")
	plot := c.set.String("plot", "", "SVG `FILE` to draw the frontier to")
	asJSON := c.set.Bool("json", false, "print one JSON list")
	if err := c.parse(args, true); err != nil {
		return err
	}
	if c.set.NArg() == 0 {
		return usageError("which files? bench/frontier.sh makes them")
	}
	points, err := frontier(c.set.Args(), *cycles)
	if err != nil {
		return err
	}
	if *plot != "" {
		if err := writeFile(*plot, frontierSVG(points)); err != nil {
			return err
		}
	}
	if *asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(points)
	}
	w := table(env.out)
	fmt.Fprintf(w, "after %d cycles\truns\tbytes of a delta\tsmaller\tmean loss\tagainst dense\tcanary\t\n", points[0].Cycles)
	for _, p := range points {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.1f×\t%.4f\t%+.2f%%\t%.4f\t\n", p.name(), p.Runs, p.Bytes, p.Ratio, p.Mean, 100*p.Excess, p.Canary)
	}
	return w.Flush()
}

func (p frontierPoint) name() string {
	if p.TopK == 0 {
		return fmt.Sprintf("dense-bf16, lr %g", p.Rate)
	}
	return fmt.Sprintf("%.2f%%, lr %g", 100*p.Density, p.Rate)
}

// frontier averages the runs of each kind, the largest first.
func frontier(paths []string, cycles int) ([]frontierPoint, error) {
	var points []frontierPoint
	first := rehearsed{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r rehearsed
		if err := json.Unmarshal(raw, &r); err != nil || len(r.Cycles) == 0 || r.Values == 0 {
			return nil, fmt.Errorf("%s: not what bzd rehearse --json prints", path)
		}
		if cycles > 0 {
			r.Cycles = r.Cycles[:min(cycles, len(r.Cycles))]
		}
		if first.Values == 0 {
			first = r
		}
		if len(r.Cycles) != len(first.Cycles) || r.Miners != first.Miners || r.Values != first.Values {
			return nil, fmt.Errorf("%s: %d cycles of %d miners on %d values, %s has %d of %d on %d; only equals compare", path,
				len(r.Cycles), r.Miners, r.Values, paths[0], len(first.Cycles), first.Miners, first.Values)
		}
		one := frontierPoint{TopK: r.TopK, Density: float64(r.TopK) / 4096, Rate: r.LearningRate, Cycles: len(r.Cycles)}
		i := slices.IndexFunc(points, func(p frontierPoint) bool { return p.TopK == one.TopK && p.Rate == one.Rate })
		if i < 0 {
			i, points = len(points), append(points, one)
		}
		p := &points[i]
		p.Runs++
		last, sent, count := r.Cycles[len(r.Cycles)-1], 0.0, 0.0
		mean := 0.0
		for _, g := range last.Groups {
			mean += g.After / float64(len(last.Groups))
		}
		for _, cycle := range r.Cycles {
			for _, s := range cycle.Submissions {
				if s.Bytes > 0 {
					sent, count = sent+float64(s.Bytes), count+1
				}
			}
		}
		share := 1 / float64(p.Runs)
		p.Mean += (mean - p.Mean) * share
		p.Canary += (last.CanaryAfter - p.Canary) * share
		p.Bytes += (sent/max(1, count) - p.Bytes) * share
	}
	slices.SortFunc(points, func(a, b frontierPoint) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Mean, b.Mean))
	})
	dense := slices.IndexFunc(points, func(p frontierPoint) bool { return p.TopK == 0 }) // of dense ones the best is first
	if dense < 0 {
		return nil, fmt.Errorf("none of the files is of dense-bf16; add one of --topk 0")
	}
	for i := range points {
		points[i].Excess = points[i].Mean/points[dense].Mean - 1
		points[i].Ratio = float64(2*first.Values) / points[i].Bytes
	}
	return points, nil
}

// frontierSVG draws the excess loss over the ratio of sizes, which has a logarithmic axis.
func frontierSVG(points []frontierPoint) []byte {
	const width, height, left, top, right, bottom = 760, 420, 56, 36, 40, 48
	lo, hi, far := 0.0, 1.0, 10.0
	for _, p := range points {
		lo, hi, far = min(lo, 100*p.Excess), max(hi, 100*p.Excess), max(far, p.Ratio)
	}
	lo, hi, far = math.Floor(lo), math.Ceil(hi), far*1.3
	x := func(ratio float64) float64 {
		return left + math.Log(max(1, ratio))/math.Log(far)*(width-left-right)
	}
	y := func(v float64) float64 { return top + (hi-v)*(height-top-bottom)/(hi-lo) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/><text x="%d" y="20" font-size="14">Mean loss of the domains after %d cycles, against dense-bf16 (%%)</text>`+"\n", width, height, left, points[0].Cycles)
	for v := lo; v <= hi; v++ {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n", left, width-right, y(v), y(v), left-6, y(v)+4, v)
	}
	for _, r := range []float64{1, 2, 5, 10, 20, 50, 100, 200, 500} {
		if r <= far {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%g×</text>`+"\n", x(r), height-bottom+18, r)
		}
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">times smaller than dense-bf16</text>`+"\n", (left+width-right)/2, height-8)
	fmt.Fprint(&b, `<polyline fill="none" stroke="#1f77b4" stroke-width="2" points="`)
	for _, p := range points {
		if p.Excess == 0 || p.TopK > 0 {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p.Ratio), y(100*p.Excess))
		}
	}
	b.WriteString("\"/>\n")
	for _, p := range points {
		colour, anchor := "#1f77b4", "middle"
		if p.TopK == 0 {
			colour, anchor = "#d62728", "start"
		}
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/><text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s: %+.2f</text>`+"\n",
			x(p.Ratio), y(100*p.Excess), colour, x(p.Ratio), y(100*p.Excess)-9, anchor, colour, p.name(), 100*p.Excess)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
