// Package tokenizer turns text into token ids and back.
//
// The demo model's tokenizer is byte-level: 256 tokens, the id of a token is
// the value of its byte, nothing is merged and there are no special tokens.
// [Encode] and [Decode] are all that training needs of it. [Files] gives the
// same tokenizer as the files that Hugging Face's transformers loads from a
// checkpoint directory, and [Parse] tells whether the tokenizer.json of
// somebody's checkpoint is exactly this one.
//
// [Read] reads the tokenizer.json of other models: byte-level BPE as GPT-NeoX,
// OLMoE, Qwen and Llama 3 have it, and BPE with byte fallback as Mixtral and
// Llama 2 do. The [Tokenizer] gives the ids that the reference library,
// Hugging Face's tokenizers, gives; a file with a part for which that is not
// known is a [FileError] that names the part. docs/spec/tokenizer.md lists
// what is read.
//
// A text goes through files named after its steps: added.go finds tokens that
// are written out, unicode.go normalises, patterns.go cuts words, bpe.go
// merges; hf.go puts them together and decodes, read.go and stages.go read
// the file. Text need not be UTF-8. The package imports nothing else of this
// module and keeps Unicode tables of its own, those of the reference library.
package tokenizer
