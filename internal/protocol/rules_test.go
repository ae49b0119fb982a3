package protocol

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

// TestRules breaks one rule at a time; the error names the field and nothing else is wrong.
func TestRules(t *testing.T) {
	breakGenesis := func(change func(*Genesis)) Record {
		g := sampleGenesis()
		change(&g)
		return g
	}
	breakDelta := func(change func(*DeltaHeader)) Record {
		h := sampleDelta()
		change(&h)
		return h
	}
	breakMeasure := func(change func(*MergeMeasure)) Record {
		m := sampleMeasure()
		change(&m)
		return m
	}
	breakRow := func(change func(*Row)) Record {
		r := sampleRow()
		change(&r)
		return r
	}
	for _, c := range []struct {
		field string
		v     Record
	}{
		{"genesis.version", breakGenesis(func(g *Genesis) { g.Version = 2 })},
		{"genesis.name", breakGenesis(func(g *Genesis) { g.Name = "Sample" })},
		{"genesis.name", breakGenesis(func(g *Genesis) { g.Name = strings.Repeat("a", 33) })},
		{"genesis.name", breakGenesis(func(g *Genesis) { g.Name = "a_b" })},
		{"genesis.checkpoint", breakGenesis(func(g *Genesis) { g.Checkpoint = Link{} })},
		{"genesis.checkpoint", breakGenesis(func(g *Genesis) { g.Checkpoint = LinkTo(Raw, nil) })},
		{"genesis.groups", breakGenesis(func(g *Genesis) { g.Groups = nil })},
		{"genesis.groups", breakGenesis(func(g *Genesis) { g.Groups[0].Share++ })},
		{"genesis.groups[0].share", breakGenesis(func(g *Genesis) { g.Groups[0].Share, g.Groups[1].Share = 0, ShareTotal })},
		{"genesis.groups[1].name", breakGenesis(func(g *Genesis) { slices.Reverse(g.Groups) })},
		{"genesis.groups[0].domain", breakGenesis(func(g *Genesis) { g.Groups[0].Domain = "rust" })},
		{"genesis.groups[0].domain", breakGenesis(func(g *Genesis) { g.Groups[0].Domain = "web" })},
		{"genesis.groups[0].experts", breakGenesis(func(g *Genesis) { g.Groups[0].Experts = nil })},
		{"genesis.groups[0].experts[1]", breakGenesis(func(g *Genesis) { g.Groups[0].Experts[1] = ExpertRef{0, 2} })},
		{"genesis.groups[0].experts[2]", breakGenesis(func(g *Genesis) { g.Groups[0].Experts[2].Layer = 1 << 16 })},
		{"genesis.groups[1].experts", breakGenesis(func(g *Genesis) { g.Groups[1].Experts[1] = ExpertRef{0, 3} })},
		{"genesis.domains[0].dataset", breakGenesis(func(g *Genesis) { g.Domains[0].Dataset = LinkTo(DagPB, nil) })},
		{"genesis.domains[0].heldout", breakGenesis(func(g *Genesis) { g.Domains[0].HeldOutPermille = 1000 })},
		{"genesis.domains[0].tolerance", breakGenesis(func(g *Genesis) { g.Domains[0].ToleranceNano = -1 })},
		{"genesis.domains[1].name", breakGenesis(func(g *Genesis) { g.Domains[0], g.Domains[1] = g.Domains[1], g.Domains[0] })},
		{"genesis.canary", breakGenesis(func(g *Genesis) { g.Canary = "none" })},
		{"genesis.canary", breakGenesis(func(g *Genesis) { g.Domains[2].ToleranceNano++ })},
		{"genesis.params.sequence", breakGenesis(func(g *Genesis) { g.Params.SequenceLength = 1 })},
		{"genesis.params.canary", breakGenesis(func(g *Genesis) { g.Params.CanaryPermille = 901 })},
		{"genesis.params.score", breakGenesis(func(g *Genesis) { g.Params.ScoreSamples = 1 })},
		{"genesis.params.merge", breakGenesis(func(g *Genesis) { g.Params.MergeSamples = 0 })},
		{"genesis.params.probe", breakGenesis(func(g *Genesis) { g.Params.ProbeSamples = 0 })},
		{"genesis.params.exclude", breakGenesis(func(g *Genesis) { g.Params.ExcludeCycles = 1<<16 + 1 })},
		{"genesis.params.z", breakGenesis(func(g *Genesis) { g.Params.ConfidenceMilli = 0 })},
		{"genesis.params.massnum", breakGenesis(func(g *Genesis) { g.Params.GroupMassDen = 3 })},
		{"genesis.params.power", breakGenesis(func(g *Genesis) { g.Params.RewardPower = 0 })},
		{"genesis.params.topk", breakGenesis(func(g *Genesis) { g.Params.TopK = 4097 })},
		{"genesis.params.schedule.rounds", breakGenesis(func(g *Genesis) { g.Params.Schedule.Rounds = 0 })},
		{"genesis.params.alphas", breakGenesis(func(g *Genesis) { g.Params.AlphaGrid = g.Params.AlphaGrid[:1] })},
		{"genesis.params.alphas[0]", breakGenesis(func(g *Genesis) { g.Params.AlphaGrid = g.Params.AlphaGrid[1:] })},
		{"genesis.params.alphas[2]", breakGenesis(func(g *Genesis) { g.Params.AlphaGrid[2] = Rational{1, 5} })},
		{"genesis.params.alphas[5]", breakGenesis(func(g *Genesis) { g.Params.AlphaGrid[5] = Rational{1 << 16, 1} })},
		{"delta.base", breakDelta(func(h *DeltaHeader) { h.Base = LinkTo(DagCBOR, nil) })},
		{"delta.codec", breakDelta(func(h *DeltaHeader) { h.Codec = "" })},
		{"delta.tensors[0].name", breakDelta(func(h *DeltaHeader) { h.Tensors[0].Name = "a b" })},
		{"delta.tensors[0].name", breakDelta(func(h *DeltaHeader) { h.Tensors[0].Name = strings.Repeat("x", 257) })},
		{"delta.tensors[1].name", breakDelta(func(h *DeltaHeader) { h.Tensors[1].Name = h.Tensors[0].Name })},
		{"delta.tensors[1].offset", breakDelta(func(h *DeltaHeader) { h.Tensors[1].Offset-- })},
		{"delta.tensors[0].shape", breakDelta(func(h *DeltaHeader) { h.Tensors[0].Shape = []uint64{1 << 32, 1 << 32} })},
		{"delta.tensors[0].shape", breakDelta(func(h *DeltaHeader) { h.Tensors[0].Shape = []uint64{4, 0} })},
		{"delta.tensors[0].shape", breakDelta(func(h *DeltaHeader) { h.Tensors[0].Shape = make([]uint64, 9) })},
		{"delta.tensors[1].size", breakDelta(func(h *DeltaHeader) { h.Tensors[1].Size = math.MaxUint64 })},
		{"delta.size", breakDelta(func(h *DeltaHeader) { h.Size++ })},
		{"row.status", breakRow(func(r *Row) { r.Status = 0 })},
		{"row.status", breakRow(func(r *Row) { r.Status = StatusNotScored + 1 })},
		{"row.n", breakRow(func(r *Row) { r.N = 1 })},
		{"row.n", breakRow(func(r *Row) { r.N, r.Status = 0, StatusNotScored })},
		{"measure.groups", breakMeasure(func(m *MergeMeasure) { m.Groups = nil })},
		{"measure.groups[1]", breakMeasure(func(m *MergeMeasure) { slices.Reverse(m.Groups) })},
		{"measure.rows[0].alpha", breakMeasure(func(m *MergeMeasure) { m.Rows[0].Alpha = 0 })},
		{"measure.rows[0].n", breakMeasure(func(m *MergeMeasure) { m.Rows[0].N = 1 })},
		{"measure.rows[1]", breakMeasure(func(m *MergeMeasure) { m.Rows[1].Domain = "asm" })},
	} {
		wantFault(t, c.field, c.v)
	}
}

