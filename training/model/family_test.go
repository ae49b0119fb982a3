package model_test

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
)

// packed is float32 in base64.
type packed []float32

func (p *packed) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil {
		return err
	}
	*p = make(packed, len(raw)/4)
	_, err = binary.Decode(raw, binary.LittleEndian, *p)
	return err
}

// familyVector is a file written by testdata/make_families.py.
type familyVector struct {
	Config          json.RawMessage
	Names           map[string][]int // of the tensors in a file, with their shapes
	Seq             int
	Tokens, Targets []int32
	Logits          packed
	Losses          []float64
	Grads           map[string]packed
}

// madeUp fills a tensor from its name, as make_families.py does.
func madeUp(s model.Spec, dst []float32) error {
	state := uint64(0xcbf29ce484222325)
	for _, c := range []byte(s.Name) {
		state = (state ^ uint64(c)) * 0x100000001b3
	}
	for i := range dst {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		dst[i] = float32(int32((z^z>>31)>>40)-1<<23) / (1 << 23)
		switch {
		case strings.HasSuffix(s.Name, "norm.weight"):
			dst[i] = 1 + dst[i]/8
		case len(s.Shape) > 1 && !strings.Contains(s.Name, "embed"):
			dst[i] /= 2
		}
	}
	return nil
}

func loadFamily(t *testing.T, name string) (g familyVector, c model.Config) {
	t.Helper()
	f, err := os.Open("testdata/family_" + name + ".json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(z).Decode(&g); err != nil {
		t.Fatal(err)
	}
	if c, err = model.ParseConfig(g.Config); err != nil {
		t.Fatal(err)
	}
	return g, c
}

func familyNames() []string { return []string{"olmoe", "mixtral", "qwen2_moe", "qwen3_moe"} }

// TestFamilies compares logits, losses and the gradient of every tensor of every family with transformers, and the
// gradients of a group alone with those of everything.
func TestFamilies(t *testing.T) {
	const tolerance = 1e-5
	for _, name := range familyNames() {
		t.Run(name, func(t *testing.T) {
			g, c := loadFamily(t, name)
			if c.Family.String() != name {
				t.Errorf("family %s", c.Family)
			}
			b, err := cpu.New(cpu.Options{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			m, err := model.New(b, c, madeUp)
			if err != nil {
				t.Fatal(err)
			}
			all := m.TrainAll()
			if len(all.Params()) != len(g.Grads) {
				t.Errorf("%d tensors, transformers has %d", len(all.Params()), len(g.Grads))
			}
			p := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, all)
			if d := relative(p.Logits(g.Tokens), g.Logits); !(d <= tolerance) {
				t.Errorf("logits differ by %g", d)
			}
			losses := make([]float64, len(g.Targets))
			p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0)
			for i, l := range losses {
				if !(math.Abs(l-g.Losses[i]) <= tolerance*math.Max(1, g.Losses[i])) {
					t.Fatalf("loss %d is %v, transformers says %v", i, l, g.Losses[i])
				}
			}
			grads := map[string][]float32{}
			for _, q := range all.Params() {
				v := make([]float32, q.Grad.Len())
				b.Read(v, q.Grad)
				grads[q.Name] = v
				if d := relative(v, g.Grads[q.Name]); !(d <= 2*tolerance) {
					t.Errorf("gradient of %s differs by %g", q.Name, d)
				}
			}

			// The hub frozen: the same bits for what is trained, recomputed or not.
			frozen, err := model.NewFrozen(b, c, madeUp, []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 0}})
			if err != nil {
				t.Fatal(err)
			}
			for _, recompute := range []bool{false, true} {
				part := mustGroup(t, frozen, []model.ExpertRef{{Layer: 0, Index: 1}, {Layer: 1, Index: 0}})
				p := frozen.NewPassOf(model.Layout{Sequences: len(g.Tokens) / g.Seq, Seq: g.Seq, Recompute: recompute}, part)
				p.Step(losses, g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0)
				for _, q := range part.Params() {
					v := make([]float32, q.Grad.Len())
					b.Read(v, q.Grad)
					tensor, row, isRow := strings.Cut(q.Name, "#")
					want := grads[tensor]
					if isRow {
						at := int(row[0]-'0') * c.Dim
						want = want[at : at+c.Dim]
					}
					if i := differ(v, want); i >= 0 {
						t.Errorf("gradient of %s alone differs at %d", q.Name, i)
					}
				}
			}
		})
	}
}

// familyDigests are the first 8 bytes of the SHA-256 of logits and gradients of everything: a promise, as those of
// docs/spec/exact.md are.
var familyDigests = map[string]string{
	"olmoe":     "ba1f7a9923dcaab3",
	"mixtral":   "99cc0a44924ee285",
	"qwen2_moe": "6bc2bc47e2459404",
	"qwen3_moe": "2e9a15f51d6c03dd",
}

// TestFamilyDigests computes the same bits on every instruction set and with any number of threads.
func TestFamilyDigests(t *testing.T) {
	for _, name := range familyNames() {
		g, c := loadFamily(t, name)
		for _, isa := range cpu.Available() {
			for threads := 1; threads <= 2; threads++ {
				b, err := cpu.New(cpu.Options{ISA: isa, Threads: threads})
				if err != nil {
					t.Fatal(err)
				}
				m, err := model.New(b, c, madeUp)
				if err != nil {
					t.Fatal(err)
				}
				all := m.TrainAll()
				p := m.NewPass(len(g.Tokens)/g.Seq, g.Seq, all)
				h := sha256.New()
				add := func(v []float32) {
					if err := binary.Write(h, binary.LittleEndian, v); err != nil {
						t.Fatal(err)
					}
				}
				add(p.Logits(g.Tokens))
				p.Step(make([]float64, len(g.Targets)), g.Tokens, g.Targets, 1/float32(len(g.Targets)), 0.01)
				for _, q := range all.Params() {
					v := make([]float32, q.Grad.Len())
					b.Read(v, q.Grad)
					add(v)
				}
				if got := hex.EncodeToString(h.Sum(nil)[:8]); got != familyDigests[name] {
					t.Errorf("%s on %s×%d: %s, the promise is %s", name, isa, threads, got, familyDigests[name])
				}
			}
		}
	}
}

