package local_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// TestComposeCopies: a new expert is its base expert bit for bit, its router row is the planned one, and nothing of the
// base has changed.
func TestComposeCopies(t *testing.T) {
	w := shared(t)
	if got, want := w.p.Model.Experts, w.base.Experts+2*options().Plan.Copies; got != want {
		t.Fatalf("%d experts, want %d", got, want)
	}
	routers := map[string]bool{}
	for l := range w.base.Layers {
		routers[model.RouterName(l)] = true
	}
	for _, s := range w.base.Specs() {
		before, after := w.base.Read(s.Name), w.p.Model.Read(s.Name)
		if routers[s.Name] {
			after = after[:len(before)] // the rows of the copies follow
		}
		if !slices.Equal(before, after) {
			t.Errorf("%s of the base has changed", s.Name)
		}
	}
	copies := map[string]bool{}
	for _, a := range w.admitted {
		router := w.p.Model.Read(model.RouterName(a.Layer))
		if len(a.From) != 2 || len(a.To) != 2 || len(a.Rows) != 2 || len(a.Used) != 2 {
			t.Fatalf("%s, layer %d: %d copies of %d, %d rows", a.Domain, a.Layer, len(a.To), len(a.From), len(a.Rows))
		}
		if a.From[0] == a.From[1] || a.Used[0] < a.Used[1] || a.Used[0] > 1 || a.Used[1] <= 0 {
			t.Errorf("%s, layer %d: experts %v with shares %v of the domain's routing", a.Domain, a.Layer, a.From, a.Used)
		}
		for i, to := range a.To {
			for _, p := range []string{"gate", "up", "down"} {
				copies[model.ExpertName(a.Layer, to, p)] = true
				if !slices.Equal(w.p.Model.Read(model.ExpertName(a.Layer, to, p)), w.base.Read(model.ExpertName(a.Layer, a.From[i], p))) {
					t.Errorf("layer %d: expert %d is no copy of %d", a.Layer, to, a.From[i])
				}
			}
			if dim := w.base.Dim; !slices.Equal(a.Rows[i], router[to*dim:][:dim]) {
				t.Errorf("layer %d: the router row of expert %d is not the planned one", a.Layer, to)
			}
		}
	}
	for _, s := range w.p.Model.Specs() {
		if strings.Contains(s.Name, ".experts.") && !copies[s.Name] && !slices.ContainsFunc(w.base.Specs(), func(b model.Spec) bool { return b.Name == s.Name }) {
			t.Errorf("%s is neither of the base nor planned", s.Name)
		}
	}
}

// TestComposeRouting: the fit does what it is for. Text of a domain goes to the domain's experts, other text does not.
func TestComposeRouting(t *testing.T) {
	w := shared(t)
	for _, g := range w.n.Genesis.Groups {
		own, total := map[string]int{}, 0
		for _, d := range w.sets {
			pass, seq := w.p.Model.NewPass(8, w.p.Model.Positions, nil), w.p.Model.Positions
			order, err := d.TrainOrder([32]byte{99}, seq+1)
			if err != nil {
				t.Fatal(err)
			}
			var tokens []int32
			for i := range int64(8) {
				tokens = append(tokens, tokenizer.Encode(order.At(i).Text)[:seq]...)
			}
			total = w.p.Model.Layers * w.p.Model.TopK * len(tokens)
			pass.Probe(tokens, func(l int, _ []float32, load []int) {
				for _, e := range g.Experts {
					if int(e.Layer) == l {
						own[d.Name()] += load[e.Index]
					}
				}
			})
		}
		for name, n := range own {
			share := float64(n) / float64(total)
			t.Logf("experts of %s take %.0f%% of %s", g.Name, 100*share, name)
			if name == g.Domain && share < 0.5 || name != g.Domain && share > 0.1 {
				t.Errorf("experts of %s take %.0f%% of %s", g.Name, 100*share, name)
			}
		}
	}
}

