package model

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sort"
)

// ErrConfig is wrapped by every error about a model configuration. The message names each bad field.
var ErrConfig = errors.New("model configuration not usable")

// Config is the part of Hugging Face's config.json that the model computes from. Lengths are in values.
type Config struct {
	Vocab     int     // vocab_size
	Dim       int     // hidden_size
	Layers    int     // num_hidden_layers
	Heads     int     // num_attention_heads
	KVHeads   int     // num_key_value_heads
	HeadDim   int     // head_dim
	Experts   int     // num_experts
	TopK      int     // num_experts_per_tok
	Width     int     // moe_intermediate_size
	Positions int     // max_position_embeddings
	Normalize bool    // norm_topk_prob
	Tied      bool    // tie_word_embeddings
	RopeTheta float64 // rope_theta
	NormEps   float64 // rms_norm_eps
	AuxCoef   float64 // router_aux_loss_coef
}

// hfConfig mirrors config.json. Pointers tell an absent field from a zero.
type hfConfig struct {
	Architectures []string        `json:"architectures"`
	ModelType     string          `json:"model_type"`
	Vocab         *int            `json:"vocab_size"`
	Dim           *int            `json:"hidden_size"`
	Layers        *int            `json:"num_hidden_layers"`
	Heads         *int            `json:"num_attention_heads"`
	KVHeads       *int            `json:"num_key_value_heads"`
	HeadDim       *int            `json:"head_dim"`
	Experts       *int            `json:"num_experts"`
	LocalExperts  *int            `json:"num_local_experts"`
	TopK          *int            `json:"num_experts_per_tok"`
	Width         *int            `json:"moe_intermediate_size"`
	Positions     *int            `json:"max_position_embeddings"`
	Normalize     bool            `json:"norm_topk_prob"`
	Tied          bool            `json:"tie_word_embeddings"`
	RopeTheta     *float64        `json:"rope_theta"`
	RopeScaling   json.RawMessage `json:"rope_scaling"`
	RopeParams    *struct {
		Type    string   `json:"rope_type"`
		OldType string   `json:"type"` // its name before rope_type
		Theta   *float64 `json:"rope_theta"`
	} `json:"rope_parameters"`
	NormEps    *float64 `json:"rms_norm_eps"`
	AuxCoef    *float64 `json:"router_aux_loss_coef"`
	UseWindow  bool     `json:"use_sliding_window"`
	Bias       bool     `json:"attention_bias"`
	SparseStep *int     `json:"decoder_sparse_step"`
	DenseOnly  []int    `json:"mlp_only_layers"`
	Activation string   `json:"hidden_act"`
}