// wantFault checks that v breaks a rule of that field first, and that Encode does not write it.
func wantFault(t *testing.T, path string, v Record) {
	t.Helper()
	err := v.Validate()
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("%s: %v", path, err)
		return
	}
	var field *FieldError
	if !errors.As(err, &field) || field.Field != path {
		t.Errorf("the first fault is of %v, want %s", err, path)
	}
	if _, err := Encode(v); !errors.Is(err, ErrInvalid) {
		t.Errorf("%s: Encode wrote an invalid record (%v)", path, err)
	}
}

func TestValidateReportsEverything(t *testing.T) {
	g := sampleGenesis()
	g.Name, g.Canary, g.Params.ScoreSamples, g.Domains[1].HeldOutPermille = "", "x", 0, 0
	err := g.Validate()
	for _, field := range []string{"genesis.name", "genesis.canary", "genesis.params.score", "genesis.domains[1].heldout"} {
		if !strings.Contains(err.Error(), field+":") {
			t.Errorf("%s is not in %v", field, err)
		}
	}
	h := sampleDelta()
	h.Tensors = make([]TensorEntry, maxElements)
	if n := strings.Count(h.Validate().Error(), "\n"); n >= maxFaults {
		t.Errorf("%d faults reported", n+1)
	}
}

func TestDefaultParams(t *testing.T) {
	for name, p := range map[string]Params{"production": ProductionParams(), "demo": DemoParams()} {
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := DemoParams()
	p.AlphaGrid[1] = Rational{1, 3}
	if DemoParams().AlphaGrid[1] != (Rational{1, 2}) {
		t.Error("two callers share one grid")
	}
}

func TestElements(t *testing.T) {
	for _, c := range []struct {
		shape []uint64
		n     uint64
		ok    bool
	}{
		{[]uint64{3, 4}, 12, true},
		{[]uint64{1 << 40}, 1 << 40, true},
		{[]uint64{1 << 40, 2}, 0, false},
		{[]uint64{math.MaxUint64, math.MaxUint64}, 0, false},
		{[]uint64{0, 1 << 63}, 0, false},
	} {
		if n, ok := Elements(c.shape); n != c.n || ok != c.ok {
			t.Errorf("%d: %d %v", c.shape, n, ok)
		}
	}
}