// TestComposeGenesis reads back what was founded.
func TestComposeGenesis(t *testing.T) {
	w := shared(t)
	g := w.n.Genesis
	if g.Checkpoint != w.p.Link || w.p.State.Previous != nil || fmt.Sprint(w.p.State.Groups) != fmt.Sprint(g.Groups) {
		t.Errorf("genesis of %s with groups %v, checkpoint %s with %v", g.Checkpoint, g.Groups, w.p.Link, w.p.State.Groups)
	}
	if len(g.Domains) != 3 || len(g.Groups) != 2 || g.Groups[0].Share+g.Groups[1].Share != protocol.ShareTotal {
		t.Errorf("domains %v, groups %v", g.Domains, g.Groups)
	}
	for _, d := range w.sets {
		dom, _ := g.Domain(d.Name())
		if dom.Dataset.Cid() != d.CID() || int(dom.HeldOutPermille) != d.HeldOutPermille() {
			t.Errorf("domain %+v, its dataset is %s", dom, d.CID())
		}
	}
	c, err := checkpoint.OpenStrict(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, info := range c.Tensors() {
		want := checkpoint.BF16
		if strings.HasPrefix(info.File, "experts-") || info.File == "router.safetensors" {
			want = checkpoint.F32
		}
		if info.DType != want {
			t.Errorf("%s in %s is %v, want %v", info.Name, info.File, info.DType, want)
		}
	}
}

// TestComposeOrder: three groups, whose shares do not divide evenly, in every order of the datasets.
func TestComposeOrder(t *testing.T) {
	b, sets := newBackend(t, cpu.Options{Threads: 1}), datasets(t)
	sets = append(sets, text(t, "another", 20, entry))
	base, _ := tiny(t, b, sets[0])
	var first string
	for i := range len(sets) {
		for range 2 {
			g, _, err := local.Compose(b, &local.Phi{Model: base}, sets, filepath.Join(t.TempDir(), "genesis"), options())
			if err != nil {
				t.Fatal(err)
			}
			raw, err := protocol.Encode(g)
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = string(raw)
				if g.Groups[0].Share != 333334 || g.Groups[1].Share != 333333 {
					t.Errorf("shares %d %d %d", g.Groups[0].Share, g.Groups[1].Share, g.Groups[2].Share)
				}
			}
			if string(raw) != first {
				t.Errorf("order %d of the datasets gives another genesis, with checkpoint %s", i, g.Checkpoint)
			}
			slices.Reverse(sets)
		}
		sets = append(sets[1:], sets[0])
	}
}

// TestComposeRefuses: what cannot be a network is refused before anything is written.
func TestComposeRefuses(t *testing.T) {
	b, sets := newBackend(t, cpu.Options{Threads: 1}), datasets(t)
	base, _ := tiny(t, b, sets[0])
	for name, c := range map[string]struct {
		sets   []*data.Dataset
		change func(o *local.GenesisOptions)
		says   string
	}{
		"no datasets":       {nil, nil, "canary"},
		"no canary":         {sets[1:], nil, "canary"},
		"one, no canary":    {sets[1:2], nil, "canary"},
		"canary alone":      {sets[:1], nil, "group"},
		"a domain twice":    {append(slices.Clone(sets), sets[1]), nil, "twice"},
		"bad name":          {sets, func(o *local.GenesisOptions) { o.Name = "No Name" }, "name"},
		"bad parameters":    {sets, func(o *local.GenesisOptions) { o.Params.ScoreSamples = 1 }, "score"},
		"no time":           {sets, func(o *local.GenesisOptions) { o.Params.ScoreSamples = 1 << 20 }, "raise schedule.evaluate from"},
		"long sequences":    {sets, func(o *local.GenesisOptions) { o.Params.SequenceLength = 49 }, "48"},
		"no copies":         {sets, func(o *local.GenesisOptions) { o.Plan.Copies = 0 }, "cop"},
		"too many copies":   {sets, func(o *local.GenesisOptions) { o.Plan.Copies = 5 }, "cop"},
		"nothing measured":  {sets, func(o *local.GenesisOptions) { o.Plan.Windows = 0 }, "window"},
		"ridge not finite":  {sets, func(o *local.GenesisOptions) { o.Plan.Ridge = math.NaN() }, "ledger"},
		"negative pull":     {sets, func(o *local.GenesisOptions) { o.Plan.Ridge = -1e9 }, "singular"},
		"target not finite": {sets, func(o *local.GenesisOptions) { o.Plan.Shift = math.Inf(1) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "genesis")
			o := options()
			if c.change != nil {
				c.change(&o)
			}
			_, _, err := local.Compose(b, &local.Phi{Model: base}, c.sets, dir, o)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want one about %q", err, c.says)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something was written all the same: %v", err)
			}
		})
	}
}