// ParseConfig reads a config.json of at most 1 MiB.
func ParseConfig(b []byte) (Config, error) {
	if len(b) > 1<<20 {
		return Config{}, fmt.Errorf("%w: config.json: %d bytes, more than 1 MiB", ErrConfig, len(b))
	}
	var h hfConfig
	if err := json.Unmarshal(b, &h); err != nil {
		return Config{}, fmt.Errorf("%w: config.json: %w", ErrConfig, err)
	}
	if h.ModelType != "qwen3_moe" {
		return Config{}, fmt.Errorf("%w: config.json: model_type %q, only qwen3_moe is supported", ErrConfig, h.ModelType)
	}
	var faults []error
	refuse := func(bad bool, format string, a ...any) {
		if bad {
			faults = append(faults, fmt.Errorf("%w: config.json: "+format, append([]any{ErrConfig}, a...)...))
		}
	}
	if r := h.RopeParams; r != nil {
		if r.Theta != nil {
			h.RopeTheta = r.Theta
		}
		kind := cmp.Or(r.Type, r.OldType, "default")
		refuse(kind != "default", "rope_parameters.rope_type %q, only default is supported", kind)
	}
	scaling := string(bytes.TrimSpace(h.RopeScaling))
	refuse(scaling != "" && scaling != "null", "rope_scaling is not supported")
	refuse(h.Activation != "" && h.Activation != "silu", "hidden_act %q, only silu is supported", h.Activation)
	refuse(h.UseWindow, "use_sliding_window is not supported")
	refuse(h.Bias, "attention_bias is not supported")
	refuse(h.SparseStep != nil && *h.SparseStep != 1 || len(h.DenseOnly) > 0, "decoder_sparse_step and mlp_only_layers: every layer must be a mixture")
	if h.Experts == nil {
		h.Experts = h.LocalExperts
	}
	c := Config{Normalize: h.Normalize, Tied: h.Tied, RopeTheta: 10000, NormEps: 1e-6}
	for _, f := range []struct {
		dst *int
		src *int
	}{{&c.Vocab, h.Vocab}, {&c.Dim, h.Dim}, {&c.Layers, h.Layers}, {&c.Heads, h.Heads}, {&c.KVHeads, h.KVHeads}, {&c.HeadDim, h.HeadDim},
		{&c.Experts, h.Experts}, {&c.TopK, h.TopK}, {&c.Width, h.Width}, {&c.Positions, h.Positions}} {
		if f.src != nil {
			*f.dst = *f.src
		}
	}
	for _, f := range []struct{ dst, src *float64 }{{&c.RopeTheta, h.RopeTheta}, {&c.NormEps, h.NormEps}, {&c.AuxCoef, h.AuxCoef}} {
		if f.src != nil {
			*f.dst = *f.src
		}
	}
	if h.KVHeads == nil {
		c.KVHeads = c.Heads
	}
	if h.HeadDim == nil && c.Heads > 0 {
		c.HeadDim = c.Dim / c.Heads
	}
	return c, errors.Join(append(faults, c.Validate())...)
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var faults []error
	bad := func(format string, a ...any) {
		faults = append(faults, fmt.Errorf("%w: config.json: "+format, append([]any{ErrConfig}, a...)...))
	}
	for _, f := range []struct {
		name    string
		v, most int
	}{{"vocab_size", c.Vocab, 1 << 20}, {"hidden_size", c.Dim, 1 << 15}, {"num_hidden_layers", c.Layers, 512},
		{"num_attention_heads", c.Heads, 512}, {"num_key_value_heads", c.KVHeads, 512}, {"head_dim", c.HeadDim, 1024},
		{"num_experts", c.Experts, 1024}, {"num_experts_per_tok", c.TopK, 64}, {"moe_intermediate_size", c.Width, 1 << 16},
		{"max_position_embeddings", c.Positions, 1 << 20}} {
		if f.v < 1 || f.v > f.most {
			bad("%s is %d, must be 1 to %d", f.name, f.v, f.most)
		}
	}
	if c.KVHeads > 0 && c.Heads%c.KVHeads != 0 {
		bad("num_attention_heads %d is no multiple of num_key_value_heads %d", c.Heads, c.KVHeads)
	}
	if c.HeadDim%2 != 0 {
		bad("head_dim %d is odd, rotary embedding needs pairs", c.HeadDim)
	}
	if c.TopK > c.Experts {
		bad("num_experts_per_tok %d exceeds num_experts %d", c.TopK, c.Experts)
	}
	if !(c.RopeTheta >= 1 && c.RopeTheta <= 1e9) {
		bad("rope_theta is %v, must be 1 to 1e9", c.RopeTheta)
	}
	if !(float32(c.NormEps) > 0 && c.NormEps < 0.1) {
		bad("rms_norm_eps is %v, must be above 0 as a float32 and below 0.1", c.NormEps)
	}
	if math.IsNaN(c.AuxCoef) || c.AuxCoef < 0 || c.AuxCoef > 1 {
		bad("router_aux_loss_coef is %v, must be 0 to 1", c.AuxCoef)
	}
	return errors.Join(faults...)
}

