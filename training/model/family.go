package model

import (
	"fmt"
	"slices"
	"strings"
)

// Family is an architecture of Hugging Face's transformers. The zero value is Qwen3.
type Family uint8

// The families.
const (
	Qwen3     Family = iota // Qwen3-MoE
	OLMoE                   // OLMoE
	Mixtral                 // Mixtral
	Qwen2                   // Qwen1.5-MoE and Qwen2-MoE
	DeepSeek2               // DeepSeek-V2, not computed yet
)

// qkNorm is what is done to queries and keys before they are rotated.
type qkNorm uint8

const (
	perHead qkNorm = iota // RMSNorm of every head, one weight for all
	perRow                // RMSNorm of all heads at once
	noNorm
)

// facts are what sets a family apart, in the words of its config.json and of its tensors.
type facts struct {
	modelType, class string // of transformers
	lacks            string // what of it is not computed; such a family is refused

	norm   qkNorm
	bias   string // key that says whether queries, keys and values have a bias, which they have without it; "": none
	shared string // key of the width of the shared expert; "": there is none

	width     string // key of the width of an expert
	experts   string // key of the number of experts
	normalize string // key of norm_topk_prob; "": always
	theta     float64
	eps       float64
	refuses   []refusal // beside those of all families

	mixture     string    // name of the mixture in a layer
	projections [3]string // of gate, up and down in an expert
}

var (
	gateUpDown  = [3]string{"gate_proj", "up_proj", "down_proj"}
	denseLayers = []refusal{{"decoder_sparse_step", "1"}, {"mlp_only_layers", "[]"}, {"use_sliding_window", "false"}}
	familyFacts = [...]facts{
		Qwen3: {modelType: "qwen3_moe", class: "Qwen3MoeForCausalLM", norm: perHead,
			width: "moe_intermediate_size", experts: "num_experts", normalize: "norm_topk_prob", theta: 1e4, eps: 1e-6,
			refuses: denseLayers, mixture: "mlp", projections: gateUpDown},
		OLMoE: {modelType: "olmoe", class: "OlmoeForCausalLM", norm: perRow,
			width: "intermediate_size", experts: "num_experts", normalize: "norm_topk_prob", theta: 1e4, eps: 1e-5,
			refuses: []refusal{{"clip_qkv", "null"}}, mixture: "mlp", projections: gateUpDown},
		Mixtral: {modelType: "mixtral", class: "MixtralForCausalLM", norm: noNorm,
			width: "intermediate_size", experts: "num_local_experts", theta: 1e6, eps: 1e-5,
			refuses: []refusal{{"sliding_window", "null"}}, mixture: "block_sparse_moe", projections: [3]string{"w1", "w3", "w2"}},
		Qwen2: {modelType: "qwen2_moe", class: "Qwen2MoeForCausalLM", norm: noNorm, bias: "qkv_bias",
			shared: "shared_expert_intermediate_size",
			width:  "moe_intermediate_size", experts: "num_experts", normalize: "norm_topk_prob", theta: 1e4, eps: 1e-6,
			refuses: denseLayers, mixture: "mlp", projections: gateUpDown},
		DeepSeek2: {modelType: "deepseek_v2", lacks: "multi-head latent attention (MLA)"},
	}
)

func (f Family) facts() facts { return familyFacts[f] }

// String is the model_type.
func (f Family) String() string { return f.facts().modelType }

// familyOf finds a family by its model_type.
func familyOf(modelType string) (Family, error) {
	var known []string
	for f, x := range familyFacts {
		switch {
		case x.modelType == modelType && x.lacks != "":
			return 0, fmt.Errorf("%w: config.json: model_type %q: its %s is not computed yet", ErrConfig, modelType, x.lacks)
		case x.modelType == modelType:
			return Family(f), nil
		case x.lacks == "":
			known = append(known, x.modelType)
		}
	}
	return 0, fmt.Errorf("%w: config.json: model_type %q, only %s are supported", ErrConfig, modelType, strings.Join(known, ", "))
}

// Spec is the name and shape of one tensor. Names are those of qwen3_moe in every family, so that an expert is called the
// same wherever it is spoken of; [Config.Stored] has the names in files.
type Spec struct {
	Name  string
	Shape []int
}

// Len is the number of values.
func (s Spec) Len() int { return product(s.Shape) }

