package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// ErrConfig is wrapped by every error about a model configuration. The message names each bad field.
var ErrConfig = errors.New("model configuration not usable")

// Config is the part of Hugging Face's config.json that the model computes from. Lengths are in values.
type Config struct {
	Family    Family  // model_type
	Vocab     int     // vocab_size
	Dim       int     // hidden_size
	Layers    int     // num_hidden_layers
	Heads     int     // num_attention_heads
	KVHeads   int     // num_key_value_heads
	HeadDim   int     // head_dim
	Experts   int     // num_experts, num_local_experts
	TopK      int     // num_experts_per_tok
	Width     int     // moe_intermediate_size, intermediate_size
	Shared    int     // shared_expert_intermediate_size; 0: no shared expert
	Positions int     // max_position_embeddings
	Normalize bool    // norm_topk_prob
	Tied      bool    // tie_word_embeddings
	Bias      bool    // qkv_bias
	RopeTheta float64 // rope_theta
	NormEps   float64 // rms_norm_eps
	AuxCoef   float64 // router_aux_loss_coef
}

// sizes lists the lengths with their keys and bounds.
func (c *Config) sizes() []size {
	f := c.Family.facts()
	s := []size{
		{"vocab_size", &c.Vocab, 1 << 20}, {"hidden_size", &c.Dim, 1 << 15}, {"num_hidden_layers", &c.Layers, 512},
		{"num_attention_heads", &c.Heads, 512}, {"num_key_value_heads", &c.KVHeads, 512}, {"head_dim", &c.HeadDim, 1024},
		{f.experts, &c.Experts, 1024}, {"num_experts_per_tok", &c.TopK, 64}, {f.width, &c.Width, 1 << 16},
		{"max_position_embeddings", &c.Positions, 1 << 20},
	}
	if f.shared != "" {
		s = append(s, size{f.shared, &c.Shared, 1 << 16})
	}
	return s
}

type size struct {
	key  string
	v    *int
	most int
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var faults []error
	bad := func(format string, a ...any) {
		faults = append(faults, fmt.Errorf("%w: config.json: "+format, append([]any{ErrConfig}, a...)...))
	}
	if int(c.Family) >= len(familyFacts) || c.Family.facts().lacks != "" {
		return fmt.Errorf("%w: family %d", ErrConfig, c.Family)
	}
	f := c.Family.facts()
	for _, s := range c.sizes() {
		if *s.v < 1 || *s.v > s.most {
			bad("%s is %d, must be 1 to %d", s.key, *s.v, s.most)
		}
	}
	if c.KVHeads > 0 && c.Heads%c.KVHeads != 0 {
		bad("num_attention_heads %d is no multiple of num_key_value_heads %d", c.Heads, c.KVHeads)
	}
	if c.HeadDim%2 != 0 {
		bad("head_dim %d is odd, rotary embedding needs pairs", c.HeadDim)
	}
	if c.TopK > c.Experts {
		bad("num_experts_per_tok %d exceeds %s %d", c.TopK, f.experts, c.Experts)
	}
	if f.shared == "" && c.Shared != 0 || f.bias == "" && c.Bias || f.normalize == "" && !c.Normalize {
		bad("a shared expert, biases or weights of experts that %s does not have", f.modelType)
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
	f := c.Family.facts()
	m := map[string]any{
		"architectures": []string{f.class}, "model_type": f.modelType, "vocab_size": c.Vocab, "hidden_size": c.Dim,
		"num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads, "head_dim": c.HeadDim,
		"num_experts_per_tok": c.TopK, "intermediate_size": c.Width * c.TopK,
		"max_position_embeddings": c.Positions, "tie_word_embeddings": c.Tied, "rope_theta": c.RopeTheta,
		"rope_scaling": nil, "rms_norm_eps": c.NormEps, "router_aux_loss_coef": c.AuxCoef,
		"attention_dropout": 0.0, "hidden_act": "silu", "torch_dtype": "float32",
		"initializer_range": 0.02, "output_router_logits": false, "use_cache": true, "sliding_window": nil,
		"bos_token_id": nil, "eos_token_id": nil, "attention_bias": false,
	}
	for _, r := range f.refuses {
		m[r.key] = json.RawMessage(r.unless)
	}
	m[f.experts], m[f.width] = c.Experts, c.Width
	if f.normalize != "" {
		m[f.normalize] = c.Normalize
	}
	if f.bias != "" {
		m[f.bias] = c.Bias
	}
	if f.shared != "" {
		m[f.shared] = c.Shared
	}
	return indented(m)
}

// Amend returns a config.json that was read as a model's before, for c, which may have another number of experts: other
// fields stay, but for the dtype, which is that of trained tensors, "float32".
func (c Config) Amend(config []byte) ([]byte, error) {
	m, err := fieldsOf(config)
	if err != nil {
		return nil, err
	}
	set := func(value any, keys ...string) {
		found := false
		for _, k := range keys {
			if _, ok := m[k]; ok {
				m[k], found = value, true
			}
		}
		if !found {
			m[keys[0]] = value
		}
	}
	set(c.Experts, c.Family.facts().experts, "num_experts", "num_local_experts")
	set("float32", "torch_dtype", "dtype")
	out := indented(m)
	if again, err := ParseConfig(out); err != nil || again != c {
		return nil, fmt.Errorf("%w: config.json: says something else than the model it came with: %v, want %v (%w)", ErrConfig, again, c, err)
	}
	return out, nil
}

func indented(m map[string]any) []byte {
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
