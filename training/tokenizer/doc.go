// Package tokenizer is the byte-level tokenizer: 256 tokens, the id of a token
// is the value of its byte, nothing is merged and there are no special tokens.
//
// [Encode] and [Decode] are all that training needs. [Files] gives the same
// tokenizer as the files that Hugging Face's transformers loads from a
// checkpoint directory, and [Parse] tells whether the tokenizer.json of
// somebody's checkpoint is exactly this one; every other is refused by name of
// the first field that differs.
//
// Text is not normalised and need not be UTF-8. The package imports nothing
// else of this module.
package tokenizer
