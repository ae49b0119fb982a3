package model_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"sort"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/model"
)

// fields is a config.json under construction.
type fields map[string]any

func valid() fields {
	return fields{
		"model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
		"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
		"max_position_embeddings": 48, "norm_topk_prob": true, "tie_word_embeddings": true, "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
		"router_aux_loss_coef": 0.25,
	}
}

func (f fields) with(change fields) fields {
	g := maps.Clone(f)
	maps.Copy(g, change)
	return g
}

func (f fields) without(names ...string) fields {
	g := maps.Clone(f)
	for _, n := range names {
		delete(g, n)
	}
	return g
}

func (f fields) parse(t testing.TB) (model.Config, error) {
	t.Helper()
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return model.ParseConfig(b)
}

var validConfig = model.Config{Vocab: 64, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 16, Experts: 4, TopK: 2, Width: 24, Positions: 48,
	Normalize: true, Tied: true, RopeTheta: 5000, NormEps: 1e-5, AuxCoef: 0.25}

func TestParseConfig(t *testing.T) {
	change := func(f func(*model.Config)) model.Config {
		c := validConfig
		f(&c)
		return c
	}
	for name, c := range map[string]struct {
		in   fields
		want model.Config
	}{
		"all":               {valid(), validConfig},
		"no key-value":      {valid().without("num_key_value_heads"), change(func(c *model.Config) { c.KVHeads = 4 })},
		"null key-value":    {valid().with(fields{"num_key_value_heads": nil}), change(func(c *model.Config) { c.KVHeads = 4 })},
		"no head_dim":       {valid().without("head_dim"), change(func(c *model.Config) { c.HeadDim = 8 })},
		"no theta, no eps":  {valid().without("rope_theta", "rms_norm_eps"), change(func(c *model.Config) { c.RopeTheta, c.NormEps = 10000, 1e-6 })},
		"no flags":          {valid().without("norm_topk_prob", "tie_word_embeddings", "router_aux_loss_coef"), change(func(c *model.Config) { c.Normalize, c.Tied, c.AuxCoef = false, false, 0 })},
		"num_local_experts": {valid().without("num_experts").with(fields{"num_local_experts": 4}), validConfig},
		"both names":        {valid().with(fields{"num_local_experts": 9}), validConfig},
		"harmless extras": {valid().with(fields{"hidden_act": "silu", "use_sliding_window": false, "sliding_window": 4096, "attention_bias": false,
			"rope_scaling": nil, "decoder_sparse_step": 1, "mlp_only_layers": []int{}, "future": fields{"a": 1}}), validConfig},
		"rope_parameters": {valid().without("rope_theta").with(fields{"rope_parameters": fields{"rope_type": "default", "rope_theta": 7000.0}}),
			change(func(c *model.Config) { c.RopeTheta = 7000 })},
		"rope_parameters over rope_theta": {valid().with(fields{"rope_parameters": fields{"rope_theta": 7000.0}}),
			change(func(c *model.Config) { c.RopeTheta = 7000 })},
		// transformers takes the outer rope_theta where rope_parameters has none.
		"rope_parameters without theta": {valid().with(fields{"rope_parameters": fields{"rope_type": "default"}}), validConfig},
		"null rope_parameters":          {valid().with(fields{"rope_parameters": nil}), validConfig},
	} {
		got, err := c.in.parse(t)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestParseConfigRefuses breaks one thing at a time; the message names it.
func TestParseConfigRefuses(t *testing.T) {
	type bad struct {
		in   fields
		want string
	}
	cases := map[string]bad{
		"no model_type":         {valid().without("model_type"), "model_type"},
		"other model_type":      {valid().with(fields{"model_type": "llama"}), `model_type "llama"`},
		"sliding window":        {valid().with(fields{"use_sliding_window": true}), "use_sliding_window"},
		"bias":                  {valid().with(fields{"attention_bias": true}), "attention_bias"},
		"rope scaling":          {valid().with(fields{"rope_scaling": fields{"type": "yarn", "factor": 4.0}}), "rope_scaling"},
		"empty rope scaling":    {valid().with(fields{"rope_scaling": fields{}}), "rope_scaling"},
		"rope type":             {valid().with(fields{"rope_parameters": fields{"rope_type": "yarn", "rope_theta": 7000.0}}), `rope_type "yarn"`},
		"rope type, older name": {valid().with(fields{"rope_parameters": fields{"type": "linear", "rope_theta": 7000.0}}), `rope_type "linear"`},
		"rope theta inside":     {valid().with(fields{"rope_parameters": fields{"rope_theta": 0.5}}), "rope_theta"},
		"activation":            {valid().with(fields{"hidden_act": "gelu"}), `hidden_act "gelu"`},
		"dense layers":          {valid().with(fields{"mlp_only_layers": []int{0}}), "mlp_only_layers"},
		"sparse step":           {valid().with(fields{"decoder_sparse_step": 2}), "decoder_sparse_step"},
		"sparse step of zero":   {valid().with(fields{"decoder_sparse_step": 0}), "decoder_sparse_step"},
		"heads no multiple":     {valid().with(fields{"num_key_value_heads": 3}), "no multiple"},
		"odd head_dim":          {valid().with(fields{"head_dim": 15}), "odd"},
		"more chosen than are":  {valid().with(fields{"num_experts_per_tok": 5}), "exceeds num_experts"},
		"theta below one":       {valid().with(fields{"rope_theta": 0.99}), "rope_theta"},
		"theta too large":       {valid().with(fields{"rope_theta": 1.1e9}), "rope_theta"},
		"eps zero":              {valid().with(fields{"rms_norm_eps": 0}), "rms_norm_eps"},
		"eps zero as float32":   {valid().with(fields{"rms_norm_eps": 1e-60}), "rms_norm_eps"},
		"eps negative":          {valid().with(fields{"rms_norm_eps": -1e-6}), "rms_norm_eps"},
		"eps large":             {valid().with(fields{"rms_norm_eps": 0.1}), "rms_norm_eps"},
		"coefficient negative":  {valid().with(fields{"router_aux_loss_coef": -0.1}), "router_aux_loss_coef"},
		"coefficient large":     {valid().with(fields{"router_aux_loss_coef": 1.1}), "router_aux_loss_coef"},
	}
	for name, most := range map[string]int{
		"vocab_size": 1 << 20, "hidden_size": 1 << 15, "num_hidden_layers": 512, "num_attention_heads": 512, "num_key_value_heads": 512,
		"head_dim": 1024, "num_experts": 1024, "num_experts_per_tok": 64, "moe_intermediate_size": 1 << 16, "max_position_embeddings": 1 << 20,
	} {
		for _, v := range []int{math.MinInt, -1, 0, most + 1, math.MaxInt} {
			cases[fmt.Sprintf("%s %d", name, v)] = bad{valid().with(fields{name: v}), name + " is " + fmt.Sprint(v)}
		}
		if name != "num_key_value_heads" && name != "head_dim" {
			cases["no "+name] = bad{valid().without(name), name + " is 0"}
		}
		// The bound itself is allowed, together with what must go with it.
		in := valid().with(fields{"num_experts": 64, name: most})
		switch name {
		case "num_key_value_heads":
			in["num_attention_heads"] = most
		case "num_attention_heads":
			in["num_key_value_heads"] = 2
		}
		if _, err := in.parse(t); err != nil {
			t.Errorf("%s of %d: %v", name, most, err)
		}
	}
	for name, c := range cases {
		_, err := c.in.parse(t)
		if !errors.Is(err, model.ErrConfig) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to name %q", name, err, c.want)
		}
	}
	for name, in := range map[string]string{
		"empty": "", "null": "null", "list": "[]", "number": "1", "cut": `{"model_type": "qwen3_moe"`, "more after": `{"model_type": "qwen3_moe"} {}`,
		"fraction": `{"model_type": "qwen3_moe", "vocab_size": 1.5}`, "past int64": `{"model_type": "qwen3_moe", "vocab_size": 1e30}`,
		"past float64": `{"model_type": "qwen3_moe", "rope_theta": 1e999}`, "text": `{"model_type": "qwen3_moe", "vocab_size": "64"}`,
		"long": `{"model_type": "qwen3_moe"` + strings.Repeat(" ", 1<<20) + "}",
	} {
		if _, err := model.ParseConfig([]byte(in)); !errors.Is(err, model.ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseConfigReportsEverything(t *testing.T) {
	f := fields{"model_type": "qwen3_moe", "num_key_value_heads": -1, "rms_norm_eps": -1, "rope_theta": 0, "router_aux_loss_coef": 2,
		"use_sliding_window": true, "attention_bias": true, "rope_scaling": 1, "hidden_act": "relu", "decoder_sparse_step": 3}
	_, err := f.parse(t)
	for _, want := range []string{"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
		"num_experts is", "num_experts_per_tok", "moe_intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
		"router_aux_loss_coef", "use_sliding_window", "attention_bias", "rope_scaling", "hidden_act", "decoder_sparse_step"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in %v", want, err)
		}
	}
}

func TestConfigJSON(t *testing.T) {
	for name, c := range map[string]model.Config{"demo": demo, "valid": validConfig, "untied": {
		Vocab: 1, Dim: 1, Layers: 1, Heads: 1, KVHeads: 1, HeadDim: 2, Experts: 1, TopK: 1, Width: 1, Positions: 1, RopeTheta: 1.1, NormEps: 1e-7, AuxCoef: 1}} {
		got, err := model.ParseConfig(c.JSON())
		if err != nil || got != c {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c)
		}
		if string(c.JSON()) != string(got.JSON()) {
			t.Errorf("%s: two encodings of one configuration", name)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(demo.JSON())
	f.Add(validConfig.JSON())
	for _, s := range []fields{
		valid().with(fields{"rope_parameters": fields{"rope_type": "default", "rope_theta": 7000.0}}), valid().without("head_dim"),
		valid().without("num_key_value_heads"), valid().with(fields{"num_attention_heads": -4}), valid().with(fields{"hidden_size": math.MaxInt}),
	} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, family := range []model.Family{model.OLMoE, model.Mixtral, model.Qwen2} {
		c := validConfig
		c.Family = family
		if family == model.Qwen2 {
			c.Shared, c.Bias = 7, true
		}
		f.Add(c.JSON())
	}
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := model.ParseConfig(b)
		if err != nil {
			if !errors.Is(err, model.ErrConfig) {
				t.Fatalf("%v is not ErrConfig", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("parsed, but %v", err)
		}
		if again, err := model.ParseConfig(c.JSON()); err != nil || again != c {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
		if c.Experts < 1024 {
			c.Experts++
		}
		amended, err := c.Amend(b)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := model.ParseConfig(amended); err != nil || again != c {
			t.Fatalf("%+v amended became %+v, %v", c, again, err)
		}
	})
}

func TestSpecs(t *testing.T) {
	for name, c := range map[string]model.Config{"demo": demo, "tied": validConfig} {
		specs := c.Specs()
		if !sort.SliceIsSorted(specs, func(i, j int) bool { return specs[i].Name < specs[j].Name }) {
			t.Errorf("%s: not sorted", name)
		}
		seen := map[string]int{}
		for _, s := range specs {
			if _, twice := seen[s.Name]; twice {
				t.Errorf("%s: %s twice", name, s.Name)
			}
			seen[s.Name] = s.Len()
		}
		if _, head := seen["lm_head.weight"]; head == c.Tied {
			t.Errorf("%s: lm_head.weight listed: %v", name, head)
		}
		qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
		perLayer := 2*c.Dim + 2*c.HeadDim + 2*qw*c.Dim + 2*kw*c.Dim + c.Experts*c.Dim + c.Experts*3*c.Width*c.Dim
		want := c.Layers*perLayer + c.Vocab*c.Dim + c.Dim
		if !c.Tied {
			want += c.Vocab * c.Dim
		}
		if got := c.Params(); got != int64(want) {
			t.Errorf("%s: %d parameters, want %d", name, got, want)
		}
		for tensor, n := range map[string]int{
			model.RouterName(1): c.Experts * c.Dim, model.ExpertName(1, 3, "gate"): c.Width * c.Dim,
			model.ExpertName(0, 0, "down"): c.Width * c.Dim, "model.layers.0.self_attn.k_proj.weight": kw * c.Dim,
		} {
			if seen[tensor] != n {
				t.Errorf("%s: %s has %d values, want %d", name, tensor, seen[tensor], n)
			}
		}
	}
	// The same names that transformers gave the vectors.
	for _, name := range []string{"even", "odd"} {
		g := loadGolden(t, name)
		c, err := model.ParseConfig(g.Config)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(c.Specs()), len(g.Weights); got != want {
			t.Errorf("%s: %d tensors, transformers has %d", name, got, want)
		}
		for _, s := range c.Specs() {
			if s.Len() != len(g.Weights[s.Name]) {
				t.Errorf("%s: %s has %d values, transformers %d", name, s.Name, s.Len(), len(g.Weights[s.Name]))
			}
		}
	}
}
