package local_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/node/local/localtest"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// foreignModel writes a small model of a family and returns its directory.
func foreignModel(t *testing.T, c model.Config, fused bool, shard int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := localtest.Write(dir, c, fused, shard); err != nil {
		t.Fatal(err)
	}
	return dir
}

// adopt is how the tests found networks on foreign models.
func adopt() local.GenesisOptions {
	o := options()
	o.Params.SequenceLength = 96 // 24 tokens
	return o
}

// TestAdopt founds a network on a model of every family, whatever its layout, trains an update, scores and merges it, and
// reads the checkpoint that comes of it as another Hugging Face model.
func TestAdopt(t *testing.T) {
	b, sets := newBackend(t, cpu.Options{Threads: 2}), datasets(t)
	for _, f := range localtest.Families() {
		t.Run(f.String(), func(t *testing.T) {
			c := localtest.Config(f)
			link := protocol.Link{}
			groups := local.Groups{ledger: {{Layer: 1, Index: 4}, {Layer: 0, Index: 2}, {Layer: 1, Index: 0}}, maths: {{Layer: 0, Index: 5}}}
			var g protocol.Genesis
			var dir string
			for _, layout := range []struct {
				fused bool
				shard int64
			}{{false, 0}, {false, 20 << 10}, {true, 0}, {true, 30 << 10}} {
				dir = filepath.Join(t.TempDir(), "genesis")
				var err error
				if g, err = local.Adopt(foreignModel(t, c, layout.fused, layout.shard), sets, dir, groups, adopt(), false); err != nil {
					t.Fatal(err)
				}
				if link != (protocol.Link{}) && g.Checkpoint != link {
					t.Errorf("layout %+v gives another checkpoint", layout)
				}
				link = g.Checkpoint
			}
			n, err := local.NewNetwork(g, sets)
			if err != nil {
				t.Fatal(err)
			}
			p, err := local.LoadPhi(b, dir)
			if err != nil {
				t.Fatal(err)
			}
			if p.Link != g.Checkpoint || p.Model.Config != c || p.Tokens.Unit() != "token" {
				t.Fatalf("loaded %s, %+v", p.Link, p.Model.Config)
			}
			for _, s := range c.Specs() {
				want := make([]float32, s.Len())
				localtest.Values(s, want)
				if !slices.Equal(p.Model.Read(s.Name), want) {
					t.Errorf("%s has other values", s.Name)
				}
			}
			moved(t, b, n, p, dir)
		})
	}
}

