package model

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// refusal is a key whose value changes what a model computes in a way that is not computed here, unless it is this one,
// null, or missing.
type refusal struct{ key, unless string }

// refusals are those of all families: what a model_type does not say, but a file may.
var refusals = []refusal{
	{"attention_bias", "false"}, {"mlp_bias", "false"}, {"quantization_config", "null"}, {"partial_rotary_factor", "1"},
	{"scoring_func", `"softmax"`}, {"routed_scaling_factor", "1"}, {"n_group", "1"}, {"topk_group", "1"},
	{"n_shared_experts", "0"}, {"first_k_dense_replace", "0"}, {"moe_layer_freq", "1"}, {"num_nextn_predict_layers", "0"},
	{"kv_lora_rank", "null"}, {"q_lora_rank", "null"}, {"attn_logit_softcapping", "null"}, {"final_logit_softcapping", "null"},
	{"embedding_multiplier", "1"}, {"residual_multiplier", "1"}, {"attention_multiplier", "1"}, {"logits_scaling", "1"},
	{"logit_scale", "1"}, {"attention_chunk_size", "null"},
}

// fieldsOf takes a config.json of at most 1 MiB apart. Keys are case-sensitive, as they are for transformers.
func fieldsOf(b []byte) (map[string]any, error) {
	if len(b) > 1<<20 {
		return nil, fmt.Errorf("%w: config.json: %d bytes, more than 1 MiB", ErrConfig, len(b))
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("%w: config.json: %w", ErrConfig, err)
	}
	m := make(map[string]any, len(raw))
	for k, v := range raw {
		m[k] = v
	}
	return m, nil
}

// document reads fields and collects faults.
type document struct {
	fields map[string]any
	faults []error
}

func (d *document) refuse(bad bool, format string, a ...any) {
	if bad {
		d.faults = append(d.faults, fmt.Errorf("%w: config.json: "+format, append([]any{ErrConfig}, a...)...))
	}
}

// raw is the field's text, "" if it is missing or null.
func (d *document) raw(key string) string {
	v, ok := d.fields[key].(json.RawMessage)
	if !ok || string(v) == "null" {
		return ""
	}
	var b bytes.Buffer
	if json.Compact(&b, v) != nil {
		return string(v)
	}
	return b.String()
}

// into reads the first of the keys that is there and not null, and says whether there is one.
func (d *document) into(dst any, keys ...string) bool {
	for _, k := range keys {
		text := d.raw(k)
		if text == "" {
			continue
		}
		err := json.Unmarshal([]byte(text), dst)
		d.refuse(err != nil, "%s is %.40s: %v", k, text, err)
		return err == nil
	}
	return false
}

// unless refuses a key that has another value.
func (d *document) unless(r refusal) {
	text := d.raw(r.key)
	if text == "" || text == r.unless {
		return
	}
	var got, want float64
	if json.Unmarshal([]byte(text), &got) == nil && json.Unmarshal([]byte(r.unless), &want) == nil && got == want {
		return // 1.0 for 1
	}
	d.refuse(true, "%s is %.40s, only %s is supported", r.key, text, r.unless)
}

// ParseConfig reads a config.json of at most 1 MiB, as transformers 4 or 5 writes it.
func ParseConfig(b []byte) (Config, error) {
	fields, err := fieldsOf(b)
	if err != nil {
		return Config{}, err
	}
	d := &document{fields: fields}
	var modelType string
	d.into(&modelType, "model_type")
	family, err := familyOf(modelType)
	if err != nil {
		return Config{}, errors.Join(append(d.faults, err)...)
	}
	f := family.facts()
	c := Config{Family: family, Normalize: f.normalize == "", Bias: f.bias != "", RopeTheta: f.theta, NormEps: f.eps}
	for _, s := range c.sizes() {
		if s.v == &c.Experts {
			d.into(s.v, "num_experts", "num_local_experts")
			continue
		}
		d.into(s.v, s.key)
	}
	d.into(&c.NormEps, "rms_norm_eps")
	d.into(&c.AuxCoef, "router_aux_loss_coef")
	d.into(&c.Tied, "tie_word_embeddings")
	if f.normalize != "" {
		d.into(&c.Normalize, f.normalize)
	}
	if f.bias != "" {
		d.into(&c.Bias, f.bias)
	}
	if c.KVHeads == 0 && d.raw("num_key_value_heads") == "" {
		c.KVHeads = c.Heads
	}
	if c.HeadDim == 0 && d.raw("head_dim") == "" && c.Heads > 0 {
		c.HeadDim = c.Dim / c.Heads
	}
	d.rope(&c)
	var activation string
	d.refuse(d.into(&activation, "hidden_act") && activation != "silu", "hidden_act %q, only silu is supported", activation)
	var kinds []string
	d.refuse(d.into(&kinds, "layer_types") && slices.ContainsFunc(kinds, func(k string) bool { return k != "full_attention" }),
		"layer_types: only full_attention is supported")
	for _, r := range slices.Concat(refusals, f.refuses) {
		d.unless(r)
	}
	return c, errors.Join(append(d.faults, c.Validate())...)
}

// rope reads the rotary embedding: transformers 5 has everything in rope_parameters, transformers 4 rope_theta beside
// rope_scaling.
func (d *document) rope(c *Config) {
	d.into(&c.RopeTheta, "rope_theta")
	d.refuse(d.raw("rope_scaling") != "", "rope_scaling is not supported")
	var p map[string]json.RawMessage
	if !d.into(&p, "rope_parameters") {
		return
	}
	in := &document{fields: map[string]any{}}
	for k, v := range p {
		in.fields[k] = v
		switch k {
		case "rope_type", "type", "rope_theta", "partial_rotary_factor":
		default:
			d.refuse(in.raw(k) != "", "rope_parameters.%s is not supported", k)
		}
	}
	in.into(&c.RopeTheta, "rope_theta")
	in.unless(refusal{"partial_rotary_factor", "1"})
	var kind, older string // type is its name before rope_type
	in.into(&kind, "rope_type")
	in.into(&older, "type")
	kind = cmp.Or(kind, older, "default")
	d.refuse(kind != "default", "rope_parameters.rope_type %q, only default is supported", kind)
	for _, err := range in.faults {
		d.faults = append(d.faults, fmt.Errorf("rope_parameters: %w", err))
	}
}