// TestStored: the tensors are called in files as transformers calls them, and fused ones hold the same, in order.
func TestStored(t *testing.T) {
	for _, name := range familyNames() {
		g, c := loadFamily(t, name)
		specs := map[string]int{}
		for _, s := range c.Specs() {
			specs[s.Name] = s.Len()
		}
		for _, fused := range []bool{false, true} {
			parts := map[string]bool{}
			for _, s := range c.Stored(fused) {
				n := 0
				for _, p := range s.Parts {
					if parts[p.Name] || specs[p.Name] != p.Len() {
						t.Errorf("%s: %s is in %s, twice or of another size", name, p.Name, s.Name)
					}
					parts[p.Name] = true
					n += p.Len()
				}
				if n != (model.Spec{Shape: s.Shape}).Len() {
					t.Errorf("%s: parts of %s have %d values, its shape is %v", name, s.Name, n, s.Shape)
				}
				if !fused && !slices.Equal(g.Names[s.Name], s.Shape) {
					t.Errorf("%s: %s is %v, transformers has %v", name, s.Name, s.Shape, g.Names[s.Name])
				}
			}
			if len(parts) != len(specs) {
				t.Errorf("%s: %d of %d tensors are stored", name, len(parts), len(specs))
			}
		}
		fused := c.Stored(true)
		i := slices.IndexFunc(fused, func(s model.Stored) bool { return s.Name == model.FusedName })
		if i < 0 || !slices.Equal(fused[i].Shape, []int{c.Experts, 2 * c.Width, c.Dim}) || fused[i].Parts[2].Name != model.ExpertName(0, 1, "gate") ||
			fused[i].Parts[3].Name != model.ExpertName(0, 1, "up") {
			t.Errorf("%s: fused experts %+v", name, fused[i])
		}
	}
}

// TestFamilyConfig: what transformers 4 and 5 write for every family, and what only looks like one.
func TestFamilyConfig(t *testing.T) {
	for _, name := range familyNames() {
		g, c := loadFamily(t, name)
		var old fields
		if err := json.Unmarshal(g.Config, &old); err != nil {
			t.Fatal(err)
		}
		five := old.without("rope_theta", "rope_scaling", "torch_dtype").with(fields{"dtype": "bfloat16",
			"rope_parameters": fields{"rope_type": "default", "rope_theta": old["rope_theta"]}})
		if got, err := five.parse(t); err != nil || got != c {
			t.Errorf("%s of transformers 5: %+v, %v, want %+v", name, got, err, c)
		}
		if got, err := model.ParseConfig(c.JSON()); err != nil || got != c {
			t.Errorf("%s written and read: %+v, %v, want %+v", name, got, err, c)
		}
		more := c
		more.Experts += 3
		b, err := json.Marshal(five.with(fields{"eos_token_id": 7}))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = more.Amend(b); err != nil {
			t.Fatal(err)
		}
		var amended fields
		if err := json.Unmarshal(b, &amended); err != nil {
			t.Fatal(err)
		}
		if amended["eos_token_id"] != 7.0 || amended["dtype"] != "float32" || amended["torch_dtype"] != nil {
			t.Errorf("%s amended: %s", name, b)
		}
		more.TopK++
		if _, err := more.Amend(b); !errors.Is(err, model.ErrConfig) {
			t.Errorf("%s amended to another model: %v", name, err)
		}
		for key, value := range map[string]any{
			"attention_bias": true, "quantization_config": fields{"bits": 4}, "partial_rotary_factor": 0.5, "layer_types": []string{"sliding_attention"},
			"hidden_act": "gelu", "scoring_func": "sigmoid", "tie_word_embeddings": "yes",
			"rope_parameters": fields{"rope_theta": 1e4, "factor": 4.0},
		} {
			if _, err := five.with(fields{key: value}).parse(t); !errors.Is(err, model.ErrConfig) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s with %s: %v", name, key, err)
			}
		}
	}
	family := func(name string) fields {
		g, _ := loadFamily(t, name)
		var f fields
		if err := json.Unmarshal(g.Config, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for want, f := range map[string]fields{
		"clip_qkv":                        family("olmoe").with(fields{"clip_qkv": 8.0}),
		"sliding_window":                  family("mixtral").with(fields{"sliding_window": 16}),
		"shared_expert_intermediate_size": family("qwen2_moe").without("shared_expert_intermediate_size"),
		"mlp_only_layers":                 family("qwen2_moe").with(fields{"mlp_only_layers": []int{1}}),
		"(MLA) is not computed yet":       family("qwen2_moe").with(fields{"model_type": "deepseek_v2"}),
		"only qwen3_moe, olmoe, mixtral, qwen2_moe are supported": family("qwen2_moe").with(fields{"model_type": "qwen2"}),
	} {
		if _, err := f.parse(t); !errors.Is(err, model.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %s, got %v", want, err)
		}
	}
	if c, err := family("qwen2_moe").with(fields{"qkv_bias": false}).parse(t); err != nil || c.Bias {
		t.Errorf("qkv_bias false: %v, %v", c.Bias, err)
	}
	if c, err := family("mixtral").with(fields{"norm_topk_prob": false}).parse(t); err != nil || !c.Normalize {
		t.Errorf("Mixtral always normalises: %v, %v", c.Normalize, err)
	}
}
