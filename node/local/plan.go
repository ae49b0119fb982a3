package local

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
)

// PlanOptions say how domains are admitted. See docs/genesis.md for the measurements behind the defaults.
type PlanOptions struct {
	Copies  int     // experts of its own that each domain gets per layer
	Windows int     // training windows per domain whose routing is measured, rounded up to a whole batch
	Shift   float64 // what a new router row adds to its base row's logit on text of its domain
	Away    float64 // and, times Shift, takes away on other text
	General float64 // weight of general text against the domain's own in the fit
	Ridge   float64 // added to the diagonal of the fit
}

// DefaultPlan is what genesis uses.
func DefaultPlan() PlanOptions {
	return PlanOptions{Copies: 2, Windows: 64, Shift: 1.5, Away: 2, General: 3, Ridge: 0.01}
}

// validate reports every fault at once.
func (o PlanOptions) validate(experts int) error {
	var faults []error
	if o.Copies < 1 || o.Copies > experts {
		faults = append(faults, fmt.Errorf("%d copies per domain, the base has %d experts to copy", o.Copies, experts))
	}
	if o.Windows < 1 {
		faults = append(faults, fmt.Errorf("%d windows: without any no routing is measured", o.Windows))
	}
	return errors.Join(faults...)
}

// Admission is what one domain gets in one layer.
type Admission struct {
	Domain string
	Layer  int
	From   []int       // base experts copied, most used first
	Used   []float64   // share of the domain's routing that each had in the base
	To     []int       // indices of the copies
	Rows   [][]float32 // their router rows
}

// routing is what one domain's text does in one layer of the base.
type routing struct {
	load []int
	gram []float32 // Σ x·xᵀ over the router's inputs x, [Dim, Dim]
	sum  []float32 // Σ x
	n    int
}

// Plan measures how the base routes each domain and gives every domain but the canary experts of its own: copies of the
// base experts it uses most, with router rows fitted so that the domain's text goes to them and other text does not.
//
// A new row is its base row plus a shift r. With x a router input, r minimises, by ridge regression,
//
//	mean over the domain of (r·x − Shift)² + Σ over other domains d of w_d · mean over d of (r·x + Away·Shift)²
//
// where w is General for the canary and ½ for each other domain. The sums are exact-arithmetic products, the solution is
// float64 in a fixed order, so the plan is the same everywhere.
func Plan(from *Phi, sets []*data.Dataset, canary string, o PlanOptions) ([]Admission, error) {
	base := from.Model
	if err := o.validate(base.Experts); err != nil {
		return nil, err
	}
	stats, err := measureAll(from, sets, o.Windows)
	if err != nil {
		return nil, err
	}
	var out []Admission
	next := base.Experts
	for i, d := range sets {
		if d.Name() == canary {
			continue
		}
		for l := range base.Layers {
			a := Admission{Domain: d.Name(), Layer: l}
			shift, err := fitShift(stats, i, l, sets, canary, o)
			if err != nil {
				return nil, err
			}
			router := base.Read(model.RouterName(l))
			for k, e := range mostUsed(stats[i][l].load)[:o.Copies] {
				row := append([]float32(nil), router[e*base.Dim:][:base.Dim]...)
				for j := range row {
					row[j] += float32(shift[j])
				}
				total := 0
				for _, c := range stats[i][l].load {
					total += c
				}
				a.From, a.To, a.Rows = append(a.From, e), append(a.To, next+k), append(a.Rows, row)
				a.Used = append(a.Used, float64(stats[i][l].load[e])/float64(total))
			}
			out = append(out, a)
		}
		next += o.Copies
	}
	return out, nil
}

// planBatch is how many windows go through the base at a time, planSeq their tokens if it has that many positions.
const planBatch, planSeq = 16, 128

// measureAll measures every dataset.
func measureAll(base *Phi, sets []*data.Dataset, windows int) ([][]routing, error) {
	stats := make([][]routing, len(sets))
	for i, d := range sets {
		s, err := labelled(context.Background(), Evaluation, func(context.Context) ([]routing, error) { return measureRouting(base, d, windows) })
		if err != nil {
			return nil, err
		}
		stats[i] = s
	}
	return stats, nil
}

