package tokenizer

import (
	"bytes"
	"fmt"
	"strconv"
)

// The files of a Hugging Face directory that [Files] makes.
const (
	JSONFile   = "tokenizer.json"
	ConfigFile = "tokenizer_config.json"
)

// modelMaxLength is what transformers writes for "not limited by the
// tokenizer": 10³⁰ as a float64, written out.
const modelMaxLength = "1000000000000000019884624838656"

// runeOf is the character that stands for a byte in a byte-level vocabulary:
// printable Latin-1 characters for themselves, the others, in order, from
// U+0100 on (the table of GPT-2).
func runeOf(b int) rune {
	printable := func(c int) bool { return c >= '!' && c <= '~' || c >= 0xa1 && c <= 0xac || c >= 0xae && c <= 0xff }
	if printable(b) {
		return rune(b)
	}
	r := rune(256)
	for c := range b {
		if !printable(c) {
			r++
		}
	}
	return r
}

// Files returns the tokenizer as files for a checkpoint directory, by name.
// The bytes are always the same, so their CIDs are too.
func Files() map[string][]byte {
	return map[string][]byte{JSONFile: tokenizerJSON(), ConfigFile: []byte(configJSON)}
}

func tokenizerJSON() []byte {
	var vocab bytes.Buffer
	for b := range VocabSize {
		if b > 0 {
			vocab.WriteString(",\n")
		}
		// Quoted like JSON: of these characters only " and \ need escapes,
		// and Go writes those alike.
		fmt.Fprintf(&vocab, "      %s: %d", strconv.Quote(string(runeOf(b))), b)
	}
	return fmt.Appendf(nil, tokenizerTemplate, vocab.Bytes())
}

const tokenizerTemplate = `{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {
    "type": "ByteLevel",
    "add_prefix_space": false,
    "trim_offsets": true,
    "use_regex": false
  },
  "post_processor": null,
  "decoder": {
    "type": "ByteLevel",
    "add_prefix_space": false,
    "trim_offsets": true,
    "use_regex": false
  },
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": {
%s
    },
    "merges": []
  }
}
`

const configJSON = `{
  "add_prefix_space": false,
  "added_tokens_decoder": {},
  "clean_up_tokenization_spaces": false,
  "model_max_length": ` + modelMaxLength + `,
  "tokenizer_class": "PreTrainedTokenizerFast"
}
`
