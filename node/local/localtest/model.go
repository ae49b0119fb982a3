package localtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// Families are those that are computed.
func Families() []model.Family {
	return []model.Family{model.Qwen3, model.OLMoE, model.Mixtral, model.Qwen2}
}

// Config is a small model of a family with room for [Tokenizer].
func Config(f model.Family) model.Config {
	c := model.Config{Family: f, Vocab: 300, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, HeadDim: 8, Experts: 6, TopK: 2, Width: 20,
		Positions: 64, Normalize: f == model.Mixtral, Tied: f == model.OLMoE, RopeTheta: 10000, NormEps: 1e-5}
	if f == model.Qwen2 {
		c.Shared, c.Bias = 24, true
	}
	return c
}

// Values fills a tensor with bf16 numbers that depend on its name.
func Values(s model.Spec, dst []float32) {
	state := uint64(0xcbf29ce484222325)
	for _, c := range []byte(s.Name) {
		state = (state ^ uint64(c)) * 0x100000001b3
	}
	for i := range dst {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		v := float32(int32((z^z>>31)>>40)-1<<23) / (1 << 25)
		if strings.HasSuffix(s.Name, "norm.weight") {
			v++
		}
		dst[i] = safetensors.RoundBF16(v)
	}
}

// Write writes a model to the new directory dir as Hugging Face does: in one file, or with an index in shards of at most
// that many bytes; experts apart or fused.
func Write(dir string, c model.Config, fused bool, shard int64) error {
	var tensors []checkpoint.Tensor
	for _, s := range c.Stored(fused) {
		t := checkpoint.Tensor{Name: s.Name, DType: checkpoint.BF16}
		for _, d := range s.Shape {
			t.Shape = append(t.Shape, int64(d))
		}
		for _, p := range s.Parts {
			v := make([]float32, p.Len())
			Values(p, v)
			t.Data = append(t.Data, v...)
		}
		tensors = append(tensors, t)
	}
	documents := map[string][]byte{checkpoint.ConfigName: c.JSON(), tokenizer.JSONFile: Tokenizer()}
	if shard > 0 {
		_, err := checkpoint.Write(dir, checkpoint.Contents{Documents: documents, Files: checkpoint.Shards("model", shard, tensors)})
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(documents)) {
		if err := os.WriteFile(filepath.Join(dir, name), documents[name], 0o644); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	if err := safetensors.Write(&b, tensors); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, checkpoint.SingleName), b.Bytes(), 0o644)
}

// merges are what [Tokenizer] merges, a pair each; Ġ stands for a space.
const merges = "Ġ t|h e|Ġt he|i n|Ġ a|r e|o n|e r|Ġ s|a t|e n|o r|Ġ w|Ġ o|i s|e s|a n|Ġ c|in g|e d|0 0|1 0"

// Tokenizer is a tokenizer.json: byte-level BPE of 256 bytes and some pairs of them.
func Tokenizer() []byte {
	var own struct {
		Model struct{ Vocab map[string]int }
	}
	if err := json.Unmarshal(tokenizer.Files()[tokenizer.JSONFile], &own); err != nil {
		panic(err) // it is what package tokenizer writes
	}
	vocab := own.Model.Vocab
	list := strings.Split(merges, "|")
	for _, m := range list {
		vocab[strings.ReplaceAll(m, " ", "")] = len(vocab)
	}
	level := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
	b, err := json.Marshal(map[string]any{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": []any{}, "normalizer": nil, "pre_tokenizer": level,
		"post_processor": nil, "decoder": level,
		"model": map[string]any{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": list},
	})
	if err != nil {
		panic(fmt.Sprint("plain values always encode: ", err))
	}
	return b
}