func product(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// RouterName is the name of a layer's router.
func RouterName(layer int) string { return fmt.Sprintf("model.layers.%d.mlp.gate.weight", layer) }

// ExpertName is the name of a projection ("gate", "up", "down") of an expert.
func ExpertName(layer, expert int, projection string) string {
	return fmt.Sprintf("model.layers.%d.mlp.experts.%d.%s_proj.weight", layer, expert, projection)
}

// Specs lists every tensor of the model, sorted by name.
func (c Config) Specs() []Spec {
	s := c.commonSpecs()
	for l := range c.Layers {
		for e := range c.Experts {
			s = append(s, c.expertSpecs(l, e)...)
		}
	}
	slices.SortFunc(s, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// expertSpecs are gate, up and down of an expert.
func (c Config) expertSpecs(layer, expert int) []Spec {
	return []Spec{
		{ExpertName(layer, expert, "gate"), []int{c.Width, c.Dim}},
		{ExpertName(layer, expert, "up"), []int{c.Width, c.Dim}},
		{ExpertName(layer, expert, "down"), []int{c.Dim, c.Width}},
	}
}

// commonSpecs are the tensors that belong to no expert.
func (c Config) commonSpecs() []Spec {
	qw, kw := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	s := []Spec{{"model.embed_tokens.weight", []int{c.Vocab, c.Dim}}, {"model.norm.weight", []int{c.Dim}}}
	if !c.Tied {
		s = append(s, Spec{"lm_head.weight", []int{c.Vocab, c.Dim}})
	}
	for l := range c.Layers {
		add := func(name string, shape ...int) {
			s = append(s, Spec{fmt.Sprintf("model.layers.%d.%s", l, name), shape})
		}
		add("input_layernorm.weight", c.Dim)
		add("post_attention_layernorm.weight", c.Dim)
		add("self_attn.q_proj.weight", qw, c.Dim)
		add("self_attn.k_proj.weight", kw, c.Dim)
		add("self_attn.v_proj.weight", kw, c.Dim)
		add("self_attn.o_proj.weight", c.Dim, qw)
		if c.Bias {
			add("self_attn.q_proj.bias", qw)
			add("self_attn.k_proj.bias", kw)
			add("self_attn.v_proj.bias", kw)
		}
		switch c.Family.facts().norm {
		case perHead:
			add("self_attn.q_norm.weight", c.HeadDim)
			add("self_attn.k_norm.weight", c.HeadDim)
		case perRow:
			add("self_attn.q_norm.weight", qw)
			add("self_attn.k_norm.weight", kw)
		}
		if c.Shared > 0 {
			add("mlp.shared_expert.gate_proj.weight", c.Shared, c.Dim)
			add("mlp.shared_expert.up_proj.weight", c.Shared, c.Dim)
			add("mlp.shared_expert.down_proj.weight", c.Dim, c.Shared)
			add("mlp.shared_expert_gate.weight", 1, c.Dim)
		}
		add("mlp.gate.weight", c.Experts, c.Dim)
	}
	return s
}

// Stored is a tensor as it lies in a file: one of the model's, or several of them one after another.
type Stored struct {
	Name  string
	Shape []int
	Parts []Spec // in order, without gaps
}

// FusedName is the name of a tensor that only files with fused experts have.
const FusedName = "model.layers.0.mlp.experts.gate_up_proj"

// Stored lists the tensors in files: one per tensor of the model, with the family's names, or with fused experts, as
// transformers 5 keeps them in memory, two per layer: gate_up_proj [Experts, 2·Width, Dim], gate before up in every
// expert, and down_proj [Experts, Dim, Width].
func (c Config) Stored(fused bool) []Stored {
	f := c.Family.facts()
	mixture := f.mixture
	if fused {
		mixture = "mlp" // whatever it is called in the other form
	}
	var all []Stored
	for _, s := range c.commonSpecs() {
		name := s.Name
		if strings.HasSuffix(name, ".mlp.gate.weight") {
			name = strings.Replace(name, ".mlp.", "."+mixture+".", 1)
		}
		all = append(all, Stored{name, s.Shape, []Spec{s}})
	}
	for l := range c.Layers {
		p := fmt.Sprintf("model.layers.%d.%s.experts.", l, mixture)
		gateUp := Stored{Name: p + "gate_up_proj", Shape: []int{c.Experts, 2 * c.Width, c.Dim}}
		down := Stored{Name: p + "down_proj", Shape: []int{c.Experts, c.Dim, c.Width}}
		for e := range c.Experts {
			specs := c.expertSpecs(l, e)
			if fused {
				gateUp.Parts, down.Parts = append(gateUp.Parts, specs[:2]...), append(down.Parts, specs[2])
				continue
			}
			for i, s := range specs {
				all = append(all, Stored{fmt.Sprintf("%s%d.%s.weight", p, e, f.projections[i]), s.Shape, []Spec{s}})
			}
		}
		if fused {
			all = append(all, gateUp, down)
		}
	}
	return all
}