// moved runs a cycle on p and checks what comes of it.
func moved(t *testing.T, b *cpu.Backend, n *local.Network, p *local.Phi, dir string) {
	t.Helper()
	o := brief(ledger, "one")
	d, _, err := local.Train(t.Context(), n, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := n.Score(t.Context(), p, ledger, 1, local.Beacons("families", 1), []local.Submission{submission(1, d)}, 2)
	if err != nil || rows[0].Status != protocol.StatusOK || rows[0].Gain <= 0 {
		t.Fatalf("row %+v, %v: the update should gain", rows, err)
	}
	out := filepath.Join(t.TempDir(), "next")
	next, err := n.Advance(p, []local.Accepted{accepted(1, d, 1)}, protocol.Rational{Num: 1, Den: 1}, out, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	follow, err := p.LoadNext(out, next.Link, next.Parts)
	if err != nil {
		t.Fatal(err)
	}
	exported, fused := filepath.Join(t.TempDir(), "exported"), filepath.Join(t.TempDir(), "fused")
	if _, err := local.Export(out, exported); err != nil {
		t.Fatal(err)
	}
	if err := local.ExportFused(out, fused); err != nil {
		t.Fatal(err)
	}
	tokens := make([]int32, 20)
	for i := range tokens {
		tokens[i] = int32(i * i % 280)
	}
	logits := func(m *model.Model) []float32 { return m.NewPass(1, len(tokens), nil).Logits(tokens) }
	want := logits(next.Model)
	if slices.Equal(want, logits(p.Model)) {
		t.Error("the step has changed nothing")
	}
	for name, dir := range map[string]string{"exported": exported, "fused": fused} {
		q, err := local.OpenModel(b, dir)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(logits(q.Model), want) {
			t.Errorf("%s: other logits", name)
		}
	}
	if !slices.Equal(logits(follow.Model), want) {
		t.Error("loaded as a successor: other logits")
	}
}

// TestChoose: every domain gets its own experts, those that it uses more than other text, the same every time.
func TestChoose(t *testing.T) {
	b, sets := newBackend(t, cpu.Options{Threads: 1}), datasets(t)
	base, err := local.OpenModel(b, foreignModel(t, localtest.Config(model.Mixtral), false, 0))
	if err != nil {
		t.Fatal(err)
	}
	choices, err := local.Choose(base, sets, prose, 2, 16)
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	for _, c := range choices {
		if len(c.Experts) != 2 || c.Domain == prose {
			t.Errorf("%+v", c)
		}
		for i, e := range c.Experts {
			key := fmt.Sprint(c.Layer, e)
			if taken[key] || c.Used[i] < 0 || c.Used[i] > 1 {
				t.Errorf("%+v: expert %d is taken, or its share is none", c, e)
			}
			taken[key] = true
		}
	}
	if len(choices) != 2*base.Model.Layers {
		t.Errorf("%d choices", len(choices))
	}
	slices.Reverse(sets)
	again, err := local.Choose(base, sets, prose, 2, 16)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(choices) {
		t.Errorf("another choice for another order of datasets: %v, %v", again, err)
	}
	if _, err := local.Choose(base, sets, prose, 4, 16); err == nil || !strings.Contains(err.Error(), "1 to 3") {
		t.Errorf("more experts than there are: %v", err)
	}
}

// TestComposeOnForeign admits domains to a model from elsewhere, with experts of their own.
func TestComposeOnForeign(t *testing.T) {
	b, sets := newBackend(t, cpu.Options{Threads: 2}), datasets(t)
	for _, f := range []model.Family{model.Mixtral, model.Qwen2} {
		base, err := local.OpenModel(b, foreignModel(t, localtest.Config(f), true, 0))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "genesis")
		g, _, err := local.Compose(b, base, sets, dir, adopt())
		if err != nil {
			t.Fatal(err)
		}
		p, err := local.LoadPhi(b, dir)
		if err != nil {
			t.Fatal(err)
		}
		if want := base.Model.Experts + 2*adopt().Plan.Copies; p.Link != g.Checkpoint || p.Model.Experts != want || p.Model.Family != f {
			t.Errorf("%s: %s with %d experts", p.Model.Family, p.Link, p.Model.Experts)
		}
	}
}

// TestAdoptRefuses: what is wrong is said before anything is written, with the file and the field, or the remedy.
func TestAdoptRefuses(t *testing.T) {
	sets := datasets(t)
	groups := local.Groups{ledger: {{Layer: 0, Index: 0}}, maths: {{Layer: 0, Index: 1}}}
	type trial struct {
		spoil  func(t *testing.T, dir string)
		groups local.Groups
		params func(o *local.GenesisOptions)
		want   []string
	}
	replace := func(file, old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			raw, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(raw), old) {
				t.Fatalf("%s does not hold %q", file, old)
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(strings.ReplaceAll(string(raw), old, new)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(file string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}
	}
	const index, single = checkpoint.IndexName, checkpoint.SingleName
	for name, c := range map[string]trial{
		"family":             {spoil: replace("config.json", "qwen2_moe", "deepseek_v2"), want: []string{"config.json", "model_type", "MLA"}},
		"another family":     {spoil: replace("config.json", "qwen2_moe", "qwen3_moe"), want: []string{single, "self_attn.q_norm.weight", "qwen3_moe"}},
		"no biases":          {spoil: replace("config.json", `"qkv_bias": true`, `"qkv_bias": false`), want: []string{single, "self_attn.k_proj.bias"}},
		"sliding window":     {spoil: replace("config.json", `"use_sliding_window": false`, `"use_sliding_window": true`), want: []string{"config.json", "use_sliding_window"}},
		"more experts":       {spoil: replace("config.json", `"num_experts": 6`, `"num_experts": 7`), want: []string{single, "mlp.gate.weight", "[7 32]"}},
		"vocabulary":         {spoil: replace("config.json", `"vocab_size": 300`, `"vocab_size": 260`), want: []string{tokenizer.JSONFile, "260 rows", "that came with the model"}},
		"no tokenizer":       {spoil: remove(tokenizer.JSONFile), want: []string{tokenizer.JSONFile, "save_pretrained"}},
		"tokenizer's field":  {spoil: replace(tokenizer.JSONFile, `"BPE"`, `"Unigram"`), want: []string{tokenizer.JSONFile, "model.type"}},
		"no config":          {spoil: remove("config.json"), want: []string{"config.json", "missing"}},
		"no weights":         {spoil: remove(single), want: []string{index, "missing"}},
		"header":             {spoil: replace(single, `"dtype":"BF16"`, `"dtype":"BF17"`), want: []string{single, "dtype"}},
		"group without text": {groups: local.Groups{ledger: groups[ledger], maths: groups[maths], "law": {{Layer: 1, Index: 1}}}, want: []string{`"law"`, "--data law=DIR"}},
		"domain left out":    {groups: local.Groups{ledger: groups[ledger]}, want: []string{maths, "no experts"}},
		"expert of nowhere":  {groups: local.Groups{ledger: {{Layer: 0, Index: 6}}, maths: {{Layer: 2, Index: 0}}}, want: []string{"expert 6 of layer 0", "expert 0 of layer 2", "layers 0 to 1"}},
		"expert of two":      {groups: local.Groups{ledger: groups[ledger], maths: groups[ledger]}, want: []string{"already that of group"}},
		"too long":           {params: func(o *local.GenesisOptions) { o.Params.SequenceLength = 4 * 65 }, want: []string{"65 tokens", "64 positions"}},
		"pool":               {params: func(o *local.GenesisOptions) { o.Params.ScoreSamples = 1 << 12 }, want: []string{"more text"}},
	} {
		t.Run(name, func(t *testing.T) {
			src, parent := foreignModel(t, localtest.Config(model.Qwen2), false, 0), t.TempDir()
			if c.spoil != nil {
				c.spoil(t, src)
			}
			o := adopt()
			if c.params != nil {
				c.params(&o)
			}
			if c.groups == nil {
				c.groups = groups
			}
			_, err := local.Adopt(src, sets, filepath.Join(parent, "genesis"), c.groups, o, false)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want one that names %q", err, want)
				}
			}
			if left := names(t, parent); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	fused := foreignModel(t, localtest.Config(model.OLMoE), true, 0)
	replace(single, `"shape":[6,40,32]`, `"shape":[6,32,40]`)(t, fused)
	if _, err := local.Adopt(fused, sets, filepath.Join(t.TempDir(), "genesis"), groups, adopt(), false); !errors.Is(err, checkpoint.ErrFormat) || !errors.Is(err, model.ErrWeights) || !strings.Contains(err.Error(), "transposed") {
		t.Errorf("transposed experts: %v", err)
	}
}

// TestTied: the head of a tied model may be in the files, where transformers ignores it; any other tensor too many may not.
func TestTied(t *testing.T) {
	b := newBackend(t, cpu.Options{Threads: 1})
	for extra, ok := range map[string]bool{"lm_head.weight": true, "model.layers.0.self_attn.rotary_emb.inv_freq": true,
		"model.layers.0.mlp.shared_expert_gate.weight": false, "lm_head.bias": false} {
		dir := foreignModel(t, localtest.Config(model.OLMoE), false, 0)
		f, err := safetensors.Open(filepath.Join(dir, checkpoint.SingleName))
		if err != nil {
			t.Fatal(err)
		}
		tensors := []safetensors.Tensor{{Name: extra, DType: safetensors.F32, Shape: []int64{3}, Data: make([]float32, 3)}}
		for _, i := range f.Tensors() {
			v := make([]float32, i.Elements())
			if err := f.ReadF32(i.Name, v); err != nil {
				t.Fatal(err)
			}
			tensors = append(tensors, safetensors.Tensor{Name: i.Name, DType: i.DType, Shape: i.Shape, Data: v})
		}
		var raw bytes.Buffer
		if err := errors.Join(f.Close(), safetensors.Write(&raw, tensors), os.WriteFile(filepath.Join(dir, checkpoint.SingleName), raw.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := local.OpenModel(b, dir); ok != (err == nil) || err != nil && !strings.Contains(err.Error(), extra) {
			t.Errorf("with %s: %v", extra, err)
		}
	}
}
