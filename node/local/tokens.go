package local

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// Tokenizer is that of a checkpoint. The zero value is the byte-level one of package tokenizer.
type Tokenizer struct{ file *tokenizer.Tokenizer }

// bytesPerToken is how many bytes of a sample there are for a token of its sequence, with a tokenizer that merges bytes:
// about what English text takes, so that little of a window is cut off or padded.
const bytesPerToken = 4

// bytes is how many bytes of a window there are for a token.
func (t Tokenizer) bytes() int {
	if t.file == nil {
		return 1
	}
	return bytesPerToken
}

// Unit is what losses are per: "byte" or "token".
func (t Tokenizer) Unit() string {
	if t.file == nil {
		return "byte"
	}
	return "token"
}

// Encode returns the tokens of text.
func (t Tokenizer) Encode(text []byte) []int32 {
	if t.file == nil {
		return tokenizer.Encode(text)
	}
	return t.file.Encode(text)
}

// Prompt is Encode with the tokens that a text begins with, if the tokenizer has such.
func (t Tokenizer) Prompt(text []byte) []int32 {
	ids := t.Encode(text)
	if t.file == nil {
		return ids
	}
	return t.file.Wrap(ids)
}

// Decode returns the text of tokens.
func (t Tokenizer) Decode(ids []int32) ([]byte, error) {
	if t.file == nil {
		return tokenizer.Decode(ids)
	}
	return t.file.Decode(ids)
}

// sample is a window as at most seq+1 tokens.
func (t Tokenizer) sample(text []byte, seq int) []int32 {
	ids := t.Encode(text)
	return ids[:min(len(ids), seq+1)]
}

// readTokenizer reads the tokenizer of a model with that configuration.
func readTokenizer(c *checkpoint.Checkpoint, dir string, m model.Config) (Tokenizer, error) {
	file := filepath.Join(dir, tokenizer.JSONFile)
	raw, err := c.Document(tokenizer.JSONFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Tokenizer{}, fmt.Errorf("%w (a model with another kind of tokenizer gets this file from transformers: "+
			"AutoTokenizer.from_pretrained(…).save_pretrained(…))", err)
	}
	if err != nil {
		return Tokenizer{}, err
	}
	if _, err := tokenizer.Parse(raw); err == nil {
		if m.Vocab < tokenizer.VocabSize {
			return Tokenizer{}, fmt.Errorf("%s: config.json: vocab_size %d, the tokenizer has %d", dir, m.Vocab, tokenizer.VocabSize)
		}
		return Tokenizer{}, nil
	}
	t, err := tokenizer.Read(file, raw)
	if err != nil {
		return Tokenizer{}, err
	}
	if err := t.Fits(m.Vocab); err != nil {
		return Tokenizer{}, fmt.Errorf("%s: %w", file, err)
	}
	return Tokenizer{t}, nil
}

// source gives a dataset's training windows as sequences of seq+1 tokens.
type source struct {
	order  *data.Order
	tokens Tokenizer
	seq    int
}

// newSource is a source of windows of that many bytes.
func newSource(d *data.Dataset, seed [32]byte, window, seq int, t Tokenizer) (source, error) {
	o, err := d.TrainOrder(seed, window)
	if err != nil {
		return source{}, err
	}
	return source{o, t, seq}, nil
}

// farOff is how far from window i the order has those that fill a sequence whose own window has too few tokens. No run
// gets so far, so it trains on no text twice for that.
const farOff = 1 << 40

func (s source) Sequence(i int64) []int32 {
	ids := s.tokens.sample(s.order.At(i).Text, s.seq)
	for k := int64(1); len(ids) <= s.seq; k++ {
		if k > 2*int64(s.seq)+64 { // a tokenizer that makes nothing of text
			return append(ids, make([]int32, s.seq+1-len(ids))...)
		}
		ids = append(ids, s.tokens.sample(s.order.At(i+k*farOff).Text, s.seq-len(ids))...)
	}
	return ids
}
