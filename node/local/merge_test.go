package local_test

import (
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
)

// merge runs a merge of the shared network into a new directory.
func merge(t *testing.T, w *world, in ...local.Accepted) (local.Merged, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "next")
	m, err := w.n.Merge(t.Context(), w.p, 0, local.Beacons("merge", 0), in, dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	return m, dir
}

// reload opens what a merge wrote.
func reload(t *testing.T, w *world, m local.Merged, dir string) *local.Phi {
	t.Helper()
	p, err := local.LoadPhi(w.b, dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Link != m.Next {
		t.Errorf("the directory has CID %s, the merge says %s", p.Link, m.Next)
	}
	return p
}

// weighted is a delta with its share of the group's step, of 2¹⁶.
type weighted struct {
	d      *delta.Delta
	weight int64
}

// step is Φ + α·Σ w·Δ of one value, computed with fractions: the sum rounded to whole units of 2⁻²⁴, half to even, then
// added in double precision and rounded to single.
func step(phi float32, units []int32, weights []int64, alpha protocol.Rational) float32 {
	sum := new(big.Rat)
	for i, u := range units {
		sum.Add(sum, new(big.Rat).Mul(big.NewRat(int64(u), 1), big.NewRat(weights[i], 1<<16)))
	}
	sum.Mul(sum, big.NewRat(int64(alpha.Num), int64(alpha.Den)))
	low := new(big.Int).Div(sum.Num(), sum.Denom()) // floor
	rest := new(big.Rat).Sub(sum, new(big.Rat).SetInt(low))
	if c := rest.Cmp(big.NewRat(1, 2)); c > 0 || c == 0 && low.Bit(0) == 1 {
		low.Add(low, big.NewInt(1))
	}
	if low.Sign() == 0 {
		return phi
	}
	exact := new(big.Rat).SetFloat64(float64(phi))
	exact.Add(exact, new(big.Rat).SetFrac(low, big.NewInt(1<<24)))
	double, _ := exact.Float64()
	return float32(double)
}

// expect computes the tensors of a merge by hand: of each group's deltas, at scale alpha.
func expect(t *testing.T, w *world, alpha protocol.Rational, groups ...[]weighted) map[string][]float32 {
	t.Helper()
	out := map[string][]float32{}
	for _, g := range groups {
		want, err := w.n.Expect(w.p, g[0].d.Header().Group)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range want.Tensors {
			name := strings.TrimSuffix(e.Name, "#rows")
			if out[name] == nil {
				out[name] = w.p.Model.Read(name)
			}
			// Every fiftieth value of an expert; all of the router's.
			stride := 50
			if e.Rows != nil {
				stride = 1
			}
			var weights []int64
			for _, x := range g {
				weights = append(weights, x.weight)
			}
			for j := 0; j < len(g[0].d.Units(i)); j += stride {
				at := j
				if e.Rows != nil {
					at = int(e.Rows[j/w.p.Model.Dim])*w.p.Model.Dim + j%w.p.Model.Dim
				}
				var units []int32
				for _, x := range g {
					units = append(units, x.d.Units(i)[j])
				}
				out[name][at] = step(out[name][at], units, weights, alpha)
			}
		}
	}
	return out
}

// compare holds a checkpoint against expect: tensors that it names have those values, at the values computed, and all
// others are those of before.
func compare(t *testing.T, w *world, after *model.Model, want map[string][]float32) {
	t.Helper()
	for _, s := range after.Specs() {
		got, before, wanted := after.Read(s.Name), w.p.Model.Read(s.Name), want[s.Name]
		if wanted == nil {
			if !slices.Equal(got, before) {
				t.Errorf("%s has changed", s.Name)
			}
			continue
		}
		stride := 50
		if strings.HasSuffix(s.Name, "mlp.gate.weight") {
			stride = 1
		}
		moved := 0
		for i := 0; i < len(got); i += stride {
			if got[i] != before[i] {
				moved++
			}
			if got[i] != wanted[i] {
				t.Errorf("%s[%d] is %v, want %v (was %v)", s.Name, i, got[i], wanted[i], before[i])
				break
			}
		}
		if moved == 0 {
			t.Errorf("%s has not changed", s.Name)
		}
	}
}

// TestMergeArithmetic merges two miners of one group with claims of 3 to 1.
func TestMergeArithmetic(t *testing.T) {
	w := shared(t)
	one, two := trained(t, ledger, "one"), trained(t, ledger, "two")
	m, dir := merge(t, w, accepted(1, one, 3), accepted(2, two, 1))
	if m.Alpha.IsZero() || m.Next == w.p.Link || len(m.Excluded) != 0 {
		t.Fatalf("%+v", m)
	}
	p := reload(t, w, m, dir)
	if p.State.Previous == nil || *p.State.Previous != w.p.Link {
		t.Errorf("previous is %v, want %s", p.State.Previous, w.p.Link)
	}
	compare(t, w, p.Model, expect(t, w, m.Alpha, []weighted{{one, 3 << 14}, {two, 1 << 14}}))
}

// TestMergeHalf does the same at half the scale, where halves are rounded, through Write.
func TestMergeHalf(t *testing.T) {
	w := shared(t)
	one, two := trained(t, ledger, "one"), trained(t, maths, "m")
	alpha, dir := protocol.Rational{Num: 1, Den: 2}, filepath.Join(t.TempDir(), "next")
	next, err := w.n.Write(w.p, []local.Accepted{accepted(1, one, 5), accepted(2, two, 1)}, alpha, dir)
	if err != nil {
		t.Fatal(err)
	}
	p := reload(t, w, local.Merged{Next: next}, dir)
	compare(t, w, p.Model, expect(t, w, alpha, []weighted{{one, 1 << 16}}, []weighted{{two, 1 << 16}}))
}

// TestMergeFiles: only the files of what was merged differ from those before.
func TestMergeFiles(t *testing.T) {
	w := shared(t)
	genesis := files(t, w.dir)
	m, dir := merge(t, w, accepted(1, trained(t, ledger, "one"), 1))
	after := files(t, dir)
	var changed []string
	for name, b := range after {
		if genesis[name] != b {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	if want := []string{"experts-ledger.safetensors", "protocol.cbor", "router.safetensors"}; !slices.Equal(changed, want) || len(after) != len(genesis) {
		t.Errorf("%d files of %d, changed %v, want %v", len(after), len(genesis), changed, want)
	}
	if hubs, _ := filepath.Glob(filepath.Join(dir, "hub-*")); len(hubs) == 0 {
		t.Error("there is no hub file")
	}
	if !maps.Equal(files(t, w.dir), genesis) {
		t.Error("the merge has written to the checkpoint before")
	}
	if len(w.p.State.Groups) != 2 || w.p.State.Previous != nil || m.Next == w.p.Link {
		t.Errorf("the merge has changed the loaded state: %+v", w.p.State)
	}
}

// TestMergeGroups: two groups in one merge share router tensors and still do to their rows what each does alone.
func TestMergeGroups(t *testing.T) {
	w := shared(t)
	l, m := trained(t, ledger, "one"), trained(t, maths, "m")
	joint, dir := merge(t, w, accepted(1, l, 7), accepted(2, m, 1))
	if joint.Alpha.IsZero() || !slices.Equal(joint.Measure.Groups, []string{ledger, maths}) {
		t.Fatalf("%+v", joint)
	}
	p := reload(t, w, joint, dir)
	compare(t, w, p.Model, expect(t, w, joint.Alpha, []weighted{{l, 1 << 16}}, []weighted{{m, 1 << 16}}))
}

// TestMergeOrder: in which order deltas arrive changes nothing, nor do deltas without a claim or the number of workers.
func TestMergeOrder(t *testing.T) {
	w := shared(t)
	in := []local.Accepted{accepted(1, trained(t, ledger, "one"), 3), accepted(2, trained(t, ledger, "two"), 2),
		accepted(3, trained(t, ledger, "three"), 9), accepted(4, trained(t, maths, "m"), 1)}
	first, _ := merge(t, w, in...)
	idle := accepted(9, w.remake(t, trained(t, ledger, "one"), negated), 0)
	for i := range len(in) {
		in = append(in[1:], in[0])
		x := in
		if i == 1 {
			x = append([]local.Accepted{idle}, in...)
		}
		if m, _ := merge(t, w, x...); m.Next != first.Next || m.Alpha != first.Alpha {
			t.Errorf("another order gives %s at %s, not %s at %s", m.Next, m.Alpha, first.Next, first.Alpha)
		}
	}
	dir := filepath.Join(t.TempDir(), "next")
	m, err := w.n.Merge(t.Context(), w.p, 0, local.Beacons("merge", 0), in, dir, 1)
	if err != nil || m.Next != first.Next {
		t.Errorf("one worker: %s, %v", m.Next, err)
	}
}

// TestMergeKeeps: when no scale helps, the checkpoint stays and nothing is written.
func TestMergeKeeps(t *testing.T) {
	w := shared(t)
	badLedger, badMaths := w.remake(t, trained(t, ledger, "one"), negated), w.remake(t, trained(t, maths, "m"), negated)
	zero := w.remake(t, trained(t, ledger, "one"), func(int32) int32 { return 0 })
	largest := func(int32) int32 { return delta.MaxUnit }
	for name, c := range map[string]struct {
		in       []local.Accepted
		excluded []string
	}{
		"nothing accepted":  {nil, nil},
		"nobody has points": {[]local.Accepted{accepted(1, trained(t, ledger, "one"), 0)}, nil},
		"no change":         {[]local.Accepted{accepted(1, zero, 1)}, []string{ledger}},
		"one harmful":       {[]local.Accepted{accepted(1, badLedger, 1)}, []string{ledger}},
		// The ledger falls deeper: it is left out first, then the exercises.
		"both harmful": {[]local.Accepted{accepted(1, badLedger, 1), accepted(2, badMaths, 1)}, []string{ledger, maths}},
		"both absurd": {[]local.Accepted{accepted(1, w.remake(t, badLedger, largest), 1), accepted(2, w.remake(t, badMaths, largest), 1)},
			nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := merge(t, w, c.in...)
			if !m.Alpha.IsZero() || m.Alpha.Den != 1 || m.Next != w.p.Link {
				t.Errorf("α = %s, next %s", m.Alpha, m.Next)
			}
			if c.excluded != nil && !slices.Equal(m.Excluded, c.excluded) {
				t.Errorf("excluded %v, want %v", m.Excluded, c.excluded)
			}
			if left := names(t, filepath.Dir(dir)); len(left) != 0 {
				t.Errorf("written: %v", left)
			}
		})
	}
}

// TestMergeExcludes: a group that spoils the joint step is left out, and the rest is merged as if it had not been there.
func TestMergeExcludes(t *testing.T) {
	w := shared(t)
	good := accepted(1, trained(t, maths, "m"), 1)
	bad := accepted(2, w.remake(t, trained(t, ledger, "one"), negated), 1)
	alone, _ := merge(t, w, good)
	m, dir := merge(t, w, bad, good)
	if alone.Alpha.IsZero() || m.Next != alone.Next || !slices.Equal(m.Excluded, []string{ledger}) || !slices.Equal(m.Measure.Groups, []string{maths}) {
		t.Errorf("α = %s, excluded %v, measured %v, next %s; alone %s", m.Alpha, m.Excluded, m.Measure.Groups, m.Next, alone.Next)
	}
	compare(t, w, reload(t, w, m, dir).Model, expect(t, w, m.Alpha, []weighted{{good.Delta, 1 << 16}}))
}

// TestMergeTarget: a directory that holds something else is left alone.
func TestMergeTarget(t *testing.T) {
	w := shared(t)
	dir := t.TempDir()
	mine := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(mine, []byte("chapter one"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := []local.Accepted{accepted(1, trained(t, ledger, "one"), 1)}
	if _, err := w.n.Merge(t.Context(), w.p, 0, local.Beacons("merge", 0), in, dir, 2); err == nil {
		t.Error("merged into a directory with other files")
	}
	if left := names(t, dir); !slices.Equal(left, []string{"thesis.txt"}) {
		t.Errorf("the directory holds %v", left)
	}
}

// TestAdvance: what Advance returns computes like what it wrote, and like what LoadNext makes of that; it links the files
// that did not change and hands out the blocks of the others; and it does not keep the checkpoint before alive.
func TestAdvance(t *testing.T) {
	w := shared(t)
	alpha, dir := protocol.Rational{Num: 1, Den: 2}, filepath.Join(t.TempDir(), "next")
	in := []local.Accepted{accepted(1, trained(t, ledger, "one"), 5)}
	handed := map[cid.Cid]bool{}
	next, err := w.n.Advance(w.p, in, alpha, dir, w.dir, func(b blocks.Block) error { handed[b.Cid()] = true; return nil })
	if err != nil {
		t.Fatal(err)
	}
	plain, err := w.n.Write(w.p, in, alpha, filepath.Join(t.TempDir(), "plain"))
	if err != nil || plain != next.Link {
		t.Fatalf("linked %s, written anew %s, %v", next.Link, plain, err)
	}
	loaded := reload(t, w, local.Merged{Next: next.Link}, dir)
	short, err := w.p.LoadNext(dir, next.Link, next.Parts)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*local.Phi{"Advance": next, "LoadNext": short} {
		if !maps.Equal(p.Parts, loaded.Parts) || p.Link != loaded.Link || p.State.Previous == nil || *p.State.Previous != w.p.Link {
			t.Errorf("%s: %s, previous %v, %d parts", name, p.Link, p.State.Previous, len(p.Parts))
		}
		for _, s := range loaded.Model.Specs() {
			if !slices.Equal(p.Model.Read(s.Name), loaded.Model.Read(s.Name)) {
				t.Errorf("%s: %s differs", name, s.Name)
			}
		}
	}
	search, err := w.n.NewSearch(t.Context(), w.p, 0, local.Beacons("advance", 0), 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := search.Advance(alpha, filepath.Join(t.TempDir(), "early"), w.dir, nil); err == nil {
		t.Error("a search that measured nothing advances")
	}
	if _, err := search.Measure(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if found, err := search.Advance(alpha, filepath.Join(t.TempDir(), "found"), w.dir, nil); err != nil || found.Link != next.Link {
		t.Errorf("what was measured is %+v, %v, want %s", found, err, next.Link)
	}
	if next.State.Previous == &w.p.Link {
		t.Error("the next checkpoint points into the one before")
	}
	same := next.Parts.Same(w.p.Parts)
	if len(same) != len(next.Parts)-3 { // experts, router, state
		t.Errorf("%d of %d files are as before", len(same), len(next.Parts))
	}
	for name, part := range next.Parts {
		a, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		_, kept := same[name]
		if tensors := strings.HasSuffix(name, ".safetensors"); tensors && (os.SameFile(a, b) != kept || handed[part.CID] == kept) {
			t.Errorf("%s: unchanged %t, linked %t, handed out %t", name, kept, os.SameFile(a, b), handed[part.CID])
		}
	}
}

// TestLoadNextRefuses: a checkpoint that does not fit what it succeeds is an error, as it is when loaded by itself.
func TestLoadNextRefuses(t *testing.T) {
	w := shared(t)
	m, dir := merge(t, w, accepted(1, trained(t, ledger, "one"), 1))
	p := reload(t, w, m, dir)
	other := maps.Clone(p.Parts)
	other["config.json"] = other["protocol.cbor"] // as if the model had changed: everything is read
	if q, err := w.p.LoadNext(dir, p.Link, other); err != nil || q.Link != p.Link || !maps.Equal(q.Parts, p.Parts) {
		t.Errorf("another configuration: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "protocol.cbor")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.p.LoadNext(dir, p.Link, p.Parts); err == nil {
		t.Error("a checkpoint without state is taken")
	}
	if err := os.Truncate(filepath.Join(dir, "experts-ledger.safetensors"), 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := w.p.LoadNext(dir, p.Link, p.Parts); err == nil {
		t.Error("a torn file is taken")
	}
}
