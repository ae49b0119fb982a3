// Package localtest writes small Hugging Face models of every family for tests: weights and tokenizer are functions of
// names, so that nothing needs to be recorded. It is linked into tests alone.
package localtest