// JSON returns the config.json that transformers and ParseConfig read, with sorted keys and dtype "float32".
func (c Config) JSON() []byte {
	m := map[string]any{
		"architectures": []string{"Qwen3MoeForCausalLM"}, "model_type": "qwen3_moe", "vocab_size": c.Vocab, "hidden_size": c.Dim,
		"num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads, "head_dim": c.HeadDim,
		"num_experts": c.Experts, "num_experts_per_tok": c.TopK, "moe_intermediate_size": c.Width, "intermediate_size": c.Width * c.TopK,
		"max_position_embeddings": c.Positions, "norm_topk_prob": c.Normalize, "tie_word_embeddings": c.Tied, "rope_theta": c.RopeTheta,
		"rope_scaling": nil, "rms_norm_eps": c.NormEps, "router_aux_loss_coef": c.AuxCoef, "use_sliding_window": false, "attention_bias": false,
		"attention_dropout": 0.0, "decoder_sparse_step": 1, "mlp_only_layers": []int{}, "hidden_act": "silu", "torch_dtype": "float32",
		"initializer_range": 0.02, "output_router_logits": false, "use_cache": true, "sliding_window": nil,
		"bos_token_id": nil, "eos_token_id": nil,
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic(err) // plain values always encode
	}
	return append(b, '\n')
}

// Params is the number of weights.
func (c Config) Params() int64 {
	var n int64
	for _, s := range c.Specs() {
		n += int64(s.Len())
	}
	return n
}

// Spec is the name and shape of one tensor in the checkpoint.
type Spec struct {
	Name  string
	Shape []int
}

// Len is the number of values.
func (s Spec) Len() int {
	n := 1
	for _, d := range s.Shape {
		n *= d
	}
	return n
}

// RouterName, ExpertName and so on are the tensor names of the layout.
func RouterName(layer int) string { return fmt.Sprintf("model.layers.%d.mlp.gate.weight", layer) }

// ExpertName is the name of a projection ("gate", "up", "down") of an expert.
func ExpertName(layer, expert int, projection string) string {
	return fmt.Sprintf("model.layers.%d.mlp.experts.%d.%s_proj.weight", layer, expert, projection)
}

// Specs lists every tensor of the model, sorted by name.
func (c Config) Specs() []Spec {
	s := []Spec{{"model.embed_tokens.weight", []int{c.Vocab, c.Dim}}, {"model.norm.weight", []int{c.Dim}}}
	if !c.Tied {
		s = append(s, Spec{"lm_head.weight", []int{c.Vocab, c.Dim}})
	}
	for l := range c.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		s = append(s,
			Spec{p + "input_layernorm.weight", []int{c.Dim}},
			Spec{p + "post_attention_layernorm.weight", []int{c.Dim}},
			Spec{p + "self_attn.q_proj.weight", []int{c.Heads * c.HeadDim, c.Dim}},
			Spec{p + "self_attn.k_proj.weight", []int{c.KVHeads * c.HeadDim, c.Dim}},
			Spec{p + "self_attn.v_proj.weight", []int{c.KVHeads * c.HeadDim, c.Dim}},
			Spec{p + "self_attn.o_proj.weight", []int{c.Dim, c.Heads * c.HeadDim}},
			Spec{p + "self_attn.q_norm.weight", []int{c.HeadDim}},
			Spec{p + "self_attn.k_norm.weight", []int{c.HeadDim}},
			Spec{RouterName(l), []int{c.Experts, c.Dim}})
		for e := range c.Experts {
			s = append(s,
				Spec{ExpertName(l, e, "gate"), []int{c.Width, c.Dim}},
				Spec{ExpertName(l, e, "up"), []int{c.Width, c.Dim}},
				Spec{ExpertName(l, e, "down"), []int{c.Dim, c.Width}})
		}
	}
	sort.Slice(s, func(i, j int) bool { return s[i].Name < s[j].Name })
	return s
}