func measureRouting(base *Phi, d *data.Dataset, windows int) ([]routing, error) {
	m := base.Model
	seq := min(m.Positions, planSeq)
	src, err := newSource(d, seedOf("plan", d.Name()), seq*base.Tokens.bytes()+1, seq, base.Tokens)
	if err != nil {
		return nil, err
	}
	stats := make([]routing, m.Layers)
	for l := range stats {
		stats[l] = routing{load: make([]int, m.Experts), gram: make([]float32, m.Dim*m.Dim), sum: make([]float32, m.Dim)}
	}
	b := m.Backend()
	pass := m.NewPass(planBatch, seq, nil)
	x, gram := b.Alloc(planBatch*seq*m.Dim), b.Alloc(m.Dim*m.Dim)
	one, sum := b.Alloc(planBatch*seq), b.Alloc(m.Dim)
	ones := make([]float32, planBatch*seq)
	for i := range ones {
		ones[i] = 1
	}
	b.Write(one, ones)
	for at := 0; at < windows; at += planBatch {
		var tokens []int32
		for i := range planBatch {
			tokens = append(tokens, src.Sequence(int64(at + i))[:seq]...)
		}
		pass.Probe(tokens, func(l int, in []float32, load []int) {
			s := &stats[l]
			b.Write(x, in)
			b.Write(gram, s.gram)
			b.Write(sum, s.sum)
			b.LinearGradWeight(gram, x, x, len(tokens))
			b.LinearGradWeight(sum, one, x, len(tokens))
			b.Read(s.gram, gram)
			b.Read(s.sum, sum)
			s.n += len(tokens)
			for e, c := range load {
				s.load[e] += c
			}
		})
	}
	return stats, b.Sync()
}

// mostUsed orders expert indices by load, the lower index first on a tie.
func mostUsed(load []int) []int {
	idx := make([]int, len(load))
	for i := range idx {
		idx[i] = i
	}
	sort.SliceStable(idx, func(a, b int) bool { return load[idx[a]] > load[idx[b]] })
	return idx
}

// fitShift solves the ridge regression of one domain and layer.
func fitShift(stats [][]routing, own, layer int, sets []*data.Dataset, canary string, o PlanOptions) ([]float64, error) {
	dim := len(stats[own][layer].sum)
	a, b := make([][]float64, dim), make([]float64, dim)
	for i := range a {
		a[i] = make([]float64, dim)
		a[i][i] = o.Ridge
	}
	for d, s := range stats {
		weight, target := 0.5, -float64(o.Shift*o.Away)
		switch {
		case d == own:
			weight, target = 1, o.Shift
		case sets[d].Name() == canary:
			weight = o.General
		}
		r := s[layer]
		weight /= float64(r.n)
		for i := range dim {
			for j := range i + 1 {
				a[i][j] += float64(weight * float64(r.gram[i*dim+j]))
			}
			b[i] += float64(float64(weight*target) * float64(r.sum[i]))
		}
	}
	if err := solve(a, b); err != nil {
		return nil, fmt.Errorf("router rows of %s in layer %d: %w", sets[own].Name(), layer, err)
	}
	return b, nil
}

// solve replaces b by a⁻¹·b for a symmetric positive definite a of which the lower triangle is given (Cholesky). Every
// operation is rounded by itself, so that no compiler may fuse two.
func solve(a [][]float64, b []float64) error {
	n := len(b)
	for i := range n {
		for j := range i + 1 {
			s := a[i][j]
			for k := range j {
				s -= float64(a[i][k] * a[j][k])
			}
			if i > j {
				a[i][j] = s / a[j][j]
				continue
			}
			if !(s > 0) {
				return fmt.Errorf("the fit is singular at %d", i)
			}
			a[i][i] = math.Sqrt(s)
		}
	}
	for i := range n {
		s := b[i]
		for k := range i {
			s -= float64(a[i][k] * b[k])
		}
		b[i] = s / a[i][i]
	}
	for i := n - 1; i >= 0; i-- {
		s := b[i]
		for k := i + 1; k < n; k++ {
			s -= float64(a[k][i] * b[k])
		}
		b[i] = s / a[i][i]
	}
	return nil
}
